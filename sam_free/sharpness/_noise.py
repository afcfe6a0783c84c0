"""Average-case sharpness: how much the loss grows under random noise on the weights."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sam_free._checks import check_positive, check_whole
from sam_free.sharpness._data import Array, Data, LossFn, PyTree, gather_data, mean_loss
from sam_free.sharpness._estimate import Estimate, mean_and_error


def average_sharpness(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    *,
    sigma: float,
    adaptive: bool = False,
    num_samples: int = 32,
    key: Array,
    devices: Sequence[Any] | None = None,
) -> Estimate:
    """E_z L(w + sigma z) - L(w) with z standard normal; adaptive: L(w + sigma |w| z) - L(w).

    Args:
      loss_fn, params, batches, devices: as in `top_eigenvalues`.
      sigma: standard deviation of the noise, > 0.
      adaptive: in units of the size of each weight.
      num_samples: draws of the noise.
      key: for the noise.
    Returns:
      `value` and `error`, the standard error over the draws.
    Raises:
      ValueError: sigma is not > 0 or num_samples < 1.
    """
    check_positive("average_sharpness", sigma=sigma)
    check_whole("average_sharpness", least=1, num_samples=num_samples)
    data = gather_data(batches, devices=devices)
    return _estimate(loss_fn, params, data, key, sigma, adaptive, num_samples)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _estimate(
    loss_fn: LossFn,
    params: PyTree,
    data: Data,
    key: Array,
    sigma: Array,
    adaptive: bool,
    num_samples: int,
) -> Estimate:
    flat, unravel = ravel_pytree(params)
    scale = sigma * jnp.abs(flat) if adaptive else sigma
    before = mean_loss(loss_fn, params, data)

    def growth(own_key: Array) -> Array:
        noise = jax.random.normal(own_key, flat.shape, flat.dtype)
        return mean_loss(loss_fn, unravel(flat + scale * noise), data) - before

    return mean_and_error(jax.lax.map(growth, jax.random.split(key, num_samples)))
