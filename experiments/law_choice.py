"""Chooses a schedule law by cross-validation on training curves, then looks at test curves once.

python -m experiments.law_choice --data=DIR [--out=FILE] [--final]

DIR holds a folder per model size with the curves of arXiv:2503.12811. Every candidate, a law or
the mean of several with an objective, is fitted to parts of the three training curves and scored
on the rest: each curve left out in turn, and the steps after each of CUTS. The table is sorted by
its score, the geometric mean over sizes, parts, PredE and WorstE of the error over that of the
first candidate, the converged Multi-Power law. Only `--final` reads the test curves, for the winner
and the first.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import scaling_laws
from experiments._files import write_text
from scaling_laws import curves, laws

SIZES = ("25M", "100M")
TRAIN = ("cosine_24000", "constant_24000", "wsdcon_9")
TEST = (
    "constant_72000",
    "cosine_72000",
    "wsd_20000_24000",
    "wsdld_20000_24000",
    "wsdcon_3",
    "wsdcon_18",
)
CUTS = (10_000, 12_000)  # the longest test run is three times the training runs; here 2.4 and 2
MAX_STARTS = 4  # by the closed form; on whole curves all 16 starts end at one optimum
MEASURES = ("PredE", "WorstE")


@dataclasses.dataclass(frozen=True)
class Member:
    """A law with the parameters that are not fitted."""

    law: scaling_laws.laws.ScheduleLaw
    fixed: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A prediction rule: the geometric mean of its members' predictions."""

    name: str
    members: tuple[Member, ...]
    objective: str = "huber"


MULTI_POWER = Member(laws.MultiPower())
ANNEALING = Member(laws.LRAnnealing())
RELAXATION = Member(laws.PowerRelaxation(exponent=0.25, rate_exponent=1.0))
FREE_RATE = Member(laws.MultiPower(warmup="area"))
OBJECTIVES = ("lsq", "shared once", "weight by step")


def candidates() -> list[Candidate]:
    """All that was tried, the peer first."""
    alone = [
        Candidate("Multi-Power", (MULTI_POWER,)),
        Candidate("Multi-Power, no rises", (FREE_RATE,)),
        Candidate("Tissue, lambda fitted", (ANNEALING,)),
        Candidate("relaxation, exponent 1/4", (RELAXATION,)),
        Candidate(
            "relaxation, exponent 1",
            (Member(laws.PowerRelaxation(exponent=1.0, rate_exponent=1.0)),),
        ),
        Candidate(
            "relaxation, exponent fitted",
            (Member(laws.MultiPower(warmup="area"), (("gamma", 1.0),)),),
        ),
        Candidate(
            "relaxation, gamma fitted",
            (Member(laws.MultiPower(warmup="area"), (("beta", 0.25),)),),
        ),
    ]
    fixed = [
        Candidate(
            f"exponents {beta:g}, {gamma:g}",
            (Member(laws.MultiPower(warmup="area"), (("beta", beta), ("gamma", gamma))),),
        )
        for beta in (0.125, 0.25, 0.375)
        for gamma in (1.1, 1.2, 1.3, 1.4, 1.5)
    ]
    means = [
        Candidate("mean: relaxation, Tissue", (RELAXATION, ANNEALING)),
        Candidate("mean: relaxation, Multi-Power", (RELAXATION, MULTI_POWER)),
        Candidate("mean: Tissue, Multi-Power", (ANNEALING, MULTI_POWER)),
        Candidate("mean: all three", (RELAXATION, ANNEALING, MULTI_POWER)),
    ]
    other = [
        Candidate(f"{name}; {objective}", members, objective)
        for name, members in (
            ("Tissue", (ANNEALING,)),
            ("relaxation", (RELAXATION,)),
            ("mean: relaxation, Tissue", (RELAXATION, ANNEALING)),
        )
        for objective in OBJECTIVES
    ]
    other += [
        Candidate(f"{name}; {objective}", members, objective)
        for name, members in (
            ("Multi-Power", (MULTI_POWER,)),
            ("mean: relaxation, Multi-Power", (RELAXATION, MULTI_POWER)),
        )
        for objective in ("weight by step",)
    ]
    return alone + fixed + means + other


def schedule(name: str):
    """Function from the number of steps to the rates of one of the published runs."""
    kind, *numbers = name.split("_")
    common: dict[str, Any] = {"peak": 3e-4, "warmup": 2160}
    if kind == "cosine":
        return lambda _: curves.cosine(int(numbers[0]), end=3e-5, **common)
    if kind == "constant":
        return lambda _: curves.constant(int(numbers[0]), **common)
    if kind == "wsdcon":
        return lambda _: curves.two_stage(16000, switch=8000, end=int(numbers[0]) * 1e-5, **common)
    shape = "exponential" if kind == "wsd" else "linear"
    return lambda _: curves.wsd(24000, decay_start=20000, end=3e-5, shape=shape, **common)


def load(folder: Path, names) -> list[curves.Curve]:
    """The named runs of one model size."""
    return [curves.read(folder / f"{name}.csv", schedule=schedule(name)) for name in names]


def point_weights(objective: str, runs) -> list[np.ndarray]:
    """The weight of every point of every run under an objective."""
    ones = [np.ones(len(run.steps)) for run in runs]
    if objective in ("huber", "lsq"):
        return ones
    if objective == "shared once":
        last = [scaling_laws.last_shared_step(run, runs[:i]) for i, run in enumerate(runs)]
        return [(run.steps > step) * 1.0 for run, step in zip(runs, last)]
    if objective == "weight by step":
        return [run.steps / 10_000 for run in runs]
    raise ValueError(f"objective must be huber or one of {OBJECTIVES}, got {objective!r}.")


def folds(runs) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Name -> (points that are fitted, points that are scored), one mask per run each."""
    made = {}
    for i, run in enumerate(runs):
        others = [other for j, other in enumerate(runs) if j != i]
        unseen = run.steps > scaling_laws.last_shared_step(run, others)
        fitted = [np.full(len(other.steps), j != i) for j, other in enumerate(runs)]
        scored = [unseen if j == i else np.zeros(len(r.steps), bool) for j, r in enumerate(runs)]
        made[f"without {run.name}"] = (fitted, scored)
    for cut in CUTS:
        made[f"after {cut}"] = ([r.steps <= cut for r in runs], [r.steps > cut for r in runs])
    return made


def predict(member: Member, objective: str, runs, fitted, wanted) -> list[np.ndarray]:
    """Log predictions for the `wanted` runs of a fit to the points in the masks `fitted`.

    Points that are not fitted have weight 0, so that every part has the shapes of the whole.
    """
    weights = [mask * own for mask, own in zip(fitted, point_weights(objective, runs))]
    result = scaling_laws.fit(
        member.law,
        runs,
        loss="lsq" if objective == "lsq" else "huber",
        weights=np.concatenate(weights),
        fixed=dict(member.fixed),
        max_starts=MAX_STARTS,
    )
    return [np.log(result.predict(run)) for run in wanted]


def score(candidate: Candidate, runs, parts, known: dict) -> dict[str, dict[str, float]]:
    """Errors by part, see `folds`; `known` keeps the fits that candidates share."""
    errors = {}
    for name, (fitted, scored) in parts.items():
        predictions = []
        for member in candidate.members:
            key = (member, candidate.objective, name)
            if key not in known:
                known[key] = predict(member, candidate.objective, runs, fitted, runs)
            predictions.append(known[key])
        by_run = [
            scaling_laws.errors(np.exp(np.mean(parts, axis=0))[mask], run.losses[mask])
            for run, mask, *parts in zip(runs, scored, *predictions)
            if mask.any()
        ]
        errors[name] = {m: float(np.mean([one[m] for one in by_run])) for m in MEASURES}
    return errors


def table(data: Path, tried: list[Candidate]) -> list[dict[str, Any]]:
    """A row per candidate, the best score first."""
    rows: list[dict[str, Any]] = [{"name": c.name, "errors": {}} for c in tried]
    for size in SIZES:
        runs, known = load(data / size, TRAIN), {}
        for row, candidate in zip(rows, tried):
            print(f"{size}: {candidate.name}", file=sys.stderr, flush=True)
            row["errors"][size] = score(candidate, runs, folds(runs), known)
    peer = _flat(rows[0])
    for row in rows:
        row["score"] = float(np.exp(np.mean(np.log(_flat(row) / peer))))
    return sorted(rows, key=lambda row: row["score"])


def _flat(row) -> np.ndarray:
    return np.array([e[m] for parts in row["errors"].values() for e in parts.values() for m in e])


def final(data: Path, candidate: Candidate) -> dict[str, dict[str, float]]:
    """Errors on the steps of the test curves that the training curves do not hold, by size."""
    errors = {}
    for size in SIZES:
        runs, unseen = load(data / size, TRAIN), load(data / size, TEST)
        unseen = scaling_laws.unshared(unseen, runs)
        everything = [np.ones(len(run.steps), bool) for run in runs]
        parts = [
            predict(member, candidate.objective, runs, everything, unseen)
            for member in candidate.members
        ]
        by_run = [
            scaling_laws.errors(np.exp(np.mean(own, axis=0)), run.losses)
            for run, *own in zip(unseen, *parts)
        ]
        errors[size] = {m: float(np.mean([one[m] for one in by_run])) for m in MEASURES}
    return errors


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 when the curves are not there."""
    parser = argparse.ArgumentParser(prog="python -m experiments.law_choice", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/law_choice.json"))
    parser.add_argument("--final", action="store_true", help="score the winner on test curves")
    arguments = parser.parse_args(argv)
    tried = candidates()
    try:
        rows = table(arguments.data, tried)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record: dict[str, Any] = {"table": rows}
    for row in rows:
        print(f"{row['score']:.3f}  {row['name']}")
    if arguments.final:
        chosen = next(c for c in tried if c.name == rows[0]["name"])
        record["final"] = {c.name: final(arguments.data, c) for c in (chosen, tried[0])}
        print(json.dumps(record["final"], indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
