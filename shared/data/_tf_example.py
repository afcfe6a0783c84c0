"""tf.train.Example records without TensorFlow: the few parts of protobuf that they use.

Example { Features features = 1 }, Features { map<string, Feature> feature = 1 } (an entry has key =
1 and value = 2), Feature { BytesList = 1 | FloatList = 2 | Int64List = 3 }, each list with
`repeated value = 1`, numbers packed or not.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared.data._error import DataError

Values = list[bytes] | np.ndarray


def parse_example(record: bytes) -> dict[str, Values]:
    """Features by name: a list of bytes, float32 [n] or int64 [n].

    Raises:
      ValueError: the record is no Example.
    """
    features: dict[str, Values] = {}
    for _, all_features in _fields(memoryview(record), 1):
        for _, entry in _fields(all_features, 1):
            parts = dict(_fields(entry))
            name = bytes(parts[1]).decode()
            features[name] = _values(parts.get(2, memoryview(b"")))
    return features


def _values(feature: memoryview) -> Values:
    for kind, items in _fields(feature):
        found = [item for number, item in _fields(items) if number == 1]
        if kind == 1:
            return [bytes(item) for item in found]
        if kind == 2:
            return np.frombuffer(b"".join(found), "<f4").astype(np.float32)
        if kind == 3:
            unsigned: list[int] = []
            for item in found:
                unsigned += [item] if isinstance(item, int) else _varints(item)
            return np.array(unsigned, np.uint64).view(np.int64)
    return []


def _fields(data: memoryview, only: int | None = None) -> Iterator[tuple[int, Any]]:
    """(field number, bytes or integer) of a message."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = _varint(data, position)
        else:
            if kind == 2:
                length, position = _varint(data, position)
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
            else:
                raise ValueError(f"not a tf.train.Example: wire type {kind}")
            value = data[position : position + length]
            if len(value) != length:
                raise ValueError("not a tf.train.Example, or cut short")
            position += length
        if only is None or number == only:
            yield number, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("not a tf.train.Example, or cut short")
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value & (2**64 - 1), position


def _varints(data: memoryview) -> list[int]:
    position, values = 0, []
    while position < len(data):
        value, position = _varint(data, position)
        values.append(value)
    return values


def decoder_from_features(
    features: Mapping[str, Any], path: Path
) -> Callable[[bytes], dict[str, np.ndarray]]:
    """A decoder of records for the `features.json` that TFDS writes beside them.

    Args:
      features: the parsed file: "featuresDict" with, by name, "image", "classLabel", "tensor" or
        "scalar".
      path: of the file, for messages.
    Returns:
      record -> arrays by name; class labels are int32, names of text features are left out.
    Raises:
      DataError: a feature is of another kind.
    """
    try:
        kinds = features["featuresDict"]["features"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} describes no dict of features; give decode=.") from error
    readers: dict[str, Callable[[Values], np.ndarray]] = {}
    for name, kind in kinds.items():
        if "image" in kind:
            readers[name] = _read_image
        elif "classLabel" in kind:
            readers[name] = lambda values: np.int32(values[0])
        elif "tensor" in kind or "scalar" in kind:
            readers[name] = _tensor_reader(kind.get("tensor") or kind.get("scalar"), name, path)
        elif "text" not in kind:
            raise DataError(
                f"{path}: feature {name!r} ({kind.get('pythonClassName', 'unknown')}) has no "
                "decoder here; give decode=."
            )

    def decode(record: bytes) -> dict[str, np.ndarray]:
        values = parse_example(record)
        return {name: np.asarray(read(values[name])) for name, read in readers.items()}

    return decode


def _tensor_reader(kind: Any, name: str, path: Path) -> Callable[[Values], np.ndarray]:
    shape = tuple(int(size) for size in kind.get("shape", {}).get("dimensions", []))
    dtype = np.dtype(kind.get("dtype", "float32"))
    if any(size < 0 for size in shape):
        raise DataError(f"{path}: feature {name!r} has no fixed shape; give decode=.")

    def read(values: Values) -> np.ndarray:
        return np.asarray(values).astype(dtype).reshape(shape)

    return read


def _read_image(values: Values) -> np.ndarray:
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(values[0])))
    return pixels if pixels.ndim == 3 else pixels[..., None]
