"""The blocks of a pass: probes in blocks against all candidates, or against candidates in blocks too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fmcnet.evaluation.counting import (
    FEW,
    Columns,
    Matches,
    Scratch,
    count_above,
    count_above_few,
    own_columns,
)
from fmcnet.evaluation.ranking import Ranks
from fmcnet.evaluation.rules import SkipRule
from fmcnet.evaluation.similarity import Similarity
from fmcnet.types import BoolArray, Embeddings, IntArray


class Blocks:
    """The state of one pass: probes in blocks, candidates in one block or in many."""

    def __init__(
        self,
        embeddings: Embeddings,
        similarity: Similarity,
        skip: SkipRule,
        galleries: list[IntArray],
        query: IntArray,
        budget: int,
    ) -> None:
        self.embeddings, self.similarity, self.skip = embeddings, similarity, skip
        self.galleries, self.query, self.budget = galleries, query, budget
        self.overlap = any(np.isin(query, gallery).any() for gallery in galleries)
        self.device = similarity.device
        self.scratch = Scratch(similarity.dtype, similarity.device)

    def one_block(self, union: IntArray) -> list[Ranks]:
        """All candidates (ordered by identity) fit beside a block of probes."""
        gallery = self.similarity.load(self.embeddings, union)

        def similarities(rows: slice, few: bool) -> Tensor:
            query = self.query[rows]
            return self._similarities(
                self.similarity.load(self.embeddings, query), query, gallery, union, few
            )

        return self.dense(union, similarities)

    def dense(self, union: IntArray, similarities: Callable[[slice, bool], Tensor]) -> list[Ranks]:
        """Rank from similarities (q, len(union) + 1) that a function gives for a block of probes.

        Its second argument says how they should lie in memory (`counting`).
        """
        layouts = self._layouts(union, self._positions(union), slice(0, len(union)))
        few = all(columns is not None and columns.few for columns in layouts)
        ranks = [Ranks.empty(len(self.query)) for _ in self.galleries]
        for rows in _slices(len(self.query), self.budget // (len(union) + 1)):
            query = self.query[rows]
            block = _stored(similarities(rows, few), few)
            for one, columns in zip(ranks, layouts, strict=True):
                assert columns is not None
                place, present = self._places(columns, query)
                taken = self._take(block, columns, few)
                hidden = self._hidden(columns, query)
                found = Matches.of(own_columns(taken, columns, place, present, hidden))
                count = count_above_few if few else count_above
                above, identities = count(taken, columns, found.values, self.similarity.tie, self.scratch)
                one.fill(rows, found.number.cpu().numpy(), above.cpu().numpy(), identities.cpu().numpy())
        return ranks

    def many_blocks(self, union: IntArray) -> list[Ranks]:
        """Candidates in blocks too: first the true matches' similarities, pair by pair, then the counting."""
        ranks = [Ranks.empty(len(self.query)) for _ in self.galleries]
        positions = self._positions(union)
        probes = min(len(self.query), max(64, min(4096, int(self.budget**0.5))))
        for rows in _slices(len(self.query), probes):
            query = self.query[rows]
            loaded = self.similarity.load(self.embeddings, query)
            found = [self._matches(loaded, query, gallery) for gallery in self.galleries]
            above = [torch.zeros_like(f.values, dtype=torch.int64) for f in found]
            identities = [torch.zeros_like(f.number) for f in found]
            for span in self._spans(union, max(1, self.budget // max(len(query), loaded.shape[1]))):
                part = union[span]
                gallery = self.similarity.load(self.embeddings, part)
                layouts = self._layouts(union, positions, span)
                few = all(c is None or c.few for c in layouts) and all(
                    f.values.shape[1] <= FEW for f in found
                )
                block = self._similarities(loaded, query, gallery, part, few)
                for t, columns in enumerate(layouts):
                    if columns is None:
                        continue
                    place, present = self._places(columns, query)
                    taken = self._take(block, columns, few)
                    own_columns(taken, columns, place, present, None)
                    count = count_above_few if few else count_above
                    more, others = count(taken, columns, found[t].values, self.similarity.tie, self.scratch)
                    above[t] += more
                    identities[t] += others
            for one, f, a, i in zip(ranks, found, above, identities, strict=True):
                one.fill(rows, f.number.cpu().numpy(), a.cpu().numpy(), i.cpu().numpy())
        return ranks

    def _similarities(
        self, loaded: Tensor, query: IntArray, gallery: Tensor, rows: IntArray, few: bool
    ) -> Tensor:
        """(q, G + 1): similarities after the camera rule; the last column is -inf, what padding points at."""
        shape = (len(rows) + 1, len(query)) if few else (len(query), len(rows) + 1)
        block = self.scratch.get("block", shape)
        if few:
            torch.mm(gallery, loaded.T, out=block[:-1])
            block = block.T
        else:
            torch.mm(loaded, gallery.T, out=block[:, :-1])
        offset = self.similarity.offset(gallery)
        if offset is not None:
            block[:, :-1].sub_(offset)
        block[:, -1] = -torch.inf
        self.hide_cameras(block, query, rows)
        return block

    def _take(self, block: Tensor, columns: Columns, few: bool) -> Tensor:
        """The columns of a trial, copied out of a block, stored in the same way."""
        n = len(columns.source)
        if few:
            taken = self.scratch.get("taken", (n, len(block)))
            return torch.index_select(block.T, 0, columns.source, out=taken).T
        taken = self.scratch.get("taken", (len(block), n))
        return torch.index_select(block, 1, columns.source, out=taken)

    def hide_cameras(self, block: Tensor, query: IntArray, rows: IntArray) -> None:
        """Set to -inf what a camera rule hides from these probes, whatever the identity."""
        cameras = self.embeddings.camid[query]
        there = self.embeddings.camid[rows]
        for camera in (
            np.unique(cameras).tolist() if self.skip.kind in ("same_camera", "camera_pairs") else ()
        ):
            columns = np.flatnonzero(np.isin(there, self.skip.hidden_cameras(camera)))
            if len(columns):
                mine = np.flatnonzero(cameras == camera)  # contiguous: probes are ordered by camera
                part = block[int(mine[0]) : int(mine[-1]) + 1]
                part.index_fill_(1, torch.from_numpy(columns).to(self.device), -torch.inf)

    def _positions(self, union: IntArray) -> list[IntArray]:
        """For each trial, the ascending positions of its gallery within the union of all."""
        at = np.empty(len(self.embeddings), dtype=np.int64)
        at[union] = np.arange(len(union))
        return [np.sort(at[gallery]) for gallery in self.galleries]

    def _layouts(self, union: IntArray, positions: list[IntArray], part: slice) -> list[Columns | None]:
        """Each trial's columns within a block of candidates; None where it has none there."""
        layouts: list[Columns | None] = []
        for inside in positions:
            first, last = np.searchsorted(inside, (part.start, part.stop))
            mine = inside[first:last]
            rows, pid = union[mine], self.embeddings.pid[union[mine]]
            pad = part.stop - part.start
            layouts.append(
                Columns.arrange(mine - part.start, rows, pid, pad, self.device) if len(mine) else None
            )
        return layouts

    def _places(self, columns: Columns, query: IntArray) -> tuple[Tensor, Tensor]:
        place, present = columns.identity_of(self.embeddings.pid[query])
        return torch.from_numpy(place).to(self.device), torch.from_numpy(present).to(self.device)

    def _hidden(self, columns: Columns, query: IntArray) -> Tensor | None:
        """(q, L) true matches that the probe must not see and that `hide_cameras` has left; None for none."""
        if self.skip.kind != "same_identity_and_camera" and not self.overlap:
            return None
        place, _ = columns.identity_of(self.embeddings.pid[query])
        return torch.from_numpy(self._hidden_pairs(query, columns.rows[place])).to(self.device)

    def _hidden_pairs(self, query: IntArray, rows: IntArray) -> BoolArray:
        """For given gallery rows (q, L), -1 for none: hidden by rule, or because they are the probe itself."""
        cameras = self.embeddings.camid[query]
        hidden: BoolArray = rows == query[:, None]
        if self.skip.kind in ("same_identity_and_camera", "same_camera"):
            hidden |= (self.embeddings.camid[rows] == cameras[:, None]) & (cameras >= 0)[:, None]
        elif self.skip.kind == "camera_pairs":
            there = self.embeddings.camid[rows]
            for camera in np.unique(cameras).tolist():
                mine = (cameras == camera)[:, None]
                hidden |= mine & np.isin(there, self.skip.hidden_cameras(camera))
        return hidden

    def _matches(self, loaded: Tensor, query: IntArray, gallery: IntArray) -> Matches:
        """The true matches' similarities of a block of probes, computed pair by pair."""
        pids = np.unique(self.embeddings.pid[query])
        mine = gallery[np.isin(self.embeddings.pid[gallery], pids)]
        if not len(mine):
            return Matches.of(torch.full((len(query), 1), -torch.inf, dtype=loaded.dtype, device=self.device))
        columns = Columns.arrange(mine, mine, self.embeddings.pid[mine], -1, self.device)
        place, present = columns.identity_of(self.embeddings.pid[query])
        rows = columns.rows[place]
        values = torch.empty(rows.shape, dtype=loaded.dtype, device=self.device)
        for part in _slices(len(query), max(1, self.budget // (rows.shape[1] * loaded.shape[1]))):
            filled = np.where(rows[part] < 0, mine[0], rows[part]).ravel()
            near = self.similarity.load(self.embeddings, filled)
            shape = (len(rows[part]), rows.shape[1], loaded.shape[1])
            values[part] = self.similarity.pairs(loaded[part], near.view(shape))
        absent = (rows < 0) | ~present[:, None]
        absent |= self._hidden_pairs(query, rows)
        return Matches.of(values.masked_fill_(torch.from_numpy(absent).to(self.device), -torch.inf))

    def _spans(self, union: IntArray, size: int) -> Iterator[slice]:
        """Candidates (ordered by identity) in blocks of about `size`, an identity never split."""
        pid = self.embeddings.pid[union]
        ends = np.append(np.flatnonzero(np.diff(pid)) + 1, len(union))
        start = 0
        while start < len(union):
            fit = int(np.searchsorted(ends, start + size, side="right")) - 1
            if fit < 0 or ends[fit] <= start:  # one identity alone is larger than a block
                fit = int(np.searchsorted(ends, start, side="right"))
            stop = int(ends[fit])
            yield slice(start, stop)
            start = stop


def _stored(block: Tensor, few: bool) -> Tensor:
    """A block (q, C) stored as the way of counting wants it."""
    return block.T.contiguous().T if few else block.contiguous()


def _slices(n: int, size: int) -> Iterator[slice]:
    """n rows in slices of at most `size`."""
    size = max(1, size)
    return (slice(start, min(n, start + size)) for start in range(0, n, size))
