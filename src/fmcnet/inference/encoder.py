"""Images to embeddings with a trained model: load, encode, similarity; one interface to PyTorch and ONNX Runtime."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fmcnet.data.cache import ImageCache, cache_key, log_cached_notes
from fmcnet.data.pixels import Remarks, ValueRange, check_range, note_colours
from fmcnet.data.readers import read_dataset
from fmcnet.data.readers.csv import HELD_OUT
from fmcnet.data.table import Table
from fmcnet.errors import CheckpointError, DataError, FmcnetError
from fmcnet.files import private_mode, write_atomically
from fmcnet.inference.backends import Backend, RuntimeName, open_backend
from fmcnet.inference.calibration import CALIBRATION, Calibration
from fmcnet.inference.image_input import Fault, ImageLike, ModalityLike, expand, list_faults, read_ahead
from fmcnet.inference.projection import Projection, l2_normalize
from fmcnet.models.card import ModelCard
from fmcnet.models.shipped import find_model
from fmcnet.progress import Progress
from fmcnet.types import Embeddings, FloatArray, IntArray, Modality

if TYPE_CHECKING:
    import torch

    from fmcnet.models.fmcnet import FMCNet

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"] | Callable[[Fault], object]


def load(run: str | Path, device: str = "auto") -> Encoder:
    """Load a trained model, ready to encode: `Encoder.from_pretrained` with its defaults.

    Args:
        run: a run folder, an exported model, a shipped model's name, or owner/name of the Hugging Face Hub.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        The encoder.

    Raises:
        CheckpointError: when there is no model, or a damaged one.
        MissingDependencyError: when PyTorch or ONNX Runtime is needed and not installed.
    """
    return Encoder.from_pretrained(run, device=device)


class Encoder:
    """A trained model with its own preprocessing, similarity and calibration.

    Args:
        backend: the network, ready to embed (`TorchBackend`, `OnnxBackend`).
        card: the settings stored with the weights; gives the input size.
        digest: hash of what embeds (weights, architecture, input size, projection), the same for a model and its
            fp32 export: embeddings of equal digests compare. "" switches caching off.
        folder: the model's folder, if it has one.
        calibration: a calibration file; None: `calibration.json` in `folder`.

    Raises:
        CheckpointError: when that file is not there.
    """

    def __init__(
        self,
        backend: Backend,
        card: ModelCard,
        digest: str = "",
        folder: Path | None = None,
        calibration: str | Path | None = None,
    ) -> None:
        self.backend, self.card, self.digest, self.folder = backend, card, digest, folder
        self.height, self.width = card.config.data.height, card.config.data.width
        if calibration is not None and not Path(calibration).is_file():
            raise CheckpointError(f"there is no calibration at {calibration}: check the path")
        default_path = folder / CALIBRATION if folder is not None else None
        self._calibration = Path(calibration) if calibration is not None else default_path

    @staticmethod
    def from_pretrained(
        source: str | Path,
        *,
        device: str = "auto",
        runtime: RuntimeName = "auto",
        threads: int | None = None,
        calibration: str | Path | None = None,
    ) -> Encoder:
        """The model of a folder, a shipped one by name (`shipped_models`), or one of the hub, ready to encode.

        Args:
            source: a run folder (`model.safetensors`: PyTorch), an exported one (`export.json`: ONNX Runtime, which
                needs no PyTorch), a shipped model's name, or owner/name of the Hugging Face Hub (extra `hub`).
            device: auto, cpu, cuda, cuda:N or mps; ONNX Runtime: cpu, or cuda where it can.
            runtime: "torch" or "onnxruntime", for a folder that holds both; "auto" takes PyTorch there if it can.
            threads: that compute; None: the library's default, or $OMP_NUM_THREADS. PyTorch's number holds for the
                whole process.
            calibration: a file of `fmcnet calibrate`; None: the one in the folder, if there is one.

        Raises:
            CheckpointError: when there is no model, or a damaged one.
            MissingDependencyError: when PyTorch or ONNX Runtime is needed and not there.
        """
        folder = find_model(source)
        backend, card, digest = open_backend(folder, device, runtime, threads)
        return Encoder(backend, card, digest, folder, calibration)

    def __repr__(self) -> str:
        card = self.card
        parts = (
            f"{card.config.model.variant} {card.config.model.arch}",
            f"{self.height} x {self.width}",
            f"trained on {card.dataset}",
            f"{self.backend.name} on {self.backend.device}",
            f"digest {self.digest or 'none'}",
            "calibrated" if self.calibrated else "not calibrated",
        )
        return f"<Encoder {self.folder or '(no folder)'}: {', '.join(parts)}>"

    @property
    def model(self) -> FMCNet:
        """The network itself.

        Raises:
            FmcnetError: where ONNX Runtime computes.
        """
        if self.backend.name != "torch":
            raise FmcnetError(
                f"{self.folder} is an exported model: this needs the run that it was made from "
                "(fmcnet evaluate takes it with --no-report)"
            )
        return cast("FMCNet", self.backend.model)  # type: ignore[attr-defined]

    @property
    def projection(self) -> Projection | None:
        """The projection of this model's descriptors (`fmcnet project`), unless an exported graph includes it."""
        return getattr(self.backend, "projection", None)

    @property
    def device(self) -> torch.device:
        """Where PyTorch computes (of ONNX Runtime: its name, a text)."""
        return cast("torch.device", self.backend.device)

    @cached_property
    def calibration(self) -> Calibration:
        """What a similarity of two embeddings means: probabilities and thresholds.

        Raises:
            CheckpointError: when there is none (`fmcnet calibrate` makes one), or it is of other weights.
        """
        path = self._calibration
        if path is None or not path.is_file():
            raise CheckpointError(
                f"{path or 'this model'}: no calibration yet; make one with fmcnet calibrate {self.folder or 'RUN'} "
                "--data TABLE"
            )
        return Calibration.load(path, model=self.digest)

    @property
    def calibrated(self) -> bool:
        """Whether there is a calibration file (`calibration` checks that it is of these weights)."""
        return self._calibration is not None and self._calibration.is_file()

    def encode(
        self,
        images: ImageLike | Iterable[ImageLike],
        modality: ModalityLike | Sequence[ModalityLike] | NDArray[np.uint8],
        *,
        batch_size: int = 64,
        normalize: bool = True,
        flip: bool = False,
        on_error: OnError = "raise",
        workers: int = 1,
        progress: bool | None = None,
        value_range: ValueRange | None = None,
        remarks: Remarks | None = None,
    ) -> Embeddings:
        """Descriptors of images, of one modality or of both.

        The preprocessing is the model's and happens here, once: give images as they are, of any size.

        Args:
            images: one or several: paths, folders, Pillow images, (H, W, 3) or (H, W) uint8 arrays, (3, H, W)
                tensors of uint8 or of floats in 0..1; arrays and tensors may have a batch dimension before.
            modality: "visible" or "infrared", for all or one for each image: which stem sees them.
            batch_size: images at once; the result depends on it by rounding only.
            normalize: to unit length, so that a dot product is the cosine similarity.
            flip: average with the descriptor of the mirrored image.
            on_error: "raise": images that cannot be read are refused, all named; "skip": they are left out and named
                in the log; a function: it gets each `Fault`, and they are left out.
            workers: threads that decode the next two batches meanwhile.
            progress: show a bar; None: on a terminal, for more than one batch.
            value_range: the values (low, high) that become 0 and 255, of images deeper than 8 bits; None: by the rule
                of `fmcnet.data.pixels.eight_bits`, which may stretch each image separately.
            remarks: gets the doubtful images; None: they are logged.

        Returns:
            One row an image, in the order given: features (N, E) float32, name (a path, or "images[3]" for an image
            without one) and modality; pid and camid are unknown. `np.asarray` gives the features.

        Raises:
            DataError: naming the images that cannot be read; or when there is no image.
        """
        items = expand(images, modality)
        if not callable(on_error) and on_error not in ("raise", "skip"):
            raise FmcnetError(
                f"on_error='{on_error}': say raise, skip, or give a function that takes each fault"
            )
        value_range = None if value_range is None else check_range(value_range)
        noted = Remarks() if remarks is None else remarks
        show = progress if progress is not None or len(items) > batch_size else False
        embedded: dict[int, FloatArray] = {}
        faults: list[Fault] = []
        with Progress("embedding", len(items), show=show) as bar:
            for readable, unreadable in read_ahead(
                items, batch_size, self.height, self.width, workers, value_range, noted
            ):
                bar.advance(count=len(readable) + len(unreadable))
                faults += unreadable
                if not readable or (faults and on_error == "raise"):
                    continue  # with "raise", the rest is only read, to name all faults
                batch = [items[position] for position in readable]
                pixels, kind = np.stack(list(readable.values())), batch[0].modality
                note_colours(pixels, kind, [item.name for item in batch], noted)
                embedded.update(zip(readable, self._embed(pixels, kind, flip), strict=True))
        if remarks is None:
            for line in noted.lines():
                logger.warning("%s", line)
        _report_faults(sorted(faults), len(items), on_error)
        positions = sorted(embedded)
        features = np.stack([embedded[position] for position in positions])
        kept = [items[position] for position in positions]
        return Embeddings.unlabelled(
            l2_normalize(features) if normalize else features,
            np.array([item.modality.code for item in kept], dtype=np.uint8),
            np.array([item.name for item in kept], dtype=np.str_),
        )

    def similarity(self, a: Embeddings | ArrayLike, b: Embeddings | ArrayLike) -> FloatArray:
        """Cosine similarities of embeddings.

        Args:
            a: (N, E), of any length but zero.
            b: (M, E), of any length but zero.

        Returns:
            (N, M) float32, in -1..1.

        Raises:
            DataError: when their rows differ in length.
        """
        left, right = (l2_normalize(np.asarray(x, dtype=np.float32)) for x in (a, b))
        if left.shape[-1:] != right.shape[-1:]:
            raise DataError(
                f"embeddings of {left.shape[-1]} and {right.shape[-1]} values do not compare: take both of one model"
            )
        out: FloatArray = left @ right.T
        return out

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
            store: a folder that keeps the result, keyed by weights, preprocessing and the table with the
                state of its files (`fmcnet.files.file_state`); a later call reads it back. None: nothing is kept.
            progress: show a bar; None: on a terminal only.

        Returns:
            One row a row of the table: features (N, E) float32, not brought to unit length, with identity, camera
            and modality.

        Raises:
            DataError: when the table has no rows, or an image cannot be read.
        """
        stored_path = self.kept_at(table, flip, store)
        if stored_path is not None and stored_path.is_file():
            try:
                kept = Embeddings.load(stored_path)
                log_cached_notes(table, self.height, self.width, self.card.config.data.cache)
                # An earlier version kept no names.
                return replace(kept, pid_name=table.identity_names(), camera_name=table.camera)
            except DataError:  # damaged: made again below
                stored_path.unlink()
        features = self.embed_rows(
            table, np.arange(len(table)), batch_size=batch_size, flip=flip, progress=progress
        )
        return keep(features, table, stored_path)

    def read_dataset(self, data: str | Path, *, all_splits: bool = False) -> Table:
        """Read a dataset as the model's training read its own, and log the reader's notes.

        Args:
            data: its folder or CSV.
            all_splits: its splits are not used, so nothing is logged of identities that are held out for test.

        Returns:
            Its table.
        """
        config = self.card.config.data
        table = read_dataset(data, layout=config.layout, regdb_split=config.split)
        for note in table.notes:
            if not (all_splits and note.startswith(HELD_OUT)):
                logger.warning("%s", note)
        return table

    def cached_images(self, table: Table, progress: bool | None = None) -> NDArray[np.uint8]:
        """Every image of a table, (N, H, W, 3) uint8 at the input size, decoded once and cached.

        Raises:
            DataError: when one cannot be read.
        """
        folder = self.card.config.data.cache
        return ImageCache(table, self.height, self.width, folder=folder, progress=progress).images

    def kept_at(self, table: Table, flip: bool, store: Path | None) -> Path | None:
        """The file in the folder `store` that keeps a table's embeddings; None: nothing is kept."""
        if store is None or not self.digest:
            return None
        key = f"{self.digest}|{cache_key(table, self.height, self.width)}|flip={flip}"
        columns = np.stack([table.identity_numbers(), table.camid, table.modality.astype(np.int64)]).tobytes()
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
        """Descriptors of some rows (R,) of a table; other arguments as of `embed_table`.

        Returns:
            (R, E) float32, in the order of `rows`, not brought to unit length.

        Raises:
            DataError: when there are no rows, or an image of the table cannot be read.
        """
        if not len(rows):
            raise DataError(f"there are no images to embed in {table.origin}")
        return embed_batches(
            lambda batch, modality: self._embed(batch, modality, flip),
            self.cached_images(table, progress),
            table.modality,
            rows,
            batch_size,
            progress,
        )

    def _embed(self, images: NDArray[Any], modality: Modality, flip: bool) -> FloatArray:
        """(N, H, W, 3) uint8 to (N, E) float32."""
        features = self.backend(images, modality)
        if flip:
            features = (features + self.backend(images[:, :, ::-1], modality)) * np.float32(0.5)
        return features


def _report_faults(faults: Sequence[Fault], total: int, on_error: OnError) -> None:
    """Raise, log or hand over the faults, as `on_error` says; raise, too, if none of `total` images is left."""
    if callable(on_error):
        for fault in faults:
            on_error(fault)
    if faults and (on_error == "raise" or len(faults) == total):
        raise DataError(list_faults(faults, total))
    if faults and on_error == "skip":
        logger.warning("left out: %s", list_faults(faults, total))


def embed_batches(
    embed: Callable[[NDArray[Any], Modality], FloatArray],
    images: NDArray[np.uint8],
    modality: NDArray[np.uint8],
    rows: IntArray,
    batch_size: int,
    progress: bool | None,
) -> FloatArray:
    """Descriptors (R, E) of some rows of images (N, H, W, 3), in batches of one modality each."""
    features: FloatArray | None = None
    with Progress("embedding", len(rows), show=progress) as bar:
        for kind in Modality:
            positions = np.flatnonzero(modality[rows] == kind.code)
            for start in range(0, len(positions), batch_size):
                batch = positions[start : start + batch_size]
                part = embed(images[rows[batch]], kind)
                if features is None:
                    features = np.empty((len(rows), part.shape[1]), dtype=np.float32)
                features[batch] = part
                bar.advance(count=len(batch))
    assert features is not None
    return features


def keep(features: FloatArray, table: Table, kept: Path | None) -> Embeddings:
    """Features (N, E) of a table's rows as `Embeddings`, written to the file `kept` if there is one and it can be."""
    result = Embeddings(
        features,
        table.identity_numbers(),
        table.camid,
        table.modality,
        table.positions(),
        table.path,
        table.identity_names(),
        table.camera,
    )
    if kept is not None:
        try:
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(kept, result.save, private_mode(kept.parent))
        except OSError as error:
            logger.warning(
                "the embeddings are not kept for a next call in %s: %s", kept.parent, error.strerror
            )
    return result
