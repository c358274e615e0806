"""The run folder of a training: whether it may be used, its lock, and the settings stored in it."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout

from fmcnet.config import Config, load_config
from fmcnet.errors import CheckpointError, ConfigError, DataError
from fmcnet.files import left_in, lock_file, remove_left, write_text
from fmcnet.models.card import CARD, read_card
from fmcnet.parsing import read_yaml

logger = logging.getLogger(__name__)

CONFIG, LOG = "config.yaml", "log.jsonl"
"""Files of a run folder from the start on."""
MAY_CHANGE = (
    "training.log_every",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.keep",
    "data.cache",
)
"""Settings that may differ on resume: they change when files are written, not what is computed."""


def check_folder(run: Path, config: Config, resume: bool) -> None:
    """Check that a training may write to the folder, which may hold a run only to `resume` it.

    Raises:
        CheckpointError: when it holds a run and `resume` is not set, or a run with other settings.
        DataError: when it holds other files.
    """
    config_file = run / CONFIG
    if config_file.is_file():
        if not resume:
            others = set(run.iterdir()) - {config_file, run / ".lock", run / LOG, *left_in(run)}
            if others and run / "checkpoints" not in others and not _is_config(config_file):
                raise DataError(f"{run} exists and is not an fmcnet run: give a new or empty folder as --out")
            hint = "" if others else ". It has no checkpoint yet: its folder can be deleted"
            raise CheckpointError(
                f"{run} already holds a run: go on with --resume (in Python: resume=True), or give another "
                f"--out{hint}"
            )
        stored_values, stored_config = _read_stored_config(config_file)
        changed = changed_settings(stored_config, config)
        if missing := [key for key in changed if key not in stored_values]:
            raise _damaged_error(config_file, f"does not hold {', '.join(missing[:5])}")
        if changed:
            differences = "; ".join(f"{key}: {change}" for key, change in changed.items())
            raise CheckpointError(
                f"{run} was started with other settings ({differences:.400}): leave them as there, or give another "
                "--out"
            )
    elif resume and (run / "checkpoints").exists():
        raise _damaged_error(config_file, "is a folder" if config_file.is_dir() else "is missing")
    elif run.exists() and (not run.is_dir() or set(run.iterdir()) - {run / ".lock", *left_in(run)}):
        raise DataError(f"{run} exists and is not an fmcnet run: give a new or empty folder as --out")


def changed_settings(before: Config, now: Config) -> dict[str, str]:
    """The settings that a resume may not change (not `MAY_CHANGE`) and that differ: "OLD there, NEW now" by name."""
    old, new = (_flatten(config.model_dump(mode="json")) for config in (before, now))
    return {
        key: f"{old[key]} there, {new[key]} now"
        for key in old
        if old[key] != new[key] and key not in MAY_CHANGE
    }


def _read_stored_config(config_file: Path) -> tuple[dict[str, Any], Config]:
    """The settings that a run's config.yaml holds, by "section.key", and the whole configuration with defaults."""
    try:
        tree = read_yaml(config_file)
        if not isinstance(tree, dict) or not tree:
            raise _damaged_error(config_file, "holds no sections" if tree else "is empty")
        config = load_config(tree)
    except OSError as error:
        raise _damaged_error(config_file, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise _damaged_error(config_file, f"is damaged ({reason[:200]})") from error
    return _flatten({name: values for name, values in tree.items() if isinstance(values, dict)}), config


def _is_config(config_file: Path) -> bool:
    """Whether a file holds the settings of a run."""
    try:
        _read_stored_config(config_file)
    except CheckpointError:
        return False
    return True


def _damaged_error(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {problem}: write it again with the settings of this training (fmcnet config NAME key=value > FILE; "
        "each checkpoint's model.json has them), or give another --out"
    )


def resumed_config(run: Path, source: str | None, overrides: Sequence[str]) -> Config | None:
    """The settings that a run was started with, and `overrides`; None where there is no run yet.

    Settings of a configuration `source`, named beside the run, that differ are ignored with a warning: they may have
    been overridden when the run started.
    """
    config_file = run / CONFIG
    if not config_file.is_file():
        return None
    if source is not None:
        run_config, source_config = load_config(config_file).model_dump(), load_config(source)
        overridden = {item.partition("=")[0].strip() for item in overrides}
        differing = [
            f"{section}.{key} {run_config[section][key]} (not {getattr(part, key)})"
            for section, part in source_config
            for key in sorted(part.model_fields_set)
            if run_config[section][key] != getattr(part, key) and f"{section}.{key}" not in overridden
        ]
        if differing:
            logger.warning(
                "the run goes on with its own settings, not those of %s: %s", source, "; ".join(differing)
            )
    return load_config(config_file, list(overrides))


@contextmanager
def open_folder(run: Path, config: Config) -> Iterator[None]:
    """Make and lock the run folder, write the settings, and remove half-written files of a killed training.

    Raises:
        CheckpointError: when another process (a job that was queued again, say) holds the lock.
        DataError: when the folder cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock_file(run / ".lock"))
            except Timeout:
                raise CheckpointError(
                    f"another process is training in {run}: wait for it, or give another --out"
                ) from None
            except (OSError, NotImplementedError):  # no locks, or read-only: then the first write fails
                pass
            remove_left(run)
            for path in (run / "checkpoints").glob(".step-*.tmp"):
                shutil.rmtree(path, ignore_errors=True)
            for path in (run / "checkpoints").glob("best-*"):
                remove_left(path)
            write_text(run / CONFIG, config.to_yaml())
        except OSError as error:
            raise unwritable(run, error) from error
        yield


def unwritable(run: Path, error: OSError) -> DataError:
    """The error for a run folder that cannot be written."""
    return DataError(f"the run folder {run} cannot be written: {error.strerror or error}")


def split_folder(out: Path, split: int) -> Path:
    """Return the run folder of one split, below the folder of all."""
    return out / f"split-{split:02d}"


def parse_splits(text: str) -> tuple[int, ...]:
    """Parse "1-10" or "1,3,5-7"; raises `ConfigError` for anything else, or numbers outside 1..10."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            ends = int(first), int(last if dash else first)
            numbers += range(min(ends), max(ends) + 1)
        except ValueError:
            raise ConfigError(f"--splits {text}: write numbers and ranges, as 1-10 or 1,3,5-7") from None
    if not numbers or min(numbers) < 1 or max(numbers) > 10:
        raise ConfigError(f"--splits {text}: RegDB's splits are 1 to 10")
    return tuple(dict.fromkeys(numbers))


def split_runs(folder: Path) -> list[Path]:
    """List the finished runs of a folder that `train_splits` wrote, by split."""
    return [path for path in sorted(folder.glob("split-*")) if (path / CARD).is_file()]


def check_splits(runs: Sequence[Path]) -> None:
    """Check that the runs of a folder are one model of each split, all trained with the same settings.

    Raises:
        CheckpointError: naming folders of another split than their number's, or runs whose settings differ from the
            first run's in more than split, seed, evaluation and what changes no result.
    """
    configs = {run: read_card(run).config for run in runs}
    splits = [config.data.split for config in configs.values()]
    numbers = [run.name.removeprefix("split-") for run in runs]
    wrong = [
        f"{run.name} is of split {split}"
        for run, number, split in zip(runs, numbers, splits, strict=True)
        if splits.count(split) > 1 or (number.isdecimal() and int(number) != split)
    ]
    if wrong:
        raise CheckpointError(
            f"{runs[0].parent}: {', '.join(wrong)}. A mean takes each split once, from the folder split-NN of its "
            "number: train the split anew (fmcnet train --splits), or move the folder away"
        )
    first, *others = (_flatten(config.model_dump(mode="json")) for config in configs.values())
    ignored = {"data.split", "training.seed", *MAY_CHANGE}
    ignored |= {f"training.{name}" for name in ("compile", "channels_last", "recompute")}
    differing = [
        f"{run.name}: {key} {other[key]} (not {first[key]})"
        for run, other in zip(runs[1:], others, strict=True)
        for key in first
        if other[key] != first[key] and key not in ignored and not key.startswith("evaluation.")
    ]
    if differing:
        raise CheckpointError(
            f"{runs[0].parent}: settings differ from those of {runs[0].name} ({'; '.join(differing)}). A mean is of "
            "one model: train all splits with the same settings, or evaluate the runs one by one"
        )


def unfinished_splits(folder: Path) -> list[Path]:
    """List the runs of such a folder that were started and are not finished, by split."""
    return [path for path in sorted(folder.glob("split-*")) if path.is_dir() and not (path / CARD).is_file()]


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}
