"""Keys are made, listed and revoked while the service runs."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

from fmcnet.server import keys as keys_module
from fmcnet.server.keys import list_keys, new_key, read_keys, revoke_key
from tests.cli import run_command
from tests.server.service import running


def get(one, secret):
    return one.client.get("/v1/gallery", headers={"X-API-Key": secret}).status_code


def test_a_revoked_key_is_refused_at_once_and_a_new_one_taken(tmp_path):
    path = tmp_path / "keys.json"
    gate, hall = (
        run_command("keys", "add", path, "--name", name, "--scope", "read").stdout.strip()
        for name in ("gate", "hall")
    )
    with running(tmp_path, keys=read_keys(path, {})) as one:
        assert (get(one, gate), get(one, hall)) == (200, 200)
        run_command("keys", "revoke", path, "--name", "gate")
        assert (get(one, gate), get(one, hall)) == (401, 200)
        yard = run_command("keys", path, "--name", "yard", "--scope", "read").stdout.strip()
        assert get(one, yard) == 200
        changes = [line for line in one.log() if line["action"] == "keys"]
    assert [(line["added"], line["revoked"]) for line in changes] == [([], ["gate"]), (["yard"], [])]


def test_a_key_is_revoked_through_a_link_and_the_file_stays_whose_it_was(tmp_path):
    path, link = tmp_path / "real.json", tmp_path / "keys.json"
    gate = run_command("keys", "add", path, "--name", "gate", "--scope", "read").stdout.strip()
    link.symlink_to(path)
    path.chmod(0o640)
    owner = (os.geteuid(), os.getegid())
    if owner[0] == 0:
        owner = (65534, 65534)
        os.chown(path, *owner)
    with running(tmp_path, keys=read_keys(path, {})) as one:
        run_command("keys", "revoke", link, "--name", "gate")
        assert get(one, gate) == 401
    assert link.is_symlink()
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (*owner, 0o640)


def test_the_last_key_revoked_lets_nobody_in(tmp_path):
    path = tmp_path / "keys.json"
    gate = run_command("keys", "add", path, "--name", "gate", "--scope", "read").stdout.strip()
    with running(tmp_path, keys=read_keys(path, {})) as one:
        run_command("keys", "revoke", path, "--name", "gate")
        assert get(one, gate) == 401
        assert one.client.get("/v1/gallery").status_code == 401


def test_a_file_that_is_lost_or_damaged_lets_nobody_in_until_it_is_mended(tmp_path):
    path = tmp_path / "keys.json"
    gate = run_command("keys", "add", path, "--name", "gate", "--scope", "read").stdout.strip()
    good = path.read_text()
    other = "other-secret-of-twenty-letters"
    with running(tmp_path, keys=read_keys(path, {"FMCNET_API_KEYS": f"env:read:{other}"})) as one:
        path.write_text("{")
        assert (get(one, gate), get(one, other)) == (401, 200)
        path.unlink()
        assert get(one, gate) == 401
        path.write_text(good)
        assert get(one, gate) == 200


def test_list_and_its_mistakes(tmp_path):
    path = tmp_path / "keys.json"
    run_command("keys", "add", path, "--name", "gate", "--scope", "write", "--scope", "read")
    assert run_command("keys", "list", path).stdout.strip() == "gate: read, write"
    assert json.loads(run_command("keys", "list", path, "--json").stdout) == {
        "keys": [{"name": "gate", "scopes": ["read", "write"]}]
    }
    assert (
        "has no key 'hall'; its keys: gate"
        in run_command("keys", "revoke", path, "--name", "hall", code=2).output
    )
    assert "no file of API keys" in run_command("keys", "list", tmp_path / "none.json", code=2).output


def test_changes_at_once_lose_nothing(tmp_path):
    path = tmp_path / "keys.json"
    run_command("keys", "add", path, "--name", "first", "--scope", "read")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: new_key(path, f"key-{n}", ["read"]), range(24)))
        list(pool.map(lambda n: revoke_key(path, f"key-{n}"), range(12)))
    assert {key.name for key in list_keys(path)} == {"first", *(f"key-{n}" for n in range(12, 24))}


def test_a_change_while_the_service_reads_its_keys_is_not_missed(tmp_path, monkeypatch):
    path = tmp_path / "keys.json"
    secret = new_key(path, "gate", ["read"])
    read = keys_module.list_keys

    def slow(at):
        found = read(at)
        monkeypatch.setattr(keys_module, "list_keys", read)
        revoke_key(path, "gate")
        return found

    monkeypatch.setattr(keys_module, "list_keys", slow)
    assert read_keys(path, {}).find(secret) is None
