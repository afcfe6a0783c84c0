"""Where one weight meets one activation: the linear maps whose Jacobians have structure.

A site is an equation y = L(a, w), linear in the weight w. The kernel of w needs only the
cotangents c = df/dy and the activation a: with letters for the axes, sum of c1 a1 c2 a2, where some
letters are free (their own on each side) and the others shared.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Site:
    """How one equation depends on its weight."""

    activation: Callable[[Array], Array]  # from the other operand to the axes `activation_letters`
    activation_shape: tuple[int, ...]
    activation_letters: tuple[str, ...]
    output_shape: tuple[int, ...]  # of the equation's result, as traced
    split_shape: tuple[int, ...]  # the same result with the axes `output_letters`
    output_letters: tuple[str, ...]
    free: frozenset[str]  # letters that are summed on each side by itself
    weight_size: int
    output_dtype: Any


def dot_site(eqn: Any, weight: int) -> Site:
    """The site of a dot_general with its weight on side 0 (left) or 1 (right)."""
    contracting, batch = eqn.params["dimension_numbers"]
    other = 1 - weight
    operand, result = eqn.invars[other].aval, eqn.outvars[0].aval
    letters = [""] * operand.ndim
    for position, axis in enumerate(batch[other]):
        letters[axis] = f"b{position}"
    for position, axis in enumerate(contracting[other]):
        letters[axis] = f"i{position}"
    free_axes = [axis for axis in range(operand.ndim) if not letters[axis]]
    for position, axis in enumerate(free_axes):
        letters[axis] = f"s{position}"
    batches = [f"b{position}" for position in range(len(batch[0]))]
    frees = [f"s{position}" for position in range(len(free_axes))]
    columns = [f"k{position}" for position in range(result.ndim - len(batches) - len(frees))]
    parts = [frees, columns] if weight == 1 else [columns, frees]
    return Site(
        activation=lambda a: a,
        activation_shape=operand.shape,
        activation_letters=tuple(letters),
        output_shape=result.shape,
        split_shape=result.shape,
        output_letters=(*batches, *parts[0], *parts[1]),
        free=frozenset(frees),
        weight_size=math.prod(eqn.invars[weight].aval.shape),
        output_dtype=result.dtype,
    )


def conv_site(eqn: Any, weight: int) -> Site | None:
    """The site of a convolution whose filter is the weight; None where it has no such form."""
    params = eqn.params
    if weight != 1 or params["batch_group_count"] != 1:
        return None
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    lhs, rhs, result = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
    groups = params["feature_group_count"]
    window = [rhs.shape[axis] for axis in rhs_spec[2:]]
    spatial = [result.shape[axis] for axis in out_spec[2:]]
    channels, features = lhs.shape[lhs_spec[1]], result.shape[out_spec[1]]

    def patches(a: Array) -> Array:
        """Axes batch, groups, channels in a group, positions, offsets in the window."""
        moved = jnp.transpose(a, lhs_spec)
        padding = [(0, 0, 0), (0, 0, 0)] + [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(params["padding"], params["lhs_dilation"])
        ]
        padded = lax.pad(moved, jnp.zeros((), moved.dtype), padding)
        slices = []
        for offsets in itertools.product(*(range(size) for size in window)):
            start = [o * d for o, d in zip(offsets, params["rhs_dilation"])]
            limit = [
                first + (size - 1) * stride + 1
                for first, size, stride in zip(start, spatial, params["window_strides"])
            ]
            slices.append(
                lax.slice(
                    padded,
                    (0, 0, *start),
                    (*padded.shape[:2], *limit),
                    (1, 1, *params["window_strides"]),
                )
            )
        stacked = jnp.stack(slices, axis=-1)
        return stacked.reshape((stacked.shape[0], groups, channels // groups, *stacked.shape[2:]))

    positions = tuple(f"s{axis}" for axis in range(len(spatial)))
    letters, shape = [""] * result.ndim, [0] * result.ndim
    letters[out_spec[0]], shape[out_spec[0]] = "sb", result.shape[out_spec[0]]
    for letter, axis in zip(positions, out_spec[2:]):
        letters[axis], shape[axis] = letter, result.shape[axis]
    at = out_spec[1]
    letters[at : at + 1] = ["b", "k"]
    shape[at : at + 1] = [groups, features // groups]
    batch = lhs.shape[lhs_spec[0]]
    return Site(
        activation=patches,
        activation_shape=(batch, groups, channels // groups, *spatial, math.prod(window)),
        activation_letters=("sb", "b", "i", *positions, "d"),
        output_shape=result.shape,
        split_shape=tuple(shape),
        output_letters=tuple(letters),
        free=frozenset({"sb", *positions}),
        weight_size=math.prod(rhs.shape),
        output_dtype=result.dtype,
    )


RULES: dict[str, Callable[[Any, int], Site | None]] = {
    "dot_general": dot_site,
    "conv_general_dilated": conv_site,
}
