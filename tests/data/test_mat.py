"""MATLAB files are read in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

import fmcnet
from fmcnet.data import mat
from fmcnet.data.mat import read_mat


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A draw of SYSU-MM01's size: 6 cameras, 533 identities, ten permutations of 20."""
    camera, cells = np.empty((533, 1), object), np.empty((6, 1), object)
    for pid in range(533):
        camera[pid, 0] = np.tile(np.arange(1, 21), (10, 1))
    for number in range(6):
        cells[number, 0] = camera
    path = tmp_path_factory.mktemp("a folder") / "rand perm.mat"
    savemat(path, {"rand_perm_cam": cells})
    return path


def test_a_file_of_real_size_is_read_as_it_is(large):
    found = read_mat(large, "rand_perm_cam")
    assert np.array(found).shape == (6, 533, 10, 20)
    assert found[5][532][9] == list(range(1, 21))


def test_what_the_process_has_anyway_is_no_part_of_the_limit(large, monkeypatch):
    """As OpenBLAS takes memory for each core."""
    monkeypatch.setattr(
        mat, "_CODE", mat._CODE.replace("limit_memory()\n", "x = bytearray(2**30)\nlimit_memory()\n")
    )
    assert len(read_mat(large, "rand_perm_cam")) == 6


def test_a_program_that_set_its_path_itself_reads_it_too(large, tmp_path):
    """No installed fmcnet and no PYTHONPATH: the process takes the path of the one that asks."""
    places = [
        str(Path(fmcnet.__file__).parents[1]),
        *(place for place in sys.path if "site-packages" in place),
    ]
    code = (
        f"import sys; sys.path += {places}\nfrom fmcnet.data.mat import read_mat; from pathlib import Path\n"
        f"print(len(read_mat(Path({str(large)!r}), 'rand_perm_cam')))"
    )
    (tmp_path / "scipy.py").write_text("raise SystemExit('from the working folder')")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "6\n", done.stderr


def test_a_process_that_cannot_work_is_not_called_a_damaged_file(large, monkeypatch):
    monkeypatch.setattr(mat, "_CODE", "import no_such_package")
    with pytest.raises(ValueError, match=r"it cannot be read .*No module named 'no_such_package'"):
        read_mat(large, "rand_perm_cam")
    monkeypatch.setattr(sys, "executable", "")
    assert len(read_mat(large, "rand_perm_cam")) == 6  # an embedded interpreter reads it itself


def test_a_file_of_matlab_7_3_is_told(tmp_path):
    head = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    (tmp_path / "id.mat").write_bytes(head + b"\x89HDF\r\n\x1a\n" + bytes(600))
    with pytest.raises(ValueError, match=r"MATLAB 7\.3: save it again with -v7"):
        read_mat(tmp_path / "id.mat", "id")
