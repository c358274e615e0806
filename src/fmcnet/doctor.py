"""`fmcnet doctor`: what is installed here, and whether a model, a gallery and a calibration fit together."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import fmcnet
from fmcnet.errors import FmcnetError, one_line
from fmcnet.plugins import BACKBONES, READERS, describe, load_plugin, plugins

if TYPE_CHECKING:
    from fmcnet.inference.encoder import Encoder

FOR_DEVELOPERS = ("dev", "docs", "browser")
"""Extras that no user of the package needs."""

NAME_WIDTH = 24
"""Columns for a name; a longer name shifts its line."""


@dataclass(frozen=True)
class Finding:
    """One checked item of a part, such as "system"; `ok`: False: it must be fixed, None: a plain fact."""

    part: str
    name: str
    ok: bool | None
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in order."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing must be fixed."""
        return all(finding.ok is not False for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}

    def lines(self) -> list[str]:
        """One line per finding, under the name of its part; the verdict last."""
        lines: list[str] = []
        width = min(max(len(finding.name) for finding in self.findings), NAME_WIDTH)
        part = ""
        for finding in self.findings:
            lines += [finding.part] if finding.part != part else []
            part = finding.part
            mark = {True: "ok  ", False: "FAIL", None: "    "}[finding.ok]
            advice = f" -> {finding.advice}" if finding.advice else ""
            lines.append(f"  {mark} {finding.name:{width}}  {finding.found}{advice}")
        faults = sum(finding.ok is False for finding in self.findings)
        return [*lines, f"{faults} to mend" if faults else "all is well"]


def diagnose(
    model: str | Path | None = None,
    gallery: str | Path | None = None,
    calibration: str | Path | None = None,
    device: str = "auto",
) -> Diagnosis:
    """Check the installation and, if given, whether a model, a gallery and a calibration fit together.

    An unreadable file is a finding, not an error. Nothing is written.

    Args:
        model: a run folder, an exported model or a shipped model's name; None: the one recorded in the gallery.
        gallery: a folder or milvus://host:port/name.
        calibration: a file of `fmcnet calibrate`; None: the one in the model's folder.
        device: where the model runs.

    Raises:
        FmcnetError: for a device that this machine lacks.
    """
    findings = [*_system(device), *_packages(), *_plugins()]
    encoder: Encoder | None = None
    digest: str | None = None
    if model is not None or gallery is not None:
        encoder, found = _model(model, gallery, device)
        findings += found
        digest = encoder.digest if encoder is not None else None
    if gallery is not None:
        gallery_digest, found = _gallery(str(gallery), digest)
        findings += found
        digest = digest or gallery_digest
    if calibration is not None or encoder is not None:
        findings += _calibration(calibration, encoder, digest)
    return Diagnosis(tuple(findings))


def _system(device: str) -> Iterator[Finding]:
    """Versions, devices and threads; raises `FmcnetError` for a device that this machine lacks."""

    def fact(name: str, found: str, advice: str = "") -> Finding:
        return Finding("system", name, None, found, advice)

    yield fact("fmcnet", f"{fmcnet.__version__} at {Path(fmcnet.__file__).parent}")
    yield fact("Python", f"{platform.python_version()} at {sys.executable}")
    yield fact("machine", f"{platform.platform()}, {platform.machine()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    threads_note = f", OMP_NUM_THREADS={threads}" if threads else ""
    try:
        import torch
    except Exception as error:
        yield fact("CPU", f"{cores} cores{threads_note}")
        advice = "only exported models run without it: pip install torch"
        yield fact("PyTorch", f"cannot be imported ({_one_line(error)})", advice)
        return
    from fmcnet.distributed import pick_device

    yield fact("CPU", f"{cores} cores, PyTorch uses {torch.get_num_threads()} threads{threads_note}")
    yield fact("PyTorch", torch.__version__)
    yield fact("device", f"{pick_device(device)} for --device {device}")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(index)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        yield fact(f"cuda:{index}", f"{gpu.name}, {memory}, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        yield fact("mps", "available")


def _packages() -> Iterator[Finding]:
    """Required packages, then the extras, with the pip command for incomplete ones."""
    try:
        needs = importlib.metadata.requires("fmcnet") or []
        extras = importlib.metadata.metadata("fmcnet").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "fmcnet", None, "not installed as a package", "pip install fmcnet")
        return
    for requirement in needs:
        if "extra ==" not in requirement:
            name, problem, version = _installed(requirement)
            advice = f"pip install '{requirement.partition(';')[0].strip()}'" if problem else ""
            yield Finding("packages", name, not problem, problem or version, advice)
    for extra in sorted(set(extras) - set(FOR_DEVELOPERS)):
        installed = [_installed(need) for need in _extra_requirements(extra, needs)]
        missing = [f"{name} {problem}" for name, problem, _ in installed if problem]
        present = ", ".join(f"{name} {version}" for name, problem, version in installed if not problem)
        status = "; ".join(filter(None, [", ".join(missing), present]))
        advice = f"pip install 'fmcnet[{extra}]'" if missing else ""
        yield Finding("extras", extra, None if missing else True, status, advice)


def _extra_requirements(extra: str, needs: list[str]) -> Iterator[str]:
    """The requirements of an extra, including those of extras that it refers to."""
    for requirement in needs:
        if not re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", requirement):
            continue
        if inner := re.match(r"fmcnet\[([^\]]+)\]", requirement):
            for name in inner[1].split(","):
                yield from _extra_requirements(name.strip(), needs)
        else:
            yield requirement


def _installed(requirement: str) -> tuple[str, str, str]:
    """Name of a required package, its problem ("" for none), and its version."""
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    minimum = re.search(r">=([\d.]+)", requirement)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, "is missing", ""
    if minimum and _version_numbers(version) < _version_numbers(minimum[1]):
        return name, f"is {version}, older than {minimum[1]}", version
    return name, "", version


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version.partition("+")[0])[:3])


def _plugins() -> Iterator[Finding]:
    """Backbones and readers of other packages, each loaded."""
    from fmcnet.data.readers import LAYOUTS
    from fmcnet.models import backbones

    for group, shipped in ((BACKBONES, backbones.shipped()), (READERS, LAYOUTS)):
        for name, point in plugins(group).items():
            try:
                load_plugin(point)
            except FmcnetError as error:
                yield Finding("plugins", name, False, str(error))
                continue
            hidden = name in shipped
            advice = "fmcnet has this name itself, so the plugin is not used" if hidden else ""
            yield Finding("plugins", name, not hidden, f"{group}: {describe(point)}", advice)


def _model(
    model: str | Path | None, gallery: str | Path | None, device: str
) -> tuple[Encoder | None, list[Finding]]:
    """The model, tested on one image of each modality; None if it does not work."""
    import numpy as np

    from fmcnet.inference.encoder import Encoder
    from fmcnet.retrieval.searcher import open_model
    from fmcnet.types import Modality

    try:
        if model is not None:
            encoder = Encoder.from_pretrained(model, device=device)
        else:
            encoder = open_model(str(gallery), None, device)
        # A uniform image, or a visible one without colours, would log a warning.
        size = (encoder.height, encoder.width, 3)
        coloured = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        grey = coloured[..., :1].repeat(3, axis=2)
        encoder.encode(coloured, Modality.VISIBLE)  # the first pass warms up
        features = encoder.encode(grey, Modality.INFRARED).features
        started = perf_counter()
        encoder.encode(grey, Modality.INFRARED)
        milliseconds = 1000 * (perf_counter() - started)
    except Exception as error:
        return None, [Finding("model", str(model or "noted"), False, _one_line(error))]
    card = encoder.card
    facts = f"{card.config.model.variant}, {card.config.model.arch}, trained on {card.dataset}"
    finite = bool(np.isfinite(features).all())
    trial = f"{features.shape[1]} values, {milliseconds:.0f} ms for one image on {encoder.device}"
    return encoder, [
        Finding("model", str(encoder.folder or model), True, f"{facts}, digest {encoder.digest}"),
        Finding("model", "encodes", finite, trial, "" if finite else "its weights are damaged"),
    ]


def _gallery(location: str, digest: str | None) -> tuple[str | None, list[Finding]]:
    """The digest of the gallery's model, and whether it is that of the model given."""
    from fmcnet.retrieval.gallery import Gallery

    try:
        with Gallery(location, read_only=True) as opened:
            info, settings = opened.info(), opened.settings
    except Exception as error:
        return None, [Finding("gallery", location, False, _one_line(error))]
    facts = f"{info.entries:,} entries, index {info.index}, {info.bytes / 2**20:,.1f} MiB"
    if settings is None:
        facts += ": no model yet, the first add fixes it"
        return None, [Finding("gallery", info.location, True, facts)]
    facts += f", {settings.dimension} values, {settings.dtype}, model {settings.model}"
    findings = [Finding("gallery", info.location, True, facts)]
    if digest is not None:
        fits = digest == settings.model
        digests = "the gallery's" if fits else f"{digest}; the gallery was indexed with {settings.model}"
        advice = "" if fits else "give --model that model, or index the images anew into another gallery"
        findings.append(Finding("gallery", "model", fits, digests, advice))
    return settings.model, findings


def _calibration(path: str | Path | None, encoder: Encoder | None, digest: str | None) -> list[Finding]:
    """The calibration, and whether it belongs to the model (or, without one, to the gallery's model)."""
    from fmcnet.inference.calibration import CALIBRATION, Calibration, direction

    file = path
    if file is None and encoder is not None and encoder.folder is not None:
        file = encoder.folder / CALIBRATION
    if file is None or (path is None and not Path(file).is_file()):
        advice = "fmcnet calibrate RUN --data TABLE makes one; without it there are no probabilities"
        return [Finding("calibration", "none", None, "the model has none", advice)]
    try:
        loaded = Calibration.load(str(file), model=digest)
    except Exception as error:
        return [Finding("calibration", str(file), False, _one_line(error))]
    directions = ", ".join(direction(*pair) for pair in loaded.curves)
    return [Finding("calibration", str(file), True, f"of model {loaded.model}, for {directions}")]


def _one_line(error: BaseException) -> str:
    """An error on one line, with its type unless it is an `FmcnetError`."""
    return " ".join(str(error).split()) if isinstance(error, FmcnetError) else one_line(error)
