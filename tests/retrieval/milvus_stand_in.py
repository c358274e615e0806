"""A Milvus server in this process: what `fmcnet.retrieval.milvus_client` asks of pymilvus, over dictionaries.

It understands the expressions that a copy and a listing use. Everything else is left to `make test-cluster`.
"""

from __future__ import annotations

import json
import re
import sys
from types import ModuleType, SimpleNamespace


class MilvusException(Exception):
    """What pymilvus raises."""


class Schema:
    def __init__(self, description):
        self.description = description

    def add_field(self, *args, **options):
        pass


class Server:
    """Collections by name: description, index and rows by id.

    `fail_after`, `fail_reads_after`: upserts and queries until the server is gone.
    """

    def __init__(self):
        self.collections = {}
        self.fail_after = None
        self.fail_reads_after = None
        self.upserts = 0
        self.reads = 0

    def client(self, **options):
        return Client(self)


class Client:
    def __init__(self, server):
        self.server = server

    def rows(self, name):
        return self.server.collections[name]["rows"]

    def has_collection(self, name, **options):
        return name in self.server.collections

    def describe_collection(self, name, **options):
        return {"description": self.server.collections[name]["description"]}

    def describe_index(self, name, field, **options):
        return {"index_type": self.server.collections[name]["index"]}

    def get_load_state(self, name, **options):
        return {"state": "Loaded"}

    def create_schema(self, description, **options):
        return Schema(description)

    def prepare_index_params(self):
        found = SimpleNamespace(kind="")
        found.add_index = lambda field, index_type, **options: setattr(found, "kind", index_type)
        return found

    def create_collection(self, name, schema, index_params, **options):
        made = {"description": schema.description, "index": index_params.kind, "rows": {}}
        self.server.collections[name] = made

    def query(self, name, filter, output_fields, limit=None, **options):
        if self.server.fail_reads_after is not None and self.server.reads >= self.server.fail_reads_after:
            raise MilvusException("the server is gone")
        self.server.reads += 1
        rows = [row for row in self.rows(name).values() if passes(row, filter)]
        if output_fields == ["count(*)"]:
            return [{"count(*)": len(rows)}]
        rows.sort(key=lambda row: row["id"].encode())
        return [{field: row[field] for field in output_fields} for row in rows[:limit]]

    def upsert(self, name, rows, **options):
        if self.server.fail_after is not None and self.server.upserts >= self.server.fail_after:
            raise MilvusException("the server is gone")
        self.server.upserts += 1
        for row in rows:
            assert all(value is not None for value in row.values())
            self.rows(name)[row["id"]] = json.loads(json.dumps(row))

    def delete(self, name, filter, **options):
        for key in [key for key, row in self.rows(name).items() if passes(row, filter)]:
            del self.rows(name)[key]

    def close(self):
        pass


def passes(row, condition):
    """Of "", `id in [...]` (also pid, track), `id > "..."`, and the last two joined."""
    if not condition:
        return True
    if found := re.fullmatch(r'(id > "(?:[^"\\]|\\.)*") and (.*)', condition, re.DOTALL):
        return passes(row, found[1]) and passes(row, found[2])
    if found := re.fullmatch(r"(id|pid|track) in (\[.*\])", condition, re.DOTALL):
        return row[found[1]] in json.loads(found[2])
    if found := re.fullmatch(r'id > (".*")', condition, re.DOTALL):
        return row["id"].encode() > json.loads(found[1]).encode()
    if found := re.fullmatch(r'camera != ""(.*)', condition, re.DOTALL):
        others = re.findall(r'camera != ("(?:[^"\\]|\\.)*")', found[1])
        return row["camera"] not in ["", *map(json.loads, others)]
    raise NotImplementedError(condition)


def install(monkeypatch):
    """Put the stand-in in the place of pymilvus; the server."""
    server = Server()
    kinds = SimpleNamespace(VARCHAR=1, FLOAT_VECTOR=2, INT64=3, ARRAY=4)
    milvus, grpc = ModuleType("pymilvus"), ModuleType("grpc")
    milvus.DataType, milvus.MilvusException, milvus.MilvusClient = kinds, MilvusException, server.client
    grpc.RpcError = type("RpcError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "pymilvus", milvus)
    monkeypatch.setitem(sys.modules, "grpc", grpc)
    return server
