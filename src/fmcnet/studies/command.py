"""`fmcnet study` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def study(
    name: Annotated[
        str, typer.Argument(help="table2, table3, table4, figure4, figure5, baselines, or all of them.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings of every row; a row's own win."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of data, runs and report.")] = Path("study"),
    data: Annotated[
        Path | None, typer.Option(help="A dataset's folder or CSV; without it the generated benchmark.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Generated benchmark: tiny or small.")] = "small",
    config: Annotated[
        str | None,
        typer.Option(help="A YAML file, or a shipped one by name; default: what goes with the data."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of training, as 0,1,2.")] = "0,1,2",
    budget: Annotated[
        int | None,
        typer.Option(help="Steps of each run, equal for all rows; default: the configuration's.", min=1),
    ] = None,
    worlds: Annotated[
        str, typer.Option(help="Generated data: same (world 0 for all seeds) or own (world s for seed s).")
    ] = "same",
    jobs: Annotated[int, typer.Option(help="Runs at a time, a process of one CPU thread each.", min=1)] = 1,
    device: Annotated[
        str, typer.Option(help="auto (every GPU there is), cpu, cuda, cuda:N or mps.")
    ] = "auto",
    report: Annotated[
        Path | None, typer.Option(help="Where results.md, results.json and figures/ go; default OUT/report.")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
    ] = False,
) -> None:
    """Re-run the paper's tables and figures and the comparison with baselines, and write one report.

    fmcnet study table2 --seeds 0,1,2 --out study

    Each distinct configuration is trained once, whatever number of tables shows it. The same command goes on after
    Ctrl-C or a kill and repeats no finished run. Report: OUT/report/results.md.
    """
    from fmcnet.studies.study import Ordered, parse_seeds, run_study

    ordered = Ordered(
        name,
        out,
        data=data,
        preset=preset,
        config=config,
        overrides=tuple(overrides or ()),
        seeds=parse_seeds(seeds),
        budget=budget,
        worlds=worlds,
        jobs=jobs,
        device=device,
        report=report,
    )
    try:
        facts = run_study(ordered, quiet=json_)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it was") from None
    if json_:
        typer.echo(json.dumps(facts, indent=1, default=str))
        return
    for table in facts["studies"]:
        for line in table["order"]:
            typer.echo(f"orders otherwise than in the paper: {line}")
    typer.echo(f"report: {facts['report']}")
