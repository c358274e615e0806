"""The command line: `fmcnet demo | data | train | evaluate | embed | score | study | calibrate | project | export |
index | search | gallery | serve | keys | report | info`.

User mistakes end with one clear message and exit code 2; Ctrl-C with 130. PyTorch is imported
inside the commands, so `--help` is there in a second.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table as RichTable

from fmcnet import __version__
from fmcnet.errors import FmcnetError, Interrupted
from fmcnet.export.command import export
from fmcnet.inference.calibrate import calibrate
from fmcnet.inference.project import project
from fmcnet.search.command import index, search
from fmcnet.search.gallery_command import app as gallery_app
from fmcnet.server.command import keys, serve
from fmcnet.studies.command import study


class _Commands(typer.core.TyperGroup):
    """Turns user mistakes into one message and exit code 2, Ctrl-C into 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FmcnetError as error:
            _fail(str(error), 2, error)
        except KeyboardInterrupt as stop:
            said = str(stop)
            _fail(f"interrupted{f': {said}' if said else ''}", getattr(stop, "code", 130), stop)
        except OSError as error:
            _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 2, error)


app = typer.Typer(
    name="fmcnet",
    cls=_Commands,
    help="Visible-infrared person re-identification: train, evaluate and use FMCNet (CVPR 2022).\n\n"
    "Start with: fmcnet demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Generate, check and summarise datasets.", no_args_is_help=True)
report_app = typer.Typer(help="Put runs side by side.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(report_app, name="report")
app.add_typer(gallery_app, name="gallery")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Data = Annotated[
    Path, typer.Option("--data", help="A SYSU-MM01, RegDB or LLCM folder, or a CSV (docs/datasets.md).")
]
Run = Annotated[Path, typer.Argument(help="A run folder, as written by fmcnet train --out.")]
Model = Annotated[
    Path, typer.Argument(help="A run folder, an exported model's (fmcnet export), or a shipped model's name.")
]
Layout = Annotated[str, typer.Option(help="auto, sysu, regdb, llcm or csv.")]


def main() -> None:
    """Entry point."""
    if sys.platform != "win32":
        import signal

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    app(prog_name="fmcnet")


def _fail(message: str, code: int, error: BaseException) -> NoReturn:
    """Say it and leave; of several processes (torchrun) that have the same to say, one says it."""
    agreed = True if isinstance(error, KeyboardInterrupt) else getattr(error, "agreed", None)
    silent = int(os.environ.get("RANK" if agreed else "LOCAL_RANK", "0")) > 0 and agreed is not False
    if silent:
        sys.exit(code)
    Console(stderr=True, soft_wrap=True).print(f"[bold red]fmcnet:[/] {_escape(message)}", highlight=False)
    sys.exit(code)


@contextlib.contextmanager
def _goes_on() -> Iterator[None]:
    """Say, on Ctrl-C, that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it was") from None


def _resuming() -> str:
    """The command of this process, with --resume, as a person types it."""
    arguments = sys.argv[1:]
    if "--resume" not in arguments:
        arguments.insert(arguments.index("--") if "--" in arguments else len(arguments), "--resume")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != int(os.environ.get("LOCAL_WORLD_SIZE", str(world))):
        return f"the same torchrun command on every machine: {shlex.join(['... -m fmcnet', *arguments])}"
    start = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", str(world)), "-m"]
    return shlex.join([*(start if world > 1 else []), "fmcnet", *arguments])


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads of PyTorch; 0: PyTorch's choice.", min=0)] = 0,
) -> None:
    if version:
        typer.echo(f"fmcnet {__version__}")
        raise typer.Exit
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)],
        force=True,
    )
    logging.getLogger("fmcnet").setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in ("matplotlib", "PIL", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:
            import torch

            torch.set_num_threads(threads)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=1, default=str))


def _print_table(title: str, rows: dict[str, Any]) -> None:
    table = RichTable(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, _escape(str(value)))
    Console().print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, runs and report.")] = Path("demo"),
    preset: Annotated[str, typer.Option(help="Generated benchmark: tiny (seconds) or small.")] = "small",
    seed: Annotated[int, typer.Option(help="Of data and training.", min=0)] = 0,
    json_: Json = False,
) -> None:
    """Generate a benchmark, train Base and FMCNet on it, evaluate both on unseen identities, write a report.

    No data and no GPU needed. Called again it goes on where it was.
    """
    from fmcnet.studies.demo import run_demo

    with _goes_on():
        result = run_demo(out, preset=preset, seed=seed, quiet=json_)
    if json_:
        _print_json(result)


@data_app.command("generate")
def data_generate(
    out: Annotated[Path, typer.Option(help="Folder to write; continued if it was interrupted.")],
    layout: Annotated[str, typer.Option(help="sysu, regdb or llcm.")] = "sysu",
    preset: Annotated[
        str, typer.Option(help="tiny (seconds), small (the demo), full (the real sizes).")
    ] = "small",
    seed: Annotated[int, typer.Option(help="Same seed, same pixels.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Processes; 0: one a core.", min=0)] = 0,
    json_: Json = False,
) -> None:
    """Write the generated two-modality benchmark in the layout of SYSU-MM01, RegDB or LLCM."""
    from fmcnet.data.generated import generate

    with _goes_on():
        summary = generate(layout, preset, seed, out, workers=workers or None, progress=not json_)
    if json_:
        _print_json(summary.as_dict())
        return
    shown = summary.as_dict()
    shown["seconds"] = f"{summary.seconds:.1f}"
    shown["images_per_second"] = f"{summary.images_per_second:.0f}"
    _print_table("generated", shown)


@data_app.command("check")
def data_check(
    root: Annotated[Path, typer.Argument(help="The dataset's folder or CSV.")],
    layout: Layout = "auto",
    images: Annotated[bool, typer.Option(help="Decode every image, too.")] = True,
    json_: Json = False,
) -> None:
    """Tell what a dataset has, what it lacks and where to get it; exit code 1 if something is wrong."""
    from fmcnet.data.check import check

    report = check(root, layout, images=images, progress=False if json_ else None)
    if json_:
        _print_json(report.to_dict())
    else:
        for line in report.lines():
            typer.echo(line)
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("summary")
def data_summary(
    root: Annotated[Path, typer.Argument(help="The dataset's folder or CSV.")],
    layout: Layout = "auto",
    split: Annotated[int, typer.Option(help="RegDB: which of the ten splits.", min=1, max=10)] = 1,
    json_: Json = False,
) -> None:
    """Identities, images and cameras by split and modality."""
    from fmcnet.data.benchmarks import read_dataset
    from fmcnet.data.summary import summary

    found = summary(read_dataset(root, layout=layout, trial=split))
    if json_:
        _print_json(found.to_dict())
    else:
        for line in found.lines():
            typer.echo(line)


@data_app.command("cache")
def data_cache(
    folder: Annotated[
        Path | None, typer.Option(help="Default: $FMCNET_CACHE, else ~/.cache/fmcnet.", show_default=False)
    ] = None,
    prune: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Remove what was not used for so long, as 30d or 12h; 0d: all."),
    ] = None,
    json_: Json = False,
) -> None:
    """List the decoded images kept on disk, and remove those no longer used; they can always be built again."""
    from fmcnet.data.cache import default_folder
    from fmcnet.data.cache_folder import look, parse_age
    from fmcnet.data.cache_folder import prune as remove

    place = folder or default_folder()
    found = look(place) if prune is None else remove(place, parse_age(prune))
    if json_:
        _print_json(found.to_dict())
    else:
        for line in found.lines():
            typer.echo(line)


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings, as model.variant=base."),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            help="A YAML file, or a shipped one by name: sysu, regdb, llcm, paper, generated, tiny."
        ),
    ] = "generated",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    splits: Annotated[
        str, typer.Option(help="RegDB: the splits to train, as 1-10 or 1,3; a run each in OUT/split-NN.")
    ] = "",
    track: Annotated[
        list[str] | None, typer.Option(help="tensorboard or wandb, beside the log; may be given twice.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Watch a few steps; write OUT/profile: a trace and a table.")
    ] = False,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Train FMCNet or a variant of it.

    fmcnet train --config sysu --data /data/SYSU-MM01 --out runs/sysu training.seed=1

    Ctrl-C writes a checkpoint; the same command with --resume goes on exactly there. On several GPUs:
    torchrun --nproc-per-node 4 -m fmcnet train ... (docs/training.md: from laptop to eight GPUs).
    """
    from fmcnet.config import load_config
    from fmcnet.training.splits import parse_splits, train_splits

    settings = load_config(config, overrides or [])
    chosen = parse_splits(splits) if splits else (settings.data.split,)
    try:
        results = train_splits(
            settings,
            data,
            out,
            chosen,
            one=not splits,
            resume=resume,
            device=device,
            progress=False if json_ else None,
            trackers=track or (),
            profile=profile,
        )
    except Interrupted as stop:
        raise Interrupted(f"{stop}. Go on with\n  {_resuming()}", stop.code) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with\n  {_resuming()}") from None
    if int(os.environ.get("RANK", "0")):
        return
    if json_:
        _print_json([r.to_dict() for r in results] if splits else results[0].to_dict())
        return
    for result in results:
        terms = ", ".join(f"{k} {v:.3f}" for k, v in result.last_terms.items() if k != "rate")
        _print_table(
            "trained",
            {
                "variant": result.variant,
                "identities": result.identities,
                "images": result.images,
                "parameters": f"{result.parameters:,}",
                "steps": f"{result.steps} (from {result.resumed_from})",
                "seconds": f"{result.seconds:.0f} ({result.images_per_second:.0f} images/s)",
                "last terms": terms,
                "weights": f"{result.selected}: {result.run / 'model.safetensors'}",
                "log": result.run / "log.jsonl",
            },
        )


@app.command()
def evaluate(
    run: Run,
    data: Data,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Of the evaluation: mode=indoor shots=10."),
    ] = None,
    both: Annotated[bool, typer.Option("--both", help="Both search directions.")] = False,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with the mirrored image; named in the report.")
    ] = False,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="k-reciprocal re-ranking, shown beside the plain figure.")
    ] = False,
    expand: Annotated[
        bool, typer.Option("--expand", help="Average query expansion, shown beside the plain figure.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write the report; default RUN/report.")] = None,
    report: Annotated[bool, typer.Option(help="Write the report folder.")] = True,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Evaluate a run on a dataset's test identities, by its benchmark's protocol.

    A folder with several RegDB splits (fmcnet train --splits) gives the mean over its splits.
    """
    from fmcnet.studies.evaluate import evaluate_run

    settings = list(overrides or []) + (["direction=both"] if both else [])
    result = evaluate_run(
        run,
        data,
        settings,
        flip=flip,
        rerank=rerank,
        expand=expand,
        out=(out or run / "report") if report else None,
        device=device,
        progress=False if json_ else None,
    )
    if int(os.environ.get("RANK", "0")):
        return
    if json_:
        _print_json(result.to_dict())
        return
    for one in result.evaluations:
        typer.echo(one.result.summary())
        typer.echo(
            f"  chance Rank-1 {100 * one.chance:.2f}: {one.result.mean['rank1'] / max(one.chance, 1e-12):.1f} x"
        )
    if result.stamp:
        typer.echo(result.stamp)
    if result.report:
        typer.echo(f"report: {result.report}")


@app.command()
def embed(
    run: Model,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    modality: Annotated[
        str,
        typer.Option(help="visible (vis, rgb) or infrared (ir, nir, thermal): what all these images are."),
    ],
    out: Annotated[Path, typer.Option(help="The .npz to write: features (N, E), name (N,).")],
    batch: Annotated[int, typer.Option(help="Images at once.", min=1)] = 64,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave broken images out (listed) instead of stopping.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Do not bring embeddings to unit length.")] = False,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Turn images into embeddings; a dot product of two is their cosine similarity.

    The .npz holds features (N, E) float32, name (N,) and modality (N,). To score embeddings by a protocol, use
    fmcnet evaluate, which knows pid and camera.
    """
    from fmcnet.inference.command import embed_files

    count, dim = embed_files(
        run, images, modality, out, batch=batch, normalize=not raw, skip=skip_unreadable, device=device
    )
    if json_:
        _print_json({"out": str(out), "images": count, "dim": dim, "modality": modality})
    else:
        typer.echo(f"{count} embeddings of length {dim}: {out}")


@app.command()
def score(
    file: Annotated[
        Path, typer.Argument(help="An .npz with features, pid, cam, index; see docs/which-number.md.")
    ],
    protocol: Annotated[str, typer.Option(help="sysu, regdb or llcm.")] = "sysu",
    mode: Annotated[str, typer.Option(help="SYSU-MM01: all or indoor.")] = "all",
    shots: Annotated[int, typer.Option(help="SYSU-MM01: 1 or 10.")] = 1,
    draw: Annotated[str, typer.Option(help="SYSU-MM01: official or seeded.")] = "official",
    permutation: Annotated[
        Path | None, typer.Option(help="rand_perm_cam.mat, for the official draw.")
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="i2v, v2i (RegDB: t2v, v2t); default: the benchmark's.")
    ] = None,
    reading: Annotated[str, typer.Option(help="LLCM: a, b or c.")] = "a",
    cmc: Annotated[str, typer.Option(help="RegDB: image or identity.")] = "image",
    distance: Annotated[str, typer.Option(help="cosine or euclidean.")] = "cosine",
    json_: Json = False,
) -> None:
    """Score embeddings made by any code with a named protocol.

    FILE holds features (N, D), pid (N,), cam (N,), index (N,): the 1-based position among the sorted images of that
    identity and camera; and modality (N,), 0 visible, 1 infrared, where the camera does not tell (LLCM, CSV). Or
    query_features, query_pid, query_cam and the same with gallery_, as drawn by somebody else.
    """
    from fmcnet.evaluation.score import score_file

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
    )
    if json_:
        _print_json(result.to_dict())
    else:
        typer.echo(result.summary())


app.command()(study)
app.command()(calibrate)
app.command()(project)
app.command()(export)
app.command()(index)
app.command()(search)
app.command()(serve)
app.command()(keys)


@report_app.command("compare")
def report_compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders that fmcnet evaluate has reported on.")],
    out: Annotated[Path, typer.Option(help="Folder for comparison.md, .tex and .csv.")] = Path("comparison"),
    json_: Json = False,
) -> None:
    """Set runs beside published results, flagging unequal protocols."""
    from fmcnet.studies.compare import compare

    result = compare(runs, out)
    if json_:
        _print_json(result.to_dict())
        return
    typer.echo(result.markdown)
    for path in result.paths:
        typer.echo(f"wrote {path}")


@app.command()
def info(run: Model, json_: Json = False) -> None:
    """Say what a run is: model, data, settings, versions."""
    from fmcnet.inference.command import describe_run

    facts = describe_run(run)
    if json_:
        _print_json(facts)
        return
    config = facts.pop("config")
    sections = {"versions": facts.pop("versions"), **config}
    listed = {name: ", ".join(f"{k} {v}" for k, v in section.items()) for name, section in sections.items()}
    _print_table(str(run), {**facts, **listed})


if __name__ == "__main__":
    main()
