"""Images to embeddings with a trained model: load, encode, similarity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from fmcnet.data.cache import ImageCache, cache_folder, cache_key, resize
from fmcnet.data.csv_table import MODALITIES
from fmcnet.data.images import open_rgb
from fmcnet.data.table import Table
from fmcnet.errors import DataError, FmcnetError
from fmcnet.files import write_atomically
from fmcnet.model.checkpoint import WEIGHTS, ModelCard, load_pretrained_model
from fmcnet.model.fmcnet import FMCNet
from fmcnet.progress import Progress
from fmcnet.runtime import pick_device
from fmcnet.types import Embeddings, FloatArray, IntArray, Modality

ImageLike = str | Path | Image.Image | NDArray[np.uint8]


def load(run: str | Path, device: str = "auto") -> Encoder:
    """The trained model of a run folder, ready to encode.

    Raises:
        CheckpointError: when the folder holds no model, or a damaged one.
    """
    chosen = pick_device(device)
    model, card = load_pretrained_model(run, chosen)
    described = card.config.model.model_dump_json().encode()
    digest = hashlib.sha256(described + (Path(run) / WEIGHTS).read_bytes()).hexdigest()[:16]
    return Encoder(model, card, chosen, digest)


class Encoder:
    """A trained model with its own preprocessing.

    Args:
        model: in eval mode, on `device`.
        card: what travels with the weights; gives the input size.
        device: where to compute.
        digest: names the weights in embedding caches; "" switches caching off.
    """

    def __init__(self, model: FMCNet, card: ModelCard, device: torch.device, digest: str = "") -> None:
        self.model, self.card, self.device, self.digest = model, card, device, digest
        self.height, self.width = card.config.data.height, card.config.data.width

    def encode(
        self,
        images: ImageLike | Sequence[ImageLike],
        modality: Modality | str,
        *,
        batch_size: int = 64,
        normalize: bool = True,
        flip: bool = False,
    ) -> FloatArray:
        """Descriptors of images of one modality.

        Args:
            images: one or several: a path, a PIL image or an (H, W, 3) uint8 array, each of any size.
            modality: "visible" or "infrared": which stem sees them.
            batch_size: images at once; the result depends on it by rounding only.
            normalize: to unit length, so that a dot product is the cosine similarity.
            flip: average with the descriptor of the mirrored image.

        Returns:
            (N, E) float32; (1, E) for a single image.

        Raises:
            DataError: naming an image that cannot be read.
        """
        many = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)
        kind = parse_modality(modality)
        parts = [
            self._embed(np.stack([self._open(image) for image in many[at : at + batch_size]]), kind, flip)
            for at in range(0, len(many), batch_size)
        ]
        if not parts:
            raise DataError("no images to encode")
        out = torch.cat(parts)
        return (F.normalize(out, dim=1) if normalize else out).numpy()

    def similarity(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """Cosine similarities of embeddings (N, E) and (M, E): (N, M), in -1..1."""
        left, right = (F.normalize(torch.from_numpy(np.asarray(x, dtype=np.float32)), dim=1) for x in (a, b))
        return (left @ right.T).numpy()

    def embed_table(
        self,
        table: Table,
        *,
        batch_size: int = 64,
        flip: bool = False,
        store: Path | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Embed every image of a table once, each by its own modality's path.

        Args:
            table: (N,) rows.
            batch_size: images at once.
            flip: average with the descriptor of the mirrored image (never silently: reports name it).
            store: a folder that keeps the result, keyed by weights, preprocessing and the table with its
                files' sizes and times; a later call reads it back. None: nothing is kept.
            progress: show a bar; None: on a terminal only.
        """
        kept = self.kept_at(table, flip, store)
        if kept is not None and kept.is_file():
            try:
                return Embeddings.load(kept)
            except DataError:  # damaged: made again below
                kept.unlink()
        features = self.embed_rows(
            table, np.arange(len(table)), batch_size=batch_size, flip=flip, progress=progress
        )
        return keep(features, table, kept)

    def kept_at(self, table: Table, flip: bool, store: Path | None) -> Path | None:
        """The file in the folder `store` that keeps a table's embeddings; None: nothing is kept."""
        if store is None or not self.digest:
            return None
        key = f"{self.digest}|{cache_key(table, self.height, self.width)}|flip={flip}"
        columns = np.stack([table.pid, table.camid, table.modality.astype(np.int64)]).tobytes()
        return store / f"{hashlib.sha256(key.encode() + columns).hexdigest()[:24]}.npz"

    def embed_rows(
        self,
        table: Table,
        rows: IntArray,
        *,
        batch_size: int = 64,
        flip: bool = False,
        progress: bool | None = None,
    ) -> FloatArray:
        """Descriptors of some rows of a table, in their order: (len(rows), E) float32.

        Raises:
            DataError: when there are no rows, or an image of the table cannot be read.
        """
        if not len(rows):
            raise DataError(f"there are no images to embed in {table.root}")
        folder = cache_folder(self.card.config.data.cache, table.root)
        cache = ImageCache(table, self.height, self.width, folder=folder, progress=progress)
        features: NDArray[np.float32] | None = None
        with Progress("embedding", len(rows), show=progress) as bar:
            for modality in Modality:
                mine = np.flatnonzero(table.modality[rows] == modality.code)
                for at in range(0, len(mine), batch_size):
                    batch = mine[at : at + batch_size]
                    part = self._embed(cache.images[rows[batch]], modality, flip).numpy()
                    if features is None:
                        features = np.empty((len(rows), part.shape[1]), dtype=np.float32)
                    features[batch] = part
                    bar.advance(count=len(batch))
        assert features is not None
        return features

    def _open(self, image: ImageLike) -> NDArray[np.uint8]:
        if isinstance(image, (str, Path)):
            opened = open_rgb(Path(image))
        elif isinstance(image, Image.Image):
            opened = image.convert("RGB")
        else:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise DataError(f"an image array must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
            opened = Image.fromarray(image)
        return resize(opened, self.height, self.width)

    @torch.inference_mode()
    def _embed(self, images: NDArray[Any], modality: Modality, flip: bool) -> torch.Tensor:
        """(N, H, W, 3) uint8 to (N, E) float32 on the CPU."""
        batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(self.device)
        out = self.model.embed(batch, modality)
        if flip:
            out = (out + self.model.embed(batch.flip(3), modality)) / 2
        return out.float().cpu()


def keep(features: FloatArray, table: Table, kept: Path | None) -> Embeddings:
    """Features (N, E) of a table's rows as `Embeddings`, written to the file `kept` if there is one."""
    result = Embeddings(features, table.pid, table.camid, table.modality, table.index(), table.path)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, result.save)
    return result


def parse_modality(text: Modality | str) -> Modality:
    """ "visible", "infrared" or a synonym that a CSV may use ("ir", "thermal", "rgb"...) as a `Modality`.

    Raises:
        FmcnetError: for anything else.
    """
    if isinstance(text, Modality):
        return text
    if text.lower() not in MODALITIES:
        raise FmcnetError(f"unknown modality '{text}': say visible or infrared")
    return MODALITIES[text.lower()]
