"""Models on the Hugging Face Hub, by `huggingface_hub` (extra `hub`): fetched with their digests checked, and pushed.

A repository holds the files of a model's folder, a `README.md` with the metadata that the hub reads, and `hub.json`:
the SHA-256 of each file. Files of other names are neither fetched nor pushed, so nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fmcnet.errors import CheckpointError, require
from fmcnet.files import file_digest
from fmcnet.markdown import markdown_table
from fmcnet.models.card import CARD, PROJECTION, WEIGHTS, read_card
from fmcnet.parsing import read_json

DIGESTS, README = "hub.json", "README.md"
HUB_FORMAT = "fmcnet-hub-1"
MODEL_FILES = (CARD, WEIGHTS, PROJECTION, "calibration.json", "export.json", "*.onnx")
"""Files of a model: those that exist are fetched and pushed."""

HUB_NAME = re.compile(r"([\w][\w.-]*/[\w][\w.-]*?)(?:@([\w./-]+))?")
"""owner/name, or owner/name@revision."""

FETCH = (
    "{where} cannot be reached ({kind}), and its cache does not hold '{source}'. Give a model's folder, or connect "
    "once."
)
PUSH = "the hub at {where} cannot be reached ({kind}). Connect, and push again."
"""Messages for a hub that cannot be reached."""

README_TEXT = """\
---
license: other
library_name: fmcnet
pipeline_tag: image-feature-extraction
tags: [person-re-identification, visible-infrared, fmcnet]
---

# {title}

Embeddings for visible-infrared person re-identification, by FMCNet (CVPR 2022).

```python
from fmcnet import Encoder

encoder = Encoder.from_pretrained("{name}")  # pip install "fmcnet[hub]"
embeddings = encoder.encode(["a.jpg", "b.jpg"], "infrared")
```

{table}

A similarity is no proof of identity. Finding people across cameras is subject to law.
"""

logger = logging.getLogger(__name__)


def is_hub_name(source: str | Path) -> bool:
    """Whether this has the form owner/name or owner/name@revision."""
    return HUB_NAME.fullmatch(str(source)) is not None


def is_fetched(folder: str | Path) -> bool:
    """Whether a folder lies in the hub's cache, where nothing is to be written."""
    constants = sys.modules.get("huggingface_hub.constants")  # not imported: nothing was fetched
    return constants is not None and Path(folder).absolute().is_relative_to(
        Path(constants.HF_HUB_CACHE).absolute()
    )


def fetch(source: str, advice: str = "") -> Path:
    """Fetch a model, owner/name or owner/name@revision, into the hub's cache unless it is there; returns its folder.

    Args:
        source: as `is_hub_name`.
        advice: for a name that was meant as a folder, in brackets behind a space.

    Raises:
        CheckpointError: when there is no such model, the hub cannot be reached and the cache lacks it, or a file is
            not the one that was pushed.
        MissingDependencyError: without `huggingface_hub`.
    """
    hub: Any = require("huggingface_hub", "hub")
    name, _, revision = source.partition("@")
    absent = f"there is no folder '{source}'{advice}"
    if advice:
        logger.info("%s: looking on the Hugging Face Hub", absent)
    for again in (False, True):
        try:
            folder = hub.snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=[*MODEL_FILES, README, DIGESTS],
                library_name="fmcnet",
                force_download=again,
            )
        except Exception as error:
            raise CheckpointError(
                _error_message(hub, error, f"{absent}. As a name of the Hugging Face Hub:", source, FETCH)
            ) from error
        if not (fault := _digest_fault(Path(folder), source)):
            return Path(folder)
        if not again:
            logger.warning("%s: fetching it once more", fault)
    raise CheckpointError(f"{fault}: ask its owner to push it again")


def push(folder: str | Path, name: str, *, public: bool = False, message: str | None = None) -> str:
    """Push a finished model to the hub, in one commit; returns the address of the commit.

    Args:
        folder: of the model. Only `MODEL_FILES` and a README.md are pushed: no images, logs, or checkpoints.
        name: owner/name. An existing repository gets a new commit.
        public: make a new repository public; otherwise it is private. An existing one keeps its visibility.
        message: of the commit.

    Raises:
        CheckpointError: for a folder without a whole model, a bad name, or when the hub refuses.
        MissingDependencyError: without `huggingface_hub`.
    """
    folder = Path(folder)
    match = HUB_NAME.fullmatch(name)
    if match is None or match[2]:
        raise CheckpointError(f"'{name}' is no name on the hub: write owner/name")
    readme = _readme(folder, name)
    if (folder / WEIGHTS).is_file():
        from fmcnet.models.checkpoint import weights_digest

        weights_digest(folder / WEIGHTS)  # raises if they are damaged
    elif not (folder / "export.json").is_file():
        raise CheckpointError(
            f"{folder} holds no weights: give the folder of a finished run, or an exported one"
        )
    hub: Any = require("huggingface_hub", "hub")
    files = {path.name: path for pattern in MODEL_FILES for path in sorted(folder.glob(pattern))}
    digests = {file: file_digest(path) for file, path in files.items()}
    text = json.dumps({"format": HUB_FORMAT, "sha256": digests}, indent=1) + "\n"
    contents: dict[str, Any] = {**files, README: readme.encode(), DIGESTS: text.encode()}
    operations: list[Any] = [hub.CommitOperationAdd(file, content) for file, content in contents.items()]
    api = hub.HfApi(library_name="fmcnet")
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        for file in api.list_repo_files(name):
            if file not in contents and any(fnmatch(file, pattern) for pattern in MODEL_FILES):
                operations.append(hub.CommitOperationDelete(path_in_repo=file))
        commit = api.create_commit(
            name, operations, commit_message=message or f"Push {folder.name} by fmcnet"
        )
    except Exception as error:
        raise CheckpointError(_error_message(hub, error, f"'{name}' was not pushed:", name, PUSH)) from error
    return str(commit.commit_url)


def _readme(folder: Path, name: str) -> str:
    """The folder's README.md if it has the hub's metadata, otherwise one made from the model card."""
    card = read_card(folder)
    own_readme = folder / README
    if own_readme.is_file() and (text := own_readme.read_text(encoding="utf-8")).startswith("---\n"):
        return text
    config = card.config
    rows = {
        "variant": config.model.variant,
        "backbone": f"{config.model.arch}, width {config.model.width}",
        "trained on": f"{card.dataset}, {card.classes} identities, {card.step:,} steps",
        "weights kept": card.selected,
        "input": f"{config.data.height} x {config.data.width} pixels, visible or infrared, one person",
        "compared by": card.similarity,
        "versions": ", ".join(f"{package} {version}" for package, version in card.versions.items()),
    }
    table = markdown_table(("", ""), rows.items())
    return README_TEXT.format(title=name.partition("/")[2], name=name, table=table)


def _digest_fault(folder: Path, source: str) -> str:
    """Which files differ from the digests pushed with them, or are missing; "" for none."""
    digests_file = folder / DIGESTS
    if not digests_file.is_file():
        logger.warning(
            "%s has no %s, so its files are not checked: it was not pushed by fmcnet", source, DIGESTS
        )
        return ""
    expected: dict[str, str] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        tree = read_json(digests_file)
        if tree["format"] == HUB_FORMAT:
            expected = {str(file): str(digest) for file, digest in tree["sha256"].items()}
    if not expected:
        return f"{source}: {DIGESTS} in {folder} is damaged"
    present = {path.name for pattern in MODEL_FILES for path in folder.glob(pattern)}
    wrong = [
        file
        for file in sorted({*expected, *present})
        if not (folder / file).is_file() or file_digest(folder / file) != expected.get(file)
    ]
    return f"{source}: {', '.join(wrong)} in {folder} is not what was pushed" if wrong else ""


def _error_message(hub: Any, error: Exception, intro: str, source: str, offline: str) -> str:
    """One line that says what to do about an error of the hub; `offline` is the text when it cannot be reached."""
    errors, where = hub.errors, hub.constants.ENDPOINT
    text = " ".join(str(error).split())[:200]
    if isinstance(error, errors.GatedRepoError):
        return f"{intro} {where} has '{source}' behind a form: ask for access on its page, then hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{intro} {where} has no model '{source}' that you may see: check the name, and hf auth login for a "
            "private one"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{intro} {where} has no such revision of '{source}'"
    if isinstance(error, errors.HfHubHTTPError):
        return f"{intro} {where} refuses '{source}' ({text}): hf auth login, with a token that may do this"
    if isinstance(error, errors.HFValidationError):
        return f"{intro} '{source}' is no name on the hub: write owner/name ({text})"
    return f"{intro} {offline.format(where=where, source=source, kind=type(error).__name__)}"
