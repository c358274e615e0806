"""`fmcnet train` and `fmcnet config`."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from fmcnet.cli import console
from fmcnet.errors import FmcnetError, Interrupted

Overrides = Annotated[
    list[str] | None, Argument(metavar="[KEY.SUB=VALUE]...", help="Settings: model.variant=base.")
]


def complete_config(incomplete: str) -> list[str]:
    """Names of shipped configurations for the shell's completion."""
    from fmcnet.config import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


def train(
    data: console.Data,
    out: Annotated[Path, Option(help="The run folder to write.")],
    overrides: Overrides = None,
    config: Annotated[
        str | None,
        Option(
            help="A YAML file or sysu, regdb, llcm, paper, generated (default), pairs, tiny.",
            autocompletion=complete_config,
        ),
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Continue from the newest checkpoint, with the run's own settings.")
    ] = False,
    splits: Annotated[
        str | None, Option(help="RegDB: the splits to train, as 1-10 or 1,3; a run each in OUT/split-NN.")
    ] = None,
    track: Annotated[list[str] | None, Option(help="tensorboard or wandb; repeatable.")] = None,
    profile: Annotated[
        bool, Option("--profile", help="Profile a few steps: a trace and a table in OUT/profile.")
    ] = False,
    device: console.Device = "auto",
    json_: console.Json = False,
) -> None:
    """Train FMCNet or a variant of it.

    fmcnet train --config sysu --data /data/SYSU-MM01 --out runs/sysu training.seed=1

    Ctrl-C writes a checkpoint; --resume with the same --data and --out goes on exactly there. On several GPUs:
    torchrun --nproc-per-node 4 -m fmcnet train ... (fmcnet docs train: from laptop to eight GPUs).
    """
    from fmcnet.config import load_config
    from fmcnet.data.readers import warn_of_other_benchmark
    from fmcnet.training import trainer
    from fmcnet.training.run_folder import parse_splits, resumed_config, split_folder

    console.check_first(config or "", "fmcnet train --config tiny --data DATA --out RUN")
    split_numbers = () if splits is None else parse_splits(splits)
    if split_numbers and any(item.startswith("data.split=") for item in overrides or ()):
        raise FmcnetError("--splits names the splits, so data.split would do nothing: leave it out")
    folders = [split_folder(out, split) for split in split_numbers] or [out]
    run_configs = (resumed_config(folder, config, overrides or []) for folder in folders if resume)
    resumed = next((run_config for run_config in run_configs if run_config is not None), None)
    source = "generated" if config is None else config
    settings = resumed or load_config(source, overrides or [])
    if resume and resumed is None:
        level = logging.INFO if config else logging.WARNING  # a mistyped --out, perhaps
        message = "there is no run in %s: starting one with the configuration %s"
        logging.getLogger(__name__).log(level, message, out, source)
    warn_of_other_benchmark(config, data)
    options: dict[str, Any] = {
        "resume": resume,
        "device": device,
        "progress": False if json_ else None,
        "trackers": track or (),
        "profile": profile,
    }
    try:
        if split_numbers:
            results = trainer.train_splits(settings, data, out, split_numbers, **options)
        else:
            results = [trainer.train(settings, data, out, **options)]
    except Interrupted as interrupt:
        raise Interrupted(f"{interrupt}. Go on with\n  {_resume_command()}", interrupt.code) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with\n  {_resume_command()}") from None
    if int(os.environ.get("RANK", "0")):
        return
    if json_:
        console.print_json(
            [result.to_dict() for result in results] if split_numbers else results[0].to_dict()
        )
        return
    verbose = logging.getLogger("fmcnet").isEnabledFor(logging.DEBUG)
    for result in results:
        terms = {name: value for name, value in result.last_terms.items() if name != "rate"}
        if verbose:
            last = {"last terms": ", ".join(f"{name} {value:.3f}" for name, value in terms.items())}
        else:
            last = {"last loss": f"{terms['loss']:.3f}" if "loss" in terms else ""}
        facts = {
            "variant": result.variant,
            "identities": result.identities,
            "images": result.images,
            "parameters": f"{result.parameters:,}",
            "steps": f"{result.steps} (from {result.resumed_from})",
            "seconds": f"{result.seconds:.0f} ({result.images_per_second:.0f} images/s)",
            **last,
            "selected": result.selected,
        }
        paths = {"weights": result.run / "model.safetensors", "log": result.run / "log.jsonl"}
        console.show("trained", facts, paths)


def config(
    name: Annotated[
        str | None,
        Argument(
            help="A YAML file or a shipped name; without it those are listed.", autocompletion=complete_config
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print a whole configuration as YAML, every setting with its explanation.

    fmcnet config sysu training.seed=1

    A shipped file holds only what differs from the defaults; this prints all. What it prints is a file for --config.
    """
    from fmcnet.config import load_config, purpose, shipped

    if name is None:
        for shipped_name in shipped():
            console.echo(f"{shipped_name}: {purpose(shipped_name)}")
        return
    console.check_first(name, "fmcnet config tiny")
    console.echo(load_config(name, overrides or []).to_yaml(comments=True), nl=False)


def _resume_command() -> str:
    """The command of this process, with --resume, as a person types it."""
    arguments = sys.argv[1:]
    if "--resume" not in arguments:
        arguments.insert(arguments.index("--") if "--" in arguments else len(arguments), "--resume")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size))):
        return f"the same torchrun command on every machine: {shlex.join(['... -m fmcnet', *arguments])}"
    launcher = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", str(world_size)), "-m"]
    return shlex.join([*(launcher if world_size > 1 else []), "fmcnet", *arguments])
