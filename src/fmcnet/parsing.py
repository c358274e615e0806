"""Reads untrusted text, CSV, JSON, YAML and NPZ files within limits on size and memory; parses durations.

A fault of the content is a `ValueError` (of a CSV: a `csv.Error`) of one line, without the name of the file: the
caller adds it.
"""

from __future__ import annotations

import csv
import json
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from fmcnet.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydantic import ValidationError

BLOCK = 2**20
"""Bytes read at once."""
JSON_BYTES = 16 * 2**20
"""Maximum size of a JSON file; its objects take up to twenty times as much memory."""
YAML_BYTES = 2**17
DEPTH = 100
"""Maximum nesting of lists and sections."""
YAML_VALUES = 100_000
"""Maximum number of values in a YAML document, with aliases expanded."""
LARGEST_INTEGER = 2**64
NPZ_BYTES = 64 * 2**20
NPZ_RATIO = 20
"""An NPZ file may unpack to `NPZ_BYTES`, or to this many times its size."""
_DAMAGED = (
    ValueError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    RecursionError,
    MemoryError,
    OverflowError,
)
"""What NumPy raises for a damaged array."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
"""Units of durations, in seconds."""


def read_text(path: Path, most: float = math.inf, *, long_lines: bool = True) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte-order mark, which is left out.

    Args:
        path: the file.
        most: maximum size in bytes.
        long_lines: allow lines of any length; False: up to `BLOCK` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or not text.
    """
    raw = bytearray()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            if not long_lines and len(block) == BLOCK and not (b"\n" in block or b"\r" in block):
                raise ValueError(f"line {raw.count(10) + 1} has more than {BLOCK >> 20} MiB")
            raw += block
            if len(raw) > most:
                raise ValueError(f"it has more than {most / 2**10:,.0f} KiB")
    is_utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = raw.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line, name = raw.count(10, 0, error.start) + 1, "UTF-16" if is_utf16 else "UTF-8"
        raise ValueError(f"line {line} has bytes that are not {name}: save it as UTF-8") from error
    if (position := text.find("\0")) >= 0:
        raise ValueError(
            f"line {text.count(chr(10), 0, position) + 1} has a NUL character, so it is not text"
        )
    return text


def read_rows(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The line and the cells of each row of a CSV that is not blank; a csv.Error names the line of a broken row."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, strict=True)
    end = 0
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num  # a cell in quotes may hold line breaks
            if any(cell.strip() for cell in cells):
                yield line, cells
    except csv.Error as error:
        advice = (
            'a quote (") of this row stays open, or text follows it: remove it, or double it inside quotes'
        )
        raise csv.Error(f"line {end + 1}: {error}: {advice}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file of at most `JSON_BYTES`; raises `OSError`, or `ValueError` as `parse_json`."""
    return parse_json(read_text(path, JSON_BYTES))


def parse_json(text: str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: it is not JSON, has more than `DEPTH` levels, an integer of more than 64 bits or a key twice.
    """
    try:
        tree = json.loads(text, parse_int=_parse_integer, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"it has more than {DEPTH} levels of brackets") from None
    _check_levels(tree, lambda value: value.values() if isinstance(value, dict) else value, (dict, list))
    return tree


def read_yaml(path: Path, texts: Collection[str] = ()) -> Any:
    """As `parse_yaml`, of a file of at most `YAML_BYTES`, None where it is empty; errors as of `read_json`."""
    return parse_yaml(read_text(path, YAML_BYTES), texts)


def parse_yaml(text: str, texts: Collection[str] = ()) -> Any:
    """The content of a YAML text, without dates: they stay texts.

    Args:
        text: the YAML.
        texts: outermost keys whose values are names: 02, 3.10, 0x1A and no are texts there, as written.

    Raises:
        ValueError: it is not YAML, has more than `DEPTH` levels, more than `YAML_VALUES` values or an integer of
            more than 64 bits.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_levels(node, _children, yaml.CollectionNode, YAML_VALUES)
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in texts:
                _keep_texts(value)
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"it has more than {DEPTH} levels of brackets") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_prefix = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(f"{line_prefix}{error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: the character U+{int(error.character):04X} is not allowed") from error
    except ValueError as error:  # it may repeat a value of the file, so cut it
        raise ValueError(f"{error!s:.200}") from error
    except (AttributeError, KeyError, TypeError, OverflowError) as error:  # a wrong tag, as !!bool x
        raise ValueError(f"a value does not fit its tag ({error})") from error


class _Loader(yaml.SafeLoader):
    """A loader without dates, as no setting is one and PyYAML fails on impossible ones.

    Whole numbers are those of YAML 1.2: 010 is 10 and 1:30 a text, where PyYAML reads 8 and 90.
    """

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuse a key that occurs twice; PyYAML would silently take the last."""
        node = super().compose_mapping_node(anchor)
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in names:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value!r:.60} is there twice", problem_mark=key.start_mark
                    )
                names.add((key.tag, key.value))
        return node

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [pair for pair in pairs if not pair[0].endswith((":timestamp", ":int"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_INTEGER = "tag:yaml.org,2002:int"
_Loader.add_implicit_resolver(_INTEGER, re.compile(r"(?:[-+]?[0-9]+|0x[0-9a-fA-F]+)\Z"), list("-+0123456789"))
_Loader.add_constructor(
    _INTEGER, lambda _, node: _parse_integer(node.value, 16 if node.value.startswith("0x") else 10)
)


def _keep_texts(node: Any) -> None:
    """Make texts of the scalars of a node, but for null."""
    if isinstance(node, yaml.CollectionNode):
        for child in _children(node):
            _keep_texts(child)
    elif node.tag != "tag:yaml.org,2002:null":
        node.tag = "tag:yaml.org,2002:str"


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return cast(list[Any], node.value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values; Python's own reader would silently take the last of two."""
    tree = dict(pairs)
    if len(tree) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{key!r:.60} is there twice in one object")
    return tree


def _parse_integer(digits: str, base: int = 10) -> int:
    try:
        value = int(digits, base)
    except ValueError:  # more digits than Python converts
        value = LARGEST_INTEGER
    if abs(value) >= LARGEST_INTEGER:
        raise ValueError("an integer in it has more than 64 bits")
    return value


def _check_levels(
    root: Any, children: Callable[[Any], Iterable[Any]], kinds: Any, most: float = math.inf
) -> None:
    """Raise a `ValueError` for too many levels or values; an alias counts each time it is used."""
    level, levels, values = [root], 0, 0
    while level := [value for value in level if isinstance(value, kinds)]:
        levels += 1
        if levels > DEPTH:
            raise ValueError(f"it has more than {DEPTH} levels of brackets")
        next_level: list[Any] = []
        for value in level:
            next_level += children(value)
            if values + len(next_level) > most:
                raise ValueError(f"it has more than {most:,} values")
        values += len(next_level)
        level = next_level


def first_fault(error: ValidationError) -> str:
    """The first fault of a file's fields, as "field = value: reason"."""
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"])
    value = "" if fault["type"] == "missing" else f" = {fault['input']!r:.60}"
    return f"{field}{value}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an NPZ file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file, is damaged, unpacks to far more than its size, or holds objects.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            names = [member.filename.removesuffix(".npy") for member in members]
            if duplicates := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"it holds the array {duplicates[0]!r:.60} twice")
            if not members and archive.namelist():
                raise ValueError("it is a zip file without arrays (.npy): save the arrays with numpy.savez")
            size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
            if unpacked > max(NPZ_BYTES, NPZ_RATIO * size):
                raise ValueError(
                    f"{size >> 10:,} KiB would unpack to {unpacked >> 20:,} MiB: save it without compression"
                )
            arrays = zip(names, (_read_member(archive, member) for member in members), strict=True)
            return dict(arrays)
    except zipfile.BadZipFile as error:
        with path.open("rb") as stream:
            if stream.read(6) == b"\x93NUMPY":
                raise ValueError(
                    "it holds a single array without a name: save it with numpy.savez"
                ) from error
        raise ValueError(
            f"not a zip file, or a damaged one ({error}): save the arrays with numpy.savez"
        ) from error
    except (NotImplementedError, RuntimeError, EOFError, zlib.error, struct.error, OverflowError) as error:
        raise ValueError(f"its zip file cannot be unpacked: {error}") from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    from numpy.lib import format as npy

    try:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed by another method than deflate")
        with archive.open(member) as stream:
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        if array.size and not array.dtype.itemsize:
            raise ValueError("its values have no bytes")
        return array
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason += ": convert it, texts with astype(str)" * reason.startswith("Object arrays")
        raise ValueError(f"the array {member.filename.removesuffix('.npy')!r:.60}: {reason:.200}") from error


def parse_duration(text: str) -> timedelta:
    """A whole number and a unit of s, m (minutes), h, d or w, as "30d"; `timedelta.max` for more than it can hold.

    Raises:
        ConfigError: for any other text.
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*([smhdw])\s*", text)
    if not match:
        raise ConfigError(f"'{text}' is no duration: write a whole number and a unit (s, m, h, d, w), as 30d")
    try:
        return timedelta(seconds=int(match[1]) * UNITS[match[2]])
    except OverflowError:
        return timedelta.max
