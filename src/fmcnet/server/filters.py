"""Which entries a list shows or a removal takes: conditions in the address, all of which must hold."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query

from fmcnet.retrieval import Where
from fmcnet.retrieval.inputs import LARGEST_PID
from fmcnet.retrieval.records import as_modality
from fmcnet.server.schemas import ModalityName, Moment

Texts = Annotated[list[str], Query()]


def conditions(
    track: Texts = [],  # noqa: B006 (FastAPI copies it)
    camera: Texts = [],  # noqa: B006
    pid: Annotated[list[Annotated[int, Query(ge=-LARGEST_PID, le=LARGEST_PID)]], Query()] = [],  # noqa: B006
    tag: Annotated[list[str], Query(description="An entry must have all of these.")] = [],  # noqa: B006
    modality: Annotated[ModalityName | None, Query()] = None,
    since: Annotated[Moment | None, Query(description="Seen at or after; with a time zone.")] = None,
    until: Annotated[Moment | None, Query(description="Seen before; with a time zone.")] = None,
) -> Where:
    """As `fmcnet gallery remove` has them."""
    return Where(
        tracks=track or None,
        cameras=camera or None,
        pids=pid or None,
        tags=tag or None,
        modality=None if modality is None else as_modality(modality),
        since=since,
        until=until,
    )


Conditions = Annotated[Where, Depends(conditions)]


def logged(where: Where) -> dict[str, Any]:
    """The conditions that are given, as the audit log notes them."""
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in vars(where).items()
        if value is not None
    }
