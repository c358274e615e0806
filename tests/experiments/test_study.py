"""`fmcnet study`: done once, resumed after a kill, one report."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from fmcnet.config import load_config
from fmcnet.data.check import PUBLISHED
from fmcnet.data.readers import read_dataset
from fmcnet.data.readers.csv import write_csv
from fmcnet.errors import FmcnetError
from fmcnet.experiments.rows import select_studies
from fmcnet.experiments.runs import MODEL_CARD, StudyRun, images_per_step
from fmcnet.experiments.study import StudyOptions, _data_facts, _read_tables, parse_seeds, run_study
from fmcnet.experiments.workers import complete_runs, find_devices
from fmcnet.inference.info import model_info
from fmcnet.synthetic import plan
from fmcnet.training import selection
from tests.cli import run_command
from tests.data import trees
from tests.experiments.fake_run import FakeRun
from tests.forked import Running

LONG = 21


def words(out, *more):
    return [
        "study", "table2", "--preset", "tiny", "--seeds", "0", "--budget", str(LONG),
        "--rows", "base,sfd,fmc", "--out", str(out), "--device", "cpu", "--json", *map(str, more),
    ]  # fmt: skip


def command(out, *more):
    return [sys.executable, "-m", "fmcnet", *words(out, *more)]


def wait_for(seen, seconds=300):
    end = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return found


def under_way(out, most=LONG):
    """A run with a checkpoint, of `most` steps, and no result."""
    for folder in (out / "runs").glob("*/checkpoints"):
        steps = [int(one.name.removeprefix("step-")) for one in folder.glob("step-*")]
        if not (folder.parent / "result.json").exists() and steps and max(steps) <= most:
            return folder.parent
    return None


def spawned_by(pid):
    """Process ids of a process's workers, where /proc lists them: what its fork server forked."""
    servers = [one for one in children(pid) if b"forkserver" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return [worker for server in servers for worker in children(server)]


def children(pid):
    """Process ids of a process's children, where /proc lists them."""
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def with_world(out, tiny_sysu):
    """A study's folder that holds the world of seed 0, which `tiny_sysu` is, so that it is not rendered again."""
    shutil.copytree(tiny_sysu, out / "data" / "world-0")
    return out


@pytest.fixture
def tiny_options(tmp_path, tiny_sysu):
    out = with_world(tmp_path / "s", tiny_sysu)
    return StudyOptions("table2", out, preset="tiny", seeds=(0,), budget=2, device="cpu")


def test_the_images_of_a_step_are_those_of_all_its_batches():
    config = load_config("tiny", ["training.accumulate=3"])  # 4 identities, 2 images of each modality
    assert images_per_step(config) == 48


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_sysu):
    """Options of a study of table 2, and what it found. Its runs may be added to, not changed."""
    out = with_world(tmp_path_factory.mktemp("study") / "s", tiny_sysu)
    options = StudyOptions("table2", out, preset="tiny", seeds=(0,), budget=2, device="cpu")
    return options, run_study(options, quiet=True)


@pytest.fixture
def undrawn(monkeypatch):
    """A study without its pictures, where a test does not look at them."""
    monkeypatch.setattr("fmcnet.experiments.plots.can_draw", lambda: False)


def test_a_study_is_done_once_and_shares_its_runs_with_the_next(done, monkeypatch, undrawn):
    tiny_options, first = done
    assert [len(s["rows"]) for s in first["studies"]] == [4]
    report = Path(first["report"]).read_text()
    assert report.startswith("# Results of the study")
    assert "Weights are each run's last" in " ".join(report.split())
    assert "SELECTED ON THE TEST SET" not in report
    stored = json.loads((tiny_options.out / "report" / "results.json").read_text())
    assert stored["command"] == first["command"] == tiny_options.command()
    for run in first["runs"]:
        assert (run["steps"], run["images_seen"]) == (2, 32)
        assert run["commands"][0].startswith("fmcnet train --config ")
    for _, path in first["pictures"]["table2"]:
        assert (tiny_options.out / "report" / path).is_file()

    trained = []
    real = StudyRun._train_and_evaluate
    monkeypatch.setattr(
        StudyRun, "_train_and_evaluate", lambda run, *a: trained.append(run.name) or real(run, *a)
    )
    again = run_study(tiny_options, quiet=True)
    assert trained == []
    assert again["studies"][0]["rows"] == first["studies"][0]["rows"]
    run_study(replace(tiny_options, name="table3"), quiet=True)
    assert sorted(name.split("-seed")[0] for name in trained) == ["md-none", "md-shs", "md-shs-sps"]


def test_a_study_leaves_a_card_with_every_model(done):
    options, facts = done
    assert len(facts["runs"]) == 4
    for run in facts["runs"]:
        folder = options.out / "runs" / run["name"]
        text = (folder / MODEL_CARD).read_text()
        result = json.loads((folder / "result.json").read_text())
        assert model_info(folder)["weights_sha256"] in text
        assert run["commands"][0] in text
        for one in result["evaluations"]:
            assert f"| {100 * one['mean']['rank1']:.2f} |" in text
            assert f"| {100 * one['mean']['mAP']:.2f} |" in text
            assert one["protocol"] in text
        assert "GENERATED" in text
        assert text.startswith("---\nlicense: apache-2.0\n")
        settings = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
        assert settings["training"]["seed"] == run["seed"]
        assert (folder / "model.safetensors").is_file()


def test_the_commands_of_the_report_give_the_same_run(done, tmp_path):
    options, facts = done
    [run] = [one for one in facts["runs"] if one["name"].startswith("sfd-seed")]
    typed = run["commands"][0].split()[1:]
    by_hand = tmp_path / "hand"
    typed[typed.index("--out") + 1] = str(by_hand)
    run_command(*typed)
    ours = options.out / "runs" / run["name"]
    assert (by_hand / "model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()


def test_each_seed_can_have_a_world_of_its_own(tmp_path, monkeypatch, undrawn):
    monkeypatch.setitem(plan._PRESETS, ("sysu", "tiny"), plan.Preset(4, 2, 2, 64, 32, 2, 2))
    options = StudyOptions("table2", tmp_path / "s", preset="tiny", seeds=(0, 1), budget=1, device="cpu")
    facts = run_study(replace(options, worlds="own", rows=("base", "sfd")), quiet=True)
    assert facts["crossed"] is False
    assert sorted(p.name for p in (options.out / "data").iterdir()) == ["world-0", "world-1"]
    assert {p["mAP"]["seeds"] for p in facts["studies"][0]["pairs"]} == {2}


def test_a_device_that_is_not_there_is_refused_before_any_work(tiny_options):
    before = {*tiny_options.out.iterdir()}
    with pytest.raises(FmcnetError, match="device 'tpu' cannot be used here"):
        run_study(replace(tiny_options, device="tpu"), quiet=True)
    assert {*tiny_options.out.iterdir()} == before


def test_real_data_take_their_own_configuration(tiny_sysu, tmp_path, monkeypatch):
    asked = StudyOptions("table2", tmp_path / "s", data=tiny_sysu)
    assert asked.source == "sysu"
    assert replace(asked, config="tiny").source == "tiny"
    small = replace(asked, config="tiny", budget=1, seeds=(0,), name="figure5", device="cpu")
    facts = run_study(small, quiet=True)
    assert not (tmp_path / "s" / "data").exists()
    assert facts["studies"][0]["numbers"]["L_GAN + L_IC + L_FC (full)"]["probe_shared"]["mean"] >= 0


def test_a_configuration_of_another_benchmark_is_told(tiny_sysu, tmp_path, caplog):
    options = StudyOptions("table2", tmp_path / "s", data=tiny_sysu, config="regdb")
    _read_tables(options, options.row_config(), quiet=True)
    assert f"--config regdb is for another benchmark: {tiny_sysu} has the layout of sysu" in caplog.text


def test_a_csv_among_others_is_the_one_that_was_given(tiny_sysu, tmp_path, undrawn):
    table = read_dataset(tiny_sysu)
    places = [str(path) for path in table.full_paths()]
    file = write_csv(replace(table, root=tmp_path, path=np.array(places)), tmp_path / "mine.csv")
    (tmp_path / "other.csv").write_text("path,pid,modality\n")
    asked = StudyOptions(
        "figure4", tmp_path / "s", data=file, config="tiny", seeds=(0,), budget=1, device="cpu", jobs=1
    )
    facts = run_study(asked, quiet=True)
    assert str(file) in facts["runs"][0]["commands"][0]
    assert len(facts["runs"]) == 2


def test_mistakes_are_said_before_any_work(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    cases = {
        "holds other things": StudyOptions("all", tmp_path),
        "unknown study": StudyOptions("table7", tmp_path / "s"),
        "unknown preset 'huge'": StudyOptions("all", tmp_path / "s", preset="huge"),
        "no such setting": StudyOptions("all", tmp_path / "s", overrides=("model.depth=3",)),
        "--worlds mine": StudyOptions("all", tmp_path / "s", preset="tiny", worlds="mine"),
    }
    for said, asked in cases.items():
        with pytest.raises(FmcnetError, match=said):
            run_study(asked, quiet=True)
    assert not (tmp_path / "s").exists()
    with pytest.raises(FmcnetError, match="--seeds a,b"):
        parse_seeds("a,b")
    assert parse_seeds("2,0,2") == (2, 0)
    result = run_command("study", "table2", "--seeds", "x", "--out", str(tmp_path / "s"), code=None)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def run_named(tmp_path, tiny_sysu, name, *overrides):
    settings = ["training.epochs=1", "training.steps_per_epoch=2", "training.validate_every=0", *overrides]
    return StudyRun(name, name, load_config("tiny", settings), tiny_sysu, tmp_path)


def test_a_finished_run_keeps_what_its_report_needs(tiny_sysu, tmp_path):
    one = run_named(tmp_path, tiny_sysu, "one")
    found = one.complete("cpu", progress=False)
    left = {p.name for p in one.folder.iterdir()}
    assert {"result.json", "queries.npz", "model.json", "model.safetensors", "README.md"} <= left
    assert "checkpoints" not in left
    assert one.complete() == found
    assert set(one.queries()) == {"i2v"}


def test_a_result_of_other_settings_is_not_this_runs(tiny_sysu, tmp_path):
    one = run_named(tmp_path, tiny_sysu, "one")
    one.complete("cpu", progress=False)
    assert replace(one, digest="other").result() is None
    (one.folder / "result.json").write_text("{ cut")
    assert one.result() is None


def test_a_run_killed_before_it_began_is_begun_again(tiny_sysu, tmp_path):
    one = run_named(tmp_path, tiny_sysu, "cut")
    one.folder.mkdir(parents=True)
    (one.folder / ".config.yaml.77.tmp").write_text("half")
    assert one.complete("cpu", progress=False)["steps"] == 2


def test_a_run_whose_projection_could_not_be_written_is_finished_by_the_next_call(
    tiny_sysu, tmp_path, monkeypatch
):
    """The projection is the last thing that a training writes."""
    one = run_named(tmp_path, tiny_sysu, "one", "model.descriptor=discriminant")
    with monkeypatch.context() as full_disk:
        full_disk.setattr(
            selection, "add_discriminant", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(FmcnetError, match="could not be written"):
            one.complete("cpu", progress=False)
    assert one.complete("cpu", progress=False)["dimensions"] < 100


@pytest.mark.parametrize("select", ["val", "test"])
def test_the_report_says_which_weights_it_is_of(tiny_options, select, undrawn):
    chosen = (f"training.select={select}", "training.validate_every=1")
    report = Path(
        run_study(replace(tiny_options, overrides=chosen, rows=("base",)), quiet=True)["report"]
    ).read_text()
    kept = {"val": "best on validation identities", "test": "best on the test identities"}[select]
    assert f"Weights are each run's {kept}" in " ".join(report.split())
    assert ("SELECTED ON THE TEST SET" in report) is (select == "test")


def test_figures_of_ten_shots_are_not_set_beside_those_of_the_paper(tiny_sysu, monkeypatch):
    monkeypatch.setattr("fmcnet.experiments.report.is_generated", lambda table: False)
    monkeypatch.setattr("fmcnet.experiments.study.unpublished_counts", lambda name, found: "")
    table = read_dataset(tiny_sysu)
    for shots in (1, 10):
        facts = _data_facts(table, load_config("tiny", [f"evaluation.shots={shots}"]))
        assert facts["comparable"] is (shots == 1)


def test_a_run_that_fails_leaves_the_others_be(tiny_sysu, tmp_path, caplog):
    bad = run_named(tmp_path, tiny_sysu, "bad", "training.lr=1e30", "training.clip=0")
    runs = [bad, run_named(tmp_path, tiny_sysu, "good"), run_named(tmp_path, tiny_sysu, "fine")]
    caplog.set_level(logging.INFO)
    with pytest.raises(FmcnetError, match=r"1 of 3 runs failed; the others are done:\n  bad: step"):
        complete_runs(runs, device="cpu", progress=False)
    assert [one.result() is not None for one in runs] == [False, True, True]
    rank1 = 100 * runs[1].result()["evaluations"][0]["mean"]["rank1"]
    assert f"1/3 good: i2v R1 {rank1:.2f} mAP " in caplog.text
    assert "2/3 fine: i2v R1 " in caplog.text
    with pytest.raises(FmcnetError, match=r"1 of 1 runs failed:\n  bad: step 2.* Train anew with a lower"):
        complete_runs([bad], device="cpu", progress=False)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("end", r"its worker process ended .*ends with: .*bad begins"),
        ("error", "RuntimeError: CUDA out of memory"),
        ("refused", "refused: the settings"),
    ],
)
def test_a_worker_that_dies_costs_its_own_run_alone(tmp_path, caplog, fault, said):
    runs = [FakeRun("bad", tmp_path, fault), FakeRun("a", tmp_path), FakeRun("b", tmp_path)]
    caplog.set_level(logging.INFO)
    before = {*spawned_by(os.getpid())}  # other tests may have left a pool
    with pytest.raises(FmcnetError, match=rf"1 of 3 runs failed; the others are done:\n  bad: {said}"):
        complete_runs(runs, 2, device="cpu", progress=False)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"a", "b"}
    assert [message[:3] for message in caplog.messages if " left" in message] == ["1/3", "2/3"]
    assert {*spawned_by(os.getpid())} <= before


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from fmcnet.data.readers import register_reader
register_reader("of_a_script", print)
if __name__ == "__main__":
    from pathlib import Path
    from fmcnet.experiments.workers import complete_runs
    from tests.experiments.fake_run import FakeRun
    complete_runs([FakeRun(name, Path("out"), "reader") for name in "ab"], 2, device="cpu", progress=False)
"""


def test_a_worker_knows_what_the_script_registered_and_no_module_of_the_working_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "token.py").write_text("raise SystemExit('a module of this name was imported')")
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "study.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == {"a", "b"}


def refuse_processes(monkeypatch, allowed):
    """Let the system start no process but those of the numbers in `allowed`."""
    start, tried = BaseProcess.start, []

    def start_or_refuse(process):
        tried.append(process)
        if len(tried) not in allowed:
            raise OSError(11, "Resource temporarily unavailable")
        start(process)

    monkeypatch.setattr(BaseProcess, "start", start_or_refuse)


def test_a_worker_that_cannot_start_costs_its_own_run_alone(tmp_path, monkeypatch):
    refuse_processes(monkeypatch, allowed=[1])
    runs = [FakeRun(name, tmp_path) for name in ("a", "b")]
    with pytest.raises(
        FmcnetError, match=r"1 of 2 runs failed.*\n  [ab]: .*cannot be started: .*unavailable"
    ):
        complete_runs(runs, 2, device="cpu", progress=False)
    assert [path.read_text() for path in tmp_path.glob("[ab]")] == ["done"]


def test_a_study_ends_when_no_worker_can_start(tmp_path, monkeypatch):
    refuse_processes(monkeypatch, allowed=[])
    with pytest.raises(FmcnetError, match=r"(?s)2 of 2 runs failed.*cannot be started: .*unavailable"):
        complete_runs([FakeRun(name, tmp_path) for name in ("a", "b")], 2, device="cpu", progress=False)


def test_devices_without_a_gpu():
    assert find_devices("cpu") == ("cpu",)
    assert len(find_devices("auto")) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2])
def test_killed_it_goes_on_and_repeats_nothing(tmp_path, tiny_sysu, workers):
    """kill -9 in the middle of a training; the workers of a killed study end by themselves."""
    out = with_world(tmp_path / "s", tiny_sysu)
    running = Running(*words(out, "--jobs", workers))
    try:
        wait_for(lambda: list((out / "runs").glob("*/result.json")))
        cut = wait_for(lambda: under_way(out, LONG // 2))  # for a worker does some steps more before it ends
        workers_of_it = spawned_by(running.pid)
        assert workers_of_it or not Path("/proc/self").exists()
    finally:
        running.kill()
        running.wait()
    wait_for(lambda: not any(alive(pid) for pid in workers_of_it))
    done = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/result.json")}
    assert 0 < len(done) < 3
    facts = json.loads(run_command(*words(out, "--jobs", 1)).stdout)
    assert len(facts["runs"]) == 3
    for path, when in done.items():
        assert path.stat().st_mtime_ns == when
    resumed = json.loads((cut / "result.json").read_text())
    assert resumed["steps"] == LONG
    assert resumed["steps_of_last_call"] < LONG


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "sent"), [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)])
def test_ctrl_c_or_sigterm_ends_it_with_one_sentence(tmp_path, tiny_sysu, workers, sent):
    out = with_world(tmp_path / "s", tiny_sysu)
    running = Running(*words(out, "--jobs", workers))
    wait_for(lambda: under_way(out))
    workers_of_it = spawned_by(running.pid)  # none, where there is no /proc
    for pid in workers_of_it:
        blocked = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert int(blocked[1], 16) & 1 << signal.SIGINT - 1, "a worker would end before its checkpoint"
    if sent == signal.SIGINT:
        os.killpg(running.pid, sent)  # as a terminal does
    else:
        running.send_signal(sent)
    _, said = running.communicate(timeout=60)
    assert not any(alive(pid) for pid in workers_of_it)
    assert running.returncode == 128 + sent, said
    assert "the same command continues it" in " ".join(said.split())
    assert "Traceback" not in said


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are listed in /proc")
@pytest.mark.parametrize(
    "command",
    [
        ("study", "table2", "--budget", "2", "--seeds", "0", "--jobs", "2"),
        ("data", "generate", "--workers", "2"),
    ],
)
def test_ctrl_c_while_its_workers_start_is_one_line(tmp_path, command):
    running = Running(*command, "--preset", "tiny", "--out", tmp_path / "out", "--json")
    try:
        wait_for(lambda: children(running.pid))
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 130
        assert said.splitlines()[-1] == "fmcnet: interrupted: the same command continues it"
        assert "Traceback" not in said
    finally:
        running.kill()


def test_a_fork_server_that_is_killed_costs_one_run(tmp_path, monkeypatch):
    start, tried = BaseProcess.start, []

    def start_or_end(process):
        tried.append(process)
        if len(tried) == 1:
            raise EOFError("unexpected EOF")
        start(process)

    monkeypatch.setattr(BaseProcess, "start", start_or_end)
    with pytest.raises(
        FmcnetError, match=r"1 of 2 runs failed.*\n  [ab]: .*cannot be started: unexpected EOF"
    ):
        complete_runs([FakeRun(name, tmp_path) for name in "ab"], 2, device="cpu", progress=False)


def test_a_worker_that_ends_early_is_not_blamed_on_an_earlier_run(tmp_path):
    (tmp_path / "logs").mkdir()
    for number in range(2):
        (tmp_path / "logs" / f"worker-{number}.log").write_text("MemoryError: of another run\n")
    runs = [FakeRun("bad", tmp_path, "unpickled"), FakeRun("good", tmp_path)]
    with pytest.raises(FmcnetError, match=r"bad: ValueError: cannot be unpickled") as raised:
        complete_runs(runs, 2, device="cpu", progress=False)
    assert "MemoryError" not in str(raised.value)


@pytest.mark.slow
def test_all_on_the_tiny_preset(tiny_options, monkeypatch):
    """Everything the issue asks of one command, at the smallest size.

    The linear probe is fitted in test_real_data_take_their_own_configuration.
    """
    monkeypatch.setattr("fmcnet.experiments.features.probe", lambda *_: 0.5)
    small = ("data.height=32", "data.width=16", "training.validate_every=0")
    facts = run_study(replace(tiny_options, name="all", overrides=small, budget=1), quiet=True)
    assert [s["name"] for s in facts["studies"]] == [study.name for study in select_studies("all")]
    assert len(facts["runs"]) == 18
    assert facts["images_seen"] == [16]
    text = Path(facts["report"]).read_text()
    for words in (
        "Table 2",
        "Table 3",
        "Table 4",
        "Figure 4",
        "Figure 5",
        "AGW's recipe",
        "fmcnet-plus (ours)",
    ):
        assert words in text
    assert "linear probe tells the modality" in text
    for several in facts["pictures"].values():
        assert several
        for _, path in several:
            assert (tiny_options.out / "report" / path).stat().st_size > 1000


def test_a_report_on_regdb_names_the_split(tmp_path):
    table = read_dataset(trees.regdb(tmp_path), regdb_split=2)
    name = _data_facts(table, load_config("regdb", ["data.split=2"]))["name"]
    assert name.endswith("split 2")


def test_the_papers_figures_stand_beside_the_whole_test_set_and_one_shot_only(tmp_path, monkeypatch):
    table = read_dataset(trees.sysu(tmp_path))
    assert not _data_facts(table, load_config("sysu"))["comparable"]
    counts = {"test identities": 2, "test visible images": 16, "test infrared images": 8}
    monkeypatch.setitem(PUBLISHED, "sysu", counts)
    assert _data_facts(table, load_config("sysu"))["comparable"]
    for setting in ("mode=indoor", "shots=10"):
        assert not _data_facts(table, load_config("sysu", [f"evaluation.{setting}"]))["comparable"]
