"""The entry point of `fmcnet`, `python -m fmcnet` and `torchrun -m fmcnet`."""

from __future__ import annotations

import io
import signal
import sys

from fmcnet.processes import end_early


def main() -> None:
    """Run the command that the arguments name."""
    end_early(True)
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may be outside the terminal's code page
    from fmcnet.cli.app import app

    app(prog_name="fmcnet")


if __name__ == "__main__":
    main()
