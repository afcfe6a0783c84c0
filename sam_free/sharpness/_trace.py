"""Trace of the curvature by random signs."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sam_free._checks import check_whole
from sam_free.sharpness._data import Array, Data, LossFn, PyTree, gather_data
from sam_free.sharpness._estimate import Estimate, mean_and_error
from sam_free.sharpness._operator import check_curvature, curvature_product


def trace(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    *,
    num_samples: int,
    key: Array,
    curvature: str = "hessian",
    devices: Sequence[Any] | None = None,
) -> Estimate:
    """Hutchinson's estimate of the trace: the mean of v' C v over vectors v of random signs.

    Args:
      loss_fn, params, batches, curvature, devices: as in `top_eigenvalues`.
      num_samples: number of vectors; at least 2 give an error.
      key: for the vectors.
    Returns:
      `value` and `error`, the standard error of the mean.
    Raises:
      ValueError: num_samples < 1, or as in `top_eigenvalues`.
    """
    check_whole("trace", least=1, num_samples=num_samples)
    check_curvature("trace", loss_fn, curvature)
    data = gather_data(batches, devices=devices)
    return _estimate(loss_fn, params, data, key, num_samples, curvature)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _estimate(
    loss_fn: LossFn, params: PyTree, data: Data, key: Array, num_samples: int, curvature: str
) -> Estimate:
    product, flat = curvature_product(loss_fn, params, data, curvature)

    def sample(own_key: Array) -> Array:
        signs = jax.random.rademacher(own_key, flat.shape, flat.dtype)
        return jnp.vdot(signs, product(signs))

    return mean_and_error(jax.lax.map(sample, jax.random.split(key, num_samples)))
