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
    hash1 = fingerprints(canonical(x1, batch_axis, channel_axis))
    hash2 = hash1 if symmetric else fingerprints(canonical(other, batch_axis, channel_axis))

    def taken(array, start, size):
        # The last block repeats the last input; what it adds is cut off below.
        return jnp.take(array, jnp.minimum(start + jnp.arange(size), array.shape[0] - 1), axis=0)

    @jax.checkpoint
    def tile(i, j):
        a = jnp.moveaxis(taken(first, i, r), 0, batch_axis)
        b = jnp.moveaxis(taken(second, j, c), 0, batch_axis)
        kernel = whole(a, b, False, (taken(hash1, i, r), taken(hash2, j, c)))
        return tuple(getattr(kernel, name) for name in names)

    shapes = jax.eval_shape(tile, 0, 0)
    mirrored = symmetric and all(len(s.shape) == 2 for s in shapes)
    table = [(i * r, j * c) for i in range(down) for j in range(across) if j >= i or not mirrored]
    start = tuple(jnp.zeros((down * r, across * c) + s.shape[2:], s.dtype) for s in shapes)

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

    outputs, _ = jax.lax.scan(step, start, jnp.asarray(np.array(table, np.int32)))
    return tuple(out[:rows, :columns] for out in outputs)


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

    def block(a, b):
        kernel = whole(a, b, False)
        return tuple(getattr(kernel, name) for name in names)

    def cost(r, c):
        compiled = jax.jit(block).lower(batch_of(x1, r), batch_of(x2, c)).compile()
        memory: Any = compiled.memory_analysis()
        return memory.temp_size_in_bytes

    count = pairs
    for _ in range(6):
        r, c = block_sizes(x1.shape[batch_axis], x2.shape[batch_axis], count)
        used = cost(r, c)
        if used <= max_memory:
            return r * c
        if count == 1:
            raise ValueError(
                f"max_memory={max_memory:.3g} bytes: one pair of inputs alone needs {used:.3g}. "
                "Raise max_memory, or use smaller inputs."
            )
        count = max(1, min(count - 1, int(0.95 * count * max_memory / used)))
    return 1
