"""The real Milvus standalone server from PyPI (`milvus`), in a folder of its own, while the tests need it."""

from __future__ import annotations

import contextlib
import os

import pytest


@contextlib.contextmanager
def running(folder):
    """Start the server; its "host:port"; stop it. FMCNET_MILVUS=host:port names one that runs already."""
    if address := os.environ.get("FMCNET_MILVUS"):
        yield address
        return
    milvus = pytest.importorskip("milvus")
    server = milvus.MilvusServer()
    server.set_base_dir(str(folder))
    try:
        server.start()
        yield f"{server.server_address}:{server.listen_port}"
    finally:
        server.stop()
