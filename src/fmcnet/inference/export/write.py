"""`fmcnet export`: graphs, checked and compared, in a folder that `Encoder.from_pretrained` opens without PyTorch."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcnet.data.cache import ImageCache
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Table
from fmcnet.errors import CheckpointError, DataError, FmcnetError, require
from fmcnet.files import (
    check_writable,
    file_digest,
    put_in_place,
    room_beside,
    write_json,
    write_text,
)
from fmcnet.inference.backends import (
    EXPORT_MANIFEST,
    GRAPHS,
    ONNX_FOLDER,
    Manifest,
    OnnxBackend,
    int8_digest,
    read_manifest,
)
from fmcnet.inference.calibration import CALIBRATION, Calibration
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.export.graph import SCHEMES, quantize, write_graph
from fmcnet.inference.export.parity import BackendReport, Form, choose, compare, markdown
from fmcnet.models.card import CARD, WEIGHTS, versions
from fmcnet.models.shipped import refuse_shipped
from fmcnet.synthetic import generate
from fmcnet.types import Modality

PARITY_FILES = ("parity.json", "parity.md")
MAX_LOST_MAP = 0.5
"""Points of mAP that int8 may lose."""

SPEED_SECONDS = 0.3
"""Length of each measurement of speed."""


@dataclass(frozen=True)
class Exported:
    """The result of an export: `forms`, the first of them eager PyTorch, and notes on the comparison as `remarks`."""

    out: Path
    manifest: Manifest
    forms: tuple[BackendReport, ...]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--json` and `parity.json`."""
        return {
            "out": str(self.out),
            "precision": self.manifest.precision,
            "digest": self.manifest.digest,
            "kept_in_float32": list(self.manifest.kept),
            "forms": [form.to_dict() for form in self.forms],
            "remarks": list(self.remarks),
            "threads": torch.get_num_threads(),
            "versions": self.manifest.versions,
        }


def export(
    run: str | Path,
    *,
    int8: bool = False,
    calibrate: str | Path | None = None,
    data: str | Path | None = None,
    images: int = 256,
    out: str | Path | None = None,
    force: bool = False,
    overwrite: bool = False,
    seconds: float | None = None,
    progress: bool | None = None,
) -> Exported:
    """Write a model as ONNX, with a report on the differences; the folder appears whole or not at all.

    Args:
        run: a run folder, or a shipped model's name.
        int8: in int8: in full, or but for the first and last layers where that loses too much.
        calibrate: for int8, the table whose images (of split train where it has one) give the ranges of activations.
        data: the table whose test images are compared and scored; None: that of `calibrate`; without either,
            generated images are compared and nothing is scored.
        images: number of images that ranges are learnt from, half of each modality.
        out: the folder to write; None: `onnx` or `onnx-int8` in the run folder. An earlier export of this
            model in the same precision is replaced.
        force: keep an int8 model that loses more than `MAX_LOST_MAP` points of mAP.
        overwrite: replace an export of another model or precision, too.
        seconds: of each measurement of speed; None: `SPEED_SECONDS`.
        progress: show bars; None: on a terminal only.

    Raises:
        FmcnetError: when int8 loses too much and `force` is off: the folder then holds the report and no model, or
            the earlier model that was there.
        CheckpointError: when there is no model with weights, or `out` holds something else.
        MissingDependencyError: without the extra "export".
    """
    if int8 and calibrate is None:
        raise FmcnetError(
            "int8 needs images to learn its ranges from: give --calibrate TABLE, a dataset or a CSV"
        )
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "export")
    encoder = Encoder.from_pretrained(run, device="cpu", runtime="torch")
    assert encoder.folder is not None
    if out is None:
        refuse_shipped(run, encoder.folder, "FOLDER")
    target = (
        Path(out) if out is not None else encoder.folder / (f"{ONNX_FOLDER}-int8" if int8 else ONNX_FOLDER)
    )
    _check_target(target, encoder.digest, "int8" if int8 else "fp32", overwrite)
    with room_beside(target) as scratch:  # before the work: it may fail
        pixels, modality, table, remark = _comparison_images(
            encoder, data if data is not None else calibrate, progress
        )
        learnt_from: list[str] = []
        names, folders = ["ONNX Runtime, fp32"], [_float_graphs(encoder, scratch / "fp32")]
        if int8:
            assert calibrate is not None
            range_images, origin = _range_images(encoder, calibrate, images, table, progress)
            learnt_from.append(origin)
            names += [f"ONNX Runtime, int8 {scheme}" for scheme in SCHEMES]
            folders += [
                _int8_graphs(folders[0], scratch / scheme, range_images, scheme) for scheme in SCHEMES
            ]
        weights = (encoder.folder / WEIGHTS).stat().st_size
        forms = [Form("PyTorch, eager", encoder.backend, weights), *map(_onnx_form, names, folders)]
        config = encoder.card.config.evaluation
        compared = compare(
            forms, pixels, modality, table, config, seconds=SPEED_SECONDS if seconds is None else seconds
        )
        remarks = [
            remark,
            *learnt_from,
            f"{torch.get_num_threads()} threads; speed: the forward pass, visible, median of 3 rounds",
        ]
        chosen_form, refusal = _choose_form(compared, int8, force, remarks)
        folder = folders[chosen_form - 1]
        result = Exported(target, read_manifest(folder), tuple(compared), tuple(remarks))
        write_json(folder / PARITY_FILES[0], result.to_dict())
        write_text(folder / PARITY_FILES[1], markdown(result.forms, result.remarks))
        if refusal:
            raise FmcnetError(_report_refusal(refusal, result, folder, scratch / "refused"))
        shutil.copy(encoder.folder / CARD, folder / CARD)
        _copy_calibration((encoder.folder, target), folder, result.manifest.digest)
        put_in_place(folder, target, scratch / "old")
    return result


def _choose_form(
    compared: Sequence[BackendReport], int8: bool, force: bool, remarks: list[str]
) -> tuple[int, str]:
    """The index in `compared` of the form to keep, and why it is refused ("": it is not)."""
    if not int8:
        return 1, ""
    if not compared[0].scores:
        raise DataError("int8 is judged by mAP: the table has no test images of both modalities to score")
    losses = {index: compared[index].loss(compared[0]) for index in range(2, len(compared))}
    lost = "; ".join(f"{compared[index].name} loses {loss:+.2f}" for index, loss in losses.items())
    remarks.append(f"points of mAP, worse direction: {lost} (allowed: {MAX_LOST_MAP})")
    for index, loss in losses.items():
        if loss <= MAX_LOST_MAP:
            remarks.append(f"kept: {compared[index].name}")
            return index, ""
    best = min(losses, key=lambda index: losses[index])
    remarks.append(f"kept: {compared[best].name}, by force" if force else "kept: none")
    return best, "" if force else f"int8 loses more than {MAX_LOST_MAP} points of mAP ({lost})"


def _report_refusal(reason: str, result: Exported, folder: Path, report_folder: Path) -> str:
    """The error message; writes the report where the model would be, unless an earlier model is there."""
    message = f"{reason}: no model was written"
    if (result.out / EXPORT_MANIFEST).exists():
        message += f", {result.out} is as it was"
    else:
        report_folder.mkdir()
        for name in PARITY_FILES:
            shutil.copy(folder / name, report_folder / name)
        put_in_place(report_folder, result.out, report_folder.with_name("old"))
        message += f", only {result.out / PARITY_FILES[1]}"
    return (
        f"{message}. Calibrate on other or more images (--images), or take it as it is with --force\n"
        f"{markdown(result.forms, result.remarks)}"
    )


def _comparison_images(
    encoder: Encoder, data: str | Path | None, progress: bool | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Table | None, str]:
    """Images to compare on, their modalities, their table if they are to be scored, and a description."""
    if data is not None:
        table = encoder.read_dataset(data).select(split="test")
        if set(table.modality.tolist()) != {0, 1}:
            raise DataError(f"{data} has no test images of both modalities to compare on")
        images = encoder.cached_images(table, progress)
        return images, table.modality, table, f"{len(table)} test images of {table.origin}"
    with tempfile.TemporaryDirectory() as folder:
        generate("sysu", "tiny", 0, folder, workers=1, progress=False)
        table = read_dataset(folder).select(split="test")
        images = np.array(
            ImageCache(table, encoder.height, encoder.width, folder=folder, progress=False).images
        )
    remark = f"{len(table)} generated images; give --data TABLE for Rank-1 and mAP"
    return images, table.modality, None, remark


def _range_images(
    encoder: Encoder, calibrate: str | Path, count: int, scored: Table | None, progress: bool | None
) -> tuple[dict[Modality, NDArray[np.uint8]], str]:
    """Images to learn ranges from, and a description; it tells of those that are `scored`, too."""
    table = encoder.read_dataset(calibrate)
    train = table.select(split="train")
    table = train if len(train) else table
    table = table.take(choose(table.modality, max(2, count)))
    counts = " and ".join(f"{len(table.select(modality=modality))} {modality}" for modality in Modality)
    learnt_from = f"int8 ranges: of {counts} images{' of split train' * bool(len(train))} of {table.origin}"
    same = {*table.full_paths()} & {*(scored.full_paths() if scored is not None else ())}
    if same:
        learnt_from += f"; {len(same)} of them are among those scored here"
    images = encoder.cached_images(table, progress)
    by_modality = {modality: images[np.flatnonzero(table.modality == modality.code)] for modality in Modality}
    for modality, modality_images in by_modality.items():
        if not len(modality_images):
            raise DataError(f"{calibrate} has no {modality} image to learn int8 ranges from")
    return by_modality, learnt_from


def _copy_calibration(sources: Sequence[Path], folder: Path, digest: str) -> None:
    """Copy the newest calibration of the same embeddings, the run's or the earlier export's; int8 needs its own."""
    files = [source / CALIBRATION for source in sources if (source / CALIBRATION).is_file()]
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        with contextlib.suppress(CheckpointError):  # damaged, or of other weights
            Calibration.load(file, model=digest).save(folder / CALIBRATION)


def _check_target(target: Path, source: str, precision: str, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier export; with `overwrite` also of another model or precision."""
    check_writable(target, "say --out FOLDER")
    if not target.exists():
        return
    names = {path.name for path in target.iterdir()} if target.is_dir() else {"?"}
    own_files = {EXPORT_MANIFEST, CARD, CALIBRATION, *PARITY_FILES, *GRAPHS.values()}
    if not names <= own_files:
        raise CheckpointError(f"--out {target} exists and is no exported model: give a new folder")
    if overwrite or EXPORT_MANIFEST not in names:
        return
    try:
        existing = read_manifest(target)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, into a new folder or with --overwrite") from error
    if (existing.source, existing.precision) != (source, precision):
        raise CheckpointError(
            f"--out {target} holds the {existing.precision} export {existing.digest} of model {existing.source}, not "
            f"the {precision} export of {source}: give a new folder, or replace it with --overwrite"
        )


def _float_graphs(encoder: Encoder, folder: Path) -> Path:
    """Write both float32 graphs and their manifest into a new folder."""
    folder.mkdir()
    size, opset = (encoder.height, encoder.width), 0
    for modality in Modality:
        opset = write_graph(encoder.model, modality, *size, folder / GRAPHS[modality], encoder.projection)
    dim = encoder.backend(np.zeros((1, *size, 3), dtype=np.uint8), Modality.VISIBLE).shape[1]
    made_by, digests = versions("onnx", "onnxscript", "onnxruntime"), _graph_digests(folder)
    Manifest(encoder.digest, encoder.digest, "fp32", dim, *size, opset, digests, made_by).save(folder)
    return folder


def _int8_graphs(floats: Path, folder: Path, ranges: dict[Modality, NDArray[np.uint8]], scheme: str) -> Path:
    """Write int8 forms of the graphs in `floats`, by one of `SCHEMES`, and their manifest into a new folder."""
    folder.mkdir()
    kept: list[str] = []
    for modality, name in GRAPHS.items():
        layers = quantize(floats / name, folder / name, ranges[modality], scheme)
        kept += [f"{modality} {layer}" for layer in layers]
    manifest, digests = read_manifest(floats), _graph_digests(folder)
    digest = int8_digest(manifest.source, digests)
    replace(manifest, digest=digest, precision="int8", sha256=digests, kept=tuple(kept)).save(folder)
    return folder


def _graph_digests(folder: Path) -> dict[str, str]:
    return {name: file_digest(folder / name) for name in GRAPHS.values()}


def _onnx_form(name: str, folder: Path) -> Form:
    """An exported model to compare, with as many threads as PyTorch."""
    backend = OnnxBackend(folder, threads=torch.get_num_threads())
    size = sum((folder / graph).stat().st_size for graph in GRAPHS.values())
    return Form(name, backend, size, backend.manifest.kept)
