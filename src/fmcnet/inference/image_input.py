"""The inputs of `Encoder.encode` as a list of named items, their decoding to pixels, and thumbnails of them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmcnet.data.images import add_remarks, map_ahead, open_rgb, resize, to_rgb
from fmcnet.data.listing import IMAGE_SUFFIXES, Ignored, has_image_head, is_hidden, list_folder, near_file
from fmcnet.data.pixels import Pixels, Remarks, ValueRange
from fmcnet.errors import DataError, FmcnetError, fault_lines
from fmcnet.names import printable
from fmcnet.types import Modality, parse_modality

if TYPE_CHECKING:
    import torch

THUMBNAIL = (192, 384)
"""Most width and height of a thumbnail, pixels."""

ImageLike: TypeAlias = Union[str, Path, Image.Image, NDArray[np.uint8], "torch.Tensor"]
"""A path, a folder, a Pillow image, a uint8 array ((N,) H, W, 3), a tensor ((N,) 3, H, W) of uint8 or 0..1 floats."""

ModalityLike: TypeAlias = Modality | str


class Item(NamedTuple):
    """One image to embed."""

    name: str  # its path, or its place in the call: "images[3]"
    source: Any  # a path, a Pillow image, an array or a tensor of one image
    modality: Modality  # which stem sees it


class Fault(NamedTuple):
    """An image that cannot be read."""

    position: int  # among all images of the call, folders expanded, from 0
    name: str  # as `Item.name`
    reason: str  # a sentence


def list_images(sources: Sequence[str | Path], ignored: list[Ignored] | None = None) -> list[Path]:
    """The images named, and those below the folders named (`fmcnet.data.listing.list_folder`), sorted by path.

    `ignored` gets the files of the folders that are no images.

    Raises:
        DataError: for a path that does not exist or a folder without images.
    """
    paths: list[Path] = []
    resources: list[Ignored] = []
    if "" in sources:  # as a path it is the working folder
        raise DataError("an empty text is no image or folder")
    for source in map(Path, sources):
        if source.is_dir():
            paths += _images_in_folder(source, ignored)
        elif source.is_file():
            if is_hidden(source.name) and not has_image_head(source):
                resources.append(Ignored(str(source), "a hidden or resource file"))
            else:
                paths.append(source)
        else:
            raise DataError(f"no such image or folder: {source}{near_file(source)}")
    if resources and not paths and ignored is None:
        raise DataError(f"{resources[0].path} is a hidden or resource file, not an image: give images")
    if ignored is not None:
        ignored += resources
    return paths


def expand(
    images: ImageLike | Iterable[ImageLike],
    modality: ModalityLike | Sequence[ModalityLike] | NDArray[np.uint8],
) -> list[Item]:
    """One item an image: folders become the images below them, batches their images.

    Args:
        images: one or several of `ImageLike`.
        modality: one for all; or one for each of `images` as given (a folder's or a batch's goes to all its images),
            or for each image once folders and batches are expanded. Numbers (0 visible, 1 infrared) will do.

    Raises:
        DataError: for what is no image, a folder without images, no images at all, or as many modalities as fit
            neither count.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind in "UO":  # of paths
        images = images.tolist()
    single = isinstance(images, (str, bytes, memoryview, Path, Image.Image, np.ndarray)) or _is_tensor(images)
    if not single and not isinstance(images, Iterable):
        raise DataError(
            f"images is {_type_name(images)}: give paths, folders, Pillow images, arrays or tensors"
        )
    sources: list[Any] = [images] if single else list(cast("Iterable[Any]", images))
    parts = [
        _split_source(source, "images" if single else f"images[{index}]", single)
        for index, source in enumerate(sources)
    ]
    total = sum(len(part) for part in parts)
    if not total:
        raise DataError("no images to encode")
    one_for_all = isinstance(modality, str) or not isinstance(modality, Iterable)
    if one_for_all or getattr(modality, "ndim", None) == 0:
        modalities = [parse_modality(modality)] * total
    else:
        modalities = [parse_modality(entry) for entry in cast("Iterable[Any]", modality)]
        if len(modalities) == len(sources):
            modalities = [kind for kind, part in zip(modalities, parts, strict=True) for _ in part]
        elif len(modalities) != total:
            raise DataError(
                f"{len(modalities)} modalities for {total} images: give one for all, or one for each image"
            )
    named_sources = chain.from_iterable(parts)
    return [Item(name, source, kind) for (name, source), kind in zip(named_sources, modalities, strict=True)]


def read_pixels(
    source: Any,
    height: int,
    width: int,
    *,
    value_range: ValueRange | None = None,
    remarks: Remarks | None = None,
    name: str = "",
) -> Pixels:
    """One item's source as (H, W, 3) uint8 of the given size; every encoder reads images with it.

    `remarks` gets doubtful properties of the image, under `name`.

    Raises:
        DataError: when it cannot be read, has no pixels or not the shape or type of an image.
    """
    image = _read_image(source, value_range)
    pixels = resize(image, height, width)
    if remarks is not None:
        add_remarks(image, pixels, name, remarks)
    return pixels


def make_thumbnail(
    source: Any, value_range: ValueRange | None = None, size: tuple[int, int] = THUMBNAIL
) -> bytes:
    """A JPEG of at most `size`, without metadata, of an item's source.

    Raises:
        DataError: as `read_pixels`.
    """
    image = _read_image(source, value_range).copy()  # a Pillow image stays as it is
    image.thumbnail(size)
    buffer = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _read_image(source: Any, value_range: ValueRange | None) -> Image.Image:
    """One item's source, of mode RGB; raises as `read_pixels`."""
    if isinstance(source, Image.Image):
        return to_rgb(source, value_range)
    if isinstance(source, (str, Path)):
        return open_rgb(source, value_range)
    array = _from_tensor(source) if _is_tensor(source) else source
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))):
        advice = (
            ": scale it to 0..255 and convert it with .astype('uint8')" if array.dtype.kind == "f" else ""
        )
        raise DataError(
            f"an image array must be (H, W, 3) or (H, W) uint8, 0..255, got {array.shape} {array.dtype}{advice}"
        )
    if not array.size:
        raise DataError(f"it has no pixels: {array.shape}")
    grey = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(grey)).convert("RGB")


def read_ahead(
    items: Sequence[Item],
    batch_size: int,
    height: int,
    width: int,
    workers: int,
    value_range: ValueRange | None = None,
    remarks: Remarks | None = None,
) -> Iterator[tuple[dict[int, Pixels], list[Fault]]]:
    """Pixels by position, and faults, of batch after batch; each is of one modality and keeps the order.

    Threads decode the next two batches while the caller computes on this one.
    """
    if batch_size < 1:
        raise FmcnetError(f"batch_size must be 1 or more, got {batch_size}")
    positions = [[at for at, item in enumerate(items) if item.modality is modality] for modality in Modality]

    def read(position: int) -> Pixels | Fault:
        name, source, _ = items[position]
        try:
            return read_pixels(source, height, width, value_range=value_range, remarks=remarks, name=name)
        except DataError as error:
            reason = str(error).removeprefix("cannot read the image").removeprefix(f" {source}")
            return Fault(position, name, reason.removeprefix(": "))

    with closing(map_ahead(read, chain(*positions), max(1, workers), 2 * batch_size)) as results:
        for of_modality in positions:
            for start in range(0, len(of_modality), batch_size):
                batch = of_modality[start : start + batch_size]
                found = dict(zip(batch, results, strict=False))
                faults = [result for result in found.values() if isinstance(result, Fault)]
                yield {at: result for at, result in found.items() if not isinstance(result, Fault)}, faults


def list_faults(faults: Sequence[Fault], total: int) -> str:
    """A message: how many of `total` images cannot be read, and which (the first 20)."""
    lines = fault_lines([f"{printable(fault.name)}: {fault.reason}" for fault in faults])
    return f"{len(faults)} of {total} images cannot be read:\n{lines}"


def _split_source(source: Any, label: str, single: bool) -> list[tuple[str, Any]]:
    """(name, source) of each image of a source, which may be a folder or a batch."""
    if isinstance(source, (str, Path)) and source != "":
        home = isinstance(source, str) and source.startswith("~/")
        path = Path(source).expanduser() if home else Path(source)
        return [(str(p), p) for p in _images_in_folder(path)] if path.is_dir() else [(str(source), path)]
    if isinstance(source, Image.Image):
        return [(str(getattr(source, "filename", "") or (f"{label}[0]" if single else label)), source)]
    if isinstance(source, np.ndarray) or _is_tensor(source):
        if source.ndim == 4:
            return [(f"{label}[{index}]", image) for index, image in enumerate(source)]
        return [(f"{label}[0]" if single else label, source)]
    if isinstance(source, bytes):
        raise DataError(f"{label} is bytes: open them, as PIL.Image.open(io.BytesIO(data))")
    kind = "an empty text" if source == "" else _type_name(source)
    raise DataError(f"{label} is {kind}: give a path, a folder, a Pillow image, an array or a tensor")


def _images_in_folder(folder: Path, ignored: list[Ignored] | None = None) -> list[Path]:
    listing = list_folder(folder)
    if not listing.images:
        if (folder / "gallery.sqlite").is_file():
            raise DataError(f"{folder} is a gallery, not images: it comes first, before the images")
        others = f"; {len(listing.ignored)} other files lie there" if listing.ignored else ""
        raise DataError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){others}")
    if ignored is not None:
        ignored += listing.ignored
    return list(listing.images)


def _is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor; does not import torch, which may be missing."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _from_tensor(tensor: Any) -> NDArray[Any]:
    """(3, H, W) or (1, H, W) of uint8, or of floats in 0..1 (rounded to 255ths), to (H, W, 3 or 1)."""
    array = tensor.detach().cpu()
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        raise DataError(f"an image tensor must be (3, H, W) or (1, H, W), got {tuple(array.shape)}")
    if array.dtype.is_floating_point:
        array = array.float()
        low, high = (float(array.min()), float(array.max())) if array.numel() else (0.0, 0.0)
        if not (low >= 0.0 and high <= 1.0):
            raise DataError(
                f"a float tensor must be in 0..1, this one is in {low:.3g}..{high:.3g}: give the image as it is, "
                "without normalisation, which the encoder does itself"
            )
        array = (array * 255).round().byte()
    return np.asarray(array.permute(1, 2, 0).numpy())


def _type_name(value: Any) -> str:
    return f"{'an' if type(value).__name__[:1] in 'aeiou' else 'a'} {type(value).__name__}"
