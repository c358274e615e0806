"""What only the Milvus backend has: its expressions, its limits, its errors. No server but in `make test-cluster`."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from fmcnet.errors import GalleryError
from fmcnet.gallery import Gallery, Where
from fmcnet.gallery.milvus.language import NO_PID, NO_TIME, expression, to_row, to_stored
from fmcnet.gallery.records import to_micros
from fmcnet.types import Modality
from tests.gallery.conftest import CLUSTER
from tests.gallery.people import MODEL, NOON, add, crops, entries

cluster = pytest.mark.skipif(not CLUSTER, reason="make test-cluster runs it")


def test_conditions_become_expressions():
    assert expression(None) == expression(Where()) == ""
    assert expression(Where(cameras=[])) is None
    assert expression(Where(pids=[2**70])) is None
    assert expression(Where(ids=['a"b', "c\\"])) == 'id in ["a\\"b", "c\\\\"]'
    assert expression(Where(pids=[3, 1], modality=Modality.INFRARED)) == "pid in [1, 3] and modality == 1"
    micros = to_micros(NOON)
    assert (
        expression(Where(since=NOON, until=NOON))
        == f"time >= {micros} and time < {micros} and time > {NO_TIME}"
    )
    assert expression(Where(tags=["b", "a"])) == 'array_contains_all(tags, ["a", "b"])'


def test_rows_come_back():
    for entry, vector in zip(entries(40), crops(40), strict=True):
        row = to_row(entry, vector, 7)
        assert not [value for value in row.values() if value is None]
        again, same = to_stored(row)
        assert again == entry
        np.testing.assert_array_equal(same, vector)
    assert NO_PID not in range(-(2**63) + 1, 2**63)


def test_what_a_cluster_cannot_do_is_said_before_it_is_asked():
    pytest.importorskip("pymilvus")
    for location, options, words in (
        ("milvus://localhost:1/name", {"dtype": "float16"}, "float32, not float16"),
        ("milvus://localhost:1/", {}, "host:port/name"),
        ("milvus://localhost:1/a-b", {}, "letters, digits and _"),
        ("milvus://localhost:99999/a", {}, "Port"),
    ):
        with pytest.raises(GalleryError, match=words):
            Gallery(location, **options)


@cluster
def test_a_batch_of_many_requests_is_taken_back_when_one_fails(milvus_address, monkeypatch):
    from fmcnet.gallery import milvus

    monkeypatch.setattr(milvus, "INSERT", 10)
    with Gallery(f"milvus://{milvus_address}/many") as gallery:
        add(gallery, crops(15), entries(15))
        client, real, calls = gallery._store._client, gallery._store._client.insert, []

        def failing(*arguments, **options):
            calls.append(1)
            if len(calls) == 3:
                raise gallery._store._error(message="no more")
            return real(*arguments, **options)

        monkeypatch.setattr(client, "insert", failing)
        with pytest.raises(GalleryError, match="no more"):
            add(gallery, crops(45), entries(45, first=100))
        assert len(gallery) == 15


@cluster
def test_a_collection_that_is_no_gallery_and_a_gallery_that_is_not_there(milvus_address):
    from pymilvus import MilvusClient

    client = MilvusClient(uri=f"http://{milvus_address}")
    client.create_collection("foreign", dimension=8)
    with pytest.raises(GalleryError, match="no gallery: name another"):
        Gallery(f"milvus://{milvus_address}/foreign")
    with pytest.raises(GalleryError, match="there is no gallery"):
        Gallery(f"milvus://{milvus_address}/absent", create=False)
    with Gallery(f"milvus://{milvus_address}/flat", index="exact", model=MODEL) as gallery:
        gallery.add(crops(5), modality="visible", time=NOON)
        assert gallery.info().index == "exact"
        assert gallery.expire(timedelta(days=1), now=NOON + timedelta(days=2)) == 5
        with pytest.raises(GalleryError, match="at most 16368"):
            gallery.search(crops(1)[0], 20_000)
