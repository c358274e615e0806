"""Find settings for FMCNet and for each baseline with equal effort, judged on validation identities only.

    python benchmarks/search_recipe.py --out search --generations 4 --size 6 --steps 600 --jobs 2

Every method has the same number of trials, steps, images and seeds. The first generation is the configuration as it
is and random changes of it; each later one changes a few settings of the method's best so far. At the end the best
few of each method run again with more seeds, and the best mean is printed as overrides for
`src/fmcnet/studies/recipes.py` (FMCNet's: for `configs/generated.yaml`).

The world is generated for the search alone (another seed than any study's) with many validation identities and next
to no test identities, so nothing of a study's test set is seen. Measure: mAP, mean over both directions. Every trial
is a line of OUT/log.jsonl. Called again, it goes on; finished trials are never repeated. With `--jobs 1` and 2 the
trials are the same: a generation is proposed from the generations before it, and from nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
from recipe_space import METHODS, Choice, Method

from fmcnet.data.benchmarks import read_dataset
from fmcnet.data.generated import generate
from fmcnet.errors import ConfigError
from fmcnet.files import write_atomically
from fmcnet.studies.execute import execute
from fmcnet.studies.jobs import Job, commit
from fmcnet.studies.plan import Settings, data_digest
from fmcnet.studies.rows import Row

WORLD = 1000
AMOUNTS = {"small": {"val_ids": 150, "test_ids": 2}, "tiny": {"val_ids": 8, "test_ids": 2}}


Picked = dict[str, Choice]
"""A trial: the choice by setting; what is not named stays as the configuration has it."""


def overrides(picked: Picked) -> tuple[str, ...]:
    """The choices as overrides, in the order of the names."""
    flat: list[str] = []
    for name in sorted(picked):
        choice = picked[name]
        flat += [choice] if isinstance(choice, str) else list(choice)
    return tuple(flat)


def propose(
    method: Method, best: Picked | None, count: int, changes: int, rng: np.random.Generator
) -> list[Picked]:
    """`count` new trials: changes of the best so far; without one, the configuration as it is and changes of it."""
    start: Picked = best or {}
    made: list[Picked] = [] if best is not None else [{}]
    names = sorted(method.space)
    while len(made) < count:
        trial = dict(start)
        for name in rng.choice(names, size=min(len(names), 1 + int(rng.integers(changes))), replace=False):
            trial[name] = method.space[name][int(rng.integers(len(method.space[name])))]
        if trial not in made and trial != start:
            made.append(trial)
    return made


def make_job(
    name: str, picked: Picked, seed: int, settings: Settings, data: Path, mark: str, out: Path, device: str
) -> Job:
    """The trial as a job on validation identities that keeps its result only."""
    row = Row(name, name, (*METHODS[name].fixed, *overrides(picked)))
    config = settings.config(row, seed)
    digest = hashlib.sha256(f"{config.model_dump_json()}|{mark}".encode()).hexdigest()[:16]
    label = f"{name}-seed{seed}-{digest[:8]}"
    path, text = out / "plans" / f"{label}.yaml", config.to_yaml()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
    run = str(out / "runs" / label)
    return Job(label, digest, str(path), str(data), run, split="val", device=device, keep=False)


def measure(job: Job) -> float:
    """mAP in percent, mean over both directions; -1 where training failed."""
    result = job.result()
    return 100 * float(np.mean([e["mean"]["mAP"] for e in result["evaluations"]])) if result else -1.0


class Search:
    """Generations of trials, all methods side by side."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.a, self.out = arguments, arguments.out
        self.names = arguments.methods.split(",")
        unknown = [name for name in self.names if name not in METHODS]
        if unknown:
            raise SystemExit(f"unknown method {', '.join(unknown)}: choose from {', '.join(METHODS)}")
        self.methods = METHODS
        if arguments.preset == "tiny" and not arguments.amount:  # too few identities for batches of 32
            cut = {name: {k: v for k, v in m.space.items() if k != "batch"} for name, m in METHODS.items()}
            self.methods = {name: Method(METHODS[name].fixed, space) for name, space in cut.items()}
        self.data = self.out / "data"
        given = {key: int(value) for key, _, value in (item.partition("=") for item in arguments.amount)}
        amounts = AMOUNTS[arguments.preset] | given
        generate("sysu", arguments.preset, WORLD, self.data, progress=True, **amounts)
        self.mark = data_digest(read_dataset(self.data))
        fixed = ("evaluation.draw=seeded", "training.validate_every=0", *arguments.override)
        self.settings = Settings(arguments.config, fixed, arguments.steps)
        self.tried: dict[str, list[tuple[Picked, float]]] = {name: [] for name in self.names}

    def job(self, name: str, picked: Picked, seed: int) -> Job:
        return make_job(name, picked, seed, self.settings, self.data, self.mark, self.out, self.a.device)

    def run(self) -> None:
        for generation in range(self.a.generations):
            wanted = []
            for name in self.names:
                rng = np.random.default_rng([self.a.seed, sorted(METHODS).index(name), generation])
                best = max(self.tried[name], key=lambda t: t[1])[0] if generation else None
                for picked in self._new(name, best, rng):
                    wanted.append((name, picked, 0))
            for (name, picked, _), score in zip(
                wanted, self._do(wanted, f"generation {generation}"), strict=True
            ):
                self.tried[name].append((picked, score))
        finals = [
            (name, picked, seed)
            for name in self.names
            for picked, _ in sorted(self.tried[name], key=lambda t: -t[1])[: self.a.finalists]
            for seed in range(1 + self.a.more_seeds)
        ]
        scores = dict(
            zip([(n, overrides(p), s) for n, p, s in finals], self._do(finals, "final"), strict=True)
        )
        self._report(scores)

    def _new(self, name: str, best: Picked | None, rng: np.random.Generator) -> list[Picked]:
        """A generation of trials that fit together, none equal to another in what it comes to."""
        made: list[Picked] = []
        seen = {self._config(name, picked) for picked, _ in self.tried[name]}
        start = best
        while len(made) < self.a.size:
            for picked in propose(self.methods[name], start, self.a.size, self.a.changes, rng):
                config = self._config(name, picked)
                if config and config not in seen and len(made) < self.a.size:
                    made.append(picked)
                    seen.add(config)
            start = start or {}
        return made

    def _config(self, name: str, picked: Picked) -> str:
        """The whole configuration of a trial as text, "" where its settings exclude each other."""
        try:
            row = Row(name, name, (*self.methods[name].fixed, *overrides(picked)))
            return self.settings.config(row).model_dump_json()
        except ConfigError:
            return ""

    def _do(self, wanted: list[tuple[str, Picked, int]], what: str) -> list[float]:
        jobs = [self.job(*one) for one in wanted]
        unique = list({job.name: job for job in jobs}.values())
        by_name = {job.name: one for job, one in zip(jobs, wanted, strict=True)}

        def told(job: Job, done: int, of: int) -> None:
            name, picked, _ = by_name[job.name]
            logging.info(
                "%s %d/%d %s mAP %.2f  %s", what, done, of, name, measure(job), " ".join(overrides(picked))
            )
            self._log(job, what, by_name[job.name])

        try:
            execute(unique, self.a.jobs, self.out / "logs", device=self.a.device, progress=False, told=told)
        except Exception as error:  # diverged trials count as -1; anything else is a bug
            if "runs failed" not in str(error):
                raise
            logging.warning("%s", error)
        for job in unique:
            self._log(job, what, by_name[job.name])
        return [measure(job) for job in jobs]

    def _log(self, job: Job, what: str, one: tuple[str, Picked, int]) -> None:
        path = self.out / "log.jsonl"
        held = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if any(json.loads(line)["run"] == job.name for line in held if line.endswith("}")):
            return
        name, picked, seed = one
        result = job.result() or {}
        figures = {
            e["direction"]: {k: round(100 * e["mean"][k], 3) for k in ("rank1", "mAP")}
            for e in result.get("evaluations", [])
        }
        record = {
            "method": name,
            "stage": what,
            "settings": list(overrides(picked)),
            "seed": seed,
            "run": job.name,
            "mAP": round(measure(job), 3),
            "figures": figures,
            "seconds": result.get("seconds_of_last_call"),
            "commit": commit(),
            **{key: result.get(key) for key in ("steps", "images_seen", "finished")},
        }
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def _report(self, scores: dict[tuple[str, tuple[str, ...], int], float]) -> None:
        a = self.a
        lines = [
            f"# Recipe search: {a.generations} generations of {a.size} trials a method, {a.steps} steps each, then",
            f"# {a.finalists} finalists with {1 + a.more_seeds} seeds; mAP on validation identities, both directions",
            "",
        ]
        for name in self.names:
            means: dict[tuple[str, ...], list[float]] = {}
            for (method, picked, _), score in scores.items():
                if method == name:
                    means.setdefault(picked, []).append(score)
            ranked = sorted(means.items(), key=lambda item: -float(np.mean(item[1])))
            as_is = next(score for picked, score in self.tried[name] if not picked)
            lines.append(f"{name}: as it is {as_is:.2f} (one seed)")
            for picked, each in ranked:
                spread = " ".join(f"{score:.2f}" for score in each)
                lines.append(f"  {np.mean(each):.2f} ({spread})  {' '.join(picked) or 'as it is'}")
        text = "\n".join(lines) + "\n"
        write_atomically(self.out / "best.txt", lambda path: path.write_text(text, encoding="utf-8"))
        print(text)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--methods", default=",".join(METHODS), help="some of them, by comma")
    p.add_argument("--preset", choices=sorted(AMOUNTS), default="small")
    p.add_argument(
        "--amount", action="append", default=[], help="of the world, as train_ids=300 or height=64"
    )
    p.add_argument("--config", default="generated", help="what every trial starts from")
    p.add_argument("--generations", type=int, default=4)
    p.add_argument("--size", type=int, default=6, help="trials of a generation, of each method")
    p.add_argument("--changes", type=int, default=3, help="settings changed at once, at most")
    p.add_argument("--steps", type=int, default=600)
    p.add_argument("--finalists", type=int, default=3)
    p.add_argument("--more-seeds", type=int, default=2)
    p.add_argument("--seed", type=int, default=0, help="of the proposals")
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--device", default="auto")
    p.add_argument("--override", action="append", default=[], help="a setting of all trials, key.sub=value")
    return p


def main() -> None:
    arguments = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("fmcnet.model").setLevel(logging.ERROR)
    Search(arguments).run()


if __name__ == "__main__":
    main()
