"""Parsing of identities: one rule for tables, commands and requests.

An identity is a text. Two are one person if and only if `parse_identity` gives the same text for both. A variation
selector, as in Japanese name variants, is part of the text, because Unicode's normal form NFC keeps it. Names that
differ only by it are two people; `near_identities` gives a note on them.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from numbers import Integral, Real

import numpy as np

from fmcnet.errors import DataError
from fmcnet.names import LEADING_ZEROS, SEPARATORS, hidden_character, quoted, without_selectors

UNKNOWN = frozenset(
    {
        *("", "-", "?", "-1", "\u22121", "unknown", "undefined", "none"),
        *("nan", "null", "n/a", "#n/a", "<na>"),
    }
)
"""Texts for an unknown identity, in any letter case; so are `NA` in capitals, None and NaN."""
LONGEST = 256
"""Maximum length in bytes (UTF-8)."""
LARGEST = 2**63 - 1
MOST_NOTES = 5
FIRST_TEXT_NUMBER = 2**62
"""Numbers from here on stand for texts (`identity_number`)."""

_NUMBER = re.compile(r"(-?)0*([0-9]+?)(?:\.0+)?")
_ROUNDED = re.compile(r"-?[0-9](?:[.,][0-9]+)?[eE](\+?)([0-9]+)")
_FAILED = re.compile(r"#[\w/]+[!?]|#NV|#N/D|Err:[0-9]+|\\N")
"""What spreadsheets write for a formula that failed, in their languages; MySQL's null."""
NEARLY_UNKNOWN = frozenset(
    {"", "na", "nn", "nat", "nil", "unk", "nobody", "noone", "noid", "unbekannt", "unidentified", "missing"}
    | {"blank", "tbd"}
    | {word for word in UNKNOWN if word.isalpha()}
)
"""Letters and digits of identities that may mean nobody: "??", "n.a.", "<unknown>"."""


def parse_identity(value: object) -> str | None:
    """The identity for a text or number; None if it is unknown (`UNKNOWN`).

    - Surrounding spaces are removed; Unicode becomes NFC; letter case stays.
    - Whole numbers are normalised: 7, "7", "007", 7.0 and "7.0" are all "7".

    Args:
        value: a text, a whole number of 64 bits, None or NaN.

    Raises:
        DataError: for anything else, a text of more than `LONGEST` bytes, one with control or invisible characters,
            a larger number, or one in scientific notation.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise DataError(f"pid must be a text or a whole number, not {value!r}")
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        if number != number:
            return None
        dtype = np.asarray(value).dtype
        if dtype.kind == "f" and 2.0 ** (np.finfo(dtype).nmant + 1) <= abs(number) < LARGEST:
            raise DataError(
                f"pid {number:.0f} is a {type(value).__name__}, which does not hold every whole number of this size: "
                "give whole numbers or texts"
            )
        value = int(number) if number.is_integer() else value
    if isinstance(value, Integral):
        if abs(int(value)) > LARGEST:
            raise _too_large(f"{float(value):.4g}" if abs(int(value)) < 10**300 else "of over 300 digits")
        text = str(int(value))
    elif isinstance(value, str):
        text = _checked_text(unicodedata.normalize("NFC", value.strip()))
    else:
        raise DataError(f"pid must be a text or a whole number, not {value!r}")
    if (match := _NUMBER.fullmatch(text)) is not None:
        sign, digits = match.groups()
        if len(digits) > 19 or int(digits) > LARGEST:
            raise _too_large(f"'{text[:40]}'")
        text = digits if digits == "0" else sign + digits
    elif fault := rounded_fault(text, "pid"):
        raise DataError(fault)
    return None if text == "NA" or text.casefold() in UNKNOWN else text


def rounded_fault(text: str, what: str) -> str:
    """The fault of a name that is a number in scientific notation, several of which may be written alike, or ""."""
    match = _ROUNDED.fullmatch(text)
    if not match or not (match[1] or int(match[2]) > 18):
        return ""
    advice = "as spreadsheets round them: write all its digits"
    return f"{what} '{text[:40]}' is a number in scientific notation, {advice}"


def _too_large(shown: str) -> DataError:
    return DataError(
        f"pid {shown} is too large: numbers go up to {LARGEST} (64 bits); write a longer one with a letter"
    )


def _checked_text(text: str) -> str:
    """Return a text; refuse hidden characters and more than `LONGEST` bytes."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"pid {text[:80]!r} is not valid Unicode") from error
    if size > LONGEST:
        if text.isascii() and text.isdigit():
            raise _too_large(f"'{text[:40]}'")
        raise DataError(f"pid '{text[:40]}...' has {size} bytes, more than {LONGEST}")
    if hidden := hidden_character(text):
        raise DataError(
            f"pid {text[:80]!r} holds U+{ord(hidden):04X}, a control character, line break or invisible character: "
            "remove it"
        )
    return text


def is_number(identity: str) -> bool:
    """Whether an identity of `parse_identity` is a whole number, of 64 bits then."""
    return _NUMBER.fullmatch(identity) is not None


def identity_number(identity: str) -> int:
    """A 64-bit number that stands for an identity in arrays, the same in every table and process.

    A number stands for itself. Another text has 62 bits of its SHA-256, and 2**62 added: two of a million names
    collide with a probability of about 1e-7.
    """
    if is_number(identity):
        return int(identity)
    return FIRST_TEXT_NUMBER | int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 2


def near_identities(names: Iterable[str]) -> list[str]:
    """A note for each group of identities with one `near_spelling`, and one for those that may mean unknown."""
    groups = defaultdict[str, list[str]](list)
    for name in names:
        groups[near_spelling(name)].append(name)
    letters = {name: re.sub(r"[\W_]+", "", name.casefold()) for group in groups.values() for name in group}
    nobody = sorted(
        name for name, remaining in letters.items() if remaining in NEARLY_UNKNOWN or _FAILED.fullmatch(name)
    )
    near_groups = sorted(sorted(group) for group in groups.values() if len(group) > 1)
    notes = [
        f"the identities {', '.join(map(quoted, group))} may be one person: they are taken as {len(group)}"
        for group in near_groups[:MOST_NOTES]
    ]
    if len(near_groups) > MOST_NOTES:
        notes.append(f"{len(near_groups) - MOST_NOTES} more groups of identities are spelled nearly alike")
    if nobody:
        notes.append(
            f"the identity {', '.join(map(repr, nobody[:MOST_NOTES]))} is taken as a person: where nobody is known, "
            "leave it empty or write unknown"
        )
    return notes


def is_unknown(text: str) -> bool:
    """Whether a text is one of `UNKNOWN`; for tracks and cameras, too."""
    try:
        return parse_identity(text) is None
    except DataError:
        return False


@functools.lru_cache(2**15)
def near_spelling(name: str) -> str:
    """A key that near spellings of one name share: "Anna B", "anna_b" and "ANNA-B" all give "annab".

    Letter case, separators, leading zeros, a plus, quotes, `,0`, width and variation selectors are ignored.
    """
    folded = unicodedata.normalize("NFKC", without_selectors(name)).casefold().strip("'\"=#+ ")
    return LEADING_ZEROS.sub("", SEPARATORS.sub("", re.sub(r"(\d),0+$", r"\1", folded))).lstrip("+")
