"""The loss along one or two random directions, scaled filter by filter."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sam_free._checks import check_positive, check_whole
from sam_free._tree import reciprocal
from sam_free.sharpness._data import Array, Data, LossFn, PyTree, gather_data, mean_loss
from sam_free.sharpness._estimate import difference


class LossSlice(NamedTuple):
    """The loss on a line or a square around the parameters."""

    coordinates: Array  # [points] multiples of each direction
    value: Array  # [points] or [points, points]; the first axis is the first direction
    error: Array  # like value: rounding of its difference from the loss at the centre
    directions: tuple[PyTree, ...]


def loss_slice(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    *,
    num_directions: int = 1,
    radius: float = 1.0,
    num_points: int = 21,
    key: Array | None = None,
    directions: Sequence[PyTree] | None = None,
    devices: Sequence[Any] | None = None,
) -> LossSlice:
    """L(w + a d) or L(w + a d + b e) on a grid of a, b in [-radius, radius].

    Directions are Gaussian, each filter scaled to the length of the same filter of the weights
    (Li et al. 2018, arXiv:1712.09913). A filter is what feeds one output: all entries of a kernel
    that share their last index. Biases and normalisation parameters (arrays with fewer than two
    axes) do not move.

    Args:
      loss_fn, params, batches, devices: as in `top_eigenvalues`.
      num_directions: 1 or 2.
      radius: half the width of the slice, > 0.
      num_points: points along each direction, >= 2; an odd number holds the centre.
      key: for the directions; needed unless they are given.
      directions: trees like the parameters, used as they are, for example
        `top_eigenvalues(...).vectors`.
    Returns:
      `coordinates`, `value`, `error` and the directions.
    Raises:
      ValueError: an argument is out of its range, or there is neither a key nor directions.
    """
    check_positive("loss_slice", radius=radius)
    check_whole("loss_slice", least=2, num_points=num_points)
    if directions is None:
        if num_directions not in (1, 2):
            raise ValueError(f"loss_slice: num_directions must be 1 or 2, got {num_directions!r}.")
        if key is None:
            raise ValueError("loss_slice: pass a key to draw directions with, or directions.")
        keys = jax.random.split(key, num_directions)
        directions = [filter_normalized(params, own_key) for own_key in keys]
    if len(directions) not in (1, 2):
        raise ValueError(f"loss_slice: directions must be 1 or 2 trees, got {len(directions)}.")
    data = gather_data(batches, devices=devices)
    coordinates = jnp.linspace(-radius, radius, num_points)
    value, centre = _scan(loss_fn, params, data, tuple(directions), coordinates)
    return LossSlice(coordinates, value, difference(value, centre).error, tuple(directions))


def filter_normalized(params: PyTree, key: Array) -> PyTree:
    """A random direction with the length of each filter of `params`, zero for vectors."""
    leaves, tree = jax.tree.flatten(params)

    def one(weights: Array, own_key: Array) -> Array:
        if weights.ndim < 2:
            return jnp.zeros_like(weights)
        direction = jax.random.normal(own_key, weights.shape, weights.dtype)
        axes = tuple(range(weights.ndim - 1))
        length = jnp.sqrt(jnp.sum(weights**2, axis=axes, keepdims=True))
        return (
            direction
            * length
            * reciprocal(jnp.sqrt(jnp.sum(direction**2, axis=axes, keepdims=True)))
        )

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [one(leaf, k) for leaf, k in zip(leaves, keys)])


@functools.partial(jax.jit, static_argnums=0)
def _scan(
    loss_fn: LossFn,
    params: PyTree,
    data: Data,
    directions: tuple[PyTree, ...],
    coordinates: Array,
) -> tuple[Array, Array]:
    def along(point: PyTree, rest: tuple[PyTree, ...]) -> Array:
        if not rest:
            return mean_loss(loss_fn, point, data)

        def move(a: Array) -> Array:
            moved = jax.tree.map(lambda w, d: w + a.astype(w.dtype) * d, point, rest[0])
            return along(moved, rest[1:])

        return jax.lax.map(move, coordinates)

    return along(params, directions), mean_loss(loss_fn, params, data)
