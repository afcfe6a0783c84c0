"""NPZ archives and CSV tables as sources."""

import csv as csv_format
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shared.data._error import DataError, existing_file, listed
from shared.data._source import Arrays


def npz(path: str | Path, names: Mapping[str, str] | None = None) -> Arrays:
    """Arrays from a NumPy archive.

    Args:
      path: an .npz file; pickled objects in it are refused.
      names: name in the batch -> name in the file; by default every array under its own name.
    Returns:
      A source of these arrays, with integer arrays called "label" as int32.
    Raises:
      DataError: the file is missing, damaged or empty, or lacks an array.
    """
    path = existing_file(path)
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is cut short or no .npz archive; save it with numpy.savez.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = dict(names) if names else {name: name for name in archive.files}
            missing = [name for name in wanted.values() if name not in archive.files]
            if missing:
                raise DataError(
                    f"{path} lacks {listed(missing)}; it holds {listed(archive.files)}. "
                    "Name the arrays with names={'image': <name in the file>}."
                )
            arrays = {name: archive[stored] for name, stored in wanted.items()}
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); copy it again.") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is damaged or holds Python objects ({error}); "
            "save plain arrays with numpy.savez."
        ) from error
    return _checked(arrays, path)


def csv(
    path: str | Path,
    *,
    target: str,
    inputs: Sequence[str] | None = None,
    task: str = "regression",
    delimiter: str = ",",
) -> Arrays:
    """A table of numbers with a line of column names on top.

    Args:
      path: of the table.
      target: column to predict.
      inputs: columns to predict from, in this order; by default all others.
      task: "regression" gives "targets" float32 [n, 1]; "classification" gives "label" int32 [n]
        from a column of whole numbers from 0 up.
      delimiter: between fields.
    Returns:
      A source with "inputs" float32 [n, columns] and the target.
    Raises:
      DataError: the file is missing or empty, a column is unknown, or a field is no finite number;
        the message names the line.
    """
    if task not in ("regression", "classification"):
        raise ValueError(f'csv: task must be "regression" or "classification", got {task!r}.')
    path = existing_file(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            header, values = _read_rows(csv_format.reader(file, delimiter=delimiter), path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no UTF-8 text ({error}); convert it first.") from error
    columns = [name for name in header if name != target] if inputs is None else list(inputs)
    unknown = [name for name in [target, *columns] if name not in header]
    if unknown or not columns:
        problem = f"has no column {listed(unknown)}" if unknown else "has no column of inputs"
        raise DataError(f"{path} {problem}; its columns are {listed(header)}.")
    table = {name: values[:, column] for column, name in enumerate(header)}
    arrays = {"inputs": np.stack([table[name] for name in columns], axis=1).astype(np.float32)}
    if task == "regression":
        arrays["targets"] = table[target].astype(np.float32)[:, None]
        return _checked(arrays, path)
    labels = table[target]
    wrong = np.flatnonzero((labels != np.floor(labels)) | (labels < 0))
    if len(wrong):
        raise DataError(
            f"{path}, data row {wrong[0] + 1}: class {labels[wrong[0]]} in column {target!r} is no "
            'whole number from 0 up; number the classes, or use task="regression".'
        )
    arrays["label"] = labels.astype(np.int32)
    return _checked(arrays, path)


def _read_rows(rows, path: Path) -> tuple[list[str], np.ndarray]:
    header = [name.strip() for name in next(rows, [])]
    if len(set(header)) != len(header):
        raise DataError(f"{path} names a column twice in its first line; rename one.")
    values = []
    for fields in rows:
        if not fields:
            continue  # an empty line, often the last
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {rows.line_num}: {len(fields)} fields where the first line names "
                f"{len(header)}; is the line cut short, or the delimiter another?"
            )
        try:
            values.append([float(field) for field in fields])
        except ValueError as error:
            raise DataError(
                f"{path}, line {rows.line_num}: {error}; every field must be a number."
            ) from error
    if not values:
        raise DataError(f"{path} holds zero examples: no line follows the column names.")
    array = np.array(values)
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{path}, data row {row + 1}, column {header[column]!r}: {array[row, column]} is not "
            "finite; remove or fill in that row."
        )
    return header, array


def _checked(arrays: dict[str, np.ndarray], path: Path) -> Arrays:
    if "label" in arrays and arrays["label"].dtype.kind in "iu":
        arrays["label"] = arrays["label"].astype(np.int32)
    try:
        return Arrays(arrays, name=path.name)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
