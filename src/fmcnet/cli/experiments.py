"""`fmcnet demo | evaluate | score | study` and `fmcnet report compare`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from fmcnet.cli import console
from fmcnet.errors import FmcnetError, collect_warnings


def demo(
    out: Annotated[Path, Option(help="Folder for data, runs and report.")] = Path("demo"),
    preset: Annotated[str, Option(help="Generated benchmark: tiny (seconds) or small.")] = "small",
    seed: Annotated[int, Option(help="Seed of data and training.", min=0)] = 0,
    json_: console.Json = False,
) -> None:
    """Generate a benchmark, train Base and FMCNet on it, evaluate both on unseen identities, write a report.

    No data and no GPU needed. The same command continues it after a stop.
    """
    from fmcnet.experiments.demo import run_demo

    with console.explain_resume():
        result = run_demo(out, preset=preset, seed=seed, quiet=json_)
    if json_:
        console.print_json(result)


def evaluate(
    run: console.Model,
    data: console.Data,
    overrides: Annotated[
        list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Settings: mode=indoor shots=10.")
    ] = None,
    protocol: Annotated[
        Path | None,
        Option(help="Your own protocol, a YAML file (fmcnet docs evaluate); default: the benchmark's."),
    ] = None,
    both: Annotated[bool, Option("--both", help="Both search directions.")] = False,
    flip: Annotated[
        bool, Option("--flip", help="Average with the mirrored image; the report says so.")
    ] = False,
    rerank: Annotated[
        bool, Option("--rerank", help="k-reciprocal re-ranking, shown beside the plain figure.")
    ] = False,
    expand: Annotated[
        bool, Option("--expand", help="Average query expansion, shown beside the plain figure.")
    ] = False,
    out: Annotated[Path | None, Option(help="Folder of the report; default RUN/report.")] = None,
    report: Annotated[bool, Option(help="Write the report folder.")] = True,
    device: console.Device = "auto",
    json_: console.Json = False,
) -> None:
    """Evaluate a run on a dataset's test identities, by its benchmark's protocol.

    A folder with several RegDB splits (fmcnet train --splits) gives the mean over its splits.
    """
    from fmcnet.experiments.evaluate_run import evaluate_run
    from fmcnet.models.shipped import is_shipped

    console.check_first(run, "fmcnet evaluate RUN --data DATA")
    if out is not None and not report:
        raise FmcnetError("--out is the folder of the report, which --no-report leaves out: give one of them")
    settings = list(overrides or []) + (["direction=both"] if both else [])
    result = evaluate_run(
        run,
        data,
        settings,
        flip=flip,
        rerank=rerank,
        expand=expand,
        out=out,
        report=report,
        device=device,
        progress=False if json_ else None,
        protocol=protocol,
    )
    if int(os.environ.get("RANK", "0")):
        return
    if json_:
        console.print_json(result.to_dict())
        return
    for evaluation in result.evaluations:
        console.echo(evaluation.result.summary())
    if splits := result.splits:
        console.echo(f"mean of {len(splits)} split{'s' * (len(splits) > 1)}: {', '.join(splits)}")
    if result.stamp:
        console.echo(result.stamp)
    for note in result.notes:
        console.echo(f"note: {note}", err=True)
    if result.report:
        console.echo(f"report: {result.report}")
    elif report and is_shipped(result.run):
        source = "came with the package or the hub, which is not written to"
        console.echo(f"no report: {run} {source}; --out FOLDER writes one")


def compare(
    runs: Annotated[list[Path], Argument(help="Runs that fmcnet evaluate reported on or its --out folders.")],
    out: Annotated[Path, Option(help="Folder for comparison.md, .tex and .csv.")] = Path("comparison"),
    json_: console.Json = False,
) -> None:
    """Set runs beside published results, flagging unequal protocols."""
    from fmcnet.experiments.compare import compare

    result = compare(runs, out)
    if json_:
        console.print_json(result.to_dict())
        return
    console.echo(result.markdown)
    for path in result.paths:
        console.echo(f"wrote {path}")


def study(
    name: Annotated[str, Argument(help="table2, table3, table4, figure4, figure5, baselines or all.")],
    overrides: Annotated[
        list[str] | None,
        Argument(
            metavar="[KEY.SUB=VALUE]...", help="Settings of every row; a row's own settings take precedence."
        ),
    ] = None,
    out: Annotated[Path, Option(help="Folder of data, runs and report.")] = Path("study"),
    data: Annotated[Path | None, Option(help="A dataset's folder or CSV; default: generated data.")] = None,
    preset: Annotated[str | None, Option(help="Generated benchmark: tiny or small (default).")] = None,
    config: Annotated[
        str | None, Option(help="A YAML file, or a shipped one by name; default: the one for the data.")
    ] = None,
    seeds: Annotated[str, Option(help="Seeds of training, as 0,1,2.")] = "0,1,2",
    budget: Annotated[
        int | None, Option(help="Steps of each run, equal for all rows; default: the configuration's.", min=1)
    ] = None,
    rows: Annotated[
        str | None, Option(help="Only these rows, by their keys, as base,full,agw; default: all.")
    ] = None,
    worlds: Annotated[
        str, Option(help="Generated data: same (world 0 for all seeds) or own (world s for seed s).")
    ] = "same",
    jobs: Annotated[int, Option(help="Runs at a time, a process of one CPU thread each.", min=1)] = 1,
    device: Annotated[str, Option(help="auto (every GPU there is), cpu, cuda, cuda:N or mps.")] = "auto",
    report: Annotated[
        Path | None, Option(help="Where results.md, results.json and figures/ go; default OUT/report.")
    ] = None,
    json_: console.Json = False,
) -> None:
    """Re-run the paper's tables and figures and the comparison with baselines, and write one report.

    fmcnet study table2 --seeds 0,1,2 --out study

    Each distinct configuration is trained once, whatever number of tables shows it. The same command continues after
    Ctrl-C or a kill and repeats no finished run. Report: OUT/report/results.md.
    """
    from fmcnet.experiments.results import too_few
    from fmcnet.experiments.rows import parse_rows
    from fmcnet.experiments.study import StudyOptions, parse_seeds, run_study

    console.check_first(name, "fmcnet study table2")
    if data is not None and preset is not None:
        raise FmcnetError("--preset is of the generated benchmark, and --data is another: give one of them")
    options = StudyOptions(
        name,
        out,
        data=data,
        preset="small" if preset is None else preset,
        config=config,
        overrides=tuple(overrides or ()),
        seeds=parse_seeds(seeds),
        budget=budget,
        rows=parse_rows(rows),
        worlds=worlds,
        jobs=jobs,
        device=device,
        report=report,
    )
    with console.explain_resume():
        facts = run_study(options, quiet=json_)
    if json_:
        console.print_json(facts)
        return
    for table in facts["studies"]:
        for line in table["order"]:
            console.echo(f"orders otherwise than in the paper: {line}")
    if few := too_few(len(facts["seeds"])):
        console.echo(few)
    console.echo(f"report: {facts['report']}")


def score(
    file: Annotated[Path, Argument(help="An .npz with features, pid, cam, index; see fmcnet docs evaluate.")],
    protocol: Annotated[
        str | None,
        Option(
            help="sysu, regdb, llcm, csv, or a YAML file of your own (fmcnet docs evaluate); default: that of the "
            "dataset that fmcnet embed read, otherwise sysu."
        ),
    ] = None,
    mode: Annotated[str | None, Option(help="SYSU-MM01: all (default) or indoor.")] = None,
    shots: Annotated[int | None, Option(help="SYSU-MM01: 1 (default) or 10.")] = None,
    draw: Annotated[str | None, Option(help="SYSU-MM01: official (default) or seeded.")] = None,
    permutation: Annotated[Path | None, Option(help="rand_perm_cam.mat, for the official draw.")] = None,
    direction: Annotated[
        str | None,
        Option(
            help="i2v, v2i (RegDB: t2v, v2t); default: i2v for sysu and csv, v2t for regdb, v2i for llcm."
        ),
    ] = None,
    reading: Annotated[str | None, Option(help="LLCM: a (default), b or c.")] = None,
    cmc: Annotated[str | None, Option(help="RegDB: image (default) or identity.")] = None,
    distance: Annotated[str, Option(help="cosine or euclidean.")] = "cosine",
    json_: console.Json = False,
) -> None:
    """Score embeddings made by any code with a named protocol.

    fmcnet score e.npz --permutation data/exp/rand_perm_cam.mat

    FILE holds features (N, D), pid (N,), cam (N,), index (N,): the 1-based position among the sorted images of that
    identity and camera; and modality (N,), 0 visible, 1 infrared, where the camera does not tell (LLCM, CSV). Or
    query_features, query_pid, query_cam and the same with gallery_, as drawn by somebody else.
    """
    from fmcnet.evaluation.score import score_file

    with collect_warnings() as warnings:
        result = score_file(
            file,
            protocol,
            mode=mode,
            shots=shots,
            draw=draw,
            permutation=permutation,
            direction=direction,
            reading=reading,
            cmc=cmc,
            distance=distance,
            strict=True,
        )
    if json_:
        console.print_json({**result.to_dict(), "notes": warnings})
    else:
        console.echo(result.summary())
