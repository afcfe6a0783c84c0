"""GSAM: SAM that also narrows the gap between the perturbed and the plain loss."""

import jax
import jax.numpy as jnp

from sam_free._batch import Array, Batch, PyTree
from sam_free._checks import check_not_negative, check_whole
from sam_free._groups import group_mean, map_groups
from sam_free._sam import Gradient, LossFn, perturb
from sam_free._tree import add_scaled, dot, reciprocal


def gsam_gradient(
    loss_fn: LossFn,
    *,
    rho: float | Array,
    alpha: float = 0.1,
    adaptive: bool = False,
    eta: float = 0.01,
    group_size: int | None = None,
    axis_name: str | None = None,
) -> Gradient:
    """Surrogate Gap Guided SAM (Zhuang et al. 2022, arXiv:2203.08065, Alg. 1).

    With g the plain gradient and s SAM's, g splits into a part along s and a rest across it; the
    result is s - alpha * rest. alpha = 0 is SAM. The paper ties rho to the learning rate: see
    `gsam_radius` and `scheduled`.

    Args:
      loss_fn: `(params, batch) -> (loss, aux)`.
      rho: radius >= 0.
      alpha: weight of the part across, >= 0.
      adaptive, eta, group_size, axis_name: as in `sam_gradient`.
    Returns:
      `(params, batch) -> ((loss, aux), grads)`.
    Raises:
      ValueError: rho, alpha or eta is negative, or the groups do not fit the batch.
    """
    check_not_negative("gsam_gradient", rho=rho, alpha=alpha, eta=eta)
    if group_size is not None:
        check_whole("gsam_gradient", least=1, group_size=group_size)
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if isinstance(rho, (int, float)) and rho == 0:
        return value_and_grad  # then s = g, and nothing lies across

    def gradient(params: PyTree, batch: Batch, group: int | None):
        value, grads = value_and_grad(params, batch)
        grads = group_mean(grads, batch, group, axis_name)
        there = perturb(params, grads, rho, adaptive=adaptive, eta=eta)
        ascent = group_mean(value_and_grad(there, batch)[1], batch, group, axis_name)
        along = dot(grads, ascent) * reciprocal(dot(ascent, ascent))
        across = add_scaled(grads, -along, ascent)
        return value, add_scaled(ascent, -alpha, across)

    return map_groups(gradient, group_size)


def gsam_radius(
    learning_rate: float | Array,
    *,
    rho_min: float,
    rho_max: float,
    learning_rate_min: float,
    learning_rate_max: float,
) -> Array:
    """GSAM's radius at a learning rate: linear between the two ends (arXiv:2203.08065, Alg. 1).

    >>> round(float(gsam_radius(0.5, rho_min=0.1, rho_max=0.3, learning_rate_min=0.0,
    ...                         learning_rate_max=1.0)), 3)
    0.2
    """
    if not learning_rate_min < learning_rate_max:
        raise ValueError(
            f"gsam_radius: learning_rate_min={learning_rate_min!r} must be below "
            f"learning_rate_max={learning_rate_max!r}."
        )
    share = (learning_rate - learning_rate_min) / (learning_rate_max - learning_rate_min)
    return rho_min + (rho_max - rho_min) * jnp.asarray(share)
