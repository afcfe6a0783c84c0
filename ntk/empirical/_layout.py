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


def multiply(a: Factor, b: Factor, keep: Sequence[str]) -> Factor:
    """The product of two factors, summed over every letter that is not kept."""
    names = {}
    for letter in (*a.letters, *b.letters):
        names.setdefault(letter, len(names))
    letters = tuple(letter for letter in names if letter in set(keep))
    result = jnp.einsum(
        a.array,
        [names[letter] for letter in a.letters],
        b.array,
        [names[letter] for letter in b.letters],
        [names[letter] for letter in letters],
        precision=jax.lax.Precision.HIGHEST,
    )
    return Factor(result, letters)


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
