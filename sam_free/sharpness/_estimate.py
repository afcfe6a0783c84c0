"""A number and how far it may be off."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Estimate(NamedTuple):
    """A measured number. What `error` means stands with each measure."""

    value: Array
    error: Array


def mean_and_error(samples: Array) -> Estimate:
    """Mean of independent samples [n] and its standard error; NaN for a single sample."""
    count = samples.shape[0]
    spread = jnp.std(samples, ddof=1) if count > 1 else jnp.full((), jnp.nan, samples.dtype)
    return Estimate(jnp.mean(samples), spread / jnp.sqrt(jnp.asarray(count, samples.dtype)))


def difference(after: Array, before: Array) -> Estimate:
    """after - before, and the rounding that a difference of two losses may carry."""
    resolution = jnp.finfo(after.dtype).eps * (jnp.abs(after) + jnp.abs(before))
    return Estimate(after - before, 4 * resolution)
