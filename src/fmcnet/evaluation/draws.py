"""How the images of a trial are drawn: all of them, the official permutation, or Python's `random`.

Source: shared protocols, section 2. On SYSU-MM01 two draws circulate whose galleries share 9 to 20 of 301 images.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from fmcnet.data.mat import read_mat
from fmcnet.errors import ProtocolError
from fmcnet.files import file_state
from fmcnet.identities import FIRST_TEXT_NUMBER
from fmcnet.types import Embeddings, IntArray

logger = logging.getLogger(__name__)

DrawKind = Literal["all", "official", "seeded"]
Group: TypeAlias = tuple[int, int, IntArray]
"""An identity, a camera, and its rows."""

PERMUTATION_FILE = "rand_perm_cam.mat"


@dataclass(frozen=True)
class Draw:
    """How many images per identity and camera enter a trial, and how they are drawn."""

    # "all" (every image, one trial), "official" (`rand_perm_cam.mat`) or "seeded" (Python's `random`)
    kind: DrawKind = "all"
    shots: int | None = None  # images per identity, camera and modality; None takes all
    trials: int = 1  # number of trials
    seed: int = 0  # of a seeded draw, 0 or more; trial t uses `random.seed(seed + t)`, t = 0, 1, ...
    permutation: Path | None = None  # the official draw's file

    def __post_init__(self) -> None:
        if self.kind not in ("all", "official", "seeded"):
            raise ProtocolError(f"unknown draw '{self.kind}': use official, seeded or all")
        for name in ("shots", "trials", "seed"):
            value = getattr(self, name)
            if name == "shots" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ProtocolError(f"{name} is {value!r}: give a whole number")
            object.__setattr__(self, name, int(value))  # `random.seed` refuses NumPy's integers
        if self.seed < 0:
            raise ProtocolError(f"seed must be 0 or more, got {self.seed}: Python's random takes -1 as 1")
        if self.trials < 1:
            raise ProtocolError(f"a protocol needs at least one trial, got {self.trials}")
        if self.shots is not None and self.shots < 1:
            raise ProtocolError(f"shots must be 1 or more, got {self.shots}")
        if self.kind == "official" and self.trials > 10:
            raise ProtocolError(f"the official draw has ten trials, got trials={self.trials}")
        if self.kind == "official" and self.permutation is None:
            raise ProtocolError(
                f"the official draw needs {PERMUTATION_FILE}: give its path, or use the seeded draw "
                "(the file comes with the authors' evaluation code, not with the dataset)"
            )

    def describe(self) -> str:
        """The draw in words, as part of a protocol's sentence."""
        if self.kind == "all" or self.shots is None:
            return "every image, nothing drawn"
        shots_text = f"{self.shots} image{'s' * (self.shots > 1)} per identity and camera"
        draw_text = f"official draw ({PERMUTATION_FILE})"
        if self.kind == "seeded":
            draw_text = f"seeded draw (Python's random, seeds {self.seed} to {self.seed + self.trials - 1})"
        return f"{shots_text}, {draw_text}, {self.trials} trial{'s' * (self.trials > 1)}"

    def pick(self, embeddings: Embeddings, rows: IntArray) -> list[IntArray]:
        """The rows that each trial of a seeded or official draw keeps, by identity, camera and modality.

        Raises:
            ProtocolError: when the draw does not fit the embeddings: `index` is not unique, or of the official draw
                not 1..n with the permutation's n images for every identity and camera.
        """
        groups = _group_rows(embeddings, rows)
        if self.kind == "seeded":
            if ((embeddings.pid[rows] >= FIRST_TEXT_NUMBER) & (embeddings.pid_name[rows] == "")).any():
                logger.warning(
                    "the identities are numbers that stand for texts, so the draw is in the order of these numbers, "
                    "not of the names: give the texts as pid, or embed again"
                )
            return [self._seeded_trial(groups, self.seed + t) for t in range(self.trials)]
        return self._official_trials(embeddings, groups)

    def _seeded_trial(self, groups: list[Group], seed: int) -> IntArray:
        """`random.choice` over the sorted file names, identity by identity, camera by camera (AGW, CAJ, DEEN, PMT).

        Only the number of names matters to `random.choice`, so rows are drawn instead. No source has several shots.
        """
        generator = random.Random(seed)
        picked: list[int] = []
        for _, _, rows in groups:
            if self.shots == 1:
                picked.append(int(generator.choice(rows)))
            else:
                picked += generator.sample(rows.tolist(), min(self.shots or 1, len(rows)))
        return np.array(picked, dtype=np.int64)

    def _official_trials(self, embeddings: Embeddings, groups: list[Group]) -> list[IntArray]:
        """Row r of `rand_perm_cam{camera}{pid}` for trial r, its first `shots` entries, 1-based."""
        assert self.permutation is not None
        table = read_permutation(self.permutation)
        pids, cameras = {pid for pid, _, _ in groups}, {camera for _, camera, _ in groups}
        for camera, pid in sorted(table.keys() - {(camera, pid) for pid, camera, _ in groups}):
            if camera in cameras and pid in pids:  # all images of this identity and camera are missing
                self._check_counts(pid, camera, table[camera, pid], np.empty(0, dtype=np.int64), embeddings)
        picked: list[IntArray] = []  # (trials, shots) rows for each identity and camera
        for pid, camera, rows in groups:
            permutation = table.get((camera, pid))
            if permutation is None or self.trials > len(permutation):
                raise ProtocolError(
                    f"{self.permutation} has no draw for trial {1 if permutation is None else self.trials}, camera "
                    f"{camera}, identity {pid}, of which the embeddings hold {len(rows)} images: it belongs to "
                    "another dataset or split"
                )
            self._check_counts(pid, camera, permutation, embeddings.index[rows], embeddings)
            picked.append(rows[permutation[: self.trials, : self.shots] - 1])
        return list(np.concatenate(picked, axis=1))

    def _check_counts(
        self, pid: int, camera: int, permutation: IntArray, index: IntArray, embeddings: Embeddings
    ) -> None:
        """Raise unless the permutation is of 1..n, as is the sorted `index` of the n images there."""
        n, expected = len(index), permutation.shape[1]
        if n < expected == int(((embeddings.pid == pid) & (embeddings.camid == camera)).sum()):
            raise ProtocolError(
                f"the mask or roles leave {n} of the {expected} images of identity {pid}, camera {camera}, and the "
                "official draw needs all: leave that out, or use the seeded draw"
            )
        if n != expected:
            raise ProtocolError(
                f"{self.permutation} counts {expected} images of identity {pid}, camera {camera}, but the embeddings "
                f"hold {'only ' if n < expected else ''}{n} images there: give exactly the dataset's images, or "
                "use the seeded draw"
            )
        numbers = np.arange(1, n + 1)
        if not np.array_equal(index, numbers):
            raise ProtocolError(
                f"the 'index' of identity {pid}, camera {camera} is not 1 to {n}, as the official draw needs: give "
                "each image's 1-based position among the sorted images of its identity, camera and modality"
            )
        if (np.sort(permutation, axis=1) != numbers).any():
            raise ProtocolError(
                f"{self.permutation} is damaged: a row of identity {pid}, camera {camera} does not hold 1 to {n}, "
                "each once"
            )


def _group_rows(embeddings: Embeddings, rows: IntArray) -> list[Group]:
    """(pid, camid, rows sorted by index) for every identity, camera and modality, ascending; an index counts once.

    Identities are in the order of the published loops over sorted test identities: numbers by value, texts by name.
    """
    if not len(rows):
        return []
    columns = (embeddings.pid, embeddings.camid, embeddings.modality, embeddings.index)
    pids, first, identity = np.unique(embeddings.pid[rows], return_index=True, return_inverse=True)
    texts = embeddings.pid_name[rows]
    named = np.flatnonzero(texts != "")  # an identity whose name only some rows have is one
    first[identity[named]] = named
    ranks = np.empty(len(pids), dtype=np.int64)
    ranks[np.lexsort((pids, texts[first]))] = np.arange(len(pids))
    names = ranks[identity]
    keys = np.stack([names, *(column[rows].astype(np.int64) for column in columns)])
    order = np.lexsort(keys[::-1])
    rows, changes = rows[order], np.diff(keys[:, order]) != 0  # (5, n - 1) from one row to the next
    duplicates = np.flatnonzero(~changes.any(axis=0))
    if len(duplicates):
        a, b = sorted(rows[duplicates[0] : duplicates[0] + 2].tolist())
        raise ProtocolError(
            f"rows {a} and {b} have the same pid, camera ({int(embeddings.camid[a])}) and index "
            f"({int(embeddings.index[a])}): a draw needs 'index', the 1-based position among the sorted images "
            "of an identity, camera and modality"
        )
    parts = np.split(rows, np.flatnonzero(changes[:4].any(axis=0)) + 1)
    return [(int(embeddings.pid[part[0]]), int(embeddings.camid[part[0]]), part) for part in parts]


@lru_cache(maxsize=4)
def _read_permutation_file(path: Path, state: str) -> dict[tuple[int, int], IntArray]:
    table: dict[tuple[int, int], IntArray] = {}
    try:
        for camera, cells in enumerate(read_mat(path, "rand_perm_cam"), start=1):
            for pid, permutation in enumerate(cells, start=1):
                matrix = np.asarray(permutation)
                if matrix.ndim == 2 and matrix.size:
                    table[camera, pid] = matrix.astype(np.int64)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"{path}: {error}") from error
    return table


def read_permutation(path: str | Path) -> dict[tuple[int, int], IntArray]:
    """The official draw: (camera, pid) -> (10, number of images) int64, 1-based permutations, a row a trial.

    Raises:
        ProtocolError: when the file is missing or is not the expected MATLAB file.
    """
    path = Path(path)
    if not path.is_file():
        raise ProtocolError(
            f"{path} does not exist: give the path of {PERMUTATION_FILE}, or use the seeded draw"
        )
    return _read_permutation_file(path.resolve(), file_state(path))


def find_permutation(root: str | Path) -> Path:
    """`rand_perm_cam.mat` in a dataset's folder or in its `exp/`.

    Raises:
        ProtocolError: when it is in neither, saying where it comes from.
    """
    for folder in (Path(root), Path(root) / "exp"):
        if (folder / PERMUTATION_FILE).is_file():
            return folder / PERMUTATION_FILE
    raise ProtocolError(
        f"{PERMUTATION_FILE} is neither in {root} nor in {Path(root) / 'exp'}. The official gallery draw is not in "
        "the dataset's archive: it comes with the authors' evaluation code. Put it into exp/, give its path, or use "
        "the seeded draw (draw='seeded', --draw seeded), which is another gallery and is named in the report"
    )
