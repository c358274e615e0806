"""A collection of a Milvus cluster: address, connection, schema, errors; entries and filters in its terms."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Collection as Texts
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from fmcnet.errors import GalleryError, require
from fmcnet.identities import is_number
from fmcnet.retrieval.inputs import LONGEST, MOST_TAGS
from fmcnet.retrieval.records import (
    Entry,
    GallerySettings,
    OpenOptions,
    Stored,
    Where,
    from_micros,
    to_micros,
)
from fmcnet.types import FloatArray, Modality

PORT = 19530
CONNECT = 10.0
"""Seconds until a server that does not answer is an error."""
REQUEST = 30.0
"""Seconds, at least, that one request may take."""
HNSW = {"M": 32, "efConstruction": 200}

logger = logging.getLogger(__name__)


class Collection:
    """A connection to a collection that is a gallery, or will be one.

    Args:
        location: "milvus://host:port/name"; `user:password@` before the host where the cluster asks for it, signs in
            them as %40 and the like.
        options: `timeout`: seconds for a request, at least `REQUEST`. `index`: of a new collection, "hnsw", otherwise
            FLAT, which compares with every row.

    Attributes:
        location: without user and password.
        numbers: the collection is of 0.1.0, and its field of identities holds whole numbers only.

    Raises:
        GalleryError: for a bad location, or when no server answers within `CONNECT` seconds.
    """

    def __init__(self, location: str, options: OpenOptions) -> None:
        parts = urlsplit(location)
        self.name = parts.path.strip("/")
        try:
            port = PORT if parts.port is None else parts.port
        except ValueError as error:
            raise GalleryError(f"{_without_credentials(location)}: {error}") from error
        extra = parts.query or parts.fragment
        if not parts.hostname or extra or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", self.name):
            raise GalleryError(
                f"{_without_credentials(location)}: give milvus://host:port/name, the name of letters, digits and _"
            )
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.location = f"milvus://{host}:{port}/{self.name}"
        self.numbers = False
        self.read_only, self._wanted = options.read_only, options.index
        self.timeout = max(options.timeout, REQUEST)
        milvus: Any = require("pymilvus", "milvus")
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises
        self._types = milvus.DataType
        self._errors: tuple[type[Exception], ...] = (
            milvus.MilvusException,
            require("grpc", "milvus").RpcError,  # pymilvus lets some through, as a passed deadline
        )
        self._client: Any = None
        try:
            self._client = milvus.MilvusClient(
                uri=f"http://{host}:{port}",
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                timeout=CONNECT,
            )
        except self._errors as error:
            raise GalleryError(
                f"{self.location}: no Milvus server answers there ({_error_message(error)}): check the address, and "
                "that it runs"
            ) from error

    def check_open(self, *, write: bool = False) -> None:
        """Raise a GalleryError when it was closed, or is read-only and to be written to."""
        if self._client is None:
            raise GalleryError(f"the gallery {self.location} was closed")
        if write and self.read_only:
            raise GalleryError(
                f"{self.location} was opened read-only: open it without read_only to change it"
            )

    def request(self, method: str, *arguments: Any, write: bool = False, **options: Any) -> Any:
        """What a method of the client answers about this collection; its errors as GalleryErrors."""
        self.check_open(write=write)
        try:
            return getattr(self._client, method)(self.name, *arguments, timeout=self.timeout, **options)
        except self._errors as error:
            raise GalleryError(
                f"{self.location}: Milvus says: {_error_message(error)}; check that the server runs, and is well"
            ) from error

    def open(self) -> GallerySettings | None:
        """Load the collection for searches; returns its settings, None when it does not exist."""
        if not self.request("has_collection"):
            return None
        description = self.request("describe_collection")
        types = {field["name"]: field["type"] for field in description.get("fields", ())}
        self.numbers = types.get("pid") == self._types.INT64
        try:
            settings = GallerySettings(**json.loads(description["description"])["fmcnet"])
        except (ValueError, KeyError, TypeError) as error:
            raise GalleryError(f"{self.location} is a collection, but no gallery: name another") from error
        state = self.request("get_load_state")["state"]
        # Not loaded: its writer was killed here, or somebody released it.
        if getattr(state, "name", state) != "Loaded":
            if not self.request("list_indexes"):
                self.request("create_index", self._params())
            self.request("load_collection")
        return settings

    def create(self, settings: GallerySettings) -> GallerySettings:
        """Create the collection; returns its settings, another writer's when that one was first."""
        types = self._types
        description = json.dumps({"fmcnet": settings.__dict__})
        schema = self._client.create_schema(
            auto_id=False, enable_dynamic_field=False, description=description
        )
        schema.add_field("id", types.VARCHAR, is_primary=True, max_length=LONGEST["id"])
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=settings.dimension)
        for name in ("modality", "time", "seq"):
            schema.add_field(name, types.INT64)
        for name in ("pid", "camera", "source", "track"):
            schema.add_field(name, types.VARCHAR, max_length=LONGEST[name])
        tag = {"element_type": types.VARCHAR, "max_capacity": MOST_TAGS, "max_length": LONGEST["tag"]}
        schema.add_field("tags", types.ARRAY, **tag)
        options = {"schema": schema, "index_params": self._params(), "consistency_level": "Strong"}
        try:
            self.request("create_collection", write=True, **options)
        except GalleryError:
            existing = self.open()
            if existing is None:
                raise
            return existing
        return settings

    def _params(self) -> Any:
        params = self._client.prepare_index_params()
        if self._wanted == "hnsw":
            params.add_index("embedding", index_type="HNSW", metric_type="IP", params=HNSW)
            logger.warning(
                "%s: HNSW is asked for: where the cluster has not set queryNode.segcore.interimIndex.enableIndex to "
                "false, rows that are not yet indexed are found only roughly (fmcnet docs gallery)",
                self.location,
            )
        else:
            params.add_index("embedding", index_type="FLAT", metric_type="IP")
        return params

    @functools.cached_property
    def index(self) -> str:
        """ "exact" or "hnsw"."""
        index_type = self.request("describe_index", "embedding")["index_type"]
        return "exact" if index_type == "FLAT" else "hnsw"

    def close(self) -> None:
        """Close the connection; may be called again."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _without_credentials(location: str) -> str:
    """Without user and password."""
    return re.sub(r"//[^/]*@", "//", location)


def _error_message(error: Any) -> str:
    """The first line of an error of pymilvus, or of gRPC."""
    text = f"{error.code()}: {error.details()}" if callable(getattr(error, "details", None)) else str(error)
    lines = str(getattr(error, "message", text)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


NO_PID = -(2**63)
"""A pid that is not known, in a collection of 0.1.0; outside what a gallery takes."""
NO_TIME = -(10**18)
"""A time that is not known, before the year 1."""
METADATA = ["id", "pid", "modality", "camera", "time", "source", "track", "tags", "seq"]
"""Fields of a row but its embedding; `seq` orders rows by their adding."""
MOST_ROWS = 2_000
"""Rows in one request, or ids; with `MOST_BYTES` far below Milvus's limits of 64 MB a request, 100 MB an answer."""
MOST_BYTES = 16 * 2**20
"""Embeddings in one request or answer."""


def text(value: str) -> str:
    """A text as a literal: quotes, backslashes and control characters escaped."""
    return json.dumps(value, ensure_ascii=False)


def texts(values: Texts[str]) -> str:
    """A list of literals."""
    return "[" + ", ".join(text(value) for value in sorted(values)) + "]"


def expression(where: Where | None, *, numbers: bool = False) -> str | None:
    """The condition as an expression, "" for none; None where nothing can match; `numbers`: as of `Collection`."""
    if where is None:
        return ""
    parts: list[str] = []
    pids = None if where.pids is None else [str(pid) for pid in where.pids]
    if numbers and pids is not None:
        numeric_pids = sorted(int(pid) for pid in pids if is_number(pid))
        if not numeric_pids:
            return None
        parts.append(f"pid in {numeric_pids}")
        pids = None
    named = (("id", where.ids), ("camera", where.cameras), ("track", where.tracks), ("pid", pids))
    for name, values in named:
        if values is not None:
            if not values:
                return None
            parts.append(f"{name} in {texts(values)}")
    if where.modality is not None:
        parts.append(f"modality == {Modality(where.modality).code}")
    if where.since is not None:
        parts.append(f"time >= {to_micros(where.since)}")
    if where.until is not None:
        parts.append(f"time < {to_micros(where.until)}")
        parts.append(f"time > {NO_TIME}")
    if where.tags:
        parts.append(f"array_contains_all(tags, {texts(where.tags)})")
    return " and ".join(parts)


def to_row(entry: Entry, vector: FloatArray, seq: int, *, numbers: bool = False) -> dict[str, Any]:
    """An entry as Milvus keeps it: no value may be missing, and with `numbers` the identity is one."""
    if numbers and entry.pid is not None and not is_number(entry.pid):
        raise GalleryError(
            f"pid '{entry.pid}': this collection is of fmcnet 0.1.0, which keeps identities as numbers; index into "
            "a new collection, or give numbers"
        )
    number = NO_PID if entry.pid is None else entry.pid
    texts = {name: getattr(entry, name) or "" for name in ("camera", "source", "track")}
    return {
        "id": entry.id,
        "embedding": vector.tolist(),
        "pid": int(number) if numbers else entry.pid or "",
        "modality": entry.modality.code,
        "time": NO_TIME if entry.time is None else to_micros(entry.time),
        "seq": seq,
        **texts,
        "tags": list(entry.tags),
    }


def to_stored(row: Mapping[str, Any]) -> Stored:
    """The inverse of `to_row`."""
    entry = Entry(
        row["id"],
        Modality.from_code(int(row["modality"])),
        None if row["pid"] in (NO_PID, "") else str(row["pid"]),
        row["camera"] or None,
        None if row["time"] == NO_TIME else from_micros(int(row["time"])),
        row["source"] or None,
        row["track"] or None,
        tuple(row["tags"]),
    )
    return entry, np.asarray(row["embedding"], np.float32)


def parts(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` values."""
    return (list(values[start : start + size]) for start in range(0, len(values), size))
