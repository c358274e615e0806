"""What holds for every dataset: splits apart, none empty, training identities in both modalities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from fmcnet.data.readers.tree import shown
from fmcnet.data.table import SPLITS, Record
from fmcnet.errors import DataError
from fmcnet.types import Modality


def settle(
    records: Sequence[Record],
    where: str,
    name: Callable[[int], str] = str,
    required: Sequence[str] = ("train", "test"),
    training: bool = True,
) -> tuple[list[Record], list[str]]:
    """Check the rows of a reader and drop training identities that one modality never saw.

    Args:
        records: the rows.
        where: what to call the dataset in a message.
        name: how to call an identity in a message.
        required: splits that must not be empty.
        training: False: the rows are to be searched, not learnt from or scored; every row is kept, whatever its
            identity and split.

    Returns:
        The rows to keep, and notes. An identity of `val` or `test` seen in one modality only is kept: it is a
        distractor, or a probe without match, as the protocols provide for.

    Raises:
        DataError: when splits share identities, or a required split is empty.
    """
    if not training:
        return list(records), []
    seen: dict[str, dict[int, set[Modality]]] = {split: {} for split in SPLITS}
    for record in records:
        seen[record.split].setdefault(record.pid, set()).add(record.modality)
    for first, second in combinations(SPLITS, 2):
        both = sorted(set(seen[first]) & set(seen[second]))
        if both:
            raise DataError(
                f"{where}: {len(both)} identities are in both {first} and {second}: "
                f"{shown([name(pid) for pid in both])}; an identity belongs to one split"
            )
    for split in required:
        if not seen[split]:
            raise DataError(f"{where}: the {split} split is empty: no image belongs to it")
    notes = []
    for split in SPLITS:
        single = sorted(pid for pid, modalities in seen[split].items() if len(modalities) == 1)
        if single:
            fate = "dropped from training" if split == "train" else "kept: a probe of it has no match"
            what = "1 identity" if len(single) == 1 else f"{len(single)} identities"
            called = shown([name(pid) for pid in single])
            notes.append(f"{split}: {what} seen in one modality only, {fate}: {called}")
    dropped = {pid for pid, modalities in seen["train"].items() if len(modalities) == 1}
    if dropped and len(dropped) == len(seen["train"]):
        raise DataError(
            f"{where}: no training identity has both visible and infrared images, so there is nothing to "
            f"learn from ({len(dropped)} identities with one modality only); check the modality of each image"
        )
    kept = [record for record in records if not (record.split == "train" and record.pid in dropped)]
    return kept, notes
