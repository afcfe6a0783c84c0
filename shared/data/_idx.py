"""IDX, the format of MNIST and its successors, and where Fashion-MNIST is found."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from shared.data._error import DataError, existing_file
from shared.data._source import Arrays

FASHION_MNIST_VARIABLE = "OPTGEN_FASHION_MNIST"
# Where Debian's package dataset-fashion-mnist puts it.
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """The array in one IDX file, gzip-compressed or not, in the machine's byte order.

    Raises:
      DataError: the file is missing, empty, no IDX file, cut short, or longer than it says.
    """
    path = existing_file(path, fix="check the folder and the name")
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"{path} is cut short or damaged ({error}); copy or download it again."
            ) from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES or raw[3] == 0:
        raise DataError(
            f"{path} is no IDX file (it starts with {raw[:4]!r}); expected two zero bytes, a type "
            "and a number of axes, as in the files of MNIST."
        )
    dtype, num_axes = np.dtype(_TYPES[raw[2]]), raw[3]
    start = 4 + 4 * num_axes
    if len(raw) < start:
        raise DataError(f"{path} is cut short inside its header; copy or download it again.")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", num_axes, 4))
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) - start != wanted:
        state = "cut short" if len(raw) - start < wanted else "longer than its header says"
        raise DataError(
            f"{path} is {state}: shape {shape} needs {wanted} bytes of data and there are "
            f"{len(raw) - start}; copy or download it again."
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def idx(images: str | Path, labels: str | Path, *, name: str | None = None) -> Arrays:
    """Images and labels from two IDX files.

    Args:
      images: file of an array [n, height, width] or [n, height, width, channels].
      labels: file of an array [n].
      name: what messages call the data; by default the name of the images' file.
    Returns:
      "image" as stored, with an axis of channels, and "label" int32.
    Raises:
      DataError: a file cannot be read, holds no example, or the two do not belong together.
    """
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim not in (3, 4):
        raise DataError(
            f"{images} holds an array of shape {pixels.shape}, not images "
            "[n, height, width]; are the two files swapped?"
        )
    if classes.ndim != 1:
        raise DataError(
            f"{labels} holds an array of shape {classes.shape}, not labels [n]; "
            "are the two files swapped?"
        )
    if len(pixels) != len(classes):
        raise DataError(
            f"{images} holds {len(pixels)} images and {labels} holds {len(classes)} labels; "
            "are both of the same split?"
        )
    if len(pixels) == 0:
        raise DataError(f"{images} holds zero examples; use another file.")
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    name = name or Path(images).name
    return Arrays({"image": pixels, "label": classes.astype(np.int32)}, name=name)


def idx_folder(folder: str | Path) -> tuple[Arrays, Arrays]:
    """(train, test) of a folder that holds the four files of MNIST, each gzip-compressed or not.

    Raises:
      DataError: the folder or one of its files is missing or cannot be read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one that holds train-images-idx3-ubyte.gz.")
    train, test = (
        idx(
            _member(folder, f"{part}-images-idx3-ubyte"),
            _member(folder, f"{part}-labels-idx1-ubyte"),
            name=f"{folder.name} {split}",
        )
        for part, split in (("train", "train"), ("t10k", "test"))
    )
    return train, test


def _member(folder: Path, stem: str) -> Path:
    for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx")):
        if (folder / name).exists():
            return folder / name
    raise DataError(f"{folder / stem} does not exist, nor does {stem}.gz; add the file there.")


def find_fashion_mnist(folder: str | Path | None = None) -> Path | None:
    """The folder of Fashion-MNIST, or None where there is none.

    Looks at `folder`, then at the environment variable OPTGEN_FASHION_MNIST, then where Debian's
    package installs it. One that is named and does not exist is returned as it is, so that the
    reader says so.
    """
    named = folder or os.environ.get(FASHION_MNIST_VARIABLE)
    if named:
        return Path(named).expanduser()
    return FASHION_MNIST_FOLDER if FASHION_MNIST_FOLDER.is_dir() else None


def fashion_mnist(folder: str | Path | None = None) -> tuple[Arrays, Arrays]:
    """60000 training and 10000 test images of 28 x 28 grey pixels in 10 classes.

    Args:
      folder: of the four IDX files; by default what `find_fashion_mnist` finds.
    Returns:
      (train, test), "image" uint8 [n, 28, 28, 1] and "label" int32.
    Raises:
      DataError: it is not found or cannot be read.
    Reference: Xiao, Rasul and Vollgraf, arXiv:1708.07747.
    """
    found = find_fashion_mnist(folder)
    if found is None:
        raise DataError(
            "Fashion-MNIST was not found: install Debian's package dataset-fashion-mnist, or set "
            f"{FASHION_MNIST_VARIABLE} to a folder that holds its four IDX files."
        )
    return idx_folder(found)
