"""SAM and ASAM as a gradient rule, with groups that do not depend on the number of devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sam_free._batch import Array, Batch, PyTree
from sam_free._checks import check_not_negative, check_whole
from sam_free._groups import group_mean, map_groups
from sam_free._tree import norm, reciprocal

LossFn = Callable[[PyTree, Batch], tuple[Array, Any]]
Gradient = Callable[[PyTree, Batch], tuple[tuple[Array, Any], PyTree]]


def sam_gradient(
    loss_fn: LossFn,
    *,
    rho: float,
    adaptive: bool = False,
    eta: float = 0.01,
    group_size: int | None = None,
    axis_name: str | None = None,
) -> Gradient:
    """The gradient at the worst point of a ball, to first order (Foret et al. 2021, Eq. 2 and 3).

    With g the gradient of the batch, the gradient is taken at w + rho g / ||g||
    (arXiv:2010.01412). With `adaptive` (ASAM, Kwon et al. 2021, arXiv:2102.11600, Eq. 6) the ball
    is scaled by T = |w| + eta: w + rho T^2 g / ||T g||, for every parameter alike.

    The value and the outputs beside it, batch statistics among them, are those of the unperturbed
    pass. A zero gradient gives no perturbation. With rho = 0 the rule is `jax.value_and_grad`.

    Args:
      loss_fn: `(params, batch) -> (loss, aux)`, the loss a mean over the batch.
      rho: radius >= 0.
      adaptive: measure the radius relative to the size of each weight.
      eta: floor of that scale, >= 0.
      group_size: m of m-SAM: every m consecutive examples of the global batch have a perturbation
        of their own, and the gradients at these points are averaged. None: one perturbation for
        the whole global batch, whatever the number of devices. m must divide a device's share of
        the batch or be a multiple of it.
      axis_name: of the mapped axis over which the batch is split; None: it is not.
    Returns:
      `(params, batch) -> ((loss, aux), grads)`. On several devices each returns the gradient of its
      own share, to be averaged like those of `jax.value_and_grad`.
    Raises:
      ValueError: rho or eta is negative, or the groups do not fit the batch.
    """
    check_not_negative("sam_gradient", rho=rho, eta=eta)
    if group_size is not None:
        check_whole("sam_gradient", least=1, group_size=group_size)
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if isinstance(rho, (int, float)) and rho == 0:
        return value_and_grad

    def gradient(params: PyTree, batch: Batch, group: int | None):
        value, grads = value_and_grad(params, batch)
        grads = group_mean(grads, batch, group, axis_name)
        there = perturb(params, grads, rho, adaptive=adaptive, eta=eta)
        return value, value_and_grad(there, batch)[1]

    return map_groups(gradient, group_size)


def perturb(
    params: PyTree, grads: PyTree, rho: float | Array, *, adaptive: bool, eta: float
) -> PyTree:
    """The point rho away from `params`, up the gradient; `params` where the gradient is zero."""
    if adaptive:
        scale = jax.tree.map(lambda w: jnp.abs(w) + eta, params)
        grads = jax.tree.map(jnp.multiply, scale, grads)
        length = norm(grads)
        grads = jax.tree.map(jnp.multiply, scale, grads)
    else:
        length = norm(grads)
    factor = rho * reciprocal(length)
    return jax.tree.map(lambda w, g: w + (factor * g).astype(w.dtype), params, grads)
