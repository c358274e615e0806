"""`export.json`: what the graphs of an exported model are, readable without PyTorch and ONNX Runtime."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fmcnet.errors import CheckpointError
from fmcnet.parsing import first_fault, read_json
from fmcnet.types import Modality

MANIFEST = "export.json"
FORMAT = "fmcnet-onnx-1"
GRAPHS = {modality: f"model-{modality}.onnx" for modality in Modality}
INPUT, OUTPUT = "images", "embedding"
"""Names in the graphs: (batch, H, W, 3) uint8 to (batch, E) float32."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Manifest:
    """What an exported model is.

    Attributes:
        digest: names the model; in fp32 it is the digest of the weights it was made from, whose embeddings it
            reproduces up to rounding, and another one in int8.
        source: the digest of those weights.
        precision: "fp32" or "int8". kept: layers that int8 leaves in float32.
        dim: E. height, width: of the input. opset: of ONNX.
        sha256: of each graph's file, by file name.
        versions: of what made it.
    """

    digest: Digest
    source: Digest
    precision: Literal["fp32", "int8"]
    dim: Positive
    height: Positive
    width: Positive
    opset: Positive
    sha256: dict[str, Sha256]
    versions: dict[str, str]
    kept: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As written to `export.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def read_manifest(folder: str | Path) -> Manifest:
    """Read `export.json`.

    Raises:
        CheckpointError: when it is missing, damaged, or not fmcnet's; names the field that is wrong.
    """
    path = Path(folder) / MANIFEST
    try:
        tree = read_json(path)
        if tree.pop("format") != FORMAT:
            raise CheckpointError(f"{path} is not an exported model of this version (format {FORMAT})")
        found = TypeAdapter(Manifest).validate_python(tree)
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {first_fault(error)}; export the model again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}; export the model again") from error
    fault = _contradiction(found)
    if fault:
        raise CheckpointError(f"{path} is damaged: {fault}; export the model again")
    return found


def int8_digest(source: str, sha256: dict[str, str]) -> str:
    """What names an int8 model: the digest of the weights it was made from, and its graphs."""
    content = "".join(sha256[GRAPHS[modality]] for modality in Modality)
    return hashlib.sha256(f"{source} int8 {content}".encode()).hexdigest()[:16]


def _contradiction(found: Manifest) -> str:
    """What in a manifest cannot be true at once, or ""."""
    if set(found.sha256) != set(GRAPHS.values()):
        return f"sha256 names {', '.join(found.sha256) or 'nothing'}, not {', '.join(GRAPHS.values())}"
    made = found.source if found.precision == "fp32" else int8_digest(found.source, found.sha256)
    if found.digest != made:
        return f"digest is {found.digest}, of this {found.precision} model it is {made}"
    return ""
