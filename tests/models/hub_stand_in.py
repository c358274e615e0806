"""The Hugging Face Hub's HTTP interface in this process, as far as fetching and pushing a model asks for it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories by name: files by name, `commits`, `private`; `token` is the one that may write."""

    def __init__(self):
        self.repositories, self.stored, self.asked = {}, {}, []
        self.token = "hf_stand_in"

    def commit(self, name, files):
        repository = self.repositories[name]
        repository["files"] |= files
        content = b"".join(key.encode() + value for key, value in sorted(repository["files"].items()))
        repository["sha"] = hashlib.sha1(content).hexdigest()
        repository["commits"] += 1


@contextmanager
def running():
    """A hub, and its address."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, code, content=b"", **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def handle_any(self):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            content = self.body()
            for method, pattern, action in ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, path)):
                    return action(self, content, *found.groups())
            return self.answer(404, {"error": f"no route {self.command} {path}"})

        do_GET = do_POST = do_PUT = do_HEAD = handle_any

        def writes(self):
            """Whether the caller may; otherwise the answer is given."""
            allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
            if not allowed:
                self.answer(403, {"error": "this token may not write"})
            return allowed

        def missing(self):
            self.answer(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})

        def info(self, _, name, revision=None):
            repository = hub.repositories.get(name)
            if repository is None:
                return self.missing()
            if revision not in (None, "main", repository["sha"]):
                return self.answer(404, {"error": "Invalid rev"}, **{"X-Error-Code": "RevisionNotFound"})
            files = [{"rfilename": file} for file in sorted(repository["files"])]
            facts = {
                "id": name,
                "modelId": name,
                "private": repository["private"],
                "tags": [],
                "downloads": 0,
            }
            return self.answer(200, facts | {"sha": repository["sha"], "siblings": files, "likes": 0})

        def tree(self, _, name, revision):
            repository = hub.repositories.get(name)
            if repository is None:
                return self.missing()
            rows = []
            for file, content in sorted(repository["files"].items()):
                row = {
                    "type": "file",
                    "path": file,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                if file.endswith((".safetensors", ".onnx")):
                    oid = hashlib.sha256(content).hexdigest()
                    row["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 100}
                rows.append(row)
            return self.answer(200, rows)

        def file(self, _, name, revision, file):
            repository = hub.repositories.get(name)
            if repository is None or file not in repository["files"]:
                return self.answer(404, {"error": "none"}, **{"X-Error-Code": "EntryNotFound"})
            content = repository["files"][file]
            headers = {"X-Repo-Commit": repository["sha"], "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            if file.endswith((".safetensors", ".onnx")):
                headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"]}
            return self.answer(200, content, **headers)

        def create(self, content):
            if not self.writes():
                return None
            tree = json.loads(content)
            name = f"{tree['organization']}/{tree['name']}" if tree.get("organization") else tree["name"]
            if name in hub.repositories:
                return self.answer(409, {"error": "exists", "url": f"{self.address}/{name}"})
            private = bool(tree.get("private") or tree.get("visibility") == "private")
            hub.repositories[name] = {"files": {}, "commits": 0, "private": private, "sha": "0" * 40}
            return self.answer(200, {"url": f"{self.address}/{name}", "name": name})

        def preupload(self, content, name, revision):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith((".safetensors", ".onnx")) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for one in json.loads(content)["files"]
            ]
            return self.answer(200, {"files": files}) if self.writes() else None

        def batch(self, content, name):
            if not self.writes():
                return None
            objects = [
                one | {"actions": {"upload": {"href": f"{self.address}/lfs/{one['oid']}"}}}
                for one in json.loads(content)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})

        def keep(self, content, oid):
            assert hashlib.sha256(content).hexdigest() == oid
            hub.stored[oid] = content
            self.answer(200)

        def write(self, content, name, revision):
            if not self.writes():
                return None
            files = {}
            for line in content.decode().splitlines():
                row = json.loads(line)
                value = row["value"]
                if row["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif row["key"] == "lfsFile":
                    files[value["path"]] = hub.stored[value["oid"]]
                elif row["key"] == "deletedFile":
                    hub.repositories[name]["files"].pop(value["path"])
            hub.commit(name, files)
            sha = hub.repositories[name]["sha"]
            return self.answer(200, {"commitUrl": f"{self.address}/{name}/commit/{sha}", "commitOid": sha})

        @property
        def address(self):
            return f"http://127.0.0.1:{server.server_port}"

    repo = r"([\w.-]+/[\w.-]+)"
    ROUTES = [
        ("GET", rf"/api/models/{repo}", Handler.info),
        ("GET", rf"/api/models/{repo}/revision/(.+)", Handler.info),
        ("GET", rf"/api/models/{repo}/tree/([^/]+)", Handler.tree),
        ("HEAD", rf"/{repo}/resolve/([^/]+)/(.+)", Handler.file),
        ("GET", rf"/{repo}/resolve/([^/]+)/(.+)", Handler.file),
        ("POST", r"/api/repos/create", Handler.create),
        ("POST", r"/api/validate-yaml", lambda self, _: self.answer(200, {"errors": [], "warnings": []})),
        ("POST", rf"/api/models/{repo}/preupload/(.+)", Handler.preupload),
        ("POST", rf"/{repo}.git/info/lfs/objects/batch", Handler.batch),
        ("PUT", r"/lfs/([0-9a-f]{64})", Handler.keep),
        ("POST", rf"/api/models/{repo}/commit/(.+)", Handler.write),
    ]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
