"""Which axes of a kernel function's result run over rows and which over columns."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any


class LeafAxes(NamedTuple):
    """Where one leaf has the rows and the columns of the kernel; None: nowhere."""

    path: str
    row: int | None
    column: int | None
    shape: tuple[int, ...]  # of the whole result
    dtype: Any

    @property
    def paired(self) -> bool:
        """Whether one axis runs over rows and columns together."""
        return self.row is not None and self.row == self.column


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path; results of different blocks may have different trees."""
    return {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_flatten_with_path(tree)[0]}


def resize(x: PyTree, count: int) -> PyTree:
    """Shapes of `x` with another number of examples."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype), x)


def count_rows(caller: str, name: str, x: PyTree) -> int:
    """Number of examples in front of every leaf.

    Raises:
      ValueError: leaves disagree, or there is none.
    """
    sizes = {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            f"{caller}: every array in {name} must have the same number (> 0) of examples in "
            f"axis 0, got {sorted(map(str, sizes))}."
        )
    return int(sizes.pop())


def find_axes(
    shape_fn: Callable[[int, int | None], PyTree], count1: int, count2: int | None
) -> tuple[list[LeafAxes], Any]:
    """Compares the shapes of results for different numbers of rows and columns.

    Args:
      shape_fn: shapes of the result for n1 rows and n2 columns (None: x2 is None).
      count1, count2: numbers of the whole result.
    Returns:
      Axes of every leaf of the whole result, and its tree.
    """
    whole = shape_fn(count1, count2)
    leaves, tree = named_leaves(whole), jax.tree.structure(whole)
    base, rows, columns = _probe(shape_fn)
    found = []
    for path, leaf in leaves.items():
        row = column = None
        if path in base:
            row = _changed(base[path].shape, rows[path].shape)
            column = _changed(base[path].shape, columns[path].shape)
        found.append(LeafAxes(path, row, column, leaf.shape, leaf.dtype))
    return found, tree


def _probe(shape_fn: Callable[[int, int | None], PyTree]) -> list[dict[str, Any]]:
    """Shapes at a base size, with more rows, and with more columns.

    Where rows and columns must be equally many, both change together in all three.
    """
    try:
        return [named_leaves(shape_fn(*sizes)) for sizes in ((6, 9), (7, 9), (6, 10))]
    except (TypeError, ValueError):
        return [named_leaves(shape_fn(*sizes)) for sizes in ((6, 6), (7, 7), (7, 7))]


def _changed(shape1: tuple[int, ...], shape2: tuple[int, ...]) -> int | None:
    changed = [k for k, (a, b) in enumerate(zip(shape1, shape2)) if a != b]
    return changed[0] if changed else None


def take(x: PyTree, start: Any, size: int, total: int) -> PyTree:
    """`size` examples from `start`; past the end the last one is repeated."""
    index = jnp.minimum(start + jnp.arange(size), total - 1)
    return jax.tree.map(lambda a: jnp.take(jnp.asarray(a), index, axis=0), x)


def take_host(x: PyTree, start: int, size: int, total: int) -> PyTree:
    """The same for arrays in host memory, where only the block is copied."""
    index = np.minimum(start + np.arange(size), total - 1)
    return jax.tree.map(
        lambda a: np.asarray(a)[index] if isinstance(a, np.ndarray) else a[index], x
    )


def mirrored(block: Any, leaf: LeafAxes) -> Any:
    """The block on the other side of the diagonal.

    Rows and columns change places, and so do the axes of each further pair (o1, o2).
    """
    swap = jnp.swapaxes if isinstance(block, jax.Array) else np.swapaxes
    return swap(block, leaf.row, leaf.column)


def blocks_of(count: int, size: int) -> int:
    """How many blocks of a size cover a number of examples."""
    return math.ceil(count / size)
