"""Who somebody is: the one rule by which an identity is read, wherever it is given.

An identity is a text. Two are one person if and only if `parse_identity` gives the same text for both. A variation
selector, as of Japanese name variants, is part of the text, because Unicode's normal form NFC keeps it: names that
differ by it alone are two persons, and `near_identities` has a note on them.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from numbers import Integral, Real

from fmcnet.errors import DataError
from fmcnet.names import LEADING_ZEROS, SEPARATORS, hidden_character, quoted, without_selectors

UNKNOWN = frozenset({"", "-", "?", "-1", "unknown", "none", "nan", "null", "n/a", "#n/a", "<na>"})
"""What is read as nobody known, in any letter case; `NA` in capitals, None and NaN are, too."""
LONGEST = 256
"""Most bytes (UTF-8)."""
LARGEST = 2**63 - 1
MOST_NOTES = 5

_NUMBER = re.compile(r"(-?)0*([0-9]+?)(?:\.0+)?")
_ROUNDED = re.compile(r"-?[0-9](?:\.[0-9]+)?[eE](\+?)([0-9]+)")
NEARLY_UNKNOWN = frozenset(
    {"", "na", "nil", "unk", "nobody", "noone", "undefined", "unidentified", "missing", "ref", "value"}
    | {word for word in UNKNOWN if word.isalpha()}
)
"""Letters and digits of identities that may mean nobody: "??", "n.a.", "<unknown>", "#REF!"."""


def parse_identity(value: object) -> str | None:
    """The identity that a text or number names; None where nobody is known (`UNKNOWN`).

    - Spaces around it go; Unicode becomes NFC; letter case stays.
    - Whole numbers are written alike: 7, "7", "007", 7.0 and "7.0" are all "7".

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
        value = int(number) if number.is_integer() else value
    if isinstance(value, Integral):
        if abs(int(value)) > LARGEST:
            raise _too_large(f"{float(value):.4g}" if abs(int(value)) < 10**300 else "of over 300 digits")
        text = str(int(value))
    elif isinstance(value, str):
        text = _checked(unicodedata.normalize("NFC", value.strip()))
    else:
        raise DataError(f"pid must be a text or a whole number, not {value!r}")
    if (found := _NUMBER.fullmatch(text)) is not None:
        sign, digits = found.groups()
        if len(digits) > 19 or int(digits) > LARGEST:
            raise _too_large(f"'{text[:40]}'")
        text = digits if digits == "0" else sign + digits
    elif (found := _ROUNDED.fullmatch(text)) and (found[1] or int(found[2]) > 18):
        raise DataError(
            f"pid '{text[:40]}' is a number in scientific notation, as spreadsheets round them: write all its digits"
        )
    return None if text == "NA" or text.casefold() in UNKNOWN else text


def _too_large(shown: str) -> DataError:
    return DataError(
        f"pid {shown} is too large: numbers go up to {LARGEST} (64 bits); write a longer one with a letter"
    )


def _checked(text: str) -> str:
    """A text without hidden characters, of at most `LONGEST` bytes."""
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

    Args:
        identity: of `parse_identity`.
    """
    if is_number(identity):
        return int(identity)
    return 2**62 | int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 2


def near_identities(names: Iterable[str]) -> list[str]:
    """A note for each group of identities with one `near_spelling`, and one for those that may mean nobody.

    Args:
        names: identities, each once.
    """
    groups = defaultdict[str, list[str]](list)
    for name in names:
        groups[near_spelling(name)].append(name)
    letters = {name: re.sub(r"[\W_]+", "", name.casefold()) for group in groups.values() for name in group}
    nobody = sorted(name for name, left in letters.items() if left in NEARLY_UNKNOWN)
    found = sorted(sorted(group) for group in groups.values() if len(group) > 1)
    notes = [
        f"the identities {', '.join(map(quoted, group))} may be one person: they are taken as {len(group)}"
        for group in found[:MOST_NOTES]
    ]
    if len(found) > MOST_NOTES:
        notes.append(f"{len(found) - MOST_NOTES} more groups of identities are spelled nearly alike")
    if nobody:
        notes.append(
            f"the identity {', '.join(map(repr, nobody[:MOST_NOTES]))} is taken as a person: where nobody is known, "
            "leave it empty or write unknown"
        )
    return notes


def is_unknown(text: str) -> bool:
    """Whether a text is one of `UNKNOWN`, as a track or camera, too."""
    try:
        return parse_identity(text) is None
    except DataError:
        return False


@functools.lru_cache(2**15)
def near_spelling(name: str) -> str:
    """What near spellings of one name share: "Anna B", "anna_b" and "ANNA-B" are all "annab".

    Letter case, separators, leading zeros, a plus, quotes, `,0`, width and variation selectors do not count.
    """
    folded = unicodedata.normalize("NFKC", without_selectors(name)).casefold().strip("'\"=#+ ")
    return LEADING_ZEROS.sub("", SEPARATORS.sub("", re.sub(r"(\d),0+$", r"\1", folded))).lstrip("+")
