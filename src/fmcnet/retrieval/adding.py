"""Images and what is said of them, as embeddings and columns that a gallery takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.depth import Remarks, ValueRange
from fmcnet.errors import DataError, FmcnetError
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.image_input import Fault, ImageLike, ModalityLike, expand, read_ahead
from fmcnet.retrieval.inputs import column, tag_column
from fmcnet.retrieval.thumbnails import thumbnail
from fmcnet.types import Embeddings, Modality

Modalities = ModalityLike | Sequence[ModalityLike] | NDArray[np.uint8]


@dataclass(frozen=True)
class Indexed:
    """What an add did.

    Attributes:
        ids: of the images that were read, in the order given. faults: the images that were not, left out.
        added, replaced, skipped: counts; they sum to the number of `ids`.
    """

    ids: tuple[str, ...]
    faults: tuple[Fault, ...] = ()
    added: int = 0
    replaced: int = 0
    skipped: int = 0


def encode_all(
    encoder: Encoder,
    images: ImageLike | Iterable[ImageLike],
    modality: Modalities,
    said: Mapping[str, Any],
    *,
    on_error: Literal["raise", "skip"],
    keep_images: bool,
    batch_size: int,
    progress: bool | None,
    value_range: ValueRange | None = None,
    remarks: Remarks | None = None,
) -> tuple[Embeddings | None, tuple[Fault, ...], dict[str, list[Any]]]:
    """The embeddings of those images that can be read, the faults of the others, and the columns of the former.

    Args:
        said: columns as of `Gallery.add`, one value for all images or one for each. The others as of `Searcher.add`.

    Returns:
        No embeddings where no image can be read and `on_error` is "skip".

    Raises:
        DataError: naming images that cannot be read. GalleryError: for a column of another length.
    """
    if on_error not in ("raise", "skip"):
        raise FmcnetError(f"on_error='{on_error}': say raise or skip")
    items = expand(images, modality)
    columns = {
        name: tag_column(value, len(items)) if name == "tags" else column(value, len(items), name)
        for name, value in said.items()
    }
    if said["source"] is None:
        columns["source"] = [
            str(Path(item.source).absolute()) if isinstance(item.source, (str, Path)) else None
            for item in items
        ]
    sources, kinds = [item.source for item in items], [item.modality for item in items]
    faults: list[Fault] = []
    try:
        embeddings = encoder.encode(
            sources,
            kinds,
            on_error=faults.append if on_error == "skip" else "raise",
            batch_size=batch_size,
            progress=progress,
            value_range=value_range,
            remarks=remarks,
        )
    except DataError:
        broken = _unreadable(encoder, sources, kinds, value_range) if on_error == "skip" else []
        if len(broken) < len(items):
            raise
        return None, tuple(broken), {}
    lost = {fault.position for fault in faults}
    kept = {name: [v for at, v in enumerate(values) if at not in lost] for name, values in columns.items()}
    if keep_images:
        kept["pictures"] = [
            thumbnail(source, value_range) for at, source in enumerate(sources) if at not in lost
        ]
    return embeddings, tuple(faults), kept


def _unreadable(
    encoder: Encoder, sources: list[Any], kinds: list[Modality], value_range: ValueRange | None
) -> list[Fault]:
    items = expand(sources, kinds)
    pixels = read_ahead(items, [range(len(items))], encoder.height, encoder.width, 1, value_range)
    return [one for _, read in pixels for one in read if isinstance(one, Fault)]
