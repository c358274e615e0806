"""The report folder: scores, protocols and plots."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.table import Table, fingerprint
from fmcnet.errors import ProtocolError
from fmcnet.evaluation.evaluate import METRICS
from fmcnet.evaluation.evaluate_model import EvaluatedRun, role_masks
from fmcnet.evaluation.verification import Verification, verification
from fmcnet.experiments import plots
from fmcnet.experiments.features import feature_map
from fmcnet.experiments.rows import DIRECTION_NAMES
from fmcnet.experiments.runs import is_generated
from fmcnet.files import write_json, write_text
from fmcnet.markdown import markdown_page, markdown_table
from fmcnet.models.card import versions
from fmcnet.parsing import read_json
from fmcnet.types import NO_PID, Modality

logger = logging.getLogger(__name__)

SELECTED_ON_TEST = (
    "**SELECTED ON THE TEST SET: these figures are optimistic and compare with none that are not.**"
)
VARIANT_TITLES = {
    "base": "Base",
    "sfd": "+ SFD",
    "fmc": "+ FMC (concatenation)",
    "full": "FMCNet (full)",
}


def write_report(
    evaluated: dict[str, EvaluatedRun],
    out: str | Path,
    *,
    extra: dict[str, Any] | None = None,
    keep: bool = False,
) -> Path:
    """Write `report.md`, `report.json` and `figures/` for one or several runs on one test set.

    Plots are drawn where matplotlib and scikit-learn (fmcnet[plot]) are installed. Ranked lists and maps show the
    last model.

    Args:
        evaluated: runs by title.
        out: the folder.
        extra: facts for both files (dataset, seeds, timings).
        keep: keep the evaluations by other protocols that a report of the same models and data in `out` holds.
    """
    out = Path(out)
    main = list(evaluated.values())[-1]
    verified = _verification(main)
    plot_paths = {}
    if plots.can_draw():
        for title, path in _draw(evaluated, verified, out / "figures").items():
            plot_paths[title] = path.relative_to(out).as_posix()
    else:
        logger.warning("no plots in the report: pip install 'fmcnet[plot]' brings what draws them")
    facts: dict[str, Any] = {
        "dataset": dataset_facts(main.table),
        "versions": versions(),
        "runs": {
            title: {**_run_facts(run), "evaluations": [one.to_dict() for one in run.evaluations]}
            for title, run in evaluated.items()
        },
        **(extra or {}),
    }
    if keep:
        _keep_other_protocols(facts, out / "report.json")
    facts["verification"] = {"run": str(main.encoder.folder), **verified.to_dict()} if verified else None
    write_json(out / "report.json", {**facts, "figures": plot_paths})
    return write_text(out / "report.md", _page(facts, plot_paths, _across_modalities(main), _of_split(main)))


def _keep_other_protocols(facts: dict[str, Any], path: Path) -> None:
    """Add to `facts` the evaluations by other protocols in an earlier report of the same models and data."""
    try:
        earlier = read_json(path)
        # Earlier versions stored no fingerprint.
        data = {**facts["dataset"], **earlier["dataset"]}
        same = (data, earlier.get("splits")) == (facts["dataset"], facts.get("splits"))
        for title, run in facts["runs"].items():
            new_keys = [_evaluation_key(evaluation) for evaluation in run["evaluations"]]
            old = earlier["runs"].get(title, {"evaluations": []})
            for one in old["evaluations"]:  # fmcnet 0.1.0 called a query a probe
                one["protocol"] = one["protocol"].replace(" probe skips ", " query skips ")
            others = [one for one in old["evaluations"] if _evaluation_key(one) not in new_keys]
            if same and old.get("digest") == run["digest"]:
                run["evaluations"] += others
            elif others := others if same else old["evaluations"]:
                names = [
                    " + ".join((one["protocol"].partition(":")[0], *one.get("extras", ()))) for one in others
                ]
                note = "figures of other weights or data, or of an earlier version, were left out: "
                note += "; ".join(dict.fromkeys(names))
                logger.warning("%s: %s", path, note)
                facts["notes"] = [*facts.get("notes", ()), note]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # no report, or a damaged one, which is replaced


def _evaluation_key(evaluation: dict[str, Any]) -> tuple[str, ...]:
    """Key of an evaluation of one model on one dataset: protocol, distance, extras."""
    return evaluation["protocol"], evaluation["distance"], *evaluation.get("extras", ())


def _draw(evaluated: dict[str, EvaluatedRun], verified: Verification | None, out: Path) -> dict[str, Path]:
    """All plots by title, without those that the data do not allow."""
    main = list(evaluated.values())[-1]
    of_split = _of_split(main)
    ranked = f"Ranked lists{of_split} (green: right, red: wrong; first trial, plain ranking, queries drawn at random)"
    drawn = {
        "CMC": plots.cmc_curves(evaluated, out / "cmc.png"),
        f"Training curves{of_split}": plots.training_curves(evaluated, out / "curves.png"),
        ranked: plots.ranked_lists(main, out / "ranked.png"),
    }
    if verified is not None:
        title = f"Similarity of pairs{_across_modalities(main)}{of_split}"
        drawn[title] = plots.similarity_histogram(verified, out / "similarity.png")
    if path := feature_map(main.encoder, main.table, out / "features.png"):
        drawn[f"Feature maps{of_split}, test identities"] = path
    return drawn


def _verification(evaluated: EvaluatedRun) -> Verification | None:
    """Verification rates of the first direction; None if there are no false pairs."""
    first, masks = evaluated.evaluations[0], role_masks(evaluated.table)
    try:
        return verification(evaluated.embeddings, first.protocol, distance=first.result.distance, **masks)
    except ProtocolError as error:
        logger.warning("no rates of true and false matches: %s", error)
        return None


def _across_modalities(evaluated: EvaluatedRun) -> str:
    """The words " across the modalities" if the first protocol compares them, otherwise ""."""
    protocol = evaluated.evaluations[0].protocol
    across = {protocol.query.modality, protocol.gallery.modality} == set(Modality)
    return " across the modalities" if across else ""


def _of_split(evaluated: EvaluatedRun) -> str:
    """The words " of split-10" for what a report on several splits has of the last one alone, otherwise ""."""
    return f" of {Path(str(evaluated.encoder.folder)).name}" if evaluated.parts else ""


def _run_facts(run: EvaluatedRun) -> dict[str, Any]:
    """Facts of a run's model; `run`, seed, step and parameters of pooled splits are the last one's."""
    parts = run.parts or (run,)
    cards, digests = [part.encoder.card for part in parts], [part.encoder.digest for part in parts]
    pooled = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
    return {
        "run": str(run.encoder.folder),
        "trained_on": run.encoder.card.dataset,
        "regdb_splits": [card.config.data.split for card in cards] if run.table.name == "regdb" else [],
        "variant": run.encoder.model.variant,
        "seed": run.encoder.card.config.training.seed,
        "step": run.encoder.card.step,
        "selected_on": "test" if "test" in [card.selected for card in cards] else cards[-1].selected,
        "digest": pooled if run.parts else digests[0],
        "parameters": sum(p.numel() for p in run.encoder.model.parameters()),
    }


def dataset_facts(table: Table) -> dict[str, Any]:
    """What a report says of a test set."""
    return {
        "name": table.name,
        "root": str(table.root),
        "generated": is_generated(table),
        "fingerprint": fingerprint(table),
        "identities": len(np.unique(table.pid[table.pid != NO_PID])),
        **{str(modality): len(table.select(modality=modality)) for modality in Modality},
    }


def _page(facts: dict[str, Any], plot_paths: dict[str, str], across: str, of_split: str) -> str:
    data, runs = facts["dataset"], facts["runs"]
    splits = list(dict.fromkeys(split for run in runs.values() for split in run["regdb_splits"]))
    split_words = f"split{'s' * (len(splits) > 1)} {', '.join(map(str, splits))}, " if splits else ""
    parts = [
        "# fmcnet report",
        f"Test set: {'GENERATED data in the layout of ' if data['generated'] else ''}{data['name']} at "
        f"`{data['root']}`, {split_words}{data['identities']} identities, "
        f"{data['visible']} visible and {data['infrared']} infrared images.",
    ]
    evaluations = [(title, evaluation) for title, run in runs.items() for evaluation in run["evaluations"]]
    for protocol in dict.fromkeys(evaluation["protocol"] for _, evaluation in evaluations):
        rows = [
            (title, evaluation) for title, evaluation in evaluations if evaluation["protocol"] == protocol
        ]
        if {evaluation["distance"] for _, evaluation in rows} != {"cosine"}:
            rows = [(f"{title}, {evaluation['distance']}", evaluation) for title, evaluation in rows]
        name = protocol.partition(":")[0]
        direction = DIRECTION_NAMES.get(rows[0][1]["direction"])
        heading = f"{direction.capitalize()}: {name}" if direction else name.capitalize()
        parts += [f"## {heading}", protocol, _scores_table(rows)]
    if any(run["selected_on"] == "test" for run in runs.values()):
        parts.append(SELECTED_ON_TEST)
    if facts["verification"]:
        parts += _verification_parts(list(runs)[-1] + of_split, facts["verification"], across)
    columns = ("variant", "seed", "step", "selected_on")
    run_rows = [
        (title + of_split, *(run[key] for key in columns), f"{run['parameters']:,}")
        for title, run in runs.items()
    ]
    head = ("run", "variant", "seed", "step", "weights", "parameters")
    parts += ["## Runs", markdown_table(head, run_rows)]
    parts.append("Versions: " + ", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    for key, value in facts.items():
        if key == "seconds":
            parts.append("Seconds: " + ", ".join(f"{phase} {number:.0f}" for phase, number in value.items()))
        elif key == "notes" and value:
            parts.append("Notes:\n\n" + "\n".join(f"- {note}" for note in value))
        elif isinstance(value, (str, int, float)) and value != "":
            parts.append(f"{key.replace('_', ' ')}: {value}")
    for title, path in plot_paths.items():
        parts += [f"## {title}", f"![{title}]({path})"]
    return markdown_page(parts)


def _verification_parts(title: str, verified: dict[str, Any], across: str) -> list[str]:
    rows = []
    for rate, match_rate in verified["true_match_rate"].items():
        cells = ("too few false pairs", "-")
        if match_rate:
            cells = (f"{100 * match_rate['rate']:.2f} %", f"{match_rate['threshold']:.3f}")
        rows.append((f"{100 * float(rate):g} %", *cells))
    return [
        "## Same person or not",
        f"{title}: {verified['positives']:,} true and {verified['negatives']:,} false pairs{across}, "
        f"nothing drawn, {verified['distance']}. Area under the ROC curve {verified['auc']:.4f}.",
        markdown_table(("false-match rate", "true-match rate", "at the threshold"), rows),
    ]


def _scores_table(evaluations: list[tuple[str, dict[str, Any]]]) -> str:
    """Scores in percent, mean and deviation over trials. Scores with extras stand beside the plain ones."""
    rows = []
    for title, evaluation in evaluations:
        results = {title: evaluation}
        if "plain" in evaluation:
            results = {
                f"{title}, plain": evaluation["plain"],
                f"{title} + {' + '.join(evaluation['extras'])}": evaluation,
            }
        chance = evaluation["chance_rank1"]
        for name, result in results.items():
            mean, std = result["mean"], result["std"]
            cells = [f"{100 * mean[metric]:.2f} ± {100 * std[metric]:.2f}" for metric in METRICS]
            rows.append([name, *cells, f"{mean['rank1'] / chance:.1f} x ({100 * chance:.2f} %)"])
    return markdown_table(("", *METRICS, "Rank-1 over chance"), rows)
