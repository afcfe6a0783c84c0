"""Many runs of one study: a grid or a Halton sequence over its config, one folder for each trial.

python -m experiments.sweep --config=FILE --workdir=DIR --grid=learning_rate=0.1,0.3
    --grid=seed=0,1 [--config.num_epochs=5 ...]
python -m experiments.sweep --config=FILE --workdir=DIR --halton=learning_rate=log:1e-3:1
    --halton=width=int:32:512 --trials=16

Grids are crossed with each other and with the Halton points. `trials.json` holds every trial's
overrides and status: waiting, done, diverged (the loss stopped being finite) or failed, with the
reason. Started again, the command runs what is waiting or failed, and an interrupted trial goes on
from its checkpoint. Exit codes: 0 all trials are done or diverged; 1 some failed; 2 the input
cannot work; 75 interrupted, start it again.
"""

import argparse
import concurrent.futures
import itertools
import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments._files import write_text
from experiments._runs import load
from experiments.train import BAD_INPUT, DONE, INTERRUPTED, NOT_FINITE, Refused, parse

FAILED = 1
STATUS = {DONE: "done", NOT_FINITE: "diverged", INTERRUPTED: "waiting"}
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)


def radical_inverse(number: int, base: int) -> float:
    """The digits of a number mirrored at the point: 6 = 110 in base 2 gives 0.011 = 3 / 8.

    >>> [radical_inverse(n, 2) for n in range(1, 5)]
    [0.5, 0.25, 0.75, 0.125]
    """
    value, weight = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        value, weight = value + digit * weight, weight / base
    return value


def halton(ranges: dict[str, str], trials: int) -> list[dict[str, str]]:
    """Points of a Halton sequence (Halton 1960), which fill a box more evenly than random ones.

    Args:
      ranges: key -> "linear:low:high", "log:low:high" or "int:low:high" (both ends included).
      trials: number of points.
    Returns:
      Overrides, as text.
    """
    if len(ranges) > len(PRIMES):
        raise ValueError(f"--halton takes at most {len(PRIMES)} keys, got {len(ranges)}.")
    axes = {key: _range(key, text) for key, text in ranges.items()}
    points = []
    for number in range(1, trials + 1):
        point = {}
        for base, (key, (kind, low, high)) in zip(PRIMES, axes.items()):
            u = radical_inverse(number, base)
            if kind == "int":
                point[key] = str(int(low) + math.floor(u * (int(high) - int(low) + 1)))
            elif kind == "log":
                point[key] = f"{low * (high / low) ** u:.6g}"
            else:
                point[key] = f"{low + (high - low) * u:.6g}"
        points.append(point)
    return points


def _range(key: str, text: str) -> tuple[str, float, float]:
    kind, _, bounds = text.partition(":")
    try:
        low, high = map(float, bounds.split(":"))
    except ValueError:
        low = high = math.nan
    fits = kind in ("linear", "log", "int") and -math.inf < low < high < math.inf
    if not fits or (kind == "log" and low <= 0):
        raise ValueError(
            f"--halton={key}={text}: expected linear:LOW:HIGH, log:LOW:HIGH with LOW > 0, or "
            "int:LOW:HIGH, with LOW < HIGH."
        )
    return kind, low, high


def make_trials(grids: dict[str, str], ranges: dict[str, str], trials: int) -> list[dict[str, str]]:
    """The overrides of every trial, in the order in which they run."""
    both = sorted(set(grids) & set(ranges))
    if both:
        raise ValueError(f"{both[0]} is in --grid and in --halton; keep one.")
    if ranges and trials < 1:
        raise ValueError("--halton needs --trials, the number of points, at least 1.")
    if not (grids or ranges):
        raise ValueError("nothing to vary: give --grid=key=a,b or --halton=key=log:LOW:HIGH.")
    choices = [[(key, value) for value in text.split(",")] for key, text in grids.items()]
    points = halton(ranges, trials) if ranges else [{}]
    return [dict(grid) | point for point in points for grid in itertools.product(*choices)]


class Sweep:
    """The trials of one folder, and how far they are."""

    def __init__(self, workdir: Path, base: list[str], overrides: list[dict[str, str]]):
        self.workdir, self.base = workdir, base
        self.path = workdir / "trials.json"
        self.trials: list[dict[str, Any]] = [
            {"number": number, "overrides": own, "status": "waiting", "message": ""}
            for number, own in enumerate(overrides)
        ]
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def open(self) -> None:
        """Makes the folder, or takes up the statuses of one with the same trials.

        Raises:
          ValueError: the folder holds another sweep.
        """
        if self.path.exists():
            try:
                stored = json.loads(self.path.read_text())
                same = stored["base"] == self.base
                same &= [t["overrides"] for t in stored["trials"]] == [
                    t["overrides"] for t in self.trials
                ]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path} is damaged ({error!r}); move it away.") from error
            if not same:
                raise ValueError(
                    f"{self.workdir} holds another sweep; take another --workdir, or the config, "
                    "overrides and axes that trials.json names."
                )
            self.trials = stored["trials"]
        self._save()

    def folder(self, trial: dict[str, Any]) -> Path:
        """Where the run of a trial lives."""
        return self.workdir / f"{trial['number']:03d}"

    def run(self, jobs: int) -> None:
        """Runs what is waiting or failed, `jobs` trials at a time."""
        todo = [t for t in self.trials if t["status"] in ("waiting", "failed")]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self._run_one, todo))

    def stop(self) -> None:
        """Asks the trials that run to save and end, and starts no more."""
        self._stopped = True
        for process in list(self._running):
            process.terminate()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def _run_one(self, trial: dict[str, Any]) -> None:
        if self._stopped:
            return
        log = self.workdir / "logs" / f"{trial['number']:03d}.txt"
        log.parent.mkdir(exist_ok=True)
        command = [
            *(sys.executable, "-m", "experiments.train", "--quiet"),
            *self.base,
            f"--workdir={self.folder(trial)}",
            *(f"--config.{key}={value}" for key, value in trial["overrides"].items()),
        ]
        with log.open("w") as output:
            # In a session of its own, so that Ctrl-C reaches it as a request to save.
            process = subprocess.Popen(
                command, stdout=output, stderr=output, text=True, start_new_session=True
            )
            self._running.add(process)
            if self._stopped:  # between the question above and this line
                process.terminate()
            code = process.wait()
            self._running.discard(process)
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        trial["status"] = STATUS.get(code, "waiting" if self._stopped else "failed")
        trial["message"] = "" if code == DONE else f"exit code {code}: {lines[-1] if lines else ''}"
        with self._lock:
            self._save()
            done = sum(t["status"] in ("done", "diverged") for t in self.trials)
            named = " ".join(f"{key}={value}" for key, value in trial["overrides"].items())
            print(f"[{done}/{len(self.trials)}] {trial['status']}: {named}", file=sys.stderr)

    def _save(self) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        record = {"base": self.base, "trials": self.trials}
        write_text(self.path, json.dumps(record, indent=1) + "\n")

    def table(self, metric: str, goal: str) -> str:
        """Trials by their last value of a metric, the best first."""
        rows = []
        for trial in self.trials:
            record = self.folder(trial) / "metrics.jsonl"
            value = load(self.folder(trial)).last(metric) if record.exists() else None
            rows.append((trial, math.nan if value is None else value))
        sign = -1 if goal == "max" else 1
        rows.sort(key=lambda r: (r[0]["status"] != "done", math.isnan(r[1]), sign * r[1]))
        lines = [f"trial  {'status':<9} {metric:>14}  overrides"]
        for trial, value in rows:
            named = " ".join(f"{key}={text}" for key, text in trial["overrides"].items())
            shown = "-" if math.isnan(value) else f"{value:.5g}"
            lines.append(f"{trial['number']:>5}  {trial['status']:<9} {shown:>14}  {named}")
        return "\n".join(lines)


def _pairs(items: Sequence[str], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not (key and equals and value) or key in pairs:
            raise ValueError(f"--{option}={item}: expected key=value, each key once.")
        pairs[key] = value
    return pairs


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; options that are not known here go to `experiments.train`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="the study, as for experiments.train")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=A,B,...")
    parser.add_argument("--halton", action="append", default=[], metavar="KEY=KIND:LOW:HIGH")
    parser.add_argument("--trials", type=int, default=0, help="points of the Halton sequence")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--metric", default="test/loss", help="that the table is sorted by")
    parser.add_argument("--goal", choices=("min", "max"), default="min")
    arguments, rest = parser.parse_known_args(argv)
    base = [f"--config={arguments.config}", *rest]
    try:
        overrides = make_trials(
            _pairs(arguments.grid, "grid"), _pairs(arguments.halton, "halton"), arguments.trials
        )
        if arguments.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {arguments.jobs}.")
        for own in overrides:  # an unknown key or a wrong type is found before anything runs
            flags = [f"--config.{key}={value}" for key, value in own.items()]
            parse([*base, f"--workdir={arguments.workdir}", *flags])
        sweep = Sweep(arguments.workdir, base, overrides)
        sweep.open()
    except (ValueError, OSError, Refused) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return BAD_INPUT
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: sweep.stop()) for number in signals]
    try:
        sweep.run(arguments.jobs)
    finally:
        for number, handler in zip(signals, before):
            signal.signal(number, handler)
    print(sweep.table(arguments.metric, arguments.goal))
    if sweep.stopped:
        return INTERRUPTED
    statuses = {trial["status"] for trial in sweep.trials}
    return DONE if statuses <= {"done", "diverged"} else FAILED


if __name__ == "__main__":
    sys.exit(main())
