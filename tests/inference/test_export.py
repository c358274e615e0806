"""Exported models: right, compared, refused when they lose too much, and never half there."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.data.readers.csv import write_csv
from fmcnet.errors import CheckpointError, DataError, FmcnetError, MissingDependencyError
from fmcnet.inference.backends import GRAPHS, read_manifest
from fmcnet.inference.calibration import CALIBRATION
from fmcnet.inference.encoder import Encoder, load
from fmcnet.inference.export import write
from fmcnet.inference.export.graph import quantize
from fmcnet.inference.export.parity import BackendReport, choose, compare, markdown, rates
from fmcnet.inference.export.write import export
from fmcnet.inference.fit_projection import fit_projection
from fmcnet.types import Modality
from tests.cli import run_command


@pytest.fixture
def known_graphs(tiny_onnx, monkeypatch):
    """Graphs of `tiny_run` are copied where they would be traced again (`tiny_onnx` was traced)."""

    def copy(model, modality, height, width, path, projection):
        shutil.copy(tiny_onnx / GRAPHS[modality], path)
        return read_manifest(tiny_onnx).opset

    monkeypatch.setattr(write, "write_graph", copy)


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch):
    monkeypatch.setattr(write, "SPEED_SECONDS", 0.001)


def exported(run, out, **settings):
    return export(run, out=out, progress=False, **settings)


def test_what_an_export_holds(tiny_onnx, tiny_run):
    names = {path.name for path in tiny_onnx.iterdir()}
    assert names == {"model.json", "export.json", "parity.json", "parity.md", *GRAPHS.values()}
    manifest, encoder = read_manifest(tiny_onnx), load(tiny_run, "cpu")
    assert (manifest.precision, manifest.digest) == ("fp32", encoder.digest)
    assert manifest.dim == encoder.encode(np.zeros((8, 8, 3), np.uint8), "ir").features.shape[1]
    for modality in Modality:
        graph = onnx.load(str(tiny_onnx / GRAPHS[modality]))
        onnx.checker.check_model(graph, full_check=True)
        assert b"fmcnet/" not in (tiny_onnx / GRAPHS[modality]).read_bytes()  # no path of a source file
        (images,), (embedding,) = graph.graph.input, graph.graph.output
        shape = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
        assert shape == ["batch", encoder.height, encoder.width, 3]
        assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8  # normalised inside
        assert embedding.type.tensor_type.shape.dim[0].dim_param == "batch"
    report = json.loads((tiny_onnx / "parity.json").read_text())
    eager, exact = report["forms"]
    assert eager["largest_difference"] == 0
    assert 0 <= exact["largest_difference"] < 1e-5
    assert exact["smallest_cosine"] > 1 - 1e-6
    assert exact["bytes"] == sum((tiny_onnx / name).stat().st_size for name in GRAPHS.values())
    assert set(exact["images_per_second"]) == {"1", "32"}
    assert min(exact["images_per_second"].values()) > 0
    assert "generated images" in (tiny_onnx / "parity.md").read_text()  # no table was given


@pytest.mark.usefixtures("known_graphs")
def test_a_table_gives_the_change_of_rank_1_and_map(tiny_run, tiny_sysu, tmp_path):
    from fmcnet.evaluation.evaluate_model import evaluate_model

    result = exported(tiny_run, tmp_path / "onnx", data=tiny_sysu)
    eager, exact = result.forms
    from fmcnet.data.readers import read_dataset

    settings = load(tiny_run, "cpu").card.config.evaluation.model_copy(update={"direction": "both"})
    for one in evaluate_model(
        tiny_run, read_dataset(tiny_sysu), settings, device="cpu", progress=False
    ).evaluations:
        assert eager.scores[one.direction]["mAP"] == pytest.approx(100 * one.result.mean["mAP"], abs=1e-6)
        assert eager.scores[one.direction]["rank1"] == pytest.approx(100 * one.result.mean["rank1"], abs=1e-6)
    assert abs(exact.loss(eager)) < 0.5
    assert "Rank-1 i2v" in (tmp_path / "onnx" / "parity.md").read_text()


@pytest.mark.usefixtures("known_graphs")
def test_int8_that_loses_too_much_is_refused_and_not_kept(tiny_run, tiny_sysu, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "MAX_LOST_MAP", -100.0)
    out = tmp_path / "int8"
    with pytest.raises(FmcnetError, match=r"int8 loses more than -100\.0 points of mAP .*--force"):
        exported(tiny_run, out, int8=True, calibrate=tiny_sysu, images=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8"]
    assert sorted(path.name for path in out.iterdir()) == ["parity.json", "parity.md"]
    assert "kept: none" in (out / "parity.md").read_text()
    with pytest.raises(CheckpointError, match=r"holds no model\.json"):
        load(out)
    forced = exported(tiny_run, out, int8=True, calibrate=tiny_sysu, images=16, force=True)
    assert "by force" in (out / "parity.md").read_text()
    assert len(forced.forms) == 4
    with pytest.raises(FmcnetError, match="is as it was"):
        exported(tiny_run, out, int8=True, calibrate=tiny_sysu, images=16)
    encoder = load(out)
    assert encoder.digest != load(tiny_run, "cpu").digest  # its embeddings are others
    assert read_manifest(out).source == load(tiny_run, "cpu").digest
    image = str(min(Path(tiny_sysu, "cam1").rglob("*.jpg")))
    found = (
        encoder.encode(image, "visible").features @ load(tiny_run, "cpu").encode(image, "visible").features.T
    )
    assert 0.9 < found[0, 0] < 1.001


@pytest.mark.usefixtures("known_graphs")
def test_int8_that_keeps_its_map_is_kept_and_smaller(tiny_run, tiny_sysu, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "MAX_LOST_MAP", 100.0)
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("embeddings", "checkpoints"))
    result = exported(run, None, int8=True, calibrate=tiny_sysu, images=16)
    assert result.out == run / "onnx-int8"
    eager, exact, full, mixed = result.forms
    assert full.bytes < mixed.bytes < exact.bytes
    assert (eager.kept, exact.kept, full.kept) == ((), (), ())
    assert mixed.kept
    assert read_manifest(result.out).precision == "int8"
    assert read_manifest(result.out).kept == ()  # in full
    told = (result.out / "parity.md").read_text()
    assert "kept: ONNX Runtime, int8 full" in told
    assert re.search("int8 ranges: of 8 visible and 8 infrared images of split train of .*sysu", told)
    assert "among those scored" not in told


def test_what_int8_ranges_were_learnt_from_is_told(tiny_run, tiny_sysu, tmp_path):
    encoder, table = Encoder.from_pretrained(tiny_run, device="cpu"), read_dataset(tiny_sysu)
    test = table.select(split="test")
    write_csv(test, tmp_path / "test.csv")
    ranges, told = write._range_images(encoder, tmp_path / "test.csv", 6, test, False)
    assert [len(images) for images in ranges.values()] == [3, 3]
    assert re.fullmatch(
        r"int8 ranges: of 3 visible and 3 infrared images of \S+; 6 of them are among .* here", told
    )


def form(name, lost, speed=10.0):
    scores = {"i2v": {"rank1": 50.0, "mAP": 50.0 - lost}, "v2i": {"rank1": 50.0, "mAP": 50.0}}
    return BackendReport(name, 2**20, 0.1, 0.9, scores, {"1": speed})


@pytest.mark.parametrize(
    ("full", "mixed", "force", "place", "refused"),
    [
        (0.4, 0.1, False, 2, False),  # full int8 will do
        (0.6, 0.4, False, 3, False),  # mixed precision is what it takes
        (0.7, 0.6, False, 3, True),
        (0.6, 0.7, True, 2, False),  # the lesser loss, by force
        (-3.0, 0.0, False, 2, False),  # a gain is no loss
    ],
)
def test_which_int8_is_kept(full, mixed, force, place, refused):
    forms = [form("eager", 0.0), form("fp32", 0.0), form("full", full), form("mixed", mixed)]
    remarks = []
    chosen, reason = write._choose_form(forms, True, force, remarks)
    assert chosen == place
    assert bool(reason) is refused
    assert f"full loses {max(full, 0.0):+.2f}" in remarks[0]
    with pytest.raises(DataError, match="judged by mAP"):
        write._choose_form([BackendReport("x", 1, 0, 1, {}, {})] * 4, True, force, [])


def test_the_worse_direction_counts():
    worse = BackendReport(
        "x", 1, 0, 1, {"i2v": {"rank1": 1.0, "mAP": 51.0}, "v2i": {"rank1": 1.0, "mAP": 49.0}}, {}
    )
    assert worse.loss(form("eager", 0.0)) == 1.0


def test_mixed_precision_keeps_the_first_and_last_layers(tiny_onnx, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 32, 3), dtype=np.uint8)
    source = tiny_onnx / GRAPHS[Modality.VISIBLE]
    for scheme in ("full", "mixed"):
        kept = quantize(source, tmp_path / f"{scheme}.onnx", images, scheme)
        nodes = onnx.load(str(tmp_path / f"{scheme}.onnx")).graph.node
        made_by = {out: node.op_type for node in nodes for out in node.output}
        layers = [node for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
        floats = [node.name for node in layers if made_by.get(node.input[1]) != "DequantizeLinear"]
        assert sorted(floats) == sorted(kept), scheme
        if scheme == "full":
            assert floats == []
        else:
            convolutions = [node.name for node in layers if node.op_type == "Conv"]
            assert convolutions[0] in floats
            assert convolutions[-1] in floats
            assert {node.name for node in layers if node.op_type == "Gemm"} <= set(floats)
            assert len(floats) < len(layers) / 2


@pytest.mark.parametrize(
    "settings",
    [
        ["model.variant=fmc", "model.pooling=gem"],
        ["model.variant=base", "model.specific_stages=1", "model.descriptor=normalized"],
    ],  # of stripes and a standardised descriptor: tests/inference/test_lite.py
)
def test_every_kind_of_model_exports_for_every_batch(settings, tmp_path):
    import torch

    from fmcnet.inference.backends import TorchBackend
    from fmcnet.inference.export.graph import write_graph
    from fmcnet.models.build import build_model

    config = load_config("tiny", [*settings, "model.width=4"]).model
    torch.manual_seed(0)
    model = build_model(config, 3).eval()
    path = tmp_path / "g.onnx"
    width = model.embed(torch.zeros(1, 3, 32, 16), Modality.INFRARED).shape[1]
    descriptors = np.random.default_rng(0).normal(size=(20, width)).astype(np.float32)
    projection = fit_projection(descriptors, np.arange(20) // 4, 4) if config.variant == "base" else None
    write_graph(model, Modality.INFRARED, 32, 16, path, projection)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (batch, 32, 16, 3), dtype=np.uint8)
        expected = TorchBackend(model, torch.device("cpu"), projection)(images, Modality.INFRARED)
        assert session.run(None, {"images": images})[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("used_twice", [False, True])
def test_a_normalisation_joins_a_convolution_that_feeds_nothing_else(used_twice):
    import torch
    from torch import nn

    from fmcnet.inference.export.graph import _quick_to_trace

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            nn.init.constant_(self.norm.running_mean, 2.0)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y if used_twice else self.norm(y)

    graph, x = Graph().eval(), torch.rand(2, 3, 8, 8)
    quick = _quick_to_trace(graph, x)
    assert any(isinstance(module, nn.BatchNorm2d) for module in quick.modules()) is used_twice
    assert quick(x).detach().numpy() == pytest.approx(graph(x).detach().numpy(), abs=1e-5)


@pytest.mark.usefixtures("known_graphs")
def test_a_calibration_goes_along_in_float32_only(tiny_run, tiny_sysu, tmp_path, monkeypatch):
    from fmcnet.inference.fit_calibration import calibrate_model

    monkeypatch.setattr(write, "MAX_LOST_MAP", 100.0)
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("embeddings", "checkpoints"))
    calibrate_model(run, tiny_sysu, device="cpu", progress=False)
    exported(run, tmp_path / "fp32", data=tiny_sysu)
    assert Encoder.from_pretrained(tmp_path / "fp32").calibration.curves
    exported(run, tmp_path / "int8", int8=True, calibrate=tiny_sysu, images=16)
    assert not (tmp_path / "int8" / CALIBRATION).exists()


def test_only_an_earlier_export_is_replaced(tiny_run, tiny_sysu, tmp_path, known_graphs):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(CheckpointError, match="is no exported model"):
            exported(tiny_run, tmp_path / name)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    first = exported(tiny_run, tmp_path / "new" / "onnx", data=tiny_sysu)
    (first.out / "parity.md").write_text("old")
    exported(tiny_run, first.out, data=tiny_sysu)
    assert (first.out / "parity.md").read_text() != "old"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["onnx"]


@pytest.mark.usefixtures("known_graphs")
def test_another_models_export_is_not_replaced_unasked(tiny_run, tiny_onnx, tiny_sysu, tmp_path):
    there, run = tmp_path / "onnx", tmp_path / "run"
    shutil.copytree(tiny_onnx, there)
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("embeddings", "checkpoints"))
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(bytes(weights))
    before, mine = load(tiny_run, "cpu").digest, load(run, "cpu").digest
    (there / CALIBRATION).write_text("of the model before")
    said = f"holds the fp32 export {before} of model {before}, not the fp32 export of {mine}"
    with pytest.raises(CheckpointError, match=f"{said}.*--overwrite"):
        exported(run, there, data=tiny_sysu)
    with pytest.raises(CheckpointError, match=f"of model {before}, not the int8 export of {before}"):
        exported(tiny_run, there, int8=True, calibrate=tiny_sysu, images=8)
    assert read_manifest(there).digest == before
    assert exported(run, there, data=tiny_sysu, overwrite=True).manifest.digest == mine
    assert load(there).digest == mine
    assert not load(there).calibrated  # that was of the model before
    (there / "export.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"export\.json is missing or damaged.*with --overwrite"):
        exported(run, there, data=tiny_sysu)


@pytest.mark.usefixtures("known_graphs")
@pytest.mark.parametrize("newest", ["run", "onnx"])
def test_the_newest_calibration_of_the_same_embeddings_stays(
    newest, tiny_run, tiny_onnx, tiny_sysu, tmp_path
):
    from fmcnet.inference.fit_calibration import calibrate_model

    there, run = tmp_path / "onnx", tmp_path / "run"
    shutil.copytree(tiny_onnx, there)
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("embeddings", "checkpoints"))
    for name in sorted(("run", "onnx"), key=lambda name: name == newest):
        calibrate_model(tmp_path / name, tiny_sysu, prior=0.2 if name == newest else 0.1, progress=False)
    exported(run, there, data=tiny_sysu)
    assert load(there).calibration.prior == 0.2


def test_a_failure_leaves_the_old_export(tiny_run, tiny_onnx, tiny_sysu, tmp_path, monkeypatch):
    out = tmp_path / "onnx"
    shutil.copytree(tiny_onnx, out)

    def fails(*a, **k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_graph", fails)
    with pytest.raises(OSError, match="No space"):
        exported(tiny_run, out, data=tiny_sysu)
    assert load(out).encode(np.zeros((8, 8, 3), np.uint8), "ir").features.shape[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_speed_is_measured_in_turns():
    order = []

    class Engine:
        device = "cpu"

        def __init__(self, name):
            self.name = name

        def __call__(self, images, modality):
            order.append((self.name, len(images)))
            return np.ones((len(images), 2), np.float32)

    found = rates(
        [Engine("a"), Engine("b")], np.zeros((2, 4, 4, 3), np.uint8), Modality.VISIBLE, seconds=0, rounds=2
    )
    assert [name for name, size in order if size == 1] == [
        "a",
        "b",
        "a",
        "b",
        "a",
        "b",
    ]  # warm, then two rounds
    assert {size for _, size in order} == {1, 32}
    assert [len(one[32]) for one in found] == [2, 2]


def test_differences_are_of_unit_embeddings():
    class Engine:
        name, device = "x", "cpu"

        def __init__(self, row):
            self.row = np.array(row, np.float32)

        def __call__(self, images, modality):
            return np.repeat(self.row[None], len(images), axis=0)

    images, modality = np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1, 1], np.uint8)
    forms = [("a", Engine([2, 0]), 5, ()), ("b", Engine([3, 4]), 6, ("c",))]
    one, two = compare(forms, images, modality, None, load_config("tiny").evaluation, seconds=0)
    assert (one.largest_difference, one.smallest_cosine) == (0, 1)
    assert two.largest_difference == pytest.approx(0.8)
    assert two.smallest_cosine == pytest.approx(0.6)
    assert (two.bytes, two.kept, two.scores) == (6, ("c",), {})
    assert "| b | 0.0 | 8.0e-01 | 0.600000 |" in markdown([one, two])


def test_ranges_are_learnt_from_both_modalities_alike():
    modality = np.array([0] * 50 + [1] * 10, np.uint8)
    rows = choose(modality, 20)
    assert np.bincount(modality[rows]).tolist() == [10, 10]
    assert np.array_equal(rows, choose(modality, 20))
    assert np.bincount(modality[choose(modality, 40)]).tolist() == [20, 10]


def run(*words, code=0):
    done = run_command(*words, code=None, terminal_width=200)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.mark.usefixtures("known_graphs")
def test_the_command_and_its_mistakes(tiny_run, tiny_onnx, tiny_sysu, tmp_path):
    out = tmp_path / "onnx"
    said = json.loads(
        run_command(
            "export", str(tiny_run), "--data", str(tiny_sysu), "--out", str(out), "--json", code=None
        ).stdout
    )
    assert said["precision"] == "fp32"
    assert Path(said["out"]) == out
    assert json.loads(run("info", out, "--json"))["runtime"] == "ONNX Runtime, fp32"
    figures = [
        json.loads(
            run_command(
                "evaluate", str(model), "--data", str(tiny_sysu), "--no-report", "--json", code=None
            ).stdout
        )
        for model in (tiny_run, out)
    ]
    one, two = (f["evaluations"][0]["mean"] for f in figures)
    assert one == pytest.approx(two)
    assert "is an exported model" in run("evaluate", out, "--data", tiny_sysu, code=2)
    assert "onnx is the one format" in run("export", tiny_run, "--to", "tflite", code=2)
    assert "give --calibrate TABLE" in run("export", tiny_run, "--int8", code=2)
    assert "no model for torch" in run("export", tiny_onnx, code=2)
    assert "there is no model" in run("export", tmp_path / "none", code=2)


@pytest.mark.usefixtures("known_graphs")
def test_tables_that_will_not_do(tiny_run, tiny_sysu, tmp_path):
    from fmcnet.data.readers import read_dataset

    rows = read_dataset(tiny_sysu).records()
    lines = [
        f"{tiny_sysu / r.path},{r.pid},{r.modality},test" for r in rows if r.modality is Modality.VISIBLE
    ]
    (tmp_path / "day.csv").write_text("\n".join(["path,pid,modality,split", *lines]) + "\n")
    with pytest.raises(DataError, match="no test images of both modalities"):
        exported(tiny_run, tmp_path / "x", data=tmp_path / "day.csv")
    with pytest.raises(DataError, match="no infrared image"):
        exported(
            tiny_run, tmp_path / "x", int8=True, calibrate=tmp_path / "day.csv", data=tiny_sysu, images=8
        )
    assert not (tmp_path / "x").exists()


def test_without_onnx_the_extra_is_named(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"fmcnet\[export\]"):
        exported(tiny_run, tmp_path / "x")
    assert not list(tmp_path.iterdir())
