"""The audit log: every add, search and removal, refused ones too; no images, no embeddings."""

from __future__ import annotations

import base64
import json
import os
import threading
from pathlib import Path

import pytest

from fmcnet.errors import FmcnetError
from fmcnet.server.audit import AuditLog
from fmcnet.server.errors import ApiError
from tests.server.service import KEYS, bearer, png, running


def test_what_is_logged(tmp_path):
    with running(tmp_path, keys=KEYS) as one:
        one.client.headers.update(bearer("admin"))
        one.add(1, 2, camera="gate")
        one.add(2)
        one.search(1, camera="gate", top=1)
        one.client.delete("/v1/entries/crop-1")
        one.client.delete("/v1/entries/crop-1")
        one.client.post(
            "/v1/search", files=[("images", ("a.png", b"no image"))], data={"modality": "visible"}
        )
        lines = one.log()
    assert [(line["action"], line["outcome"]) for line in lines] == [
        ("add", "done"),
        ("add", "refused"),
        ("search", "done"),
        ("remove", "done"),
        ("remove", "refused"),
        ("search", "refused"),
    ]
    added, twice, search, removed, absent, broken = lines
    assert (added["ids"], added["camera"]) == (["crop-1", "crop-2"], ["gate"])
    assert (search["shown"], search["where"], search["top"]) == (["crop-1"], {"cameras": ["gate"]}, 1)
    assert (removed["ids"], removed["removed"]) == (["crop-1"], 1)
    assert [line["status"] for line in (twice, absent, broken)] == [409, 404, 422]
    for line in lines:
        assert line["key"] == "admin"
        assert len(line["request"]) == 16
        assert line["client"] == "testclient"
        assert line["time"].endswith("+00:00")
    raw = (tmp_path / "audit.jsonl").read_bytes()
    assert base64.b64encode(png(1))[:40] not in raw
    assert len(raw) < 500 * len(lines)
    assert bearer("admin")["Authorization"].split()[1].encode() not in raw


def test_the_file_is_the_owners_and_only_grows(tmp_path):
    for turn in range(3):
        log = AuditLog(tmp_path / "deep" / "audit.jsonl")
        log.write(action="test", turn=turn, text="line\nbreak \ud800")
        log.close()
        log.close()
    path = tmp_path / "deep" / "audit.jsonl"
    assert path.stat().st_mode & 0o077 == 0
    assert [json.loads(line)["turn"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_log_that_is_moved_or_removed_begins_anew(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_text("")
    path.chmod(0o644)
    log = AuditLog(path)
    assert path.stat().st_mode & 0o777 == 0o640
    log.write(turn=0)
    path.rename(tmp_path / "audit.1")
    log.write(turn=1)
    path.unlink()
    log.write(turn=2)
    log.close()
    turns = [
        [json.loads(line)["turn"] for line in f.read_text().splitlines()]
        for f in (tmp_path / "audit.1", path)
    ]
    assert turns == [[0], [2]]
    assert path.stat().st_mode & 0o777 == 0o600


def test_threads_write_whole_lines(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    threads = [
        threading.Thread(target=lambda n=n: [log.write(action="t", n=n, pad="x" * 500) for _ in range(20)])
        for n in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert sorted(line["n"] for line in lines) == sorted(list(range(5)) * 20)


def test_a_log_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(FmcnetError, match="audit log"):
        AuditLog(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FmcnetError, match="pipe cannot be written: it is no regular file; name another"):
        AuditLog(tmp_path / "pipe")
    with running(tmp_path) as one:
        one.add(1)
        own, one.service.audit.path = one.service.audit.path, Path("/dev/full")
        assert one.search(1).status_code == 507
        assert one.client.get("/readyz").status_code == 503
        one.service.audit.path = own
        assert one.search(1).status_code == 200
        assert one.client.get("/readyz").status_code == 200


def test_a_deed_that_fails_is_logged_and_told(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")

    def fail():
        with log.watch("search", key="desk") as results:
            results["where"] = {}
            raise ZeroDivisionError("secret words")

    with pytest.raises(ApiError) as refused:
        fail()
    assert (refused.value.status, refused.value.what) == (500, "the service failed")
    log.close()
    line = json.loads((tmp_path / "audit.jsonl").read_text())
    assert (line["outcome"], line["key"], line["status"]) == ("refused", "desk", 500)


def test_a_torn_line_spoils_no_other_and_the_log_recovers_by_itself(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_bytes(b'{"time": "of a crash')
    log = AuditLog(path)
    log.write(action="add", outcome="done")
    real = os.write
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", lambda file, data: real(file, data[:9]))
        with pytest.raises(ApiError, match="cannot be logged"):
            log.write(action="search", outcome="done")
        assert not log.recovered()
    assert log.recovered()
    log.write(action="remove", outcome="done", where={"cameras": ["x" * 10_000]}, modality=["y" * 10_000])
    log.close()
    whole = []
    for line in path.read_text().splitlines():
        try:
            whole.append(json.loads(line))
        except ValueError:
            assert len(line) < 30
    assert [line["action"] for line in whole] == ["add", "log", "remove"]
    assert whole[1]["outcome"] == "resumed"
    assert whole[-1]["where"] == {"cameras": ["x" * 300]}
    assert whole[-1]["modality"] == ["y" * 300]


def test_readiness_comes_back_when_the_log_can_be_written_again(tmp_path, monkeypatch):
    with running(tmp_path) as one:
        one.add(1)
        with monkeypatch.context() as disk:
            disk.setattr(os, "write", lambda *_: 0)
            assert one.search(1).status_code == 507
            assert one.client.get("/readyz").status_code == 503
        assert one.client.get("/readyz").status_code == 200
        assert one.log()[-1]["outcome"] == "resumed"
