"""Where the blocks of a large kernel go: host memory, or files that survive a kill."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk._batch_axes import LeafAxes

PyTree = Any


def fingerprint(*trees: PyTree) -> str:
    """A digest of the arrays and other leaves of some trees."""
    digest = hashlib.blake2b(digest_size=16)
    leaves, structure = jax.tree.flatten(trees)
    digest.update(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            array = np.ascontiguousarray(np.asarray(leaf))
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(array.view(np.uint8).data if array.size else b"")
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


class MemoryStore:
    """Results in host memory."""

    def __init__(self, leaves: Sequence[LeafAxes], blocks: tuple[int, int]):
        self.arrays = {leaf.path: np.empty(leaf.shape, leaf.dtype) for leaf in leaves}
        self.done = np.zeros(blocks, bool)

    def finish(self, i: int, j: int) -> None:
        """Marks a block whose entries are all written."""
        self.done[i, j] = True


class FolderStore:
    """Results in files of NumPy's format, with a record of the blocks that are written."""

    def __init__(
        self, leaves: Sequence[LeafAxes], blocks: tuple[int, int], folder: str | Path, mark: str
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {
            "inputs": mark,
            "blocks": list(blocks),
            "leaves": [[leaf.path, list(leaf.shape), str(leaf.dtype)] for leaf in leaves],
        }
        record, done = self.folder / "about.json", self.folder / "done.npy"
        if record.exists() and json.loads(record.read_text()) != about:
            raise ValueError(
                f"batch: {self.folder} holds another kernel (of other inputs, arguments or block "
                "size). Give `out` a new folder, or delete this one."
            )
        resumed = record.exists() and done.exists()
        mode = "r+" if resumed else "w+"
        self.arrays = {
            leaf.path: np.lib.format.open_memmap(
                self.folder / f"{_file_name(leaf.path)}.npy", mode, leaf.dtype, leaf.shape
            )
            for leaf in leaves
        }
        self.done = np.lib.format.open_memmap(done, mode, np.bool_, blocks)
        if not resumed:
            self.done[:] = False
            self.done.flush()
            partial = self.folder / "about.partial"
            partial.write_text(json.dumps(about))
            partial.replace(record)

    def finish(self, i: int, j: int) -> None:
        """Marks a block, after its entries have reached the file."""
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        self.done[i, j] = True
        self.done.flush()


def _file_name(path: str) -> str:
    """`.ntk` gives ntk, a bare array gives kernel."""
    return re.sub(r"[^A-Za-z0-9]+", "_", path).strip("_") or "kernel"
