"""One factory of galleries for both backends; the cluster is started once, and only when asked for."""

from __future__ import annotations

import itertools
import os

import pytest

from fmcnet.retrieval import Gallery, faiss_index

CLUSTER = os.environ.get("FMCNET_CLUSTER") == "1"
"""`make test-cluster` sets it."""
_number = itertools.count()


@pytest.fixture(scope="session")
def milvus_address(tmp_path_factory):
    """host:port of a real Milvus server that lives as long as the tests."""
    from tests.retrieval.cluster import running

    with running(tmp_path_factory.mktemp("milvus")) as address:
        yield address


@pytest.fixture
def collection(milvus_address):
    """The address of a new collection, dropped afterwards: each costs the server threads and memory."""
    name = f"test_{os.getpid()}_{next(_number)}"
    yield f"milvus://{milvus_address}/{name}"
    client = pytest.importorskip("pymilvus").MilvusClient(uri=f"http://{milvus_address}")
    client.drop_collection(name)
    client.close()


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("milvus", marks=pytest.mark.skipif(not CLUSTER, reason="make test-cluster runs it")),
    ]
)
def location(request, tmp_path):
    """Where a new gallery can be, for each backend."""
    if request.param == "embedded":
        return str(tmp_path / "people.gallery")
    return request.getfixturevalue("collection")


@pytest.fixture
def small_graphs(monkeypatch):
    """Small galleries, otherwise searched exactly, use the graph and filters; it then looks at all it reaches."""
    monkeypatch.setattr(faiss_index, "FEW", 30)
    monkeypatch.setattr(faiss_index, "LOOKED_AT", 0)
    monkeypatch.setattr(faiss_index, "EF_SEARCH", 20_000)


@pytest.fixture
def opened():
    """Open galleries that are closed at the end of the test."""
    made = []

    def open_(location, **options):
        made.append(Gallery(location, **options))
        return made[-1]

    yield open_
    for gallery in made:
        gallery.close()
