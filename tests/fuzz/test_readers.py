"""What once broke a reader, and a few inputs broken by a seed: refused in one short message, within the memory."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from fmcnet.config import load_config
from fmcnet.errors import ConfigError, DataError, FmcnetError
from fmcnet.parsing import parse_json, parse_yaml, read_npz
from fmcnet.types import Embeddings
from tests.fuzz.readers import ROOT, broken, fault, make, readers
from tests.server.process import resident_mib

CORPUS = sorted(path for path in (ROOT / "corpus").iterdir() if path.suffix != ".md")
READERS = readers()
JSON = ["card", "export", "calibration", "keys", "report", "generated"]
ALLOWED = 200.0
"""MiB that one broken file may take."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The good files of all readers, and their content."""
    root = tmp_path_factory.mktemp("files")
    make(root)
    return root, {place: (root / place).read_bytes() for place, _ in READERS.values()}


def refusal(files, name, data):
    """The message of a reader for `data` in the place of its file."""
    root, good = files
    place, read = READERS[name]
    (root / place).write_bytes(data)
    before, _ = resident_mib("self", forget_peak=True)
    try:
        with pytest.raises(FmcnetError) as found:
            read(root / place)
    finally:
        (root / place).write_bytes(good[place])
    assert resident_mib("self")[1] - before < ALLOWED
    return str(found.value)


def cases():
    for path in CORPUS:
        name = path.name.split("--")[0]
        yield from ((one, path) for one in (JSON if name == "json" else [name]))


@pytest.mark.parametrize(("name", "path"), list(cases()), ids=lambda one: getattr(one, "name", one))
def test_what_once_broke_a_reader_is_refused(files, name, path):
    said = refusal(files, name, path.read_bytes())
    assert "Traceback" not in said
    assert len(said) < 2000
    assert READERS[name][0].split("/")[-1] in said
    lines = said.splitlines()
    assert len(lines) == 1 or (len(lines) < 8 and "fault" in lines[0])


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read_and_broken_ones_refused(files, name):
    root, good = files
    place, read = READERS[name]
    if name not in ("run-yaml", "generated"):  # of other settings than the reader wants
        read(root / place)
    try:
        for seed in range(4):
            (root / place).write_bytes(broken(good[place], seed))
            assert not fault(read, root / place), seed
    finally:
        (root / place).write_bytes(good[place])


def packed(array, **members):
    """An NPZ file, compressed."""
    out = io.BytesIO()
    np.savez_compressed(out, features=array, **members)
    return out.getvalue()


def test_an_npz_of_zeros_is_refused_before_it_is_unpacked(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        header = io.BytesIO()
        shape = {"descr": "<f4", "fortran_order": False, "shape": (25_000, 1000)}
        np.lib.format.write_array_header_1_0(header, shape)
        with archive.open("features.npy", "w") as stream:
            stream.write(header.getvalue())
            for _ in range(100):
                stream.write(bytes(1_000_000))
    said = refusal(files, "npz", out.getvalue())
    assert "would unpack to 95 MiB" in said


def test_a_line_of_200_mb_is_refused(files):
    root, good = files
    place, read = READERS["csv"]
    with (root / place).open("r+b") as stream:
        stream.truncate(0)
        stream.truncate(200_000_000)
        stream.write(b"path,pid,modality\n")
    before, _ = resident_mib("self", forget_peak=True)
    with pytest.raises(DataError, match=r"table.csv is not a text file.*line 2 has more than 1 MiB"):
        read(root / place)
    (root / place).write_bytes(good[place])
    assert resident_mib("self")[1] - before < 50


def test_npz_files_that_are_in_order_are_read(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "names": np.array(["a", "bc"]),
        "empty": np.zeros((0, 4), np.int64),
        "scalar": np.array(3.5),
        "zeros": np.zeros(2_000_000, np.uint8),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_npz_members_that_are_no_arrays_are_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", pid=np.arange(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("notes.txt", "of the camera")
    assert list(read_npz(tmp_path / "a.npz")) == ["pid"]


def test_a_wrong_type_in_an_npz_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(packed(np.array(["a"])))
    with pytest.raises(DataError, match="lacks the arrays pid"):
        Embeddings.load(tmp_path / "a.npz")


def test_yaml_of_before_reads_the_same():
    text = "a: &x {k: 1, l: [1.5, yes, null, ~, 0x1f, 0o7, 1_000]}\nb: {<<: *x, k: 2}\nc: *x\n"
    first = {"k": 1, "l": [1.5, True, None, None, 31, "0o7", "1_000"]}  # 12_3 may be a name
    assert parse_yaml(text) == {"a": first, "b": {**first, "k": 2}, "c": first}
    assert parse_yaml("2026-03-01") == "2026-03-01"
    assert parse_yaml("") is None
    assert parse_yaml(str(2**64 - 1)) == 2**64 - 1


def test_the_place_of_a_fault_in_yaml_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("training:\n  seed: 1\n\tlr: 2\n")
    with pytest.raises(ConfigError, match=r"a.yaml is not valid YAML: line 3: "):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes("training:\n  seed: 1 # café\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"line 2 has bytes that are not UTF-8"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000, "!!bool x"])
def test_an_override_that_is_no_yaml_is_named(value):
    with pytest.raises(ConfigError, match="the value is not valid YAML") as found:
        load_config(None, [f"training.seed={value}"])
    assert len(str(found.value)) < 400


def test_json_within_its_limits():
    assert parse_json('[18446744073709551615, -3, 1e400, {"a": []}]') == [
        2**64 - 1,
        -3,
        float("inf"),
        {"a": []},
    ]
    with pytest.raises(ValueError, match="64 bits"):
        parse_json("18446744073709551616")
    assert parse_json("[" * 100 + "]" * 100)
    with pytest.raises(ValueError, match="levels"):
        parse_json("[" * 101 + "]" * 101)
    with pytest.raises(ValueError, match=r"^'bbox' is there twice in one object$"):
        parse_json('[{"id": 1}, {"id": 2, "bbox": [1], "bbox": [2]}]')


def test_weights_far_smaller_than_the_card_claims_are_refused_before_the_model_is_built(files):
    card = files[1]["run/model.json"].replace(b'"width": 2', b'"width": 1024')
    assert card != files[1]["run/model.json"]
    assert "is damaged or of another model: it has 189,072 bytes" in refusal(files, "card", card)
    card = card.replace(b'"width": 1024', b'"width": 1' + b"0" * 18)
    assert "describes a model that cannot be built" in refusal(files, "card", card)
