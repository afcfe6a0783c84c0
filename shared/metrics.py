"""Where the numbers of a run go: `metrics.jsonl`, the record of truth, and optional viewers.

A sink has three methods, `write`, `flush` and `close`. The record holds one JSON object a line,
`{"step": 100, "loss": 0.5}`, nothing that depends on the clock, and floats with all their digits:
the same run gives the same bytes. On resume `truncate` cuts it back to the restored step.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Sink(Protocol):
    """What the loop writes to."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes scalars that were measured after `step` updates; may buffer them."""
        ...

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        ...

    def close(self) -> None:
        """Flushes and lets go of files; further calls are errors."""
        ...


class JsonLines:
    """The record of truth: a file with one JSON object a line.

    Lines are buffered until `flush`; the loop flushes before every checkpoint, so that what a
    checkpoint covers is in the file. NaN and infinities, which JSON has not, become the strings
    "NaN", "Infinity" and "-Infinity", and `read` turns them back.

    Args:
      path: appended to; its folder is made.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lines: list[str] = []
        self._last = _last_step(self.path)
        self._file = self.path.open("a", encoding="utf-8", newline="\n")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Buffers one line; steps may repeat but not go back."""
        step = int(step)
        if step < self._last:
            raise ValueError(
                f"{self.path}: step {step} comes after step {self._last}; "
                "truncate the record when a run goes back."
            )
        if "step" in metrics:
            raise ValueError(f'{self.path}: "step" is taken; rename that metric.')
        row = {"step": step} | {name: _plain(name, value) for name, value in metrics.items()}
        self._lines.append(json.dumps(row, allow_nan=False) + "\n")
        self._last = step

    def flush(self) -> None:
        """Writes the buffered lines."""
        if self._lines:
            self._file.write("".join(self._lines))
            self._lines.clear()
        self._file.flush()

    def close(self) -> None:
        """Writes the buffered lines and closes the file."""
        if not self._file.closed:
            self.flush()
            self._file.close()


class TensorBoard:
    """Event files for TensorBoard, written by tensorboardX (`pip install optgen[tensorboard]`).

    Args:
      folder: where the event files go.
      purge_step: on resume, the first step that is written anew; TensorBoard hides older values
        from there on.
    """

    def __init__(self, folder: str | Path, *, purge_step: int | None = None):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard events need tensorboardX: pip install 'optgen[tensorboard]'."
            ) from error
        extra = {} if purge_step is None else {"purge_step": purge_step}
        self._writer = SummaryWriter(str(folder), **extra)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One scalar event for every number."""
        for name, value in metrics.items():
            plain = _plain(name, value)
            if isinstance(plain, str):
                plain = _NON_FINITE.get(plain)
            if plain is not None:
                self._writer.add_scalar(name, plain, int(step))

    def flush(self) -> None:
        """Writes pending events."""
        self._writer.flush()

    def close(self) -> None:
        """Writes pending events and closes the file."""
        self._writer.close()


class Wandb:
    """Weights & Biases (`pip install optgen[wandb]`); offline where `WANDB_MODE=offline` is set.

    Args:
      folder: where wandb keeps its files.
      project: name of the project there.
      name: name of the run, by default wandb's own.
      config: the settings of the run, shown beside it.
      run_id: continues the run of that id, where there is one.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        project: str,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ):
        try:
            import wandb
        except ImportError as error:
            raise ImportError("wandb is not installed: pip install 'optgen[wandb]'.") from error
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            dir=str(folder),
            project=project,
            name=name,
            config=dict(config or {}),
            id=run_id,
            resume="allow" if run_id else None,
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs one row."""
        row = {name: _plain(name, value) for name, value in metrics.items()}
        self._run.log({name: _NON_FINITE.get(str(v), v) for name, v in row.items()}, step=int(step))

    def flush(self) -> None:
        """Does nothing: wandb sends rows in a process of its own."""

    def close(self) -> None:
        """Ends the run and waits for its files."""
        self._run.finish()


class Tee:
    """Several sinks as one.

    Args:
      sinks: written to in this order; the record of truth comes first.
    """

    def __init__(self, sinks: Sequence[Sink]):
        self.sinks = tuple(sinks)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes to every sink."""
        for sink in self.sinks:
            sink.write(step, metrics)

    def flush(self) -> None:
        """Flushes every sink."""
        for sink in self.sinks:
            sink.flush()

    def close(self) -> None:
        """Closes every sink."""
        for sink in self.sinks:
            sink.close()


def read(path: str | Path) -> list[dict[str, Any]]:
    """Every row of a record; a last line that a kill cut short is left out.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line that is not the last is no JSON object; the message names it.
    """
    return [row for _, row in _rows(Path(path))]


def truncate(path: str | Path, step: int) -> int:
    """Drops every row after `step`, and a last line that a kill cut short, in one atomic move.

    Args:
      path: a record; a file that is not there is left so.
      step: the step that was restored.
    Returns:
      The number of rows that were dropped.
    """
    path = Path(path)
    if not path.exists():
        return 0
    whole = path.read_bytes()
    rows = list(_rows(path))
    kept = b"".join(line for line, row in rows if row["step"] <= step)
    if kept != whole:
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    return sum(row["step"] > step for _, row in rows)


def _rows(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    lines = path.read_bytes().splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break  # only the last line can lack its end: a kill came between two writes
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError("step is no integer")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a row of metrics ({error}).") from error
        rows.append((line, {name: _value(value) for name, value in row.items()}))
    return rows


def _last_step(path: Path) -> int:
    if not path.exists():
        return -1
    rows = _rows(path)
    if sum(len(line) for line, _ in rows) != path.stat().st_size:
        truncate(path, rows[-1][1]["step"] if rows else -1)
    return rows[-1][1]["step"] if rows else -1


def _value(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _plain(name: str, value: Any) -> Any:
    """A JSON value for a scalar of any kind; text and None pass."""
    if value is None or isinstance(value, str | bool | int):
        return value
    array = np.asarray(value)
    if array.ndim != 0:
        raise ValueError(f"metric {name!r} must be a scalar, got shape {array.shape}.")
    if array.dtype.kind in "biu":
        return array.item()
    number = float(array)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")
