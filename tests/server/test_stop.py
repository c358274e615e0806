"""A stop finishes what is at work; a start that cannot be is told in words."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from types import SimpleNamespace

import httpx2 as httpx
import pytest
from typer.testing import CliRunner

from fmcnet.cli.app import app
from fmcnet.errors import FmcnetError, GalleryError
from fmcnet.retrieval import Gallery
from fmcnet.retrieval.sqlite_store import writer_lock
from fmcnet.server.decoding import DecoderPool
from fmcnet.server.limits import Limits
from fmcnet.server.run import ServeOptions, _listen, audit_path, serve
from tests.cli import run_command
from tests.server.process import started, until_it_answers
from tests.server.service import DIGEST, encoder, files, running


def test_sigterm_finishes_the_requests_at_work_and_closes_the_gallery(tmp_path):
    with started(tmp_path, 0.7) as (process, address):
        until_it_answers(address)
        replies = []

        def add():
            sent = {"modality": "visible", "id": "crop-1"}
            replies.append(httpx.post(f"{address}/v1/entries", files=files(1), data=sent, timeout=120))

        adding = threading.Thread(target=add)
        adding.start()
        for _ in range(1200):
            if "fmcnet_requests_working 2.0" in httpx.get(f"{address}/metrics").text:  # itself, and the add
                break
            if replies:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        adding.join(120)
        assert process.wait(120) == 0
        assert replies[0].status_code == 201
        assert "stopped" in process.said[-1]
        assert "Traceback" not in "".join(process.said)
    with Gallery(tmp_path / "people.gallery", model=DIGEST, create=False) as gallery:
        assert "crop-1" in gallery
        assert gallery.check() == []
    wal = tmp_path / "people.gallery" / "gallery.sqlite-wal"
    assert not wal.exists() or wal.stat().st_size == 0
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line["outcome"]) for line in lines] == [("add", "done")]


def test_a_stop_ends_in_time_though_the_gallery_cannot_be_closed(tmp_path):
    """Another program writes to it for long."""
    with started(tmp_path, stop_seconds=4.0) as (process, address):
        until_it_answers(address)
        sent = {"modality": "visible", "id": "crop-1"}
        assert httpx.post(f"{address}/v1/entries", files=files(1), data=sent).status_code == 201
        with writer_lock(tmp_path / "people.gallery", 60):
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        assert 4.0 <= time.monotonic() - start < 4.0 + 3.0  # else the lock's 30 s
        assert "stopped after 4 s" in process.said[-1]
        assert "Traceback" not in "".join(process.said)
    with Gallery(tmp_path / "people.gallery", model=DIGEST, create=False) as gallery:
        assert "crop-1" in gallery
        assert gallery.check() == []


def test_a_stop_closes_what_it_can(tmp_path, monkeypatch):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), running(tmp_path) as one:
        monkeypatch.setattr(one.service._batcher, "stop", fail)
    with pytest.raises(GalleryError, match="was closed"):
        len(one.service.gallery)


def test_a_stop_that_failed_is_told(tmp_path, monkeypatch):
    def run(server, sockets):
        server.started, server.lifespan = True, SimpleNamespace(shutdown_failed=True)

    monkeypatch.setattr(
        "fmcnet.server.run.Encoder.from_pretrained", lambda *arguments, **options: encoder(tmp_path)
    )
    monkeypatch.setattr("fmcnet.server.run._Server.run", run)
    with pytest.raises(FmcnetError, match="not all was closed"):
        serve(ServeOptions(str(tmp_path / "g"), "fake", port=0))


def test_a_start_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.delenv("FMCNET_API_KEYS", raising=False)
    gallery = str(tmp_path / "g")
    taken = _listen("127.0.0.1", 0)
    runner = CliRunner()
    for words, said in (
        (["--host", "0.0.0.0"], "API keys"),
        (["--port", str(taken.getsockname()[1])], "cannot listen"),
        (["--port", "0"], "there is no model"),
        (["--keys", str(tmp_path / "none.json")], "no file of API keys"),
        (["--certificate", str(tmp_path)], "go together"),
        (["--max-images", "9", "--max-queue", "3"], "queue=3"),
    ):
        done = runner.invoke(app, ["serve", gallery, "--model", "no-such-model", *words])
        assert done.exit_code == 2, words
        assert said in " ".join(done.output.split()), (words, done.output)
        assert "Traceback" not in done.output
    taken.close()
    done = runner.invoke(app, ["serve", gallery, "--port", "0"])
    assert "does not exist: check the path; for a new one say which model to use" in " ".join(
        done.output.split()
    )
    assert not (tmp_path / "g").exists()


def test_keys_are_made_on_the_command_line(tmp_path):
    path = tmp_path / "keys.json"
    done = run_command("keys", str(path), "--name", "gate", "--scope", "write", "--scope", "read", code=None)
    assert done.exit_code == 0, done.output
    assert done.output.strip() not in path.read_text()
    assert len(done.output.strip()) >= 40


def test_a_gallery_of_another_model_is_refused(tmp_path, monkeypatch):
    with Gallery(tmp_path / "g", model="other") as gallery:
        gallery.add([[1.0, 2.0]], modality="visible")
    monkeypatch.setattr(
        "fmcnet.server.run.Encoder.from_pretrained", lambda *arguments, **options: encoder(tmp_path)
    )
    with pytest.raises(FmcnetError, match="model"):
        serve(ServeOptions(str(tmp_path / "g"), "fake", port=0))


def test_a_gallery_that_is_made_by_mistake_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "fmcnet.server.run.Encoder.from_pretrained", lambda *arguments, **options: encoder(tmp_path)
    )

    def run(settings, keys, service, listener):
        if "people" in settings.gallery:
            service.gallery.add([[1.0, 2.0]], modality="visible", model=service.encoder.digest)
        service.gallery.close()

    monkeypatch.setattr("fmcnet.server.run._run", run)
    monkeypatch.setattr("fmcnet.server.service.Service.warm", lambda self: None)
    for name in ("people.gallery", "peple.gallery", "peple.gallery"):
        serve(ServeOptions(str(tmp_path / name), "fake", port=0))
    told = [record.message for record in caplog.records if record.name == "fmcnet.server.run"]
    made = "a new one was made, and is removed at the end if it stays empty"
    mistyped = (
        f"there was no gallery at {tmp_path}/peple.gallery: {made}; did you mean {tmp_path}/people.gallery?"
    )
    assert told == [f"there was no gallery at {tmp_path}/people.gallery: {made}", mistyped, mistyped]
    assert not (tmp_path / "peple.gallery").exists()
    with Gallery(tmp_path / "people.gallery", read_only=True) as gallery:
        assert len(gallery) == 1


def test_ctrl_c_while_it_starts_reaches_no_decoder(monkeypatch):
    """A terminal sends it to the whole group, and processes that start up do not ignore it by themselves."""
    masks, before = [], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    monkeypatch.setattr(
        "multiprocessing.forkserver.ensure_running",
        lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    )
    monkeypatch.setattr("fmcnet.server.decoding.ProcessPool.schedule", lambda *job, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(DecoderPool(Limits(), (8, 4)).start())
    assert [signal.SIGINT in mask for mask in masks] == [True]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_where_the_audit_log_is():
    assert str(audit_path("a/people.gallery")) == "a/people.gallery.audit.jsonl"
    assert str(audit_path("milvus://host:1/people")) == "people.audit.jsonl"


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"wait": 0.0}, {"queue": 3, "images": 4}, {"body_seconds": float("nan")}]
)
def test_bounds_are_positive(wrong):
    with pytest.raises(FmcnetError):
        Limits(**wrong)
