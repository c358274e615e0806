"""ONNX Runtime behind the same face: the same answers, and no PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fmcnet.data.readers import read_dataset
from fmcnet.errors import CheckpointError, FmcnetError, MissingDependencyError
from fmcnet.inference.backends import EXPORT_MANIFEST
from fmcnet.inference.encoder import Encoder, load
from fmcnet.types import Modality


@pytest.fixture
def copy(tiny_onnx, tmp_path):
    shutil.copytree(tiny_onnx, tmp_path / "onnx")
    return tmp_path / "onnx"


def test_both_runtimes_give_the_same_embeddings_and_top_20(tiny_run, tiny_onnx, tiny_sysu):
    table = read_dataset(tiny_sysu).select(split="test")
    by_torch, by_onnx = load(tiny_run, "cpu"), load(tiny_onnx)
    assert by_torch.digest == by_onnx.digest
    one = by_torch.embed_table(table, progress=False)
    for batch in (1, 7, 64):  # any batch
        two = by_onnx.embed_table(table, batch_size=batch, progress=False)
        assert np.abs(one.features - two.features).max() < 1e-5
    flips = [e.embed_table(table, flip=True, progress=False).features for e in (by_torch, by_onnx)]
    assert np.abs(flips[0] - flips[1]).max() < 1e-5
    night, day = (table.select(modality=kind).full_paths() for kind in (Modality.INFRARED, Modality.VISIBLE))
    ranked = [
        np.argsort(-e.similarity(e.encode(night, "ir"), e.encode(day, "visible")), axis=1)[:, :20]
        for e in (by_torch, by_onnx)
    ]
    assert np.array_equal(*ranked)


def test_threads_reach_onnx_runtime(tiny_onnx):
    image = np.zeros((8, 8, 3), np.uint8)
    encoder = Encoder.from_pretrained(tiny_onnx, threads=1)
    encoder.encode(image, "visible")
    options = encoder.backend._session(Modality.VISIBLE).get_session_options()
    assert options.intra_op_num_threads == 1


def test_what_needs_the_network_itself_says_so(tiny_onnx):
    encoder = load(tiny_onnx)
    with pytest.raises(FmcnetError, match="is an exported model"):
        encoder.model  # noqa: B018
    with pytest.raises(FmcnetError, match="cannot be used by this ONNX Runtime"):
        load(tiny_onnx, "mps")


@pytest.mark.parametrize("damage", ["cut", "gone", "swapped", "manifest", "no graph inside"])
def test_damage_is_found(copy, damage):
    visible, infrared = copy / "model-visible.onnx", copy / "model-infrared.onnx"
    if damage == "cut":
        visible.write_bytes(visible.read_bytes()[:-100])
    elif damage == "gone":
        infrared.unlink()
    elif damage == "swapped":
        visible.write_bytes(infrared.read_bytes())
    elif damage == "manifest":
        (copy / EXPORT_MANIFEST).write_text('{"format": "fmcnet-onnx-1"}')
    else:
        from fmcnet.files import file_digest

        infrared.write_bytes(b"not a graph")  # an fp32 digest does not depend on the graphs
        tree = json.loads((copy / EXPORT_MANIFEST).read_text())
        tree["sha256"]["model-infrared.onnx"] = file_digest(infrared)
        (copy / EXPORT_MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=r"is (missing or )?damaged|cannot be loaded"):
        load(copy).encode(np.zeros((8, 8, 3), np.uint8), "infrared")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dim": "many"}, "dim = 'many': "),
        ({"dim": 0}, "dim = 0: "),
        ({"dim": 3}, r"dim should give \[3\] and model-visible\.onnx has \[\d+\]"),
        ({"height": 64.5}, r"height = 64\.5: "),
        ({"opset": None}, "opset = None: "),
        ({"precision": "fp16"}, "precision = 'fp16': "),
        ({"precision": "int8"}, r"digest is \w+, of this int8 model it is"),
        ({"digest": "0" * 16}, r"digest is 0{16}, of this fp32 model"),
        ({"digest": "../x"}, r"digest = '\.\./x': "),
        ({"sha256": {}}, "sha256 names nothing, not model-visible.onnx"),
        ({"sha256": {"model-visible.onnx": "x"}}, "sha256.model-visible.onnx = 'x': "),
        ({"kept": [1]}, "kept.0 = 1: "),
        ({"colour": 1}, "colour = 1: unexpected"),
        ({"width": 20}, r"export\.json is of images of \d+ x 20 \(H x W\), model\.json of"),
    ],
)
def test_a_damaged_field_of_the_manifest_is_named(copy, change, said):
    tree = json.loads((copy / EXPORT_MANIFEST).read_text())
    (copy / EXPORT_MANIFEST).write_text(json.dumps(tree | change))
    with pytest.raises(CheckpointError, match=f"{said}.*export the model again"):
        load(copy).encode(np.zeros((8, 8, 3), np.uint8), "visible")


def test_a_manifest_lacking_a_field_says_which(copy):
    tree = json.loads((copy / EXPORT_MANIFEST).read_text())
    del tree["opset"]
    (copy / EXPORT_MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=r"export\.json is damaged: opset: field required"):
        load(copy)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cuda:x", "cuda:", "mps", "cpu:1"])
def test_a_device_that_onnx_runtime_lacks_is_said_at_once(tiny_onnx, device):
    """This ONNX Runtime has no CUDA."""
    with pytest.raises(FmcnetError, match=f"device '{device}' cannot be used by") as said:
        load(tiny_onnx, device)
    assert "cpu" in str(said.value)


def test_cuda_that_does_not_start_is_an_error_and_no_silent_cpu(tiny_onnx, monkeypatch):
    """The provider is announced, as by onnxruntime-gpu without a driver; the real session then goes on without."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning, match="is not in available"), pytest.raises(FmcnetError) as said:
        load(tiny_onnx, "cuda:0")
    assert "device 'cuda:0' cannot be used by this ONNX Runtime: its CUDA provider did not start" in str(
        said.value
    )
    assert "--device cpu" in str(said.value)

    def broken(*arguments, **settings):
        assert settings["enable_fallback"] == 0
        raise RuntimeError("CUDA failure 100: no CUDA-capable device\nmore")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(FmcnetError, match=r"'cuda' cannot be used.*failure 100: no CUDA-capable device. Say"):
        load(tiny_onnx, "cuda")


def test_a_device_that_fails_later_is_named(tiny_onnx):
    encoder = load(tiny_onnx)
    encoder.encode(np.zeros((8, 8, 3), np.uint8), "visible")

    class Session:
        def run(self, *arguments):
            raise RuntimeError("out of memory")

    encoder.backend._sessions[Modality.VISIBLE] = Session()
    with pytest.raises(FmcnetError, match="failed on cpu with 1 images: out of memory"):
        encoder.encode(np.zeros((8, 8, 3), np.uint8), "visible")


def test_without_onnx_runtime_the_extra_is_named(tiny_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"fmcnet\[runtime\]"):
        load(tiny_onnx)


NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked in this test")
sys.meta_path.insert(0, Blocked())
"""


def without_torch(code: str, *arguments: object) -> str:
    words = [sys.executable, "-c", NO_TORCH + code, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_onnx_runtime_needs_no_torch(tiny_run, copy, tiny_sysu, tmp_path):
    """Encoding, a calibration and the command line, where `import torch` fails."""
    from fmcnet.inference.fit_calibration import calibrate_model

    calibrate_model(tiny_run, tiny_sysu, out=copy / "calibration.json", device="cpu", progress=False)
    table = read_dataset(tiny_sysu).select(split="test")
    paths = [str(path) for path in table.full_paths()[:4]]
    code = """
import json, numpy, fmcnet
from PIL import Image
folder, out, *paths = sys.argv[1:]
encoder = fmcnet.Encoder.from_pretrained(folder)
images = [*paths, Image.open(paths[0]), numpy.asarray(Image.open(paths[1]))]
found = encoder.encode(images, ["visible"] * 3 + ["infrared"] * 3)
pair = encoder.similarity(found, found)[0, 3]
print(json.dumps([found.features.tolist(), float(encoder.calibration.probability(pair, "visible", "infrared")),
    encoder.calibration.threshold("visible", "infrared", fmr=0.1)]))
from fmcnet.cli.app import app
app(["embed", folder, *paths, "--modality", "visible", "--out", out], standalone_mode=False)
assert "torch" not in sys.modules
"""
    said = without_torch(code, copy, tmp_path / "e.npz", *paths)
    features, probability, threshold = json.loads(said.splitlines()[0])
    encoder = load(tiny_run, "cpu")
    from PIL import Image

    expected = encoder.encode([*paths, Image.open(paths[0]), Image.open(paths[1])], [0, 0, 0, 1, 1, 1])
    assert np.array(features) == pytest.approx(expected.features, abs=1e-5)
    assert 0 < probability < 1
    assert -1 < threshold < 1
    assert np.load(tmp_path / "e.npz")["features"] == pytest.approx(
        encoder.encode(paths, "visible").features, abs=1e-5
    )


def test_a_pytorch_model_without_torch_says_what_is_missing(tiny_run):
    code = """
import fmcnet
try:
    fmcnet.load(sys.argv[1])
except fmcnet.FmcnetError as error:
    print(type(error).__name__, error)
"""
    said = without_torch(code, tiny_run)
    assert "MissingDependencyError" in said
    assert "pip install torch" in said
    assert "fmcnet export" in said
