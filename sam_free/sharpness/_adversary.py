"""Worst-case sharpness: the largest growth of the loss in a ball, by projected ascent."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sam_free._checks import check_positive, check_whole
from sam_free._tree import reciprocal
from sam_free.sharpness._data import Array, Data, LossFn, PyTree, average, gather_data, scalar
from sam_free.sharpness._estimate import Estimate


def worst_case_sharpness(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    *,
    rho: float,
    p: float = 2,
    adaptive: bool = True,
    num_steps: int = 20,
    key: Array | None = None,
    devices: Sequence[Any] | None = None,
) -> Estimate:
    """max L(w + delta) - L(w) over ||delta / c||_p <= rho, with c = |w|, or 1 if not adaptive.

    Adaptive worst-case sharpness (Kwon et al. 2021, arXiv:2102.11600; Andriushchenko et al. 2023,
    arXiv:2302.07011), by ascent along the normalised gradient (p = 2) or its sign (p = inf),
    projected to the ball, from a step of 2 rho down to zero. Use a loss on `normalize_outputs` to
    compare networks whose logits have different scales; the second paper finds that sharpness
    "does not correlate well with generalization" even then.

    Args:
      loss_fn, params, batches, devices: as in `top_eigenvalues`.
      rho: radius > 0, in units of |w| where adaptive.
      p: 2 or inf.
      adaptive: scale the ball by the size of each weight.
      num_steps: steps of ascent, each one gradient of the data set.
      key: start from a random point of the ball; None: from its centre.
    Returns:
      `value`, the best point found, a lower bound of the maximum; and `error`, what the second
      half of the steps added to it: not small, more steps are needed.
    Raises:
      ValueError: rho is not > 0, p is not 2 or inf, or num_steps < 2.
    """
    check_positive("worst_case_sharpness", rho=rho)
    check_whole("worst_case_sharpness", least=2, num_steps=num_steps)
    if p not in (2, math.inf):
        raise ValueError(f"worst_case_sharpness: p must be 2 or math.inf, got {p!r}.")
    data = gather_data(batches, devices=devices)
    return _ascend(loss_fn, params, data, key, rho, float(p), adaptive, num_steps)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _ascend(
    loss_fn: LossFn,
    params: PyTree,
    data: Data,
    key: Array | None,
    rho: Array,
    p: float,
    adaptive: bool,
    num_steps: int,
) -> Estimate:
    centre, unravel = ravel_pytree(params)
    scale = jnp.abs(centre) if adaptive else jnp.ones_like(centre)
    loss = scalar(loss_fn)

    def climb(u: Array) -> tuple[Array, Array]:
        """Loss and gradient at w + c u, in the scaled coordinates u."""
        where = unravel(centre + scale * u)
        value, grads = average(lambda batch: jax.value_and_grad(loss)(where, batch), data)
        return value, scale * ravel_pytree(grads)[0]

    def project(u: Array) -> Array:
        if p == math.inf:
            return jnp.clip(u, -rho, rho)
        return u * jnp.minimum(1.0, rho * reciprocal(jnp.linalg.norm(u)))

    def step(u: Array, count: Array) -> tuple[Array, Array]:
        value, grads = climb(u)
        up = jnp.sign(grads) if p == math.inf else grads * reciprocal(jnp.linalg.norm(grads))
        return project(u + 2 * rho * (1 - count / num_steps).astype(u.dtype) * up), value

    start = jnp.zeros_like(centre)
    if key is not None:
        start = jax.random.normal(key, centre.shape, centre.dtype)
        start = start * rho * reciprocal(jnp.linalg.norm(start))
        start = project(start)
    before = average(lambda batch: loss(params, batch), data)
    last, values = jax.lax.scan(step, start, jnp.arange(num_steps))
    growth = jnp.concatenate([values, climb(last)[0][None]]) - before
    best = jnp.max(growth)
    return Estimate(best, best - jnp.max(growth[: num_steps // 2 + 1]))
