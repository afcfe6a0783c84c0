"""Runs as they lie on the disk: found, read, and gathered over seeds."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared import metrics

SEED = "seed"


@dataclasses.dataclass(frozen=True)
class Run:
    """One folder of a run."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl
    step_ms: float  # median time per step, NaN where no timing was kept

    def names(self) -> list[str]:
        """Every metric of the run, in the order of appearance."""
        return list(dict.fromkeys(n for row in self.rows for n in row if n != "step"))

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a metric; empty where it was not measured."""
        points = [
            (row["step"], float(row[name]))
            for row in self.rows
            if isinstance(row.get(name), int | float)
        ]
        steps, values = np.array(points, np.float64).reshape(-1, 2).T
        return steps, values

    def last(self, name: str) -> float | None:
        """The last value of a metric, which may be NaN; None where it was never measured."""
        _, values = self.curve(name)
        return float(values[-1]) if len(values) else None

    @property
    def step(self) -> int:
        """The last step in the record."""
        return self.rows[-1]["step"] if self.rows else 0


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs whose configs differ in the seed alone."""

    label: str
    runs: tuple[Run, ...]

    def values(self, name: str) -> np.ndarray:
        """Last value of a metric by seed, of the runs that measured it."""
        found = [run.last(name) for run in self.runs]
        return np.array([value for value in found if value is not None], np.float64)

    def band(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(steps, mean, standard deviation) over seeds, at the steps that all of them measured."""
        curves = [dict(zip(*run.curve(name))) for run in self.runs]
        curves = [curve for curve in curves if curve]
        steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        table = np.array([[curve[step] for step in steps] for curve in curves])
        if not steps:
            return np.array([]), np.array([]), np.array([])
        with np.errstate(invalid="ignore"):  # infinite values have no spread
            return np.array(steps), table.mean(0), spread(table)


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation over the first axis with n - 1; zero for one run and for equal values."""
    if len(values) < 2:
        return np.zeros_like(values.mean(axis=0))
    # The mean of equal values is often off by its last digit, and so is their spread.
    return np.where(np.ptp(values, axis=0) == 0, 0.0, values.std(axis=0, ddof=1))


def find(paths: Iterable[str | Path]) -> list[Path]:
    """Folders of runs: each path itself, or those below it.

    Raises:
      ValueError: a path is no folder, or holds no run.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(
                f"{path} is no folder; give the folder of a run or one that holds runs."
            )
        below = [path] if (path / "metrics.jsonl").exists() else []
        below = below or sorted(record.parent for record in path.rglob("metrics.jsonl"))
        if not below:
            raise ValueError(f"{path} holds no run: there is no metrics.jsonl in it or below it.")
        found += [run for run in below if run not in found]
    return found


def load(path: Path) -> Run:
    """Reads one folder; files that a run killed early has not written count as empty.

    Raises:
      ValueError: a file is damaged; the message names it.
    """
    rates = []
    if (path / "timings.jsonl").exists():
        rows = metrics.read(path / "timings.jsonl")
        rates = [row["steps_per_s"] for row in rows if "steps_per_s" in row]
    return Run(
        path=path,
        config=_read_json(path / "config.json"),
        environment=_read_json(path / "environment.json"),
        rows=metrics.read(path / "metrics.jsonl"),
        step_ms=1e3 / float(np.median(rates)) if rates else math.nan,
    )


def gather(runs: Sequence[Run]) -> list[Group]:
    """Groups runs that differ in the seed alone, each named by the keys in which groups differ."""
    by_config: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.config.items() if key != SEED}
        by_config.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    members = [sorted(g, key=lambda r: r.config.get(SEED, 0)) for g in by_config.values()]
    keys = differing([group[0] for group in members])
    members.sort(key=lambda group: [_order(group[0].config.get(key)) for key in keys])
    labels = [
        " ".join(f"{key}={group[0].config.get(key, '-')}" for key in keys) or group[0].path.name
        for group in members
    ]
    return [Group(label, tuple(group)) for label, group in zip(labels, members)]


def differing(runs: Sequence[Run]) -> list[str]:
    """Config keys, other than the seed, that do not have one value in all runs."""
    keys = sorted({key for run in runs for key in run.config} - {SEED})
    return [k for k in keys if len({json.dumps(run.config.get(k)) for run in runs}) > 1]


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then everything else by its text."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
