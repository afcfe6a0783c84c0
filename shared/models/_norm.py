"""Normalizations: over the batch with synchronised statistics, and over features."""

from typing import Any

import jax
import jax.numpy as jnp

from shared.models._model import Array
from shared.models._scale import Scale

EPSILON = 1e-5


def init_batch_norm(scale: Scale, channels: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """(parameters "gain" and "offset", running "mean" and "variance"), each [channels]."""
    params = {"gain": jnp.ones(channels) / scale.vector(), "offset": jnp.zeros(channels)}
    return params, {"mean": jnp.zeros(channels), "variance": jnp.ones(channels)}


def apply_batch_norm(
    params: dict[str, Array],
    statistics: dict[str, Array],
    x: Array,
    scale: Scale,
    *,
    train: bool,
    axis_name: str | None,
    momentum: float,
) -> tuple[Array, dict[str, Array]]:
    """Batch normalization (arXiv:1502.03167, Algorithm 1) over all axes but the last.

    Args:
      params, statistics: from `init_batch_norm`.
      x: [batch, ..., channels].
      scale: of the model, for the multiplier of gain and offset.
      train: normalize by this batch, over all devices of `axis_name`, and move the running
        averages; else normalize by these.
      axis_name: of the devices that share the batch; None on one device.
      momentum: weight of the old running average.
    Returns:
      (normalized x in its dtype, statistics). The running variance averages the biased one, as
      flax does.
    """
    # In bfloat16 a mean over thousands of pixels would have two digits.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    if train:
        mean = _mean(wide, axes, axis_name)
        # Two passes: E[x^2] - E[x]^2 loses its digits where the mean is large.
        variance = _mean(jnp.square(wide - _last(mean, wide)), axes, axis_name)
        statistics = {
            name: momentum * statistics[name] + (1 - momentum) * new.astype(statistics[name].dtype)
            for name, new in (("mean", mean), ("variance", variance))
        }
    else:
        mean = statistics["mean"].astype(wide.dtype)
        variance = statistics["variance"].astype(wide.dtype)
    gain = scale.vector() * params["gain"].astype(wide.dtype) / jnp.sqrt(variance + EPSILON)
    offset = scale.vector() * params["offset"].astype(wide.dtype)
    y = (wide - _last(mean, wide)) * _last(gain, wide) + _last(offset, wide)
    return y.astype(x.dtype), statistics


def _mean(x: Array, axes: tuple[int, ...], axis_name: str | None) -> Array:
    mean = x.mean(axes)  # every device holds as many examples
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def _last(vector: Array, x: Array) -> Array:
    return jnp.broadcast_to(vector, x.shape)


def init_rms_norm(scale: Scale, features: int) -> dict[str, Any]:
    """Parameters: "gain" [features]."""
    return {"gain": jnp.ones(features) / scale.vector()}


def apply_rms_norm(params: dict[str, Array], x: Array, scale: Scale) -> Array:
    """Divides by the root of the mean square over the last axis (arXiv:1910.07467, Eq. 4)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    unit = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + EPSILON)
    gain = scale.vector() * params["gain"].astype(wide.dtype)
    return (unit * _last(gain, unit)).astype(x.dtype)
