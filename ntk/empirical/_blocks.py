"""Kernels of mapped functions, a block of examples at a time."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ntk.empirical._layout import Layout
from ntk.empirical._problem import Side

Array = jax.Array
Compute = Callable[[Side, Side], list[Array]]


def _restrict(side: Side, data: list[Array], size: int) -> Side:
    """The same function on other examples."""
    shapes = [
        (*shape[: axis % len(shape)], size, *shape[axis % len(shape) + 1 :])
        for shape, axis in zip(side.output_shapes, side.output_axes)
        if axis is not None  # a mapped side has one in every output
    ]
    return dataclasses.replace(side, data=data, size=size, output_shapes=shapes)


def _cut(side: Side, start: Array | int, size: int) -> Side:
    data = [
        leaf if axis is None else jax.lax.dynamic_slice_in_dim(leaf, start, size, axis % leaf.ndim)
        for leaf, axis in zip(side.data, side.data_axes)
    ]
    return _restrict(side, data, size)


def _spans(total: int, block: int) -> list[tuple[int, int, int]]:
    """(start, block size, number of blocks): whole blocks first, then what is left."""
    whole = total // block
    spans = [(0, block, whole)] if whole else []
    if total % block:
        spans.append((whole * block, total % block, 1))
    return spans


def in_blocks(
    compute: Compute, side1: Side, side2: Side, layouts: Sequence[Layout], blocks: tuple[int, int]
) -> list[Array]:
    """`compute(side1, side2)` put together from blocks, one after the other.

    Args:
      compute: the kernels (one per output leaf) of two sides.
      side1, side2: mapped sides.
      layouts: of the kernels.
      blocks: examples of each side in a block; the last block may be smaller.
    """
    assert side1.size is not None
    assert side2.size is not None
    if any(layout.rows1[0] == layout.rows2[0] for layout in layouts):
        return _paired(compute, side1, side2, layouts, min(blocks))
    strips = []
    for start1, size1, count1 in _spans(side1.size, blocks[0]):
        row = []
        for start2, size2, count2 in _spans(side2.size, blocks[1]):

            def at(i, j, start1=start1, size1=size1, start2=start2, size2=size2):
                one = _cut(side1, start1 + i * size1, size1)
                return compute(one, _cut(side2, start2 + j * size2, size2))

            def along(i, at=at, count2=count2):
                return jax.lax.map(lambda j: at(i, j), jnp.arange(count2))

            grid = jax.lax.map(along, jnp.arange(count1))
            row.append([_joined(k, layout) for k, layout in zip(grid, layouts)])
        strips.append(
            [
                jnp.concatenate(parts, axis=layout.entries.index(layout.rows2[0]))
                for parts, layout in zip(zip(*row), layouts)
            ]
        )
    return [
        jnp.concatenate(parts, axis=layout.entries.index(layout.rows1[0]))
        for parts, layout in zip(zip(*strips), layouts)
    ]


def _joined(grid: Array, layout: Layout) -> Array:
    """A grid of blocks [rows, columns, *block] as one array."""
    at1, at2 = (layout.entries.index(rows[0]) for rows in (layout.rows1, layout.rows2))
    moved = jnp.moveaxis(grid, (0, 1), (at1, at2 + 1) if at1 < at2 else (at1 + 1, at2))
    shape = list(grid.shape[2:])
    shape[at1] *= grid.shape[0]
    shape[at2] *= grid.shape[1]
    return moved.reshape(shape)


def _paired(
    compute: Compute, side1: Side, side2: Side, layouts: Sequence[Layout], block: int
) -> list[Array]:
    """Blocks along a batch axis that is diagonal or traced."""
    assert side1.size is not None
    parts: list[list[Array]] = []
    for start, size, count in _spans(side1.size, block):

        def at(i, start=start, size=size):
            offset = start + i * size
            return compute(_cut(side1, offset, size), _cut(side2, offset, size))

        stacked = jax.lax.map(at, jnp.arange(count))
        parts.append(
            [
                kernel.sum(0)
                if layout.rows1[0] not in layout.entries
                else _flat(kernel, layout.entries.index(layout.rows1[0]))
                for kernel, layout in zip(stacked, layouts)
            ]
        )
    return [
        functools.reduce(jnp.add, found)
        if layout.rows1[0] not in layout.entries
        else jnp.concatenate(found, axis=layout.entries.index(layout.rows1[0]))
        for found, layout in zip(zip(*parts), layouts)
    ]


def _flat(stacked: Array, axis: int) -> Array:
    moved = jnp.moveaxis(stacked, 0, axis)
    shape = list(stacked.shape[1:])
    shape[axis] *= stacked.shape[0]
    return moved.reshape(shape)
