"""The real Milvus standalone server from PyPI (`milvus`) while the tests need it, and a relay before it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import pytest


@contextlib.contextmanager
def running(folder):
    """Start the server; its "host:port"; stop it, and remove its 200 MB and more.

    FMCNET_MILVUS=host:port names one that runs already.
    """
    if address := os.environ.get("FMCNET_MILVUS"):
        yield address
        return
    from milvus import MilvusServer

    server = MilvusServer()
    server.set_base_dir(str(folder))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated test run stops it too
    try:
        try:
            server.start()
        except (RuntimeError, TimeoutError, OSError) as error:
            logs = sorted((folder / "logs").glob("milvus-std*.log"))
            said = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)
            pytest.exit(f"Milvus does not start on this machine: {error}\n{said}", returncode=1)
        yield f"{server.server_address}:{server.listen_port}"
    finally:
        signal.signal(signal.SIGTERM, before)
        server.stop()
        server.cleanup()


class Relay:
    """Passes bytes between a port of its own and the server, until `silent`; gone after the `with`."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.server, self.silent, self.sockets = (host, int(port)), False, []

    def __enter__(self):
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = self.door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        for one in (self.door, *self.sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near = self.door.accept()[0]
                far = socket.create_connection(self.server)
                self.sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.silent:
                    sink.sendall(data)


if __name__ == "__main__":
    try:
        with tempfile.TemporaryDirectory() as place, running(Path(place)) as found:
            print(f"a Milvus server starts here: {found}")
    except pytest.exit.Exception as failure:
        sys.exit(str(failure))
