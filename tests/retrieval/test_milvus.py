"""What only the Milvus backend has: its expressions, its limits, its errors. No server but in `make test-cluster`."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta

import numpy as np
import pytest

from fmcnet.errors import GalleryError
from fmcnet.retrieval import Entry, Gallery, Where
from fmcnet.retrieval.milvus_client import NO_PID, NO_TIME, expression, to_row, to_stored
from fmcnet.retrieval.records import to_micros
from fmcnet.types import Modality
from tests.retrieval.cluster import Relay
from tests.retrieval.conftest import CLUSTER
from tests.retrieval.people import MODEL, NOON, Plain, add, crops, entries, long_same, matches

cluster = pytest.mark.skipif(not CLUSTER, reason="make test-cluster runs it")


def test_conditions_become_expressions():
    assert expression(None) == expression(Where()) == ""
    assert expression(Where(cameras=[])) is None
    assert expression(Where(pids=[])) is None
    assert expression(Where(pids=["anna"]), numbers=True) is None
    assert expression(Where(ids=['a"b', "c\\"])) == 'id in ["a\\"b", "c\\\\"]'
    both = Where(pids=["03", "anna"], modality=Modality.INFRARED)
    assert expression(both) == 'pid in ["3", "anna"] and modality == 1'
    assert expression(both, numbers=True) == "pid in [3] and modality == 1"  # a collection of 0.1.0
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


def test_a_collection_of_0_1_0_keeps_numbers():
    numbered, unknown, named = (Entry("a", Modality.VISIBLE, pid=pid) for pid in ("3", None, "anna"))
    vector = crops(1)[0]
    for entry, pid in ((numbered, 3), (unknown, NO_PID)):
        row = to_row(entry, vector, 7, numbers=True)
        assert row["pid"] == pid
        assert to_stored(row)[0] == entry
    with pytest.raises(GalleryError, match="keeps identities as numbers"):
        to_row(named, vector, 7, numbers=True)


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


def test_a_password_is_not_said():
    pytest.importorskip("pymilvus")
    for location in ("milvus://me:se%40cret@localhost:1/a-b", "milvus://me:secret@localhost:1/name"):
        with pytest.raises(GalleryError, match="localhost:1") as error:
            Gallery(location, create=False)
        assert "cret" not in str(error.value)


@pytest.fixture
def one_row_a_request(monkeypatch):
    from fmcnet.retrieval import milvus_client as language

    monkeypatch.setattr(language, "MOST_ROWS", 1)


@cluster
@pytest.mark.parametrize("back", [True, False])
def test_a_batch_of_many_requests_is_put_back_when_one_fails(
    collection, monkeypatch, one_row_a_request, back
):
    with Gallery(collection) as gallery:
        old, new = entries(4), entries(6, seed=5)
        add(gallery, crops(4), old)
        client = gallery._store._client
        real, calls = client.upsert, []

        def failing(*arguments, **options):
            calls.append(1)
            if len(calls) == 5 or (len(calls) > 5 and not back):
                raise gallery._store._errors[0](message="no more")
            return real(*arguments, **options)

        monkeypatch.setattr(client, "upsert", failing)
        with pytest.raises(GalleryError, match="no more") as error:
            add(gallery, crops(6, seed=5), new, on_duplicate="replace")
        assert ("could not be taken back" in str(error.value)) is not back
        monkeypatch.undo()
        if back:
            assert [entry for entry, _ in gallery.scan()] == old
            np.testing.assert_allclose(gallery.embedding(old[2].id), crops(4)[2], atol=1e-6)
        assert len(gallery) == 4


@cluster
def test_writers_at_once_make_one_gallery_and_readers_go_on(collection):
    location, failures, stop = collection, [], threading.Event()
    vectors, rows = crops(60), entries(60)

    def write(start):
        try:
            with Gallery(location) as gallery:
                add(gallery, vectors[start : start + 30], rows[start : start + 30], on_duplicate="replace")
        except Exception as error:
            failures.append(error)

    def read():
        try:
            with Gallery(location, read_only=True) as gallery:
                while not stop.is_set():
                    # The exception: rows that are being replaced may be missing, or counted twice, for a moment.
                    for found in (gallery.search(vectors[0], 100), [e for e, _ in gallery.scan()]):
                        assert len({one.id for one in found}) == len(found) <= 60
                    gallery.count()
        except Exception as error:
            failures.append(error)

    def together(*targets):
        threads = [threading.Thread(target=do, args=arguments) for do, *arguments in targets]
        for thread in threads:
            thread.start()
        return threads

    for thread in together(*((write, start) for start in (0, 10, 20, 30))):
        thread.join()
    readers = together((read,), (read,))
    with Gallery(location) as gallery:
        assert len(gallery) == len(list(gallery.scan())) == 60
        for _ in range(4):
            add(gallery, vectors, rows, on_duplicate="replace")
            gallery.update([row.id for row in rows], camera="roof")
        stop.set()
        for thread in readers:
            thread.join()
        assert failures == []
        for _ in range(20):
            if len(gallery) == 60:
                break
            time.sleep(0.5)
        assert len(gallery) == 60
        assert (
            len(gallery.search(vectors[0], 100, Where(cameras=["roof"]))) == len(list(gallery.scan())) == 60
        )


@cluster
def test_a_server_that_is_silent_or_gone_is_said_in_time(milvus_address, collection, monkeypatch):
    """A relay stands between: it stops to relay, then it is gone."""
    from fmcnet.retrieval import milvus_client as module

    monkeypatch.setattr(module, "CONNECT", 2.0)
    monkeypatch.setattr(module, "REQUEST", 3.0)
    with Relay(milvus_address) as relay:
        gallery = Gallery(f"milvus://127.0.0.1:{relay.port}/{collection.split('/')[-1]}", timeout=0)
        add(gallery, crops(5), entries(5))
        relay.silent = True
        for ask in (
            lambda: len(gallery),
            lambda: add(gallery, crops(1), entries(1, first=9)),
            lambda: Gallery(gallery.location),
        ):
            with pytest.raises(GalleryError, match=r": (Milvus says|no Milvus server answers)"):
                ask()
    with pytest.raises(GalleryError, match="check that the server runs"):
        gallery.search(crops(1)[0])
    gallery.close()
    with pytest.raises(GalleryError, match="closed"):
        len(gallery)
    with Gallery(collection) as gallery:
        assert len(gallery) == 5


@cluster
def test_what_was_left_half_made_or_released_is_opened(milvus_address, collection):
    from pymilvus import MilvusClient

    client, location = MilvusClient(uri=f"http://{milvus_address}"), collection
    name = location.split("/")[-1]
    with Gallery(location) as gallery:
        add(gallery, crops(5), entries(5))
    client.release_collection(name)
    with Gallery(location, read_only=True) as gallery:
        assert len(gallery) == 5
    client.release_collection(name)
    client.drop_index(name, "embedding")
    with Gallery(location) as gallery:
        assert len(gallery.search(crops(1)[0])) == 5


@cluster
def test_the_exception_a_graph_finds_roughly_but_as_many_and_exact_is_exact(collection, caplog):
    """docs/concepts/gallery.md: no recall is promised on a cluster as it comes; all else is."""
    location, plain = collection, Plain()
    vectors, rows = crops(6000, dimension=16, people=300), entries(6000)
    plain.add(vectors, rows)
    with Gallery(location, index="hnsw") as gallery:
        add(gallery, vectors, rows)
        assert "found only roughly" in caplog.text
        for query in crops(2, dimension=16, people=300):
            for where in (None, Where(tracks=["t1"])):
                long_same(gallery.search(query, 1000, where, exact=True), plain, query, 1000, where)
                hits = gallery.search(query, 1000, where)
                assert len({hit.id for hit in hits}) == 1000
                for hit in hits[:20]:
                    entry, vector = plain.rows[hit.id]
                    assert matches(entry, where)
                    assert hit.similarity == pytest.approx(float(vector @ query), abs=1e-5)
        assert gallery.info().index == "hnsw"
    with pytest.raises(GalleryError, match="made with index 'hnsw', which stays"):
        Gallery(location, index="exact")


@cluster
def test_a_collection_that_is_no_gallery_and_a_gallery_that_is_not_there(milvus_address, collection):
    from pymilvus import MilvusClient

    client = MilvusClient(uri=f"http://{milvus_address}")
    name = collection.split("/")[-1]
    client.create_collection(name, dimension=8)
    with pytest.raises(GalleryError, match="no gallery: name another"):
        Gallery(collection)
    client.drop_collection(name)
    with pytest.raises(GalleryError, match="there is no gallery"):
        Gallery(f"milvus://{milvus_address}/absent", create=False)
    with Gallery(collection, index="exact", model=MODEL) as gallery:
        gallery.add(crops(5), modality="visible", time=NOON)
        assert gallery.info().index == "exact"
        assert gallery.expire(timedelta(days=1), now=NOON + timedelta(days=2)) == 5
        with pytest.raises(GalleryError, match="at most 16368"):
            gallery.search(crops(1)[0], 20_000)


@cluster
def test_a_collection_of_0_1_0_is_read_and_written(milvus_address, collection):
    from pymilvus import DataType, MilvusClient

    client, name = MilvusClient(uri=f"http://{milvus_address}"), collection.split("/")[-1]
    about = json.dumps({"fmcnet": {"dimension": 32, "model": MODEL, "dtype": "float32"}})
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=about)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=256)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=32)
    for field in ("pid", "modality", "time", "seq"):
        schema.add_field(field, DataType.INT64)
    for field in ("camera", "source", "track"):
        schema.add_field(field, DataType.VARCHAR, max_length=256)
    schema.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=64, max_length=256)
    params = client.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=params, consistency_level="Strong")
    with Gallery(collection, model=MODEL) as gallery:
        gallery.add(crops(3), ids=["a", "b", "c"], modality="visible", pid=[3, "007", None])
        with pytest.raises(GalleryError, match="pid 'anna': this collection is of fmcnet"):
            gallery.add(crops(1), modality="visible", pid="anna")
        assert gallery.update(["b"], pid="8.0") == 1
        assert [entry.pid for entry, _ in gallery.scan()] == ["3", "8", None]
        assert [gallery.count(Where(pids=[pid])) for pid in ("03", 8, "anna")] == [1, 1, 0]
        assert len(gallery.search_groups(crops(1)[0], "pid")) == 3
        assert gallery.remove(Where(pids=["3", "anna"])) == 1
        assert len(gallery) == 2
