"""Jacobian contraction: both Jacobians, then their product, parameter by parameter."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ntk.empirical._layout import Layout
from ntk.empirical._problem import Side
from ntk.empirical._structured import jacobian_kernel

Array = jax.Array


def jacobians(
    side: Side, params: list[Array], trainable: Sequence[bool]
) -> list[list[Array | None]]:
    """Jacobians of every output leaf in every parameter.

    By reverse mode, or by forward mode where there are fewer parameters than outputs.

    Returns:
      [output leaf][parameter], shape (mapped axis, *output axes, *parameter axes); None where the
      parameter is not a number to train.
    """
    live = [k for k in range(len(params)) if trainable[k]]
    outputs = sum(math.prod(shape) for shape in side.example_shapes())
    forward = outputs > sum(params[k].size for k in live)

    def example(data: list[Array]) -> list[list[Array]]:
        def function(ordinary: list[Array]) -> list[Array]:
            leaves = list(params)
            for k, leaf in zip(live, ordinary):
                leaves[k] = leaf
            return side.one(leaves, data)

        transform = jax.jacfwd if forward else jax.jacrev
        return transform(function)([params[k] for k in live])

    found = side.map(example)
    result = []
    for row in found:
        full: list[Array | None] = [None] * len(params)
        for k, jacobian in zip(live, row):
            full[k] = jnp.asarray(jacobian)
        result.append(full)
    return result


def jacobian_kernels(
    side1: Side,
    side2: Side,
    params: list[Array],
    trainable: Sequence[bool],
    layouts: Sequence[Layout],
) -> list[Array]:
    """The tangent kernel of every output leaf."""
    first = jacobians(side1, params, trainable)
    second = first if side2 is side1 else jacobians(side2, params, trainable)
    kernels = []
    for layout, one, two in zip(layouts, first, second):
        terms = [jacobian_kernel(layout, a, b) for a, b in zip(one, two) if a is not None]
        kernels.append(functools.reduce(jnp.add, terms) / layout.normalizer)
    return kernels
