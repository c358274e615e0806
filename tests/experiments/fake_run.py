"""Stands in for a run of a study in a worker process, which starts faster without PyTorch."""

import os
from dataclasses import dataclass
from pathlib import Path

from fmcnet.data.readers import layouts
from fmcnet.errors import FmcnetError


@dataclass(frozen=True)
class FakeRun:
    """A run whose worker process ends, or that meets an error nobody foresaw."""

    name: str
    study: Path
    fault: str = ""

    def __setstate__(self, state):
        if state["fault"] == "unpickled":
            raise ValueError("cannot be unpickled")
        self.__dict__.update(state)

    def result(self):
        return None

    def scores(self):
        return ""

    def complete(self, device, progress):
        print(f"{self.name} begins", flush=True)
        if self.fault == "end":
            os._exit(9)
        if self.fault == "refused":
            raise FmcnetError("refused: the settings")
        if self.fault == "error":
            raise RuntimeError("CUDA out of memory, say")
        if self.fault == "reader":
            assert "of_a_script" in layouts()
        (self.study / self.name).write_text("done")
