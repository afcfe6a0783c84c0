"""Which axes of an output appear once, twice or not at all in its kernel, and contractions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ntk.empirical._arguments import canonical_axes

Array = jax.Array
Letters = tuple[str, ...]


class Layout(NamedTuple):
    """How rows of two Jacobians pair up to entries of a kernel.

    Rows are ordered as the axes of the output, with the mapped axis (if any) moved to the front.
    """

    rows1: Letters
    rows2: Letters
    entries: Letters  # of the kernel: zipped pairs, diagonal axes once, traced axes absent
    normalizer: float  # product of the traced axes' sizes


def kernel_layout(
    caller: str,
    shape1: Sequence[int],
    shape2: Sequence[int],
    trace_axes: int | Sequence[int],
    diagonal_axes: int | Sequence[int],
    mapped_axis: int | None = None,
) -> Layout:
    """The layout of the kernel between two outputs of the same rank.

    Raises:
      ValueError: an axis does not exist, is both traced and diagonal, or has two sizes.
    """
    ndim = len(shape1)
    traced = canonical_axes(caller, "trace_axes", trace_axes, ndim)
    diagonal = canonical_axes(caller, "diagonal_axes", diagonal_axes, ndim)
    if both := set(traced) & set(diagonal):
        raise ValueError(
            f"{caller}: axes {sorted(both)} are in both trace_axes={trace_axes!r} and "
            f"diagonal_axes={diagonal_axes!r}; name each axis once."
        )
    for axis in (*traced, *diagonal):
        if shape1[axis] != shape2[axis]:
            raise ValueError(
                f"{caller}: axis {axis} of the output is in trace_axes={trace_axes!r} or "
                f"diagonal_axes={diagonal_axes!r}, so both sides must have one size there; "
                f"the outputs have shapes {tuple(shape1)} and {tuple(shape2)}."
            )
    first = [f"o{axis}" for axis in range(ndim)]
    second = [
        f"o{axis}" if axis in traced or axis in diagonal else f"p{axis}" for axis in range(ndim)
    ]
    entries: list[str] = []
    for axis in range(ndim):
        if axis in diagonal:
            entries.append(first[axis])
        elif axis not in traced:
            entries += [first[axis], second[axis]]
    order = list(range(ndim))
    if mapped_axis is not None:
        order.remove(mapped_axis % ndim)
        order.insert(0, mapped_axis % ndim)
    return Layout(
        tuple(first[axis] for axis in order),
        tuple(second[axis] for axis in order),
        tuple(entries),
        float(math.prod(shape1[axis] for axis in traced)),
    )


class Factor(NamedTuple):
    """An array whose axes have names."""

    array: Array
    letters: Letters


class Product(NamedTuple):
    """How two factors are multiplied as a batch of matrices."""

    shared: Letters  # of both and of the result: the batch
    summed: Letters
    rows: Letters  # of the first factor and the result
    columns: Letters  # of the second

    @property
    def letters(self) -> Letters:
        """Of the result, as it comes."""
        return (*self.shared, *self.rows, *self.columns)


def product(a: Letters, b: Letters, keep: Sequence[str]) -> Product:
    """The roles of the letters in a product that is summed over every letter not kept."""
    kept = set(keep)
    return Product(
        tuple(k for k in a if k in b and k in kept),
        tuple(k for k in a if k in b and k not in kept),
        tuple(k for k in a if k not in b and k in kept),
        tuple(k for k in b if k not in a and k in kept),
    )


def matrix_order(
    letters: Letters, sizes: Sequence[int], shared: Letters, summed: Letters
) -> tuple[Letters, bool, bool]:
    """The order in which a factor is a batch of matrices at the least cost.

    Returns:
      Letters as [shared, free, summed] or [shared, summed, free]; whether no entry moves; and, if
      one does, whether neighbours stay neighbours.
    """
    size = dict(zip(letters, sizes))
    free = tuple(k for k in letters if k not in shared and k not in summed)
    orders = ((*shared, *free, *summed), (*shared, *summed, *free))
    real = [k for k in letters if size[k] > 1]
    for order in orders:
        if [k for k in order if size[k] > 1] == real:
            return order, True, True
    for order in orders:
        if [k for k in order if size[k] > 1][-1] == real[-1]:
            return order, False, True
    return orders[1], False, False


def multiply(a: Factor, b: Factor, keep: Sequence[str]) -> Factor:
    """The product of two factors, summed over every letter that is not kept.

    A letter that is not kept must be in both.
    """
    roles = product(a.letters, b.letters, keep)
    sizes = dict(zip(a.letters, a.array.shape)) | dict(zip(b.letters, b.array.shape))
    count = math.prod(sizes[k] for k in roles.shared)
    inner = math.prod(sizes[k] for k in roles.summed)
    dtype = jnp.result_type(a.array, b.array)
    matrices, axes = [], []
    for factor in (a, b):
        order, _, _ = matrix_order(factor.letters, factor.array.shape, roles.shared, roles.summed)
        last = order[len(order) - len(roles.summed) :] == roles.summed
        array = factor.array.astype(dtype)
        matrix = jnp.transpose(array, [factor.letters.index(k) for k in order])
        free = factor.array.size // max(count * inner, 1)
        matrices.append(matrix.reshape((count, free, inner) if last else (count, inner, free)))
        axes.append((2 if last else 1,))
    result = jax.lax.dot_general(
        *matrices, (tuple(axes), ((0,), (0,))), precision=jax.lax.Precision.HIGHEST
    )
    return Factor(result.reshape([sizes[k] for k in roles.letters]), roles.letters)


def reduce(a: Factor, out: Letters) -> Array:
    """Diagonals along repeated letters, sums over letters that are not in `out`."""
    names = {}
    for letter in a.letters:
        names.setdefault(letter, len(names))
    return jnp.einsum(a.array, [names[k] for k in a.letters], [names[k] for k in out])


def arrange(a: Factor, letters: Letters) -> Array:
    """The array of a factor with its axes in the order given."""
    return jnp.transpose(a.array, [a.letters.index(letter) for letter in letters])


def contract(factors: Sequence[Factor], out: Letters, order: Sequence[tuple[int, int]]) -> Array:
    """Contracts factors pair by pair.

    Args:
      factors: two or more.
      out: letters of the result.
      order: positions of the pairs, as in an opt_einsum path: a pair is taken out of the list and
        its product appended.
    """
    left = list(factors)
    for i, j in order:
        a, b = left[i], left[j]
        left = [factor for k, factor in enumerate(left) if k not in (i, j)]
        needed = set(out).union(*(factor.letters for factor in left))
        left.append(multiply(a, b, tuple(needed)))
    return arrange(left[0], out)
