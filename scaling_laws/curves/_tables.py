"""Log files to columns: CSV, JSON lines, Parquet and TensorBoard."""

import csv
import json
from pathlib import Path

import numpy as np

STEP = ("step", "_step", "steps", "global_step", "iteration", "iter", "trainer/global_step")
RATE = ("lr", "learning_rate", "learning-rate", "train/lr", "train/learning_rate", "lr-adamw")
TRAIN = ("loss", "train_loss", "train/loss", "training_loss", "loss/train")
VALIDATION = (
    "val_loss",
    "validation_loss",
    "eval_loss",
    "val/loss",
    "eval/loss",
    "valid_loss",
    "validation/loss",
    "loss/val",
    "loss/validation",
)


def read_columns(path) -> dict[str, np.ndarray]:
    """Columns of floats by name; empty cells and words are NaN.

    A wandb export names its columns "run - key" and adds "run - key__MIN" and "__MAX": the key is
    kept, the extremes are dropped.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"curves.read: {path} does not exist.")
    if path.is_dir() or "tfevents" in path.name:
        return _tensorboard(path)
    readers = {
        ".csv": _csv,
        ".tsv": _csv,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".parquet": _parquet,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"curves.read: {path.name} ends in {path.suffix!r}; one of {sorted(readers)}, or a "
            "TensorBoard event file or folder."
        )
    try:
        columns = readers[path.suffix.lower()](path)
    except UnicodeDecodeError:
        raise ValueError(f"curves.read: {path} is not a text file in UTF-8.") from None
    if not columns:
        raise ValueError(f"curves.read: {path} holds no columns.")
    return {_wandb(name): v for name, v in columns.items() if not name.endswith(("__MIN", "__MAX"))}


def _wandb(name):
    return name.split(" - ", 1)[1] if " - " in name else name


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _csv(path):
    with path.open(newline="", encoding="utf-8-sig") as file:
        sample = file.read(4096)
        file.seek(0)
        delimiter = "\t" if "\t" in sample.split("\n", 1)[0] else ","
        rows = list(csv.DictReader(file, delimiter=delimiter))
    names = [name for name in (rows[0] if rows else {}) if name]
    return {n.strip(): np.array([_number(row[n]) for row in rows]) for n in names}


def _jsonl(path):
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"curves.read: {path}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ValueError(f"curves.read: {path}, line {number} is not an object.")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {n: np.array([_number(row.get(n)) for row in rows]) for n in names}


def _parquet(path):
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("curves.read: Parquet needs pyarrow: pip install pyarrow.") from error
    table = parquet.read_table(path)
    return {
        name: np.array([_number(v) for v in table.column(name).to_pylist()])
        for name in table.column_names
    }


def _tensorboard(path):
    """Scalars of event files, one row per (file, step, arrival)."""
    try:
        from tensorboardX.proto import event_pb2
    except ImportError as error:
        raise ImportError(
            "curves.read: TensorBoard events need tensorboardX: pip install tensorboardX."
        ) from error
    files = sorted(path.glob("**/*tfevents*")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"curves.read: the folder {path} holds no TensorBoard event file.")
    rows: list[dict] = []
    for file in files:
        by_step: dict[int, dict] = {}
        for record in _records(file.read_bytes(), file):
            event = event_pb2.Event.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
            for value in event.summary.value:
                tag, number = value.tag, _scalar(value)
                if number is None:
                    continue
                row = by_step.get(event.step)
                # The same tag twice at a step is a restart: a row of its own.
                if row is None or tag in row:
                    row = {"step": float(event.step)}
                    by_step[event.step] = row
                    rows.append(row)
                row[tag] = number
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {n: np.array([row.get(n, np.nan) for row in rows]) for n in names}


def _scalar(value):
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.HasField("tensor"):
        tensor = value.tensor
        for field in (tensor.float_val, tensor.double_val):
            if len(field) == 1:
                return float(field[0])
        if tensor.tensor_content and tensor.dtype == 1:
            return float(np.frombuffer(tensor.tensor_content, "<f4")[0])
    return None


def _records(data, path):
    """The frames of a TFRecord file: length, its checksum, payload, its checksum."""
    at = 0
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        payload = data[at + 12 : at + 12 + length]
        if len(payload) < length:
            return  # a run that was killed leaves half a record at the end
        yield payload
        at += 16 + length


def pick(columns, wanted, names, what, path):
    """The column that the user named, or the first of the usual names."""
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(
                f"curves.read: {path} has no column {wanted!r} for the {what}; "
                f"it has {sorted(columns)}."
            )
        return wanted
    lowered = {name.lower(): name for name in columns}
    for name in names:
        if name in lowered:
            return lowered[name]
    return None
