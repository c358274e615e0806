"""Runs beside published results, with unequal protocols flagged; Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from fmcnet.data.check import unpublished_counts
from fmcnet.data.readers import BENCHMARKS
from fmcnet.errors import DataError
from fmcnet.experiments.rows import DIRECTION_NAMES
from fmcnet.files import write_rows, write_text
from fmcnet.markdown import markdown_page, markdown_table
from fmcnet.models.shipped import shipped_models
from fmcnet.parsing import read_json

PUBLISHED_COLUMNS = {
    "sysu_all": "SYSU-MM01 all",
    "sysu_indoor": "SYSU-MM01 indoor",
    "regdb_v2t": "RegDB V to T",
    "regdb_t2v": "RegDB T to V",
    "llcm_i2v": "LLCM I to V",
    "llcm_v2i": "LLCM V to I",
}
"""Benchmark settings in the published table, with titles; each has a Rank-1 and an mAP."""

REPORT = "report.json"

SOURCE_NOTE = (
    "Published figures: the papers named, as collected in this package's experiments/published.csv; "
    "single-shot, percent. A run's figure stands beside them only as far as its protocol is theirs: see the flags."
)


@dataclass(frozen=True)
class ComparisonRow:
    """One method or run."""

    name: str
    where: str  # venue and year, or "this run"
    # (Rank-1, mAP) in percent, None where there is none, by key of `PUBLISHED_COLUMNS` or the title of another column
    figures: dict[str, tuple[float | None, float | None]]
    flags: tuple[str, ...] = ()  # differences from the others' protocol
    model: tuple[str, ...] = ()  # identifies a run's weights and test set; empty if unknown
    generated: str = ""  # fingerprint of the generated benchmark that a run was evaluated on


@dataclass(frozen=True)
class Comparison:
    """Rows, the table in Markdown, and the files written."""

    rows: tuple[ComparisonRow, ...]
    markdown: str
    paths: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        rows = [{"name": r.name, "where": r.where, "figures": r.figures, "flags": r.flags} for r in self.rows]
        return {"rows": rows, "files": [str(path) for path in self.paths]}


def published() -> tuple[ComparisonRow, ...]:
    """The published results that travel with the package."""
    text = resources.files("fmcnet.experiments").joinpath("published.csv").read_text(encoding="utf-8")
    rows = []
    for line in csv.DictReader(text.splitlines()):
        numbers = {
            name: float(cell) for name, cell in line.items() if cell and name.endswith(("_r1", "_map"))
        }
        figures = {key: (numbers.get(f"{key}_r1"), numbers.get(f"{key}_map")) for key in PUBLISHED_COLUMNS}
        flags = (line["note"],) if line["note"] and line["note"] != "the method implemented here" else ()
        rows.append(ComparisonRow(line["method"], f"{line['venue']} {line['year']}", figures, flags))
    return tuple(rows)


def compare(runs: list[Path] | tuple[Path, ...], out: str | Path | None = None) -> Comparison:
    """Set runs that `fmcnet evaluate` has reported on beside each other and, on a benchmark, the published figures.

    Args:
        runs: run folders (or folders of RegDB splits), each with `report/report.json`, or folders of such reports.
            Reports of one model on one dataset share a row.
        out: gets comparison.md, .tex and .csv; None: nothing is written.

    Raises:
        DataError: for a run without a report, naming the command that makes one.
    """
    compared = _flag_other_data(_join_rows([_run_row(Path(run)) for run in runs]))
    own = {key: None for row in compared for key in row.figures if key not in PUBLISHED_COLUMNS}
    all_own = bool(own) and all(key in own for row in compared for key in row.figures)
    rows = (*(() if all_own else published()), *compared)
    filled = {key for row in rows for key, (rank1, _) in row.figures.items() if rank1 is not None}
    columns = [*(key for key in PUBLISHED_COLUMNS if key in filled), *own]
    scores = [f"{PUBLISHED_COLUMNS.get(key, key)} {metric}" for key in columns for metric in ("R1", "mAP")]
    cells = ([row.name, row.where, *_cells(row, columns), "; ".join(row.flags)] for row in rows)
    table = markdown_table(["method", "where", *scores, "flags"], cells)
    markdown = markdown_page([table] if all_own else [table, SOURCE_NOTE])
    if out is None:
        return Comparison(rows, markdown)
    path = Path(out) / "comparison.md"
    written = [write_text(path, markdown), write_text(path.with_suffix(".tex"), _latex(rows, columns))]
    written.append(write_rows(path.with_suffix(".csv"), _csv(rows, columns)))
    return Comparison(rows, markdown, tuple(written))


def _join_rows(rows: list[ComparisonRow]) -> list[ComparisonRow]:
    """Join rows of one model whose figures do not contradict each other."""
    joined: list[ComparisonRow] = []
    for row in rows:
        for index, other in enumerate(joined):
            common = row.figures.keys() & other.figures.keys()
            agree = all(row.figures[key] == other.figures[key] for key in common)
            if row.model and row.model == other.model and agree:
                name = other.name if other.name == row.name else f"{other.name}, {row.name}"
                flags = tuple(dict.fromkeys((*other.flags, *row.flags)))
                joined[index] = replace(
                    other, name=name, figures={**other.figures, **row.figures}, flags=flags
                )
                break
        else:
            joined.append(row)
    return joined


def _flag_other_data(rows: list[ComparisonRow]) -> list[ComparisonRow]:
    """Flag runs whose generated benchmark is not that of the first run on one."""
    first = next((row for row in rows if row.generated), None)
    return [
        replace(row, flags=(*row.flags, f"another generated benchmark than that of {first.name}"))
        if first and row.generated not in ("", first.generated)
        else row
        for row in rows
    ]


def _run_row(run: Path) -> ComparisonRow:
    if run.is_file() and run.with_name(REPORT).is_file():  # a file in a report folder
        run = run.parent
    path = next((p for p in (run / "report" / REPORT, run / REPORT) if p.is_file()), run / "report" / REPORT)
    try:
        return _row_from_report(str(run), read_json(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        out_hint = f" --out {run}-report, and give that folder" if str(run) in shipped_models() else ""
        raise DataError(
            f"{run} has no readable report/{REPORT} ({type(error).__name__}): "
            f"run first: fmcnet evaluate {run} --data DATA{out_hint}"
        ) from error


def _row_from_report(run: str, facts: Any) -> ComparisonRow:
    """The row of a report, in which keys may be missing."""
    dataset, run_facts = facts["dataset"], list(facts["runs"].values())[-1]
    chosen: dict[str, dict[str, Any]] = {}
    flags: list[str] = []
    oldest_first = list(_with_plain(reversed(run_facts["evaluations"])))  # so the newest of equal ones counts
    by_closeness = sorted(oldest_first, key=_closeness)
    for evaluation in by_closeness:
        if key := _column(dataset, evaluation):
            chosen[key] = evaluation
        else:
            name, direction = evaluation["protocol"].partition(":")[0], evaluation["direction"]
            words = f", {DIRECTION_NAMES[direction]}" if direction in DIRECTION_NAMES else ""
            flags.append(f"not a published setting, left out: {name}{words}")
    for key, evaluation in chosen.items():
        flags += protocol_flags(dataset["name"], evaluation)
        for other in by_closeness:
            same_column = _column(dataset, other) == key
            if same_column and any(
                other["mean"][name] != evaluation["mean"][name] for name in ("rank1", "mAP")
            ):
                differences = ", ".join(protocol_flags(dataset["name"], other))
                name = other["protocol"].partition(":")[0] + (f" ({differences})" if differences else "")
                flags.append(f"another figure of this column, left out: {name}")
    if dataset.get("generated"):
        flags.append("GENERATED data: not the published benchmark, comparable with no published row")
    elif counts := unpublished_counts(dataset["name"], dataset):
        flags.append(counts)
    selected, _, unfinished = str(facts.get("stamp", "")).partition("NOT FINISHED")
    if run_facts["selected_on"] == "test" or selected:
        flags.append("selected on the test set")
    if unfinished:
        flags.append(f"NOT FINISHED{unfinished}")
    if (trained_on := run_facts.get("trained_on", dataset["name"])) != dataset["name"]:
        flags.append(f"trained on another dataset ({trained_on})")
    splits = facts.get("splits", 1)
    if dataset["name"] == "regdb" and splits < 10:
        flags.append(f"{splits} of RegDB's ten splits")
    figures = {key: (100 * e["mean"]["rank1"], 100 * e["mean"]["mAP"]) for key, e in chosen.items()}
    weights = run_facts.get("digest") or (
        f"{run_facts['run']} step {run_facts.get('step')}" if "run" in run_facts else ""
    )
    model = (str(weights), str(dataset.get("root")), str(splits)) if weights else ()
    generated = str(dataset.get("fingerprint", "")) if dataset.get("generated") else ""
    return ComparisonRow(run, "this run", figures, tuple(dict.fromkeys(flags)), model, generated)


def _with_plain(evaluations: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each evaluation, and the plain one that an evaluation with extras holds."""
    for evaluation in evaluations:
        if "plain" in evaluation:
            yield {
                **evaluation["plain"],
                "direction": evaluation["direction"],
                "settings": _settings(evaluation),
            }
        yield evaluation


def protocol_flags(dataset: str, evaluation: dict[str, Any]) -> list[str]:
    """How an evaluation differs from the published protocol; `dataset` is one of `BENCHMARKS`, or another name."""
    settings, trials = _settings(evaluation), len(evaluation["trials"])
    flags = [str(extra) for extra in evaluation.get("extras", [])]
    if evaluation.get("distance", "cosine") != "cosine":
        flags.append(f"{evaluation['distance']} distance")
    if dataset in ("sysu", "llcm") and trials < 10 and settings.get("reading") != "c":
        flags.append(f"{trials} of ten trials")
    if dataset == "sysu" and settings.get("draw") != "official":
        flags.append("seeded gallery draw")
    if settings.get("reading", "a") != "a":
        flags.append("another reading of LLCM's protocol than the paper's")
    return flags


def _settings(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The protocol's settings by name; fmcnet 0.1.0 wrote them only into the protocol's text."""
    if "settings" in evaluation:
        return dict(evaluation["settings"])
    name, _, rules = evaluation["protocol"].partition(":")
    if name.startswith("SYSU-MM01"):
        return {
            "mode": "indoor" if "indoor-search" in name else "all",
            "shots": 1 if "single-shot" in name else 10,
            "draw": "official" if "official draw" in rules else "seeded",
        }
    if name.startswith("LLCM reading "):
        return {"reading": name.removeprefix("LLCM reading ")[0]}
    return {}


def _closeness(evaluation: dict[str, Any]) -> tuple[bool, ...]:
    """Sort key; the largest of a column counts: plain, official draw, the paper's reading, all trials."""
    settings = _settings(evaluation)
    return (
        not evaluation.get("extras"),
        settings.get("draw") == "official",
        settings.get("reading") == "a",
        len(evaluation["trials"]) >= 10,
    )


def _column(facts: dict[str, Any], evaluation: dict[str, Any]) -> str | None:
    """The column of an evaluation: a published one, or one for each test set and protocol of data of one's own."""
    direction, settings = evaluation["direction"], _settings(evaluation)
    dataset = facts["name"]
    if dataset not in BENCHMARKS:
        place = f"{Path(str(facts.get('root', ''))).name} {str(facts.get('fingerprint', ''))[:8]}".strip()
        return f"{evaluation['protocol'].partition(':')[0]}, {place}"
    if direction == "custom":
        return None
    if dataset == "sysu":
        if direction != "i2v" or settings.get("shots") != 1:
            return None
        return f"sysu_{settings.get('mode')}"
    if dataset == "regdb":
        return {"i2v": "regdb_t2v", "v2i": "regdb_v2t"}[direction]
    return f"llcm_{direction}"


def _cells(row: ComparisonRow, columns: list[str]) -> list[str]:
    values = (value for key in columns for value in row.figures.get(key, (None, None)))
    return ["-" if value is None else f"{value:.2f}" for value in values]


def _latex(rows: tuple[ComparisonRow, ...], columns: list[str]) -> str:
    def safe(text: str) -> str:
        return "".join(f"\\{c}" if c in "_%&#$" else c for c in text)

    lines = [f"% {SOURCE_NOTE}"] if PUBLISHED_COLUMNS.keys() & {*columns} else []
    lines += ["\\begin{tabular}{ll" + "rr" * len(columns) + "}", "\\hline"]
    titles = "".join(
        f" & \\multicolumn{{2}}{{c}}{{{safe(PUBLISHED_COLUMNS.get(key, key))}}}" for key in columns
    )
    lines.append(f"method & where{titles} \\\\")
    lines.append(" & " + " & R1 & mAP" * len(columns) + " \\\\\n\\hline")
    for row in rows:
        mark = "$^*$" if row.flags else ""
        lines.append(f"{safe(row.name)}{mark} & {safe(row.where)} & {' & '.join(_cells(row, columns))} \\\\")
    lines += ["\\hline", "\\end{tabular}"]
    lines += [f"% * {row.name}: {'; '.join(row.flags)}" for row in rows if row.flags]
    return "\n".join(lines) + "\n"


def _csv(rows: tuple[ComparisonRow, ...], columns: list[str]) -> Iterator[list[str]]:
    scores = [f"{key}_{metric}" for key in columns for metric in ("r1", "map")]
    yield ["method", "where", *scores, "flags"]
    for row in rows:
        cells = (cell.replace("-", "") for cell in _cells(row, columns))
        yield [row.name, row.where, *cells, "; ".join(row.flags)]
