"""Chooses the fixed exponents of `PowerRelaxation` on training runs of one's own.

python -m experiments.exponent_choice RUNS [RUNS ...] [--published=DIR] [--out=FILE]

RUNS are working directories of `experiments.text_law`: five schedules each. For every pair of
exponents the law is fitted to each three of the five and scored on the other two, on steps that
they do not share; the table is sorted by the geometric mean over directories, splits, PredE and
WorstE. No published curve takes part. --published is a folder with the curves of arXiv:2503.12811,
by model size: the winner and the converged Multi-Power law are fitted to the three training curves
there and scored on the six others.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

import scaling_laws
from experiments import _runs, law_choice
from experiments._files import write_text
from experiments.studies import text_schedules
from experiments.text_law import curve_of
from scaling_laws import curves, laws

EXPONENTS = (0.125, 0.25, 0.5)
RATE_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
FITTED = 3  # schedules of a split
PEERS = {"Multi-Power": law_choice.MULTI_POWER, "Tissue, lambda fitted": law_choice.ANNEALING}


def rules() -> dict[str, law_choice.Member]:
    """All that is scored, by name: the grid and the published laws.

    The grid is one law with fixed parameters, so that it is compiled once.
    """
    grid = {
        f"exponents {exponent:g}, {rate_exponent:g}": law_choice.Member(
            laws.MultiPower(warmup="area"), (("beta", exponent), ("gamma", rate_exponent))
        )
        for exponent in EXPONENTS
        for rate_exponent in RATE_EXPONENTS
    }
    return grid | PEERS


def load(folder: Path) -> list[curves.Curve]:
    """The curves of one working directory, the first steps after the warm-up left out.

    Raises:
      ValueError: a schedule was not run, or not to its end.
    """
    made = []
    for schedule in text_schedules.SCHEDULES:
        if not (folder / schedule / "config.json").exists():
            raise ValueError(
                f"{folder} has no run {schedule!r}; make it with "
                f"python -m experiments.text_law --workdir={folder}."
            )
        run = _runs.load(folder / schedule)
        config: Any = ml_collections.ConfigDict(run.config)
        if run.step < config.num_steps:
            raise ValueError(
                f"{folder / schedule} ends at step {run.step} of {config.num_steps}; resume it "
                f"with python -m experiments.text_law --workdir={folder}."
            )
        rates = text_schedules.rates_of(config)
        made.append(curve_of(folder / schedule, rates, 2 * config.warmup_steps))
    return made


def splits(runs) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Name -> (points that are fitted, points that are scored), as `law_choice.folds`."""
    made = {}
    for chosen in itertools.combinations(range(len(runs)), FITTED):
        fitted = [np.full(len(run.steps), i in chosen) for i, run in enumerate(runs)]
        known = [runs[i] for i in chosen]
        scored = [
            (run.steps > scaling_laws.last_shared_step(run, known)) & (i not in chosen)
            for i, run in enumerate(runs)
        ]
        made[", ".join(run.name for run in known)] = (fitted, scored)
    return made


def table(folders: list[Path]) -> list[dict[str, Any]]:
    """A row per rule, the best score first."""
    sets = {str(folder): load(folder) for folder in folders}
    rows = []
    for name, rule in rules().items():
        print(name, file=sys.stderr, flush=True)
        candidate = law_choice.Candidate(name, (rule,))
        errors = {
            folder: law_choice.score(candidate, runs, splits(runs), {})
            for folder, runs in sets.items()
        }
        flat = [e[m] for parts in errors.values() for e in parts.values() for m in e]
        rows.append({"name": name, "score": float(np.exp(np.mean(np.log(flat)))), "errors": errors})
    return sorted(rows, key=lambda row: row["score"])


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 when a run or a curve is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.exponent_choice", description=__doc__
    )
    parser.add_argument("runs", type=Path, nargs="+", help="working directories of text_law")
    parser.add_argument("--published", type=Path, help="score the winner on the published curves")
    parser.add_argument("--out", type=Path, default=Path("runs/exponent_choice.json"))
    arguments = parser.parse_args(argv)
    try:
        if arguments.published:  # before the long part, so that a wrong folder costs nothing
            for size in law_choice.SIZES:
                law_choice.load(arguments.published / size, law_choice.TRAIN + law_choice.TEST)
        rows = table(arguments.runs)
        for row in rows:
            print(f"{100 * row['score']:.3f} %  {row['name']}")
        record: dict[str, Any] = {"table": rows}
        if arguments.published:
            best = next(row["name"] for row in rows if row["name"] not in PEERS)
            record["published"] = {
                name: law_choice.final(
                    arguments.published, law_choice.Candidate(name, (rules()[name],))
                )
                for name in (best, "Multi-Power")
            }
            print(json.dumps(record["published"], indent=1))
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
