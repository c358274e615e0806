"""What a user did wrong, said once and clearly.

Every error a user can cause is an `FmcnetError`: its text says what was wrong, where, and what to do.
The command line prints that text without a traceback and ends with exit code 2.
"""

from __future__ import annotations


class FmcnetError(Exception):
    """A mistake in the input (data, configuration, checkpoint, arguments), not a bug in fmcnet.

    Attributes:
        agreed: of a job of several processes: True, every process raises it (rank 0 says it); False, only this
            one knows of it; None, it was found before they met, where all of a machine find the same.
    """

    agreed: bool | None = None


class DataError(FmcnetError):
    """A dataset, table or image that cannot be used as it is."""


class ConfigError(FmcnetError):
    """A configuration with faults; the message lists all of them."""


class CheckpointError(FmcnetError):
    """Weights or a run folder that are missing, damaged, or belong to another model."""


class TrainingError(FmcnetError):
    """Training cannot go on: a loss term became NaN or infinite, or the batches cannot be formed."""


class ProtocolError(FmcnetError):
    """Embeddings and protocol do not fit each other."""


class GalleryError(FmcnetError):
    """A gallery, or what was asked of it, cannot be used as it is."""


class GalleryBusyError(GalleryError):
    """Another process writes to the gallery (or reads, where it must not just now); try again later."""


class GalleryDamagedError(GalleryError):
    """A gallery's record of truth is damaged: it refuses to answer rather than answer wrongly."""


class DuplicateIdError(GalleryError):
    """An id is in the gallery already, or twice in one batch."""


class MissingDependencyError(FmcnetError):
    """An optional package is not installed; the message names the extra that brings it."""


class Interrupted(KeyboardInterrupt):
    """A training that was asked to stop did so: it wrote a checkpoint, and can go on.

    Attributes:
        code: exit code of the process: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code
