"""Data that does not fit in memory: random access by Grain, ArrayRecord files, prepared TFDS."""

import concurrent.futures
import glob
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.data._error import DataError, existing_file, listed
from shared.data._index import Order, batch_index, steps_per_epoch
from shared.data._source import Source
from shared.data._tf_example import decoder_from_features

Decode = Callable[[Any], Mapping[str, np.ndarray]]


class RandomAccess:
    """Anything with `len(records)` and `records[i]` as a source: a Grain MapDataset, say.

    Args:
      records: records with `__getitems__` are read a batch at a time.
      decode: record -> dict of arrays; by default records are such dicts already.
      num_threads: that read and decode one batch; 0 does it in the calling thread.
      name: what messages call the data.
    Raises:
      DataError: there are no records.
    """

    def __init__(
        self,
        records: Any,
        *,
        decode: Decode | None = None,
        num_threads: int = 0,
        name: str = "data",
    ):
        if len(records) == 0:
            raise DataError(f"{name} holds zero examples.")
        if num_threads < 0:
            raise ValueError(f"RandomAccess: num_threads must be >= 0, got {num_threads!r}.")
        self.records = records
        self.name = name
        self._decode = decode or (lambda record: record)
        self._pool = concurrent.futures.ThreadPoolExecutor(num_threads) if num_threads else None

    @property
    def num_examples(self) -> int:
        """Number of records."""
        return len(self.records)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads, decodes and stacks the records `indices`, and adds "index"."""
        numbers = [int(i) for i in indices]
        examples = list((self._pool.map if self._pool else map)(self._decode, self._read(numbers)))
        batch = {}
        for name in examples[0]:
            try:
                batch[name] = np.stack([np.asarray(example[name]) for example in examples])
            except (ValueError, KeyError) as error:
                shapes = {np.shape(example.get(name)) for example in examples}
                raise DataError(
                    f"{self.name}: examples disagree on {name!r} (shapes {sorted(shapes)}); give a "
                    "decode function that makes all alike."
                ) from error
        batch["index"] = np.asarray(indices, np.int32)
        return batch

    def _read(self, numbers: list[int]) -> Sequence[Any]:
        try:
            if hasattr(self.records, "__getitems__"):
                return self.records.__getitems__(numbers)
            return [self.records[number] for number in numbers]
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{self.name}: a record among {numbers[:4]}... cannot be read ({error}); "
                "the file may be damaged: copy or make it again."
            ) from error

    def __repr__(self) -> str:
        return f"RandomAccess({self.name}: {len(self.records)})"


def array_record(
    paths: str | Path | Sequence[str | Path], decode: Decode, *, num_threads: int = 0
) -> RandomAccess:
    """Records of ArrayRecord files (`pip install optgen[data]`).

    Args:
      paths: one file, several, or a pattern such as "folder/train*.array_record*"; in this order.
      decode: bytes of a record -> dict of arrays.
      num_threads: that decode a batch.
    Raises:
      DataError: a file is missing, empty or no ArrayRecord file.
    """
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
    except ImportError as error:
        raise ImportError(
            "ArrayRecord files need array-record: pip install 'optgen[data]'."
        ) from error
    if isinstance(paths, str | Path):
        pattern = str(Path(paths).expanduser())
        found = sorted(glob.glob(pattern)) if any(sign in pattern for sign in "*?[") else [pattern]
        if not found:
            raise DataError(f"no file matches {pattern}; check the folder and the pattern.")
    else:
        found = [str(path) for path in paths]
    for path in found:
        existing_file(path)
    try:
        return RandomAccess(
            ArrayRecordDataSource(found), decode=decode, num_threads=num_threads, name=found[0]
        )
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{found[0]} cannot be read as ArrayRecord ({error}); copy or make it again."
        ) from error


def tfds(
    folder: str | Path, split: str, *, decode: Decode | None = None, num_threads: int = 0
) -> RandomAccess:
    """A data set that TFDS prepared with `file_format="array_record"`, read without TFDS.

    Args:
      folder: of one version, such as "cifar10/3.0.2": it holds `features.json` and the records.
      split: such as "train".
      decode: bytes of a record -> dict of arrays; by default made from `features.json`, which works
        for images, class labels, scalars and tensors of fixed shape.
      num_threads: that decode a batch.
    Raises:
      DataError: a file is missing, or a feature has no decoder here.
    """
    folder = Path(folder).expanduser()
    files = sorted(folder.glob(f"*-{split}.array_record-*"))
    if not files:
        splits = {path.name.split(".array_record")[0] for path in folder.glob("*.array_record-*")}
        raise DataError(
            f"{folder} holds no records of split {split!r}, but {listed(splits)}; prepare it with "
            'tfds.builder(name, file_format="array_record").download_and_prepare().'
        )
    if decode is None:
        path = existing_file(folder / "features.json", fix="give decode=, or copy it too")
        try:
            features = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}); copy it again.") from error
        decode = decoder_from_features(features, path)
    return array_record(files, decode, num_threads=num_threads)


def grain_batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    num_epochs: int = 1,
    order: Order = "global",
    num_shards: int = 1,
) -> Any:
    """The loop's own batches as a Grain MapDataset with one element for each step.

    For users who want Grain's transformations, workers or checkpoints: element s is what step s
    reads, so that Grain neither shuffles nor batches.

    Args:
      source: any source.
      seed, batch_size, order, num_shards: as in `batch_index`.
      num_epochs: passes over the data.
    Returns:
      A `grain.MapDataset` of `num_epochs * steps_per_epoch(...)` batches.
    """
    try:
        import grain
    except ImportError as error:
        raise ImportError("grain_batches needs grain: pip install 'optgen[data]'.") from error
    steps = num_epochs * steps_per_epoch(
        source.num_examples, batch_size, order=order, num_shards=num_shards
    )

    def read(step: int) -> dict[str, np.ndarray]:
        return source.batch(
            batch_index(
                seed,
                int(step),
                num_examples=source.num_examples,
                batch_size=batch_size,
                order=order,
                num_shards=num_shards,
            )
        )

    return grain.MapDataset.range(steps).map(read)
