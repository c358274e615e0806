"""The inner kernel: how many images and identities a probe's true matches have above them.

A block of similarities has its gallery images arranged by identity (`Columns`). Nothing is looped over in
Python, and nothing of size Q x G x K is made. There are two ways, with equal results:

- many true matches: one sort per probe and one binary search per true match (`count_above`), on a block (q, C);
- few (`FEW`): one comparison per true match, counted in bytes, on a block stored as (C, q), whose rows are gallery
  images: taking a trial's images out of it copies whole rows (`count_above_few`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmcnet.types import IntArray

FEW = 8
"""Up to so many true matches per probe are compared one by one."""

PADDING = 1.6
"""Identities are padded to one length while the block grows by no more than this factor."""


class Scratch:
    """Memory used again from block to block: on CPU, fresh pages cost three times as much as what is done in them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.held: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised matrix, valid until `name` is asked for again."""
        size = shape[0] * shape[1]
        held = self.held.get(name)
        if held is None or held.numel() < size:
            held = self.held[name] = torch.empty(size, dtype=dtype or self.dtype, device=self.device)
        return held[:size].view(shape)


@dataclass(frozen=True)
class Columns:
    """How the gallery images of a trial (or of a block of it) are laid out as columns.

    Attributes:
        pids: (n,) the identities, ascending.
        source: (C,) int64 tensor, position of each column in the block it is taken from; padding points at the
            block's last column, which holds -inf.
        members: (n, L) int64 tensor, the columns of each identity, padded with a column of -inf.
        rows: (n, L) int64, the gallery row of each member, -1 for padding.
        padded: columns are (L, n): the l-th image of every identity side by side.
    """

    pids: IntArray
    source: Tensor
    members: Tensor
    rows: IntArray
    padded: bool

    @staticmethod
    def arrange(
        positions: IntArray, rows: IntArray, pid: IntArray, pad: int, device: torch.device
    ) -> Columns:
        """Lay out a set of gallery images.

        Args:
            positions: (G,) where each is in the block.
            rows: (G,) its row among the embeddings.
            pid: (G,) its identity.
            pad: position of the block's column of -inf.
            device: where the tensors go.
        """
        order = np.argsort(pid, kind="stable")
        pids, start, count = np.unique(pid[order], return_index=True, return_counts=True)
        longest = int(count.max())
        slot = np.arange(longest)
        inside = slot[None, :] < count[:, None]  # (n, L)
        nth = np.where(inside, start[:, None] + slot[None, :], 0)
        table = np.where(inside, positions[order][nth], pad)  # (n, L) positions in the block
        who = np.where(inside, rows[order][nth], -1)
        padded = table.size <= PADDING * len(positions) + 64
        if padded:
            source = table.T.ravel()
            members = slot[None, :] * len(pids) + np.arange(len(pids))[:, None]
        else:
            source = np.append(positions[order], pad)
            members = np.where(inside, nth, len(positions))
        return Columns(
            pids=pids,
            source=torch.from_numpy(np.ascontiguousarray(source)).to(device),
            members=torch.from_numpy(np.ascontiguousarray(members)).to(device),
            rows=who,
            padded=padded,
        )

    @property
    def few(self) -> bool:
        """Whether `count_above_few` applies."""
        return self.padded and self.members.shape[1] <= FEW

    def identity_of(self, pid: IntArray) -> tuple[IntArray, IntArray]:
        """For probes' identities (q,): their place in `pids` (0 where absent) and whether they are there."""
        place = np.minimum(np.searchsorted(self.pids, pid), len(self.pids) - 1)
        return place, self.pids[place] == pid


@dataclass(frozen=True)
class Matches:
    """The true matches of a block of probes, best first.

    Attributes:
        values: (q, K) similarities, descending, -inf where there is none.
        number: (q,) int64, how many there are.
    """

    values: Tensor
    number: Tensor

    @staticmethod
    def of(values: Tensor) -> Matches:
        """From similarities in any order, -inf for none."""
        ordered = values.sort(dim=1, descending=True).values
        return Matches(ordered, (ordered > -torch.inf).sum(1))


def own_columns(
    block: Tensor, columns: Columns, place: Tensor, present: Tensor, skipped: Tensor | None
) -> Tensor:
    """Take the true matches' similarities (q, L) out of a block (q, C), leaving -inf in their place.

    Args:
        block: similarities, in either memory order; changed in place.
        columns: its layout.
        place: (q,) the identity of each probe in the layout.
        present: (q,) bool, whether it is there at all.
        skipped: (q, L) bool, true matches that the skip rule hides; or None.
    """
    members = columns.members[place]  # (q, L)
    values = block.gather(1, members)
    absent = ~present[:, None]
    if skipped is not None:
        absent = absent | skipped
    # A probe whose identity is absent must leave identity 0's similarities alone: it rewrites what it read.
    kept = torch.where(present[:, None], torch.full_like(values, -torch.inf), values)
    block.scatter_(1, members, kept)
    return values.masked_fill_(absent, -torch.inf)


def count_above(
    block: Tensor, columns: Columns, thresholds: Tensor, tie: float, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Count what is at least as similar as each threshold.

    Args:
        block: (q, C) similarities of other identities' images (-inf: nothing there); destroyed.
        columns: its layout.
        thresholds: (q, K) similarities of the true matches, best first.
        tie: similarities within this are equal, and count.
        scratch: memory to use again.

    Returns:
        (q, K) int64 images, and (q,) int64 identities at least as similar as the best true match.
    """
    lowered = thresholds - tie
    best = lowered[:, :1]
    n = len(columns.pids)
    if columns.padded:
        identities = (block.view(len(block), -1, n).amax(1) >= best).sum(1)
    else:
        running = torch.cumsum(block >= best, 1, dtype=torch.int32)
        last = columns.members.amax(1) if columns.rows.min() >= 0 else _last_columns(columns)
        upto = running.index_select(1, last)
        fresh = torch.diff(upto, dim=1, prepend=torch.zeros_like(upto[:, :1]))
        identities = (fresh > 0).sum(1)
    ordered = sort_rows(block)
    above = ordered.shape[1] - torch.searchsorted(ordered, lowered)
    return above, identities


def count_above_few(
    block: Tensor, columns: Columns, thresholds: Tensor, tie: float, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """`count_above` for few thresholds, on a block (q, C) stored as (C, q), which is left as it is."""
    stored = block.T
    lowered = (thresholds - tie).T.contiguous()  # (K, q)
    above = torch.empty(lowered.shape, dtype=torch.int64, device=block.device)
    identities = above[0]
    reached = scratch.get("reached", (stored.shape[0], stored.shape[1]), torch.bool)
    for k, threshold in enumerate(lowered):
        _reaching(stored, threshold, reached)
        above[k] = _count_rows(reached)
        if k == 0:
            images = reached.view(-1, len(columns.pids), len(block))
            anyone = images[0].clone()
            for image in images[1:]:
                anyone |= image
            identities = _count_rows(anyone)
    return above.T, identities


def _reaching(stored: Tensor, threshold: Tensor, out: Tensor) -> None:
    """(C, q) where a similarity reaches the probe's threshold; numpy compares three times as fast on CPU."""
    if stored.device.type == "cpu":
        np.greater_equal(stored.numpy(), threshold.numpy(), out=out.numpy())
    else:
        torch.ge(stored, threshold, out=out)


def _count_rows(flags: Tensor) -> Tensor:
    """(q,) how many of the rows (C, q) are True; on CPU added up as bytes, 255 rows at a time."""
    if flags.device.type != "cpu":
        return flags.sum(0)
    counts = np.zeros(flags.shape[1], dtype=np.int64)
    octets = flags.numpy().view(np.uint8)
    for start in range(0, len(octets), 255):
        counts += np.add.reduce(octets[start : start + 255], axis=0, dtype=np.uint8)
    return torch.from_numpy(counts)


def _last_columns(columns: Columns) -> Tensor:
    """(n,) the last column of each identity in the compact layout."""
    length = torch.from_numpy((columns.rows >= 0).sum(1)).to(columns.members.device)
    return columns.members.gather(1, length[:, None] - 1)[:, 0]


def sort_rows(block: Tensor) -> Tensor:
    """Each row ascending. On CPU by numpy, in place: its vectorised sort is 25 times as fast as torch's."""
    if block.device.type == "cpu":
        block.numpy().sort(axis=1)
        return block
    return block.sort(dim=1).values
