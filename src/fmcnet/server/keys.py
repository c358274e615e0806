"""API keys: who may read, write and administer. Kept as hashes, compared in constant time."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from fmcnet.errors import FmcnetError
from fmcnet.files import file_state, lock_file, write_atomically
from fmcnet.parsing import read_json

logger = logging.getLogger(__name__)

SCOPES = ("read", "write", "admin")
"""read: embed, search, look. write: add. admin: all of it, and removing."""
VARIABLE = "FMCNET_API_KEYS"
SHORTEST = 20
"""Least characters of a secret: a plain hash is safe for what cannot be guessed."""


@dataclass(frozen=True)
class Key:
    """One caller.

    Attributes:
        name: for the audit log.
        scopes: one or more of `SCOPES`.
        digest: SHA-256 of the secret, 64 hex digits.

    Raises:
        FmcnetError: for a name or a scope that none can have.
    """

    name: str
    scopes: frozenset[str]
    digest: str

    def __post_init__(self) -> None:
        name: object = self.name  # as a file has it
        if not isinstance(name, str) or not re.fullmatch(r"[\w.@-]{1,64}", name):
            raise FmcnetError(f"an API key's name is 1 to 64 letters, digits and . _ @ -, not {name!r}")
        if not self.scopes or not self.scopes <= set(SCOPES):
            scopes = ", ".join(sorted(self.scopes))
            raise FmcnetError(f"key '{name}': scopes are of {', '.join(SCOPES)}, not '{scopes}'")

    def may(self, scope: str) -> bool:
        """Whether this key has a scope; admin has all."""
        return scope in self.scopes or "admin" in self.scopes


class Keys:
    """All keys of a service; without any, no caller needs one.

    Args:
        fixed: keys of the environment, which no change of the file touches.
        path: a file of keys. It is read again when it changes, so a key that is revoked there is refused at once.
            While the file is missing or damaged, no key of it is taken.

    Attributes:
        changed: called with the names that a change added and revoked.

    Raises:
        FmcnetError: when the file is missing or damaged, or two keys have one name.
    """

    def __init__(self, fixed: Iterable[Key] = (), path: Path | None = None) -> None:
        self._fixed, self._path = tuple(fixed), path
        self.changed: Callable[[list[str], list[str]], object] = lambda added, revoked: None
        self._stamp = self._file_state()  # before the file is read, so that no later change is missed
        self.keys = self._read()

    def __bool__(self) -> bool:
        """Whether a key is needed; revoking the last one lets nobody in."""
        return self._path is not None or bool(self._fixed)

    def find(self, secret: str) -> Key | None:
        """The key of a secret; takes as long for a wrong one as for a right one."""
        self._reload()
        digest, found = hash_secret(secret), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _reload(self) -> None:
        state = self._file_state()
        if state == self._stamp:
            return
        self._stamp, old_names = state, {key.name for key in self.keys}
        try:
            self.keys = self._read()
        except FmcnetError as error:
            self.keys = self._fixed
            logger.error("no key of %s is taken until it is mended: %s", self._path, error)
        names = {key.name for key in self.keys}
        self.changed(sorted(names - old_names), sorted(old_names - names))

    def _read(self) -> tuple[Key, ...]:
        keys = (*(list_keys(self._path) if self._path is not None else ()), *self._fixed)
        _check_names(keys)
        return keys

    def _file_state(self) -> str:
        """The state of the file; "" where it is missing."""
        try:
            return "" if self._path is None else file_state(self._path)
        except OSError:
            return ""


def _check_names(keys: Sequence[Key]) -> None:
    names = [key.name for key in keys]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise FmcnetError(f"API key names must differ; there twice: {', '.join(duplicates)}")


def hash_secret(secret: str) -> str:
    """SHA-256, 64 hex digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path | None, environment: Mapping[str, str] = os.environ) -> Keys:
    """Keys of a file that `new_key` writes, and of $FMCNET_API_KEYS: `NAME:SCOPE,SCOPE:SECRET`, apart by `;`.

    Raises:
        FmcnetError: for a file that is missing or damaged, or a key that is none. No message holds a secret.
    """
    keys: list[Key] = []
    parts = filter(None, map(str.strip, environment.get(VARIABLE, "").split(";")))
    for index, part in enumerate(parts):
        pieces = part.split(":", 2)
        if len(pieces) != 3:
            raise FmcnetError(f"${VARIABLE}, key {index + 1}: write NAME:SCOPE,SCOPE:SECRET")
        name, scopes, secret = pieces
        if len(secret) < SHORTEST:
            raise FmcnetError(f"${VARIABLE}, key '{name}': its secret needs {SHORTEST} characters or more")
        if not (secret.isascii() and secret.isprintable()):
            what = "its secret has characters that a header cannot carry: take letters, digits and signs of ASCII"
            raise FmcnetError(f"${VARIABLE}, key '{name}': {what}")
        keys.append(Key(name, _stripped_scopes(scopes.split(",")), hash_secret(secret)))
    return Keys(keys, path)


def new_key(path: Path, name: str, scopes: Iterable[str]) -> str:
    """Add a key to a file (made if it is not there, readable by its owner only) and return its secret.

    The secret is kept nowhere: show it to its owner now.

    Raises:
        FmcnetError: for a bad name or scope, a name that is there, or a file that is damaged.
    """
    secret = secrets.token_urlsafe(32)
    with _file_lock(path):
        keys = list_keys(path) if path.exists() else []
        keys.append(Key(name, _stripped_scopes(scopes), hash_secret(secret)))
        _check_names(keys)
        _write_keys(path, keys)
    return secret


def list_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        FmcnetError: when it is missing or damaged.
    """
    try:
        tree = read_json(path)
        if tree["format"] != "fmcnet-keys-1":
            raise ValueError(f"format {tree['format']}")
        keys = [Key(row["name"], _stripped_scopes(row["scopes"]), str(row["sha256"])) for row in tree["keys"]]
    except FileNotFoundError as error:
        raise FmcnetError(f"there is no file of API keys at {path}: make one with fmcnet keys") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FmcnetError(f"{path} is no file of API keys: {error}; make one with fmcnet keys") from error
    for key in keys:
        if not re.fullmatch(r"[0-9a-f]{64}", key.digest):
            raise FmcnetError(f"{path}, key '{key.name}': sha256 must be 64 hex digits")
    return keys


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from a file; a service that runs refuses it from its next request on.

    Raises:
        FmcnetError: when the file is missing or damaged, or has no such key.
    """
    with _file_lock(path):
        keys = list_keys(path)
        names = [key.name for key in keys]
        if name not in names:
            raise FmcnetError(f"{path} has no key '{name}'; its keys: {', '.join(names) or 'none'}")
        _write_keys(path, [key for key in keys if key.name != name])


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """One process at a time reads and writes the file."""
    path = path.resolve()  # two links to one file share its lock
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_file(path.with_name(f".{path.name}.lock"), timeout=10.0, optional=True))
        except Timeout as error:  # an OSError, too
            raise FmcnetError(f"{path} is being changed by another process: try again") from error
        except OSError:  # where no file can be made, writing the keys says so
            pass
        yield


def _write_keys(path: Path, keys: Sequence[Key]) -> None:
    rows = [{"name": key.name, "scopes": sorted(key.scopes), "sha256": key.digest} for key in keys]
    text = json.dumps({"format": "fmcnet-keys-1", "keys": rows}, indent=1) + "\n"
    path = path.resolve()  # a link stays one
    before = path.stat() if path.exists() else None

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")
        if before is not None and os.name == "posix":  # whoever reads it, as the service's user, goes on
            if (before.st_uid, before.st_gid) != (target.stat().st_uid, target.stat().st_gid):
                os.chown(target, before.st_uid, before.st_gid)
            target.chmod(before.st_mode & 0o660)

    write_atomically(path, write, 0o600)


def _stripped_scopes(scopes: Iterable[str]) -> frozenset[str]:
    return frozenset(scope.strip() for scope in scopes)
