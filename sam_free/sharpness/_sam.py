"""SAM's sharpness: how much the loss grows one step up the gradient."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sam_free._checks import check_positive, check_whole
from sam_free._sam import perturb
from sam_free._tree import norm
from sam_free.sharpness._data import (
    Array,
    Data,
    LossFn,
    PyTree,
    gather_data,
    mean_gradient,
    mean_loss,
    scalar,
    spread,
)
from sam_free.sharpness._estimate import Estimate, difference, mean_and_error


def sam_sharpness(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    *,
    rho: float,
    group_size: int | None = None,
    adaptive: bool = False,
    eta: float = 0.01,
    devices: Sequence[Any] | None = None,
) -> Estimate:
    """L(w + rho g / ||g||) - L(w), over the whole data set or in groups (m-sharpness).

    Args:
      loss_fn, params, batches, devices: as in `top_eigenvalues`.
      rho: radius > 0.
      group_size: m; the mean over groups of m consecutive examples of the same difference on the
        group alone, with its own gradient. The order of the examples matters then, not how they
        are cut into batches. None: the whole data set is the group.
      adaptive, eta: the scaled ball of ASAM, as in `sam_gradient`.
    Returns:
      `value` and `error`: for groups the standard error over groups; for the whole set, where
      nothing is sampled, a bound for the rounding of the difference of two losses.
    Raises:
      ValueError: rho is not > 0, or group_size does not divide the number of examples.
    """
    check_positive("sam_sharpness", rho=rho)
    if group_size is None:
        data = gather_data(batches, devices=devices)
        return _whole(loss_fn, params, data, rho, adaptive, eta)
    check_whole("sam_sharpness", least=1, group_size=group_size)
    parts = [batches] if isinstance(batches, Mapping) else list(batches)
    if not parts:
        raise ValueError("sam_sharpness: batches is empty; pass at least one batch of examples.")
    if any(isinstance(part, Mapping) and "mask" in part for part in parts):
        raise ValueError(
            "sam_sharpness: masked batches cannot be cut into groups; drop the padding rows."
        )
    whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    size = jax.tree.leaves(whole)[0].shape[0]
    if size % group_size:
        raise ValueError(
            f"sam_sharpness: group_size={group_size} must divide the number of examples, {size}."
        )
    groups = jax.tree.map(lambda x: x.reshape(-1, group_size, *x.shape[1:]), whole)
    if devices is not None:
        groups = spread(groups, devices)
    return _grouped(loss_fn, params, groups, rho, adaptive, eta)


def gradient_norm(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    *,
    devices: Sequence[Any] | None = None,
) -> Array:
    """Euclidean norm of the gradient of the mean loss over the data set."""
    return _gradient_norm(loss_fn, params, gather_data(batches, devices=devices))


@functools.partial(jax.jit, static_argnums=0)
def _gradient_norm(loss_fn: LossFn, params: PyTree, data: Data) -> Array:
    return norm(mean_gradient(loss_fn, params, data))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _whole(
    loss_fn: LossFn, params: PyTree, data: Data, rho: Array, adaptive: bool, eta: Array
) -> Estimate:
    grads = mean_gradient(loss_fn, params, data)
    there = perturb(params, grads, rho, adaptive=adaptive, eta=eta)
    return difference(mean_loss(loss_fn, there, data), mean_loss(loss_fn, params, data))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _grouped(
    loss_fn: LossFn, params: PyTree, groups: PyTree, rho: Array, adaptive: bool, eta: Array
) -> Estimate:
    loss = scalar(loss_fn)

    def one(batch: PyTree) -> Array:
        before, grads = jax.value_and_grad(loss)(params, batch)
        return loss(perturb(params, grads, rho, adaptive=adaptive, eta=eta), batch) - before

    return mean_and_error(jax.lax.map(one, groups))
