"""One's own protocol from a YAML file: the same figures as by hand, and every mistake in it named."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fmcnet
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Record, Table
from fmcnet.errors import ProtocolError
from fmcnet.evaluation.protocol_file import camera_names, read_protocol
from fmcnet.evaluation.protocols import custom
from fmcnet.evaluation.score import score_file
from fmcnet.evaluation.skip_rule import SkipRule
from fmcnet.identities import identity_number
from fmcnet.inference.encoder import keep
from fmcnet.types import Embeddings, Modality
from tests.cli import run_command

V, I = Modality.VISIBLE, Modality.INFRARED  # noqa: E741


def records():
    """anna, bob and staff by the cameras gate and hall (visible) and yard (infrared), two images each."""
    found = []
    for pid in range(3):
        for camid, (camera, modality) in enumerate((("gate", V), ("hall", V), ("yard", I)), 1):
            found += [
                Record(f"{camera}/{pid}_{n}.jpg", pid, modality, camid, "test", camera=camera) for n in (1, 2)
            ]
    return found


TABLE = Table.from_records("csv", Path("people"), records(), pid_names=("anna", "bob", "staff 1"))


def protocol(tmp_path, text, images=TABLE):
    path = tmp_path / "mine.yaml"
    path.write_text(textwrap.dedent(text))
    return read_protocol(path, images)


def test_every_key_is_an_argument_of_custom(tmp_path):
    read = protocol(
        tmp_path,
        """
        name: gate to yard
        query: thermal
        gallery: both
        skip: [[yard, gate], [3, 2]]
        shots: 1
        trials: 3
        seed: 5
        cmc: identity
        distractors: [staff 1]
        junk: bob
        """,
    )
    assert read == custom(
        I,
        None,
        skip=[(3, 1), (3, 2)],
        shots=1,
        trials=3,
        seed=5,
        cmc="identity",
        name="gate to yard",
        distractors=[(identity_number("staff 1"), "staff 1")],
        junk=[(identity_number("bob"), "bob")],
    )
    assert read.sentence() == (
        "gate to yard: infrared images searched in images; 1 image per identity and camera, seeded draw (Python's "
        "random, seeds 5 to 7), 3 trials; a camera-3 query skips every camera-1 gallery image, a camera-3 query "
        "skips every camera-2 gallery image; CMC counts identities (each gallery identity's best image); every image "
        "of the distractors staff 1 is in the gallery, none is a query; images of the junk identities bob are left "
        "out."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("query: visible", custom(V, V, name="mine")),
        ("query: both\ngallery: null", custom(None, None, name="mine")),
        ("skip: none", custom(I, V, name="mine")),
        ("skip: same_camera", custom(I, V, skip=SkipRule("same_camera"), name="mine")),
        ("shots: null", custom(I, V, name="mine")),
    ],
)
def test_what_is_left_out_is_the_default(tmp_path, text, expected):
    assert protocol(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("querry: visible", "unknown key 'querry': did you mean query?"),
        ("colour: 3", "unknown key 'colour': known are name, query,"),
        ("query: visibel", "query: 'visibel' is none of visible, infrared, both: did you mean visible?"),
        ("query: [visible]", "query: ['visible'] is none of"),
        (
            "skip: same_cam",
            "skip: 'same_cam' is none of none, same_camera, same_identity_and_camera: did you mean",
        ),
        ("skip: no", "skip: 'no' is none of"),
        ("skip: [3, 2]", "skip: '3' is no pair"),
        ("skip: []", "the list of pairs is empty"),
        ("skip: [[yrad, 1]]", "no image to be evaluated is of camera 'yrad': did you mean 'yard'?"),
        ("skip: [[3, 9]]", "no image to be evaluated is of camera '9'"),
        ("shots: one", "shots: 'one' is no whole number from 1"),
        ("shots: 0", "shots: 0 is no whole number from 1"),
        ("shots: true", "shots: True is no whole number"),
        ("trials: 2", "trials=2 without shots"),
        ("seed: -1", "seed: -1 is no whole number from 0"),
        ("cmc: images", "cmc: 'images' is none of image, identity: did you mean image?"),
        ("name: 3", "name: 3 is no name"),
        ("junk: [bobb]", "junk: no image to be evaluated shows 'bobb': did you mean 'bob'?"),
        ("junk: [1.5]", "junk: no image to be evaluated shows '1.5'"),
        ("junk:", "junk: it is empty: leave the key out, or name identities"),
        ("junk: [null]", "junk: None is no identity: write unknown"),
        ("junk: [[bob]]", "junk: ['bob'] is no identity"),
        ("junk: '1.2E+11'", "no identity: pid '1.2E+11' is a number in scientific notation"),
        ("distractors: [bob]\njunk: [bob]", "bob is a distractor and junk"),
        ("query: visible\nquery: infrared", "line 2: 'query' is there twice"),
        ("query: [", "no valid YAML"),
        ("- query", "holds no protocol"),
        ("", "holds no protocol"),
        ("shots: x\ncmc: y", "shots: 'x'"),
        ("shots: x\ncmc: y", "cmc: 'y'"),
    ],
)
def test_mistakes_are_named(tmp_path, text, said):
    with pytest.raises(ProtocolError) as error:
        protocol(tmp_path, text)
    assert said in str(error.value)
    assert "mine.yaml" in str(error.value)


def embeddings():
    rows = records()
    return Embeddings(
        np.random.default_rng(0).standard_normal((len(rows), 4)).astype(np.float32),
        np.array([row.pid for row in rows]),
        np.array([row.camid for row in rows]),
        np.array([row.modality.code for row in rows], dtype=np.uint8),
        TABLE.positions(),
        np.array([row.path for row in rows]),
    )


def test_distractors_are_only_searched_and_junk_takes_no_part():
    rules = custom(I, V, shots=1, trials=2, distractors=[2], junk=[1])
    e = embeddings()
    for query, gallery in rules.trials(e):
        assert set(e.pid[query]) == {0}
        assert sorted(e.pid[gallery]) == [
            0,
            0,
            2,
            2,
            2,
            2,
        ]  # one image a camera of anna, all of the distractor
    (trial,) = fmcnet.evaluate(e, custom(I, V, distractors=[2], junk=[1])).trials
    assert (trial.queries, trial.gallery) == (2, 8)


def test_numbers_are_decimal_also_with_leading_zeros(tmp_path):
    table = replace(TABLE, pid=TABLE.pid + 8, pid_names=())  # 8, 9 and 10; PyYAML reads 010 as 8
    read = protocol(tmp_path, "junk: [010]\ndistractors: [0008, '09']", table)
    assert (read.junk, read.distractors) == (((10, "010"),), ((8, "0008"), (9, "09")))


def test_images_of_nobody_known_may_be_distractors_or_junk(tmp_path):
    e = embeddings()
    e = replace(e, pid=np.where(e.pid == 2, -1, e.pid))
    with pytest.raises(ProtocolError, match="6 of 18 embeddings have no identity"):
        fmcnet.evaluate(e, custom(I, V))
    for word, gallery in (("distractors", 12), ("junk", 8)):
        rules = protocol(tmp_path, f"{word}: [unknown]", e)
        (trial,) = fmcnet.evaluate(e, rules).trials
        assert (trial.queries, trial.gallery) == (4, gallery)
        assert "unknown" in rules.sentence()


def test_figures_of_visible_to_visible_without_the_own_camera():
    """By hand: each query against the other camera's images."""
    e = embeddings()
    rules = custom(V, V, skip="same_camera")
    found = fmcnet.evaluate(e, rules)
    unit = e.features / np.linalg.norm(e.features, axis=1, keepdims=True)
    visible = np.flatnonzero(e.modality == 0)
    right = []
    for row in visible:
        others = visible[e.camid[visible] != e.camid[row]]
        best = others[np.argmax(unit[others] @ unit[row])]
        right.append(e.pid[best] == e.pid[row])
    assert found.mean["rank1"] == pytest.approx(np.mean(right))
    assert found.chance == pytest.approx(2 / 6)
    assert fmcnet.evaluate(e, custom(V, V)).chance == pytest.approx(
        3 / 11
    )  # itself is neither match nor rival


OWN = """\
name: my night search
query: infrared
gallery: visible
skip: [[cam3, cam2]]
shots: 1
trials: 2
junk: ["0004"]
"""


@pytest.fixture(scope="module")
def people(tiny_sysu, tmp_path_factory):
    """A CSV of four people: cameras have names, one infrared image has no match."""
    folder = tmp_path_factory.mktemp("own")
    lines = ["path,pid,modality,camera,split,shade\n"]
    for pid in ("0003", "0004", "0024", "0001"):  # none that `tiny_run` was trained on
        for camera, modality in (("cam1", "visible"), ("cam2", "visible"), ("cam3", "infrared")):
            if pid == "0024" and modality == "visible":
                continue
            for image in sorted((tiny_sysu / camera / pid).glob("*.jpg"))[:2]:
                lines.append(f"{image},{pid},{modality},{camera},test,dark\n")
    (folder / "people.csv").write_text("".join(lines))
    (folder / "own.yaml").write_text(OWN)
    return folder


@pytest.mark.usefixtures("no_plots")
def test_evaluate_by_a_file(people, tiny_run, tmp_path):
    words = ("evaluate", tiny_run, "--data", people / "people.csv", "--protocol", people / "own.yaml")
    found = json.loads(run_command(*words, "--out", tmp_path / "out", "--json").stdout)
    (one,) = found["evaluations"]
    assert one["direction"] == "custom"
    assert one["protocol"].startswith(
        "my night search: infrared images searched in visible images; 1 image per"
    )
    assert one["protocol"].endswith("images of the junk identities 0004 are left out.")
    assert (len(one["trials"]), one["queries"], one["unmatched"]) == (2, [4, 4], [2, 2])
    assert len(one["unmatched_probes"]) == 2
    assert all("0024" in name for name in one["unmatched_probes"])
    assert any("column 'shade' is not read" in note for note in found["notes"])
    assert "cameras: 1 is cam1, 2 is cam2, 3 is cam3" in found["notes"]
    assert "## My night search" in (tmp_path / "out" / "report.md").read_text()
    compared = run_command("report", "compare", tmp_path / "out", "--out", tmp_path / "c").output
    assert "| my night search, " in compared
    assert "this run" in compared
    said = run_command(*words, "--out", tmp_path / "out").output
    assert "column 'shade' is not read" in " ".join(said.split())


@pytest.mark.parametrize("kind", ["junk", "distractors"])
def test_rows_of_nobody_known_are_evaluated_where_the_protocol_names_them(people, tiny_run, tmp_path, kind):
    rows = (people / "people.csv").read_text()
    found = []
    for name, word in (("0004", "0004"), ("unknown", "?")):
        (tmp_path / "own.csv").write_text(rows.replace(",0004,", f",{word},"))
        (tmp_path / "own.yaml").write_text(f"name: own\n{kind}: ['{name}']\n")
        words = ("evaluate", tiny_run, "--data", tmp_path / "own.csv", "--protocol", tmp_path / "own.yaml")
        (one,) = json.loads(run_command(*words, "--no-report", "--json").stdout)["evaluations"]
        found.append({key: one[key] for key in ("trials", "queries", "unmatched", "unmatched_probes")})
    assert found[0] == found[1]
    assert found[0]["queries"][0] > 0
    (tmp_path / "own.yaml").write_text("query: infrared\n")
    assert "name 'unknown' among distractors or junk" in " ".join(run_command(*words, code=2).output.split())
    with_hole = (tmp_path / "own.csv").read_text() + "none.jpg,?,visible,cam1,test,dark\n"
    (tmp_path / "own.csv").write_text(with_hole)
    assert "there is no file 'none.jpg'" in run_command(*words, code=2).output


def test_evaluate_visible_to_visible_of_a_csv_without_infrared(people, tiny_run, tmp_path):
    rows = (people / "people.csv").read_text().splitlines(keepends=True)
    (tmp_path / "day.csv").write_text(
        "".join(r.replace(",test", "").replace(",split", "") for r in rows if "infra" not in r)
    )
    (tmp_path / "day.yaml").write_text("query: visible\ngallery: visible\nskip: same_camera\n")
    words = (
        "evaluate",
        tiny_run,
        "--data",
        tmp_path / "day.csv",
        "--protocol",
        tmp_path / "day.yaml",
        "--json",
    )
    found = json.loads(run_command(*words, "--out", tmp_path / "out").stdout)
    assert found["evaluations"][0]["queries"] == [12]
    assert any("all images are for test" in note for note in found["notes"])
    assert "across the modalities." not in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.usefixtures("no_plots")
def test_warnings_are_in_json_and_report_each_time(people, tiny_run, tmp_path):
    rows = (people / "people.csv").read_text().splitlines(keepends=True)
    shutil.copy(rows[1].partition(",")[0], tmp_path / "copy.jpg")
    Image.new("RGB", (32, 64), (90, 90, 90)).save(tmp_path / "flat.png")
    rows += [f"{name},0001,visible,cam1,test,dark\n" for name in ("copy.jpg", "flat.png")]
    (tmp_path / "day.yaml").write_text("query: visible\ngallery: visible\nskip: same_camera\n")
    (tmp_path / "own.csv").write_text("".join(rows))
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings", "report"))
    words = (
        "evaluate",
        tmp_path / "run",
        "--data",
        tmp_path / "own.csv",
        "--protocol",
        tmp_path / "day.yaml",
    )
    for _ in range(2):  # the second time neither images nor embeddings are made
        found = json.loads(run_command(*words, "--json").stdout)["notes"]
        assert [note for note in found if "1 of 22 rows have the features of another row" in note]
        assert [note for note in found if "1 image nearly constant" in note and "flat.png" in note]
        report = tmp_path / "run" / "report"
        assert set(json.loads((report / "report.json").read_text())["notes"]) == set(found)
        assert all(f"- {note}\n" in (report / "report.md").read_text() for note in found)


@pytest.mark.parametrize("more", [["--both"], ["mode=indoor"], ["evaluation.trials=3"]])
def test_settings_that_the_file_states_are_refused(people, tiny_run, more):
    words = ("evaluate", tiny_run, "--data", people / "people.csv", "--protocol", people / "own.yaml", *more)
    assert "the file states the protocol" in " ".join(run_command(*words, code=2).output.split())


def test_score_by_a_file(people, tmp_path):
    e = embeddings()
    e.save(tmp_path / "e.npz")
    (tmp_path / "own.yml").write_text("skip: [[3, 2]]\njunk: [1]\ndistractors: [2]\n")
    words = ("score", tmp_path / "e.npz", "--protocol", tmp_path / "own.yml")
    found = json.loads(run_command(*words, "--json").stdout)
    expected = fmcnet.evaluate(e, custom(I, V, skip=[(3, 2)], junk=[1], distractors=[2], name="own"))
    assert found["mean"] == expected.mean
    assert found["protocol"] == expected.protocol
    refused = run_command(*words, "--mode", "indoor", code=2).output
    assert "mode beside the protocol" in " ".join(refused.split())


def test_score_of_two_sets_by_a_file(tmp_path):
    e = embeddings()
    sets = {"query": e.modality == 1, "gallery": e.modality == 0}
    arrays = {}
    for side, rows in sets.items():
        arrays |= {
            f"{side}_{n}": v[rows] for n, v in (("features", e.features), ("pid", e.pid), ("cam", e.camid))
        }
    np.savez(tmp_path / "two.npz", **arrays)
    (tmp_path / "own.yaml").write_text("skip: same_camera\n")
    found = json.loads(
        run_command("score", tmp_path / "two.npz", "--protocol", tmp_path / "own.yaml", "--json").stdout
    )
    assert found["mean"] == fmcnet.evaluate(e, custom(I, V)).mean
    assert found["protocol"].startswith(
        "own: infrared images searched in visible images; query and gallery sets as"
    )


def test_a_dataset_takes_a_protocol_too(tiny_sysu, tiny_run, tmp_path):
    (tmp_path / "own.yaml").write_text("query: visible\ngallery: infrared\n")
    words = (
        "evaluate",
        tiny_run,
        "--data",
        tiny_sysu,
        "--protocol",
        tmp_path / "own.yaml",
        "--no-report",
        "--json",
    )
    (one,) = json.loads(run_command(*words).stdout)["evaluations"]
    table = read_dataset(tiny_sysu).select(split="test")
    assert one["queries"] == [int((table.modality == 0).sum())]


def test_the_example_of_the_guide(tmp_path):
    guide = (Path(fmcnet.__file__).parents[2] / "docs" / "guides" / "evaluate.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example)
    found = fmcnet.evaluate(embeddings(), read_protocol(tmp_path / "mine.yaml", TABLE))
    assert (len(found.trials), found.trials[0].queries, found.trials[0].gallery) == (10, 6, 6)
    keys = re.findall(r"^\| (`.*?) \|", guide[guide.index("| key |") :], re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(keys)))
    assert named == set(inspect.signature(custom).parameters)


def test_a_name_of_several_cameras_means_all_of_them(tmp_path):
    named = ("indoor", "indoor", "yard")
    rows = [one._replace(camera=named[one.camid - 1]) for one in records()]
    table = Table.from_records("csv", Path("people"), rows, pid_names=TABLE.pid_names)
    found = protocol(tmp_path, "skip: [[yard, indoor]]", table).skip
    assert found == SkipRule("camera_pairs", ((3, 1), (3, 2)))
    both = protocol(tmp_path, "query: both\ngallery: both\nskip: [[indoor, indoor]]", table).skip
    assert set(both.pairs) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert camera_names(table) == "1 is indoor, 2 is indoor, 3 is yard"


def test_embeddings_keep_the_names_of_cameras_and_people(tmp_path):
    """So `score --protocol` takes what `evaluate --protocol` takes."""
    n = len(TABLE)
    embeddings = keep(np.eye(n, dtype=np.float32), TABLE, tmp_path / "e.npz")
    for images in (TABLE, embeddings, Embeddings.load(tmp_path / "e.npz")):
        assert protocol(tmp_path, "skip: [[yard, gate]]", images).skip.pairs == ((3, 1),)
    assert embeddings.pid_name.tolist() == TABLE.identities()
    found = score_file(tmp_path / "e.npz", tmp_path / "mine.yaml")
    assert "skips every camera-1 gallery image" in found.protocol


@pytest.mark.parametrize(
    ("cameras", "written", "pairs"),
    [
        (("02", "05", "yard"), "[[yard, 02]]", ((3, 1),)),
        (("3.1", "3.10", "yard"), "[[yard, 3.10]]", ((3, 2),)),
        (("no", "hall", "yard"), "[[yard, no]]", ((3, 1),)),
    ],
)
def test_names_that_yaml_reads_as_numbers_are_the_names_as_written(tmp_path, cameras, written, pairs):
    rows = [one._replace(camera=cameras[one.camid - 1]) for one in records()]
    table = Table.from_records("csv", Path("people"), rows, pid_names=("0x1A", "26", "007"))
    assert protocol(tmp_path, f"skip: {written}", table).skip.pairs == pairs
    junk = {text: protocol(tmp_path, f"junk: [{text}]", table).junk for text in ("0x1A", "26", "007")}
    assert [number for [(number, _)] in junk.values()] == table.identity_numbers()[[0, 6, 12]].tolist()
    assert len({*junk.values()}) == 3


@pytest.mark.parametrize(
    ("cameras", "written", "pairs"),
    [
        (("02", "05", "yard"), "[[yard, 2], [3, 5]]", ((3, 1), (3, 2))),
        (("01", "02", "03"), "[[3, 2]]", ((3, 2),)),
        (("1", "2", "3"), "[[03, 02]]", ((3, 2),)),
    ],
)
def test_a_camera_whose_name_is_a_number_is_found_by_it_however_written(tmp_path, cameras, written, pairs):
    rows = [one._replace(camera=cameras[one.camid - 1]) for one in records()]
    table = Table.from_records("csv", Path("people"), rows, pid_names=TABLE.pid_names)
    assert protocol(tmp_path, f"skip: {written}", table).skip.pairs == pairs


def test_a_number_is_no_other_camera_than_the_one_so_named(tmp_path):
    rows = [one._replace(camera=("02", "05", "yard")[one.camid - 1]) for one in records()]
    table = Table.from_records("csv", Path("people"), rows, pid_names=TABLE.pid_names)
    with pytest.raises(ProtocolError, match="no image to be evaluated is of camera '1'"):
        protocol(tmp_path, "skip: [[yard, 1]]", table)
