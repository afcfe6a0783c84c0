"""Tangent kernels and tangent-kernel products from Jacobian-vector products."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.empirical._arguments import split_kwargs
from ntk.empirical._layout import Factor, Layout, reduce
from ntk.empirical._problem import Side

Array = jax.Array
PyTree = Any

CHUNK_BYTES = 64e6  # of parameter cotangents alive at once


def product_kernels(
    side1: Side,
    side2: Side,
    params: list[Array],
    trainable: Sequence[bool],
    layouts: Sequence[Layout],
    max_memory: float | None = None,
) -> list[Array]:
    """The tangent kernel of every output leaf, a column at a time: J1 (J2^T e)."""
    live = [k for k in range(len(params)) if trainable[k]]
    shapes1, shapes2 = side1.example_shapes(), side2.example_shapes()
    weights = sum(params[k].size * params[k].dtype.itemsize for k in live)

    def bind(side: Side, data: list[Array]) -> Callable[[list[Array]], list[Array]]:
        def function(ordinary: list[Array]) -> list[Array]:
            leaves = list(params)
            for k, leaf in zip(live, ordinary):
                leaves[k] = leaf
            return side.one(leaves, data)

        return function

    point = [params[k] for k in live]

    def column(number: int, data2: list[Array], layout: Layout) -> Array:
        """[(n1,) *output2, *output1] for one example of side 2 and all of side 1."""
        size = math.prod(shapes2[number])
        outs, pull = jax.vjp(bind(side2, data2), point)

        def tangent(row: Array) -> list[Array]:
            cotangents = [jnp.zeros_like(out) for out in outs]
            cotangents[number] = row.reshape(shapes2[number])
            return pull(cotangents)[0]

        def against(row: Array) -> Array:
            direction = tangent(row)
            return side1.map(
                lambda data: jax.jvp(bind(side1, data), (point,), (direction,))[1][number]
            )

        limit = CHUNK_BYTES if max_memory is None else min(CHUNK_BYTES, max_memory / 4)
        chunk = int(max(1, min(size, limit // max(weights, 1))))
        eye = jnp.eye(size, dtype=outs[number].dtype)
        if chunk == size:
            return jax.vmap(against)(eye)
        return jax.lax.map(against, eye, batch_size=chunk)

    kernels = []
    for number, layout in enumerate(layouts):
        paired = side1.mapped and layout.rows1[0] == layout.rows2[0]
        if paired:
            block = _paired_columns(side1, side2, number, bind, point, shapes1, shapes2)
            letters = (*layout.rows2, *layout.rows1[1:])
        elif side1.mapped:
            moved = [
                leaf if axis is None else jnp.moveaxis(leaf, axis, 0)
                for leaf, axis in zip(side2.data, side2.data_axes)
            ]
            mapped = [leaf for leaf, axis in zip(moved, side2.data_axes) if axis is not None]

            def one(slices: list[Array], number=number, layout=layout) -> Array:
                rest = iter(slices)
                data = [
                    leaf if axis is None else next(rest)
                    for leaf, axis in zip(side2.data, side2.data_axes)
                ]
                return column(number, data, layout)

            per_example = weights * math.prod(shapes2[number])
            limit = CHUNK_BYTES if max_memory is None else min(CHUNK_BYTES, max_memory / 4)
            chunk = int(max(1, min(side2.size or 1, limit // max(per_example, 1))))
            block = jax.lax.map(one, mapped, batch_size=chunk)
            block = block.reshape((block.shape[0], *shapes2[number], *block.shape[2:]))
            letters = (*layout.rows2, *layout.rows1)
        else:
            block = column(number, side2.data, layout)
            block = block.reshape((*shapes2[number], *block.shape[1:]))
            letters = (*layout.rows2, *layout.rows1)
        kernels.append(reduce(Factor(block, letters), layout.entries) / layout.normalizer)
    return kernels


def _paired_columns(side1, side2, number, bind, point, shapes1, shapes2) -> Array:
    """[n, *output2, *output1] where both sides run over the same examples."""

    def one(data1: list[Array], data2: list[Array]) -> Array:
        outs, pull = jax.vjp(bind(side2, data2), point)

        def against(row: Array) -> Array:
            cotangents = [jnp.zeros_like(out) for out in outs]
            cotangents[number] = row.reshape(shapes2[number])
            direction = pull(cotangents)[0]
            return jax.jvp(bind(side1, data1), (point,), (direction,))[1][number]

        size = math.prod(shapes2[number])
        columns = jax.vmap(against)(jnp.eye(size, dtype=outs[number].dtype))
        return columns.reshape((*shapes2[number], *shapes1[number]))

    return jax.vmap(one, in_axes=(side1.data_axes, side2.data_axes))(side1.data, side2.data)


def empirical_ntk_vp_fn(
    f: Callable[..., PyTree], x1: PyTree, x2: PyTree | None, params: PyTree, **apply_fn_kwargs
) -> Callable[[PyTree], PyTree]:
    """A function that multiplies the tangent kernel by a vector, without forming the kernel.

    Args:
      f: `f(params, x, **kwargs)`, pytrees in and out.
      x1: inputs of the rows.
      x2: inputs of the columns; None means `x1`.
      params: where the kernel is taken.
      **apply_fn_kwargs: for `f`; a pair gives one value to each side.
    Returns:
      A function from cotangents like `f(params, x2)` to the product, like `f(params, x1)`; it
      raises a ValueError for any other tree or shapes.

    >>> import jax.numpy as jnp
    >>> product = empirical_ntk_vp_fn(lambda w, x: x @ w, jnp.eye(2), None, jnp.ones((2, 1)))
    >>> product(jnp.array([[3.0], [4.0]]))
    Array([[3.],
           [4.]], dtype=float32)
    """
    kwargs1, kwargs2 = split_kwargs(apply_fn_kwargs, x1, x2)
    inputs2 = x1 if x2 is None else x2
    leaves, tree = jax.tree.flatten(params)
    live = [
        k for k, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]

    def bind(x: PyTree, kwargs: dict[str, Any]) -> Callable[[list[Array]], PyTree]:
        def function(ordinary: list[Array]) -> PyTree:
            full = list(leaves)
            for k, leaf in zip(live, ordinary):
                full[k] = leaf
            return f(jax.tree.unflatten(tree, full), x, **kwargs)

        return function

    point = [jnp.asarray(leaves[k]) for k in live]

    def product(cotangents: PyTree) -> PyTree:
        outputs, pull = jax.vjp(bind(inputs2, kwargs2), point)
        wanted, given = (jax.tree.map(jnp.shape, tree) for tree in (outputs, cotangents))
        if wanted != given:
            raise ValueError(
                f"empirical_ntk_vp_fn: the vector must have the tree and shapes of f(params, x2), "
                f"{wanted}, got {given}."
            )
        return jax.jvp(bind(x1, kwargs1), (point,), pull(cotangents))[1]

    return product
