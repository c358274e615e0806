"""Models on the Hugging Face Hub, against a stand-in of its HTTP interface: pushed, fetched, checked, offline."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest

from fmcnet.errors import CheckpointError, MissingDependencyError
from fmcnet.models import hub as of_hub
from fmcnet.models import shipped
from fmcnet.models.card import model_digest
from fmcnet.models.hub import is_hub_name, push
from fmcnet.models.shipped import find_model, shipped_models
from tests import forked
from tests.models.hub_stand_in import running

needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="pip install fmcnet[hub]"
)
HEAD = """
import json, sys
from pathlib import Path
from fmcnet.errors import FmcnetError
from fmcnet.models.hub import push
from fmcnet.models.shipped import find_model, is_shipped
from tests.cli import run_command

def said(call, *args, **options):
    try:
        return str(call(*args, **options))
    except FmcnetError as error:
        return f"{type(error).__name__}: {error}"
"""


def process(code, address, home, token="hf_stand_in", **more):
    """Run code in a process of its own: huggingface_hub reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    settings |= {
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **more,
    }
    path = home / "asked_of_the_hub.py"
    path.write_text(HEAD + code)
    exit_code, out, error = forked.script(path, cwd=home, environment=settings)
    assert exit_code == 0, error
    return json.loads(out.splitlines()[-1])


@needs_hub
def test_pushed_fetched_checked_and_without_the_hub(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings", "onnx*"))
    with running() as (hub, address):
        found = process(
            f"""
run = {str(run)!r}
found = {{"pushed": run_command("push", run, "me/people", "--json").stdout}}
from fmcnet import Encoder
encoder = Encoder.from_pretrained("me/people")
found["digest"], found["folder"] = encoder.digest, str(encoder.folder)
found["not written to"] = is_shipped(encoder.folder)
found["again"] = said(push, run, "me/people", public=True, message="again")
found["absent"] = said(find_model, "me/nobody")
found["revision"] = said(find_model, "me/people@v9")
found["pinned"] = said(find_model, f"me/people@{{Path(found['folder']).name}}")
Path("me/people").mkdir(parents=True)
found["local"] = said(find_model, "me/people")
print(json.dumps(found))
""",
            address,
            tmp_path,
        )
        repository = hub.repositories["me/people"]
        files = repository["files"]
        assert sorted(files) == ["README.md", "hub.json", "model.json", "model.safetensors"]
        assert (repository["private"], repository["commits"]) == (True, 2)
        assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
        readme = files["README.md"].decode()
        assert readme.startswith("---\nlicense: other\nlibrary_name: fmcnet\n")
        assert 'Encoder.from_pretrained("me/people")' in readme
        assert json.loads(found["pushed"])["commit"].startswith(f"{address}/me/people/commit/")
        assert found["again"].startswith(f"{address}/me/people/commit/")
        assert found["digest"] == model_digest(run)
        assert found["not written to"] is True
        assert found["local"] == "me/people"
        assert found["pinned"] == found["folder"]
        assert "no model 'me/nobody' that you may see" in found["absent"]
        assert "no such revision of 'me/people@v9'" in found["revision"]

        forbidden = process(
            f"print(json.dumps([said(push, {str(run)!r}, 'you/people')]))",
            address,
            tmp_path,
            token="hf_reads",
        )
        assert "'you/people' was not pushed" in forbidden[0]
        assert "token" in forbidden[0]
        hub.repositories["me/damaged"] = {
            **repository,
            "files": {**files, "model.safetensors": b"other bytes"},
        }
        hub.repositories["me/plain"] = {
            **repository,
            "files": {k: v for k, v in files.items() if k != "hub.json"},
        }
        (tmp_path / "me" / "people").rmdir()
        code = """
names = ["me/damaged", "me/plain", "me/people"]
print(json.dumps([said(find_model, name) for name in names]))
"""
        blob = (Path(found["folder"]) / "model.safetensors").resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b"x")  # of the cache: it is fetched anew
        damaged, plain, healed = process(code, address, tmp_path)
        assert model_digest(healed) == model_digest(run)
        assert re.search("me/damaged: model.safetensors in .* is not what was pushed", damaged)
        assert Path(plain, "model.safetensors").exists()
    # the hub is gone now
    code = 'print(json.dumps([said(find_model, name) for name in ("me/people", "me/unheard-of")]))'
    for offline in ("0", "1"):
        cached, absent = process(code, address, tmp_path, HF_HUB_OFFLINE=offline)
        assert model_digest(cached) == model_digest(run)
        assert absent.startswith(
            "CheckpointError: there is no folder 'me/unheard-of'. As a name of the Hugging"
        )
        assert "cannot be reached (" in absent
        assert "its cache does not hold 'me/unheard-of'" in absent
        assert "\n" not in absent
    refused = process(f'print(json.dumps(said(push, {str(run)!r}, "me/people")))', address, tmp_path)
    assert refused.endswith(
        "'me/people' was not pushed: the hub at "
        + address
        + " cannot be reached (ConnectError). Connect, and push again."
    )


def test_without_the_package_a_line_names_the_extra(tiny_run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r"there is no model 'me/people': .* pip install 'fmcnet\[hub\]'"
    ):
        find_model("me/people")
    with pytest.raises(MissingDependencyError, match=r"pip install 'fmcnet\[hub\]'"):
        push(tiny_run, "me/people")


def test_only_names_of_its_form_are_asked_for(monkeypatch):
    assert all(map(is_hub_name, ["me/people", "a.b/c-d_e", "me/people@v1.0", "me/people@refs/pr/1"]))
    names = [
        "people",
        "/me/people",
        "me/people/",
        "a/b/c",
        "./me",
        "../me/people",
        "me/",
        "~/people",
        "@/a",
        "a/b c",
    ]
    assert not [name for name in names if is_hub_name(name)]
    monkeypatch.setattr(shipped, "fetch", lambda *_: pytest.fail("asked the hub"))
    for name in names[1:]:
        with pytest.raises(CheckpointError, match="there is no model"):
            find_model(name)
    assert find_model("fmcnet-lite") == shipped_models()["fmcnet-lite"]


def test_a_mistyped_folder_is_named_before_the_hub_is_asked(tiny_run, tmp_path, monkeypatch, caplog):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    shutil.copy(tiny_run / "model.json", tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)

    def offline(*_, **__):
        assert "there is no folder 'runs/mien' (did you mean runs/mine?)" in caplog.text
        raise OSError("the hub was asked")

    hub = type(sys)("huggingface_hub")
    hub.snapshot_download, hub.constants = offline, mock.Mock(ENDPOINT="https://hub")
    kinds = ("GatedRepo", "RepositoryNotFound", "RevisionNotFound", "HfHubHTTP", "HFValidation")
    hub.errors = mock.Mock(**{f"{kind}Error": KeyError for kind in kinds})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: hub)
    caplog.set_level("INFO")
    with pytest.raises(
        CheckpointError, match=r"there is no folder 'runs/mien' \(did you mean runs/mine\?\)\. "
    ):
        find_model("runs/mien")
    caplog.clear()
    hub.snapshot_download = mock.Mock(side_effect=OSError("the hub was asked"))
    with pytest.raises(CheckpointError, match="there is no folder 'me/people'"):
        find_model("me/people")
    assert "no folder" not in caplog.text, "it was meant for the hub"
    with pytest.raises(
        CheckpointError, match=r"there is no model './runs/mien' \(did you mean runs/mine\?\):"
    ):
        find_model("./runs/mien")


@needs_hub
def test_a_program_that_imported_the_hub_is_no_error(tmp_path):
    code = "import huggingface_hub\nprint(json.dumps(is_shipped('.')))"
    assert process(code, "http://127.0.0.1:9", tmp_path) is False


def test_the_readme_is_the_models_own_where_it_has_metadata(tiny_run):
    assert of_hub._readme(shipped_models()["fmcnet-lite"], "me/a").startswith("---\n")
    made = of_hub._readme(tiny_run, "me/people")
    assert "# people\n" in made
    assert "| trained on | sysu, " in made


def test_a_folder_without_weights_is_not_pushed(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", type(sys)("huggingface_hub"))
    shutil.copy(tiny_run / "model.json", tmp_path)
    with pytest.raises(CheckpointError, match="holds no weights"):
        push(tmp_path, "me/people")
    for name in ("people", "me/people@main", "a/b/c"):
        with pytest.raises(CheckpointError, match="is no name on the hub: write owner/name"):
            push(tiny_run, name)
