"""The entry point of `fmcnet`, `python -m fmcnet` and `torchrun -m fmcnet`."""

from __future__ import annotations

import signal
import sys

from fmcnet.interrupt import end_early


def main() -> None:
    """Run the command that the arguments name."""
    end_early(True)
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    from fmcnet.cli.app import app

    app(prog_name="fmcnet")


if __name__ == "__main__":
    main()
