"""Formats for a momentum of fewer bits, and parameters that do not lose small steps.

Rounding to nearest loses every change below half a unit in the last place: a bf16 momentum with
b2 = 0.999 never decays, a bf16 weight never follows learning_rate * weight_decay = 0.001.
Stochastic rounding is right on average, so both move as they should.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lion_lyapunov._checks import check_count

Array = jax.Array
PyTree = Any


class MomentumFormat(NamedTuple):
    """How an average is stored between steps; pass one as `mu_dtype`."""

    name: str
    encode: Callable[[Array, Array | None], PyTree]  # (values, key or None) -> what is stored
    decode: Callable[[PyTree, Array], Array]  # (stored, gradient) -> values like the gradient
    bytes_per_param: float  # for leaves of many blocks
    key: Array | None = None  # first key of stochastic rounding; None rounds to nearest


class Blocks(NamedTuple):
    """A leaf as integer codes with one scale per block of its flattened entries."""

    codes: Array  # int8 [blocks, block], or uint8 [blocks, block / 2] with two codes a byte
    scales: Array  # float32 [blocks]: the largest absolute entry of each block


def round_stochastically(x: Array, key: Array) -> Array:
    """`x` (float32) in bfloat16, rounded up or down at random so that the mean is x.

    Infinities and NaN stay themselves; values beyond the largest bfloat16 may become infinite.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = ((bits + noise) >> 16).astype(jnp.uint16)
    out = jax.lax.bitcast_convert_type(rounded, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), out, x.astype(jnp.bfloat16))


def bfloat16(*, key: Array) -> MomentumFormat:
    """bfloat16 with stochastic rounding: 2 bytes a parameter, and averages that decay.

    Args:
      key: `jax.random.key(seed)`; a new one is split off at every step and kept in the state.
    """

    def encode(x, key):
        wide = x.astype(jnp.float32)
        return wide.astype(jnp.bfloat16) if key is None else round_stochastically(wide, key)

    def decode(stored, like):
        # In float32 even for bf16 gradients: b2 mu + (1 - b2) g would round before it is stored.
        del like
        return stored.astype(jnp.float32)

    return MomentumFormat("bfloat16", encode, decode, 2.0, key)


def int8(*, block: int = 256, key: Array | None = None) -> MomentumFormat:
    """8 bits in blocks: code * scale / 127 with the largest absolute entry as the scale.

    Args:
      block: entries per scale; costs 4 / block bytes a parameter.
      key: rounds stochastically when given; without it, entries below scale / 254 stay 0.
    """
    check_count("int8", block=block)

    def encode(x, key):
        values, scales = _scaled_blocks(x, block)
        codes = jnp.clip(_round(values * 127.0, key), -127, 127)
        return Blocks(codes.astype(jnp.int8), scales)

    def decode(stored, like):
        values = stored.codes.astype(jnp.float32) * (1.0 / 127.0)
        return _join_blocks(values, stored.scales, like)

    return MomentumFormat("int8", encode, decode, 1.0 + 4.0 / block, key)


def int4(*, block: int = 64, key: Array | None = None) -> MomentumFormat:
    """4 bits in blocks, two codes a byte. Lossy: 2 % of directions flip their sign, or more.

    Codes are spaced like squares, sign(c) (c / 7)^2, because most entries of a block are far
    below its largest.

    Args:
      block: even number of entries per scale; costs 4 / block bytes a parameter.
      key: rounds stochastically when given.
    """
    check_count("int4", block=block)
    if block % 2:
        raise ValueError(f"int4: block must be even, two codes share a byte; got {block}.")

    def encode(x, key):
        values, scales = _scaled_blocks(x, block)
        size = jnp.abs(values)
        lower = jnp.clip(jnp.floor(7.0 * jnp.sqrt(size)), 0.0, 6.0)
        low, high = (lower / 7.0) ** 2, ((lower + 1.0) / 7.0) ** 2
        codes = jnp.sign(values) * (lower + _round((size - low) / (high - low), key))
        nibbles = (codes + 8.0).astype(jnp.uint8)
        return Blocks(nibbles[:, ::2] | (nibbles[:, 1::2] << 4), scales)

    def decode(stored, like):
        pairs = jnp.stack([stored.codes & 15, stored.codes >> 4], axis=-1)
        codes = pairs.reshape(stored.codes.shape[0], -1).astype(jnp.float32) - 8.0
        return _join_blocks(jnp.sign(codes) * (codes / 7.0) ** 2, stored.scales, like)

    return MomentumFormat("int4", encode, decode, 0.5 + 4.0 / block, key)


def _round(x: Array, key: Array | None) -> Array:
    if key is None:
        return jnp.round(x)
    return jnp.floor(x + jax.random.uniform(key, x.shape, x.dtype))


def _scaled_blocks(x: Array, block: int) -> tuple[Array, Array]:
    """[blocks, block] values in [-1, 1] and their scales; the last block is filled with 0."""
    flat = x.astype(jnp.float32).reshape(-1)
    size = min(block, max(flat.size + flat.size % 2, 2)) if block > flat.size else block
    values = jnp.pad(flat, (0, -flat.size % size)).reshape(-1, size)
    # A block with NaN or infinity becomes NaN. XLA's maximum on a CPU would pass over NaN.
    scales = jnp.max(jnp.where(jnp.isnan(values), jnp.inf, jnp.abs(values)), axis=1)
    scales = jnp.where(jnp.isinf(scales), jnp.nan, scales)
    usable = scales != 0
    return values / jnp.where(usable, scales, 1.0)[:, None], scales


def _join_blocks(values: Array, scales: Array, like: Array) -> Array:
    flat = (values * scales[:, None]).reshape(-1)
    out = flat[: math.prod(like.shape)].reshape(like.shape)
    return out.astype(jnp.promote_types(like.dtype, jnp.float32))


class StochasticRoundingState(NamedTuple):
    """State of `with_stochastic_rounding`."""

    inner: optax.OptState  # of the wrapped optimizer, which sees float32 parameters
    key: Array  # raw key data


def with_stochastic_rounding(
    optimizer: optax.GradientTransformation, *, key: Array
) -> optax.GradientTransformationExtraArgs:
    """Runs `optimizer` in float32 on bfloat16 parameters and rounds the new ones stochastically.

    The updates come back in float32 such that `optax.apply_updates` lands exactly on the rounded
    parameters; leaves of other dtypes pass unchanged. The state of `optimizer` is float32 unless
    its own options say otherwise.

    Args:
      optimizer: any optax transformation, for example `lion_k(...)`.
      key: `jax.random.key(seed)`.
    """
    inner = optax.with_extra_args_support(optimizer)

    def widen(tree):
        return jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, tree
        )

    def init(params):
        return StochasticRoundingState(inner.init(widen(params)), jax.random.key_data(key))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("with_stochastic_rounding: update needs params; pass them last.")
        wide = widen(params)
        steps, after = inner.update(widen(updates), state.inner, wide, **extra)
        leaves, structure = jax.tree.flatten(steps)
        narrow = structure.flatten_up_to(params)
        keys = list(jax.random.split(jax.random.wrap_key_data(state.key), len(leaves) + 1))
        following = jax.random.key_data(keys.pop())

        def land(step, param, key):
            if param.dtype != jnp.bfloat16:
                return step
            start = param.astype(jnp.float32)
            goal = start + step.astype(jnp.float32)
            return round_stochastically(goal, key).astype(jnp.float32) - start

        landed = [land(step, param, key) for step, param, key in zip(leaves, narrow, keys)]
        return structure.unflatten(landed), StochasticRoundingState(after, following)

    return optax.GradientTransformationExtraArgs(init, update)
