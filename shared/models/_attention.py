"""Causal self-attention with rotary positions and normalized queries and keys as options."""

import math

import jax
import jax.numpy as jnp

from shared.models._model import Array
from shared.models._norm import apply_rms_norm, init_rms_norm
from shared.models._scale import Scale, init_weight


def rotate(x: Array, *, base: float = 10_000.0) -> Array:
    """Rotary positions (arXiv:2104.09864, Eq. 34): position p turns pair i by p base^(-2i/d).

    Args:
      x: [batch, length, heads, d], d even; entry i is paired with entry i + d / 2.
      base: of the angles' geometric series.
    Returns:
      The rotated x.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * frequencies[None, :]
    shape = (*x.shape[:-1], half)
    cos, sin = (
        jnp.broadcast_to(f(angles)[None, :, None, :], shape).astype(x.dtype)
        for f in (jnp.cos, jnp.sin)
    )
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def init_attention(key: Array, scale: Scale, width: int, num_heads: int, *, qk_norm: bool):
    """Parameters "query", "key", "value" and "output", each [width, width], and norms."""
    names = ("query", "key", "value", "output")
    params = {
        name: init_weight(own, scale, "hidden", (width, width))
        for name, own in zip(names, jax.random.split(key, 4))
    }
    if qk_norm:
        params["query_norm"] = init_rms_norm(scale, width // num_heads)
        params["key_norm"] = init_rms_norm(scale, width // num_heads)
    return params


def apply_attention(params, x_BLD: Array, scale: Scale, *, num_heads: int, rotary: bool) -> Array:
    """Every position looks at itself and at those before it.

    Shapes: B batch, L length, D width, H heads, K = D / H. Scores are divided by sqrt(K), and under
    "mup" by K / sqrt(K at the base width) (arXiv:2203.03466, Definition 4.1).
    """
    B, L, D = x_BLD.shape
    K = D // num_heads
    _, multiplier = scale.weight("hidden", D)
    q, k, v = (
        (multiplier * (x_BLD @ params[name])).reshape(B, L, num_heads, K)
        for name in ("query", "key", "value")
    )
    if "query_norm" in params:
        q = apply_rms_norm(params["query_norm"], q, scale)
        k = apply_rms_norm(params["key_norm"], k, scale)
    if rotary:
        q, k = rotate(q), rotate(k)
    mup = scale.parameterization == "mup"
    divisor = K / math.sqrt(K / scale.width_ratio) if mup else math.sqrt(K)
    scores_BHLM = jnp.einsum("blhk,bmhk->bhlm", q, k) / divisor
    wide = scores_BHLM.astype(jnp.promote_types(x_BLD.dtype, jnp.float32))
    visible = jnp.broadcast_to(jnp.tril(jnp.ones((L, L), bool)), wide.shape)
    weights_BHLM = jax.nn.softmax(jnp.where(visible, wide, -jnp.inf), axis=-1).astype(x_BLD.dtype)
    mixed = jnp.einsum("bhlm,bmhk->blhk", weights_BHLM, v).reshape(B, L, D)
    return multiplier * (mixed @ params["output"])
