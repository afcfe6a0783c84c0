"""The table of past outputs: a ring of rows for every example, split over devices by example.

Example i owns rows i * slots ... i * slots + slots - 1 of the leading axis. Nothing here copies the
table, provided that what is written depends on everything that was read: XLA then knows that the
reads come first and updates the donated array in place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam_free._checks import check_choice

Array = jax.Array
Scale = Array | tuple[()]

ROWS_MULTIPLE = 64  # whatever the number of devices, so that a checkpoint moves between counts
DTYPES = ("float16", "float32", "float64", "int8")


class Table(NamedTuple):
    """Past outputs of every example. Leading axes count rows and are split over devices."""

    values: Array  # [rows * slots, classes], in the buffer's dtype
    scale: Scale  # [rows * slots], width of a step of the 8-bit form; () for the other dtypes
    written: Array  # int32 [rows * slots]: 1 + the epoch in which the row was written; 0: never
    num_examples: Array  # int32 scalar


def make_table(num_examples: int, slots: int, num_classes: int, dtype: str) -> Table:
    """An empty table. Zeros stand for rows never written."""
    rows = slots * (-(-num_examples // ROWS_MULTIPLE) * ROWS_MULTIPLE)
    if rows > np.iinfo(np.int32).max:
        raise ValueError(
            f"saf: {num_examples} examples with {slots} slots make {rows} rows, more than an int32 "
            "counts; use mesa, whose memory does not grow with the data."
        )
    check_choice("saf", choices=DTYPES, buffer_dtype=dtype)
    if jax.dtypes.canonicalize_dtype("float64") != dtype == "float64":
        raise ValueError("saf: buffer_dtype='float64' needs jax.enable_x64(True).")
    return Table(
        values=jnp.zeros((rows, num_classes), "uint8" if dtype == "int8" else dtype),
        scale=jnp.zeros((rows,), jnp.float32) if dtype == "int8" else (),
        written=jnp.zeros((rows,), jnp.int32),
        num_examples=jnp.asarray(num_examples, jnp.int32),
    )


def encode(logits: Array, dtype: Any) -> tuple[Array, Scale]:
    """Logits as the table stores them: values [batch, classes] and scale.

    Half precision keeps the distance to the largest logit (softmax does not see the difference, and
    the digits go where the probability is) and saturates at its largest number. The 8-bit form
    keeps 256 even steps between the smallest and the largest logit.
    """
    if dtype == jnp.uint8:
        low = jnp.min(logits, axis=-1, keepdims=True)
        step = (jnp.max(logits, axis=-1, keepdims=True) - low).astype(jnp.float32) / 255
        steps = (logits - low).astype(jnp.float32) / jnp.where(step > 0, step, 1.0)
        # NaN has no 8-bit form; the scale carries it.
        return jnp.round(jnp.nan_to_num(steps)).astype(jnp.uint8), step[:, 0]
    if dtype == jnp.float16:
        lowest = float(jnp.finfo(jnp.float16).min)
        centred = logits - jnp.max(logits, axis=-1, keepdims=True)
        logits = jnp.where(centred < lowest, lowest, centred)
    return logits.astype(dtype), ()


def decode(values: Array, scale: Scale, dtype: Any) -> Array:
    """Logits up to a constant of each row, [batch, classes]."""
    logits = values.astype(dtype)
    return logits if isinstance(scale, tuple) else logits * scale[:, None].astype(dtype)


class _Share(NamedTuple):
    """The batch as the table's owner sees it."""

    local: Array  # int32: the example's place among this device's examples; any number if not mine
    mine: Array  # bool: this device holds the example's rows


def _share(table: Table, index: Array, slots: int, axis_name: str | None, gather: bool) -> _Share:
    held = table.written.shape[0] // slots
    if axis_name is None:
        local = index
    else:
        # Small: the indices of the batch, never the table.
        whole = jax.lax.all_gather(index, axis_name, tiled=True) if gather else index
        local = whole - held * jax.lax.axis_index(axis_name)
    return _Share(local=local, mine=(local >= 0) & (local < held))


def read(
    table: Table,
    index: Array,
    slot: Array,
    *,
    slots: int,
    dtype: Any,
    axis_name: str | None,
    gather: bool,
) -> tuple[Array, Array]:
    """The rows of a batch: logits [batch, classes], and 1 + the epoch that wrote them, [batch].

    With `gather`, each device reads the rows that it owns for the whole batch, and a sum over
    devices brings them to where the example is. Rows of examples outside the table read as zeros.
    """
    local, mine = _share(table, index, slots, axis_name, gather)
    row = jnp.where(mine, local, 0) * slots + slot
    values, scale = jax.tree.map(lambda part: part[row], (table.values, table.scale))
    past = decode(values, scale, dtype)
    past = jnp.where(mine[:, None], past, jnp.zeros_like(past))
    written = jnp.where(mine, table.written[row], 0)
    if axis_name is not None and gather:
        past = jax.lax.psum_scatter(past, axis_name, tiled=True)
        written = jax.lax.psum_scatter(written, axis_name, tiled=True)
    return past, written


def write(
    table: Table,
    index: Array,
    slot: Array,
    logits: Array,
    stamp: Array,
    *,
    slots: int,
    axis_name: str | None,
    gather: bool,
) -> Table:
    """The table with the rows of a batch replaced; `stamp` is 1 + the epoch.

    Rows whose logits hold NaN are marked as never written.
    """
    values, scale = encode(logits, table.values.dtype)
    written = jnp.where(jnp.any(jnp.isnan(logits), axis=-1), 0, stamp).astype(jnp.int32)
    if axis_name is not None and gather:
        values, scale, written = jax.lax.all_gather((values, scale, written), axis_name, tiled=True)
    local, mine = _share(table, index, slots, axis_name, gather)
    row = jnp.where(mine, local * slots + slot, table.written.shape[0])  # beyond the end: dropped
    values, scale, written = jax.tree.map(
        lambda held, new: held.at[row].set(new, mode="drop"),
        (table.values, table.scale, table.written),
        (values, scale, written),
    )
    return table._replace(values=values, scale=scale, written=written)


def count_bad(index: Array, limit: Array | int, axis_name: str | None) -> Array:
    """How many indices of the global batch are out of range or repeat an earlier one."""
    whole = index if axis_name is None else jax.lax.all_gather(index, axis_name, tiled=True)
    ordered = jnp.sort(whole)
    outside = jnp.sum((whole < 0) | (whole >= limit), dtype=jnp.int32)
    return outside + jnp.sum(ordered[1:] == ordered[:-1], dtype=jnp.int32)


def check_index(index: Any, num_examples: int) -> None:
    """Refuses, on the host, a batch whose `index` JAX alone would clamp or drop in silence.

    Args:
      index: the examples of one global batch, whole numbers, [batch].
      num_examples: size of the data set.
    Raises:
      ValueError: the dtype or shape is wrong, an index is out of range, or one occurs twice.
    """
    index = np.asarray(index)
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(
            f"saf: batch['index'] must be whole numbers [batch], got {index.dtype} {index.shape}."
        )
    outside = index[(index < 0) | (index >= num_examples)]
    if outside.size:
        raise ValueError(
            f"saf: batch['index'] holds {int(outside[0])}, outside 0..{num_examples - 1}; the "
            "table was made for another data set, or the reader numbers examples from another base."
        )
    ordered = np.sort(index)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        raise ValueError(
            f"saf: batch['index'] holds {int(twice[0])} twice; a batch must hold an example once, "
            "or one of its two outputs would be lost."
        )
