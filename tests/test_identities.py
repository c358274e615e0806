"""The one rule by which an identity is read, and the numbers that stand for identities in arrays."""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcnet.errors import DataError, ProtocolError
from fmcnet.evaluation.evaluate import query_scores
from fmcnet.evaluation.protocols import custom
from fmcnet.evaluation.score import score_file
from fmcnet.identities import identity_number, near_identities, parse_identity
from fmcnet.types import Embeddings, Modality, identity_numbers


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        *((one, "7") for one in (7, 7.0, np.int64(7), np.float32(7), "7", "007", " 7 ", "7.0", "07.00")),
        *((one, "0") for one in (0, "0", "000", "-0", "0.0")),
        *((one, "-7") for one in (-7, "-07", "-7.0")),
        *((one, "2047") for one in (np.float16(2047), np.float32(2047), 2047.0)),
        (2**63 - 1, str(2**63 - 1)),
        (str(2**63 - 1), str(2**63 - 1)),
        ("anna", "anna"),
        (" Anna B\n", "Anna B"),
        (np.str_("anna"), "anna"),
        ("Jose\u0301", "Jos\u00e9"),
        ("7.5", "7.5"),
        ("1e3", "1e3"),
        ("12345e67", "12345e67"),
        ("7a", "7a"),
        ("\uff17", "\uff17"),
        ("Na", "Na"),
        ("Nancy", "Nancy"),
        ("unknown 1", "unknown 1"),
        *((one, None) for one in (None, float("nan"), np.float64("nan"), -1, -1.0, "-1", "-1.0", "-01")),
        *(
            (one, None)
            for one in ("", "  ", "unknown", "Unknown", "none", "None", "NaN", "null", "N/A", "NA", "?", "-")
        ),
        *((one, None) for one in ("Undefined", "\u22121")),
        *((one, one) for one in ("Neil", "undefined 2")),
    ],
)
def test_what_is_given_and_what_is_read(given_, text):
    assert parse_identity(given_) == text
    assert type(parse_identity(given_)) in (str, type(None))


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (2**63, r"pid 9\.223e\+18 is too large: numbers go up to 9223372036854775807"),
        (-(2**63), "too large"),
        (10**400, "too large"),
        (1e30, "too large"),
        ("18446744073709551615", "'18446744073709551615' is too large"),
        ("9" * 5000, "'9999999999999999999999999999999999999999' is too large"),
        ("-9223372036854775809", "too large"),
        ("1.23457E+11", "scientific notation"),
        ("1e400", "scientific notation"),
        (np.float32(20260301), "pid 20260300 is a float32, which does not hold every whole number"),
        (np.float16(2048), "pid 2048 is a float16"),
        (2.0**53, "pid 9007199254740992 is a float, which"),
        (-(2.0**53), "pid -9007199254740992 is a float, which"),
        (7.5, "a text or a whole number, not 7.5"),
        (float("inf"), "a text or a whole number"),
        (True, "a text or a whole number, not True"),
        (b"7", "a text or a whole number"),
        (["7"], "a text or a whole number"),
        ("a\0b", r"U\+0000"),
        ("a\u200bb", r"U\+200B"),
        ("a\nb", r"U\+000A"),
        ("\ufeff7", r"U\+FEFF"),
        ("\ud800", "not valid Unicode"),
        ("x" * 257, "257 bytes, more than 256"),
    ],
)
def test_what_is_refused(given_, words):
    with pytest.raises(DataError, match=words):
        parse_identity(given_)


@given(st.text() | st.integers() | st.floats())
def test_reading_again_changes_nothing(value):
    try:
        found = parse_identity(value)
    except DataError:
        return
    assert parse_identity(found) == found
    if found is not None:
        assert found == unicodedata.normalize("NFC", found).strip() != ""
        assert identity_number(found) != -1


def test_numbers_stand_for_identities_in_every_array():
    one = identity_numbers(np.array(["anna", "007", "unknown", "bob"]))
    other = identity_numbers(np.array(["bob", "carl", "anna"]))
    assert one.tolist()[1:3] == [7, -1]
    assert one.dtype == np.int64
    assert len({*one.tolist(), *other.tolist()}) == 5
    assert (one[0], one[3]) == (other[2], other[0])
    digits = hashlib.sha256(b"anna").hexdigest()[:16]
    assert identity_number("anna") == 2**62 + int(digits, 16) // 4
    assert identity_numbers(np.array([3, 4], np.uint8)).tolist() == [3, 4]
    assert identity_numbers(np.array([3.0, np.nan])).tolist() == [3, -1]
    for bad in (np.array([2**64 - 1], np.uint64), np.array([1e300]), np.array([0.5])):
        with pytest.raises(DataError, match="pid"):
            identity_numbers(bad)


def test_near_spellings_are_told():
    assert near_identities(["Anna", "bob", "anna", "p07", "p 7", "1_2", "12", "+12"]) == [
        "the identities '+12', '12' may be one person: they are taken as 2",
        "the identities 'Anna', 'anna' may be one person: they are taken as 2",
        "the identities 'p 7', 'p07' may be one person: they are taken as 2",
    ]
    many = near_identities([f"{case}{n}" for n in range(9) for case in "xX"])
    assert len(many) == 6
    assert many[-1] == "4 more groups of identities are spelled nearly alike"


def test_quotes_of_spreadsheets_and_decimal_commas_are_near():
    assert near_identities(["7", "'7", '="007"', "7,0", "7,000", "#7", "70", "7,5"]) == [
        "the identities '#7', \"'7\", '7', '7,0', '7,000', '=\"007\"' may be one person: they are taken as 6"
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("??", "--", "n.a.", "na", "(null)", "<unknown>", "unk", "No one", "Unidentified", "unbekannt"),
        *("#REF!", "#DIV/0!", "#NAME?", "#NUM!", "#SPILL!", "#WERT!", "#NV", "Err:502", "\\N"),
        *("nil", "NaT", "N.N.", "(blank)", "no id", "TBD"),
    ],
)
def test_what_may_mean_nobody_is_told(name):
    assert parse_identity(name) == name
    assert near_identities([name, "anna", "Nancy", "7"]) == [
        f"the identity {name!r} is taken as a person: where nobody is known, leave it empty or write unknown"
    ]


def people(names, seed=0):
    """Two visible and two infrared embeddings of each, clearly apart, shuffled."""
    random = np.random.default_rng(seed)
    centres = np.eye(len(names), dtype=np.float32)
    rows = random.permutation(4 * len(names))
    who, kind = rows % len(names), (rows // len(names)) % 2
    features = centres[who] + 0.01 * random.standard_normal((len(rows), len(names))).astype(np.float32)
    n = len(rows)
    blank = np.full(n, ""), np.arange(1, n + 1)
    return Embeddings(
        features, np.array(names)[who], np.full(n, -1), kind.astype(np.uint8), blank[1], blank[0]
    )


def test_embeddings_of_named_people_are_scored(tmp_path):
    protocol = custom(query=Modality.INFRARED, gallery=Modality.VISIBLE)
    named = people(["anna", "bob", "carl", "dora"])
    numbered = people(["0001", "2", "3", "4.0"])
    assert set(numbered.pid.tolist()) == {1, 2, 3, 4}
    for one in (named, numbered):
        scores = query_scores(one, protocol)
        assert (len(scores.row), scores.ap.mean(), scores.hit.mean()) == (8, 1.0, 1.0)
    wrong = people(["anna", "bob", "carl", "dora"])
    features = np.where((wrong.modality == 1)[:, None], np.roll(wrong.features, 1, axis=1), wrong.features)
    assert query_scores(Embeddings(features, *list(vars(wrong).values())[1:]), protocol).hit.mean() == 0.0
    arrays = vars(named) | {"pid": np.array(["anna"] * len(named))}
    np.savez(tmp_path / "one.npz", **arrays)
    for bad in (["a\0b"], ["1.2E+11"], ["1,2E+11"], [str(2**64)], [0.5], [1e300], [2**64 - 1]):
        np.savez(tmp_path / "bad.npz", **(arrays | {"pid": np.array(bad * len(named))}))
        with pytest.raises(DataError, match="'pid' must hold texts or whole numbers: pid"):
            score_file(tmp_path / "bad.npz", "llcm")
    np.savez(tmp_path / "bad.npz", **(arrays | {"camid": np.full(len(named), 1e300)}))
    with pytest.raises(DataError, match=r"'cam' is 1e\+300 in row 0: give whole numbers of 64 bits"):
        score_file(tmp_path / "bad.npz", "llcm")
    assert len(set(Embeddings.load(tmp_path / "one.npz").pid.tolist())) == 1


def test_two_sets_of_one_file_name_people_alike(tmp_path):
    """Each set has people whom the other has not, so positions in a list of names would differ."""
    one = people(["anna", "bob", "carl"])
    visible, infrared = one.of(Modality.VISIBLE), one.of(Modality.INFRARED)
    names = dict(zip(identity_numbers(np.array(["anna", "bob", "carl"])).tolist(), "abc", strict=True))
    query = np.array([{"a": "anna", "b": "bob", "c": "carl"}[names[pid]] for pid in visible.pid.tolist()])
    gallery = np.array([{"a": "Anna", "b": "bob", "c": "carl"}[names[pid]] for pid in infrared.pid.tolist()])
    np.savez(
        tmp_path / "two.npz",
        query_features=visible.features,
        query_pid=query.astype("S"),
        gallery_features=infrared.features,
        gallery_pid=gallery,
    )
    found = score_file(tmp_path / "two.npz", "regdb")
    assert found.mean["rank1"] == 1.0
    assert len(found.unmatched[0]) == 2  # "anna" is not "Anna"


def test_nobody_known_matches_nobody():
    protocol = custom(query=Modality.INFRARED, gallery=Modality.VISIBLE)
    some = people(["anna", "bob", "unknown"])
    for score in (query_scores, lambda e, p: p.trials(e)):
        with pytest.raises(ProtocolError, match="4 of 12 embeddings have no identity"):
            score(some, protocol)
    known = some.pid != -1
    assert query_scores(some, protocol, query_mask=known, gallery_mask=known).hit.tolist() == [1.0] * 4
