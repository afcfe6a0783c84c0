"""How a kernel is cut into blocks that fit caches or a budget; half of them for x2 = None."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk.stax._inputs import canonical, fingerprints

Array = jax.Array

#: Entries of one block: its arrays of a layer stay in a second-level cache.
ENTRIES = 2**17
#: The same where a pair is one number, and the loop over blocks itself is not free.
PAIRS = 2**18
#: Temporary arrays that one block may hold at a time, before a budget measures them.
ARRAYS = 48


def block_sizes(rows: int, columns: int, pairs: int) -> tuple[int, int]:
    """Rows and columns of nearly square blocks of at most `pairs` pairs, of even sizes."""
    side = max(1, math.isqrt(max(pairs, 1)))
    r = min(rows, side)
    c = min(columns, max(1, pairs // r))
    r = min(rows, max(1, pairs // c))
    return _even(rows, r), _even(columns, c)


def _even(total: int, size: int) -> int:
    return -(-total // -(-total // size))


def run_in_tiles(
    whole: Callable[..., Any],
    x1: Array,
    x2: Array | None,
    batch_axis: int,
    channel_axis: int,
    entries: int,
    names: tuple[str, ...],
    max_memory: float | None,
) -> tuple[Array, ...] | None:
    """Computes kernels block by block in one loop.

    Args:
      whole: kernel of two batches, `(x1, x2, same batch, fingerprints)`.
      x1, x2: all inputs; None stands for x1.
      batch_axis, channel_axis: of the inputs.
      entries: numbers that one pair of inputs holds in one array.
      names: fields to return.
      max_memory: bytes of temporary memory, or None.
    Returns:
      The fields, or None when one block is all there is.
    Raises:
      ValueError: not even one pair fits the budget.
    """
    symmetric = x2 is None
    other = x1 if x2 is None else x2
    rows, columns = x1.shape[batch_axis], other.shape[batch_axis]
    pairs = PAIRS if entries == 1 else max(1, ENTRIES // entries)
    if max_memory is not None:
        limit = _pairs_in(whole, x1, other, batch_axis, channel_axis, names, pairs, max_memory)
        pairs = min(pairs, limit)
    if rows * columns <= 2 * pairs:
        return None
    if symmetric:
        side = _even(rows, max(1, math.isqrt(pairs)))
        r = c = side
    else:
        r, c = block_sizes(rows, columns, pairs)
    down, across = -(-rows // r), -(-columns // c)
    first, second = jnp.moveaxis(x1, batch_axis, 0), jnp.moveaxis(other, batch_axis, 0)
    hash1 = _fingerprints(canonical(x1, batch_axis, channel_axis))
    hash2 = hash1 if symmetric else _fingerprints(canonical(other, batch_axis, channel_axis))

    def taken(array, start, size):
        return jax.lax.dynamic_slice_in_dim(array, start, size)

    @jax.checkpoint
    def tile(i, j):
        a = jnp.moveaxis(taken(first, i, r), 0, batch_axis)
        b = jnp.moveaxis(taken(second, j, c), 0, batch_axis)
        kernel = whole(a, b, False, (taken(hash1, i, r), taken(hash2, j, c)))
        return tuple(getattr(kernel, name) for name in names)

    shapes = jax.eval_shape(tile, 0, 0)
    mirrored = symmetric and all(len(s.shape) == 2 for s in shapes)
    # The last blocks reach back over what their neighbours computed: the outputs have the size of
    # the result, and nothing is copied in the end.
    table = [
        (min(i * r, rows - r), min(j * c, columns - c))
        for i in range(down)
        for j in range(across)
        if j >= i or not mirrored
    ]
    start = tuple(jnp.zeros((rows, columns) + s.shape[2:], s.dtype) for s in shapes)

    def step(outputs, corner):
        i, j = corner[0], corner[1]
        blocks = tile(i, j)
        if mirrored:
            outputs = tuple(
                jax.lax.dynamic_update_slice(out, block.T, (j, i))
                for out, block in zip(outputs, blocks)
            )
        zeros = (0,) * (blocks[0].ndim - 2)
        return tuple(
            jax.lax.dynamic_update_slice(out, block, (i, j) + zeros)
            for out, block in zip(outputs, blocks)
        ), None

    return jax.lax.scan(step, start, jnp.asarray(np.array(table, np.int32)))[0]


def _fingerprints(inputs: Array) -> Array:
    """Fingerprints of all inputs, a few at a time: their words take as much memory as they do."""
    number = inputs.shape[0]
    size = min(number, 64)
    inputs = jax.lax.stop_gradient(inputs)

    def step(prints, start):
        some = fingerprints(jax.lax.dynamic_slice_in_dim(inputs, start, size))
        return jax.lax.dynamic_update_slice_in_dim(prints, some, start, 0), None

    starts = np.minimum(np.arange(0, number, size), number - size)
    return jax.lax.scan(step, jnp.zeros((number, 2), jnp.uint32), jnp.asarray(starts))[0]


def _pairs_in(
    whole: Callable[..., Any],
    x1: Array,
    x2: Array,
    batch_axis: int,
    channel_axis: int,
    names: tuple[str, ...],
    pairs: int,
    max_memory: float,
) -> int:
    """Pairs of inputs whose block compiles to at most `max_memory` bytes of temporaries."""
    del channel_axis

    def batch_of(x, size):
        shape = x.shape[:batch_axis] + (size,) + x.shape[batch_axis + 1 :]
        return jax.ShapeDtypeStruct(shape, x.dtype)

    def block(a, b, hash1, hash2):
        kernel = whole(a, b, False, (hash1, hash2))
        return tuple(getattr(kernel, name) for name in names)

    def cost(r, c):
        prints = (jax.ShapeDtypeStruct((n, 2), jnp.uint32) for n in (r, c))
        compiled = jax.jit(block).lower(batch_of(x1, r), batch_of(x2, c), *prints).compile()
        memory: Any = compiled.memory_analysis()
        # The block's inputs and outputs are temporary where the block is one of many.
        return (
            memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        )

    rows, columns = x1.shape[batch_axis], x2.shape[batch_axis]
    r, c = block_sizes(rows, columns, pairs)
    used = cost(r, c)
    if used <= max_memory:
        return r * c
    least = cost(1, 1)
    if least > max_memory:
        raise ValueError(
            f"max_memory={max_memory:.3g} bytes: one pair of inputs alone needs {least:.3g}. "
            "Raise max_memory, or use smaller inputs."
        )
    power = 1
    while used > max_memory and r * c > 1:
        # Memory grows with the pairs of a block, or only with its sides: steeper steps in turn.
        share = 0.95 * (max_memory - least) / (used - least)
        r, c = block_sizes(rows, columns, max(1, min(r * c - 1, int(r * c * share**power))))
        used = cost(r, c)
        power = 2
    return r * c
