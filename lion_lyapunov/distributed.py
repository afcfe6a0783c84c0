"""Directions agreed on by vote over a mesh axis, a bit or a byte per parameter.

Every device keeps a momentum of its own and sends the signs of its direction (Distributed Lion,
Liu et al. 2024, arXiv:2404.00438). To be used inside `jax.shard_map` or `jax.pmap`.

A tie moves nothing: the vote is 0 where as many devices say + as -. With `wire="int8"` a direction
of exactly 0 abstains; one bit cannot say so, and `wire="bits"` sends 0 as +.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lion_lyapunov._checks import Number, check_choice, check_count
from lion_lyapunov._kappa import Array
from lion_lyapunov._separable import l1
from lion_lyapunov._transform import check_rates, scale_by_lion_k

PyTree = Any
WIRES = ("bits", "int8")


def majority_vote(directions: PyTree, axis_name: str, *, wire: str = "bits") -> PyTree:
    """The sign of the sum over devices of the signs of `directions`: +1, -1, or 0 for a tie.

    With "bits" each device counts the votes for its own share of the parameters: one all-to-all of
    1 bit a parameter, one all-gather of 2 bits a parameter for the result (+, -, tie), so the
    traffic does not grow with the number of devices. With "int8" it is one all-reduce of bytes.

    Args:
      directions: a pytree of this device's directions; only signs are sent. NaN votes +.
      axis_name: of the mesh axis.
      wire: "bits" or "int8" (at most 127 devices).
    Returns:
      The same tree with entries in {-1, 0, 1}, in the dtypes of `directions`.
    """
    check_choice("majority_vote", "wire", wire, WIRES)
    leaves, structure = jax.tree.flatten(directions)
    if not leaves:
        return directions
    if wire == "int8":
        total = _sum_of_signs(leaves, axis_name)
        return structure.unflatten([jnp.sign(t).astype(x.dtype) for t, x in zip(total, leaves)])
    devices = jax.lax.axis_size(axis_name)
    flat = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
    bits = jnp.pad(~(flat < 0), (0, -flat.size % (8 * devices)))
    packed = jnp.packbits(bits).reshape(devices, -1)
    mine = jax.lax.all_to_all(packed, axis_name, split_axis=0, concat_axis=0)
    count = jnp.sum(jnp.unpackbits(mine, axis=1), axis=0, dtype=jnp.int32)
    result = jnp.stack([jnp.packbits(2 * count > devices), jnp.packbits(2 * count < devices)])
    gathered = jax.lax.all_gather(result, axis_name)  # [devices, 2, bytes]
    plus, minus = jnp.unpackbits(gathered, axis=2).swapaxes(0, 1).reshape(2, -1)[:, : flat.size]
    votes = plus.astype(jnp.int8) - minus.astype(jnp.int8)
    return structure.unflatten(_split(votes, leaves))


def average_signs(directions: PyTree, axis_name: str) -> PyTree:
    """The mean over devices of the signs of `directions`, sent as one byte a parameter.

    Args:
      directions: a pytree; an entry that is 0 counts as 0.
      axis_name: of a mesh axis of at most 127 devices.
    """
    leaves, structure = jax.tree.flatten(directions)
    devices = jax.lax.axis_size(axis_name)
    total = _sum_of_signs(leaves, axis_name)
    return structure.unflatten([t.astype(x.dtype) / devices for t, x in zip(total, leaves)])


def wire_bytes(num_params: int, num_devices: int, *, wire: str = "bits") -> int:
    """Bytes that one device hands to collectives in a vote: their operands, summed.

    Args:
      num_params: entries of all leaves.
      num_devices: on the axis.
      wire: "bits" or "int8".

    >>> wire_bytes(1_000_000, 8), wire_bytes(1_000_000, 8, wire="int8")
    (156250, 1000000)
    """
    check_choice("wire_bytes", "wire", wire, WIRES)
    check_count("wire_bytes", num_params=num_params, num_devices=num_devices)
    if wire == "int8":
        return num_params
    share = math.ceil(num_params / (8 * num_devices))
    return share * num_devices + 2 * share


def vote(
    axis_name: str, *, method: str = "majority", wire: str = "bits"
) -> optax.GradientTransformation:
    """A link that replaces each device's direction by the vote; put it after `scale_by_lion_k`.

    Args:
      axis_name: of the mesh axis.
      method: "majority" or "average" (of signs, always sent as int8).
      wire: "bits" or "int8", for the majority.
    """
    check_choice("vote", "method", method, ("majority", "average"))
    check_choice("vote", "wire", wire, WIRES)

    def update(updates, state, params=None):
        del params
        if method == "average":
            return average_signs(updates, axis_name), state
        return majority_vote(updates, axis_name, wire=wire), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def distributed_lion(
    learning_rate: optax.ScalarOrSchedule,
    axis_name: str,
    *,
    method: str = "majority",
    wire: str = "bits",
    b1: Number = 0.9,
    b2: Number = 0.99,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    """Lion on gradients that are never averaged: devices send votes instead.

    The parameters stay equal on all devices; the momentum in the state differs from device to
    device. Every vote is in [-1, 1], so the box |x| <= 1 / weight_decay holds as for `lion`.

    Args:
      learning_rate, b1, b2, weight_decay, mask: of `lion_k`.
      axis_name: of the mesh axis.
      method, wire: of `vote`.
    """
    check_rates("distributed_lion", learning_rate=learning_rate, weight_decay=weight_decay)
    return optax.chain(
        scale_by_lion_k(l1(), b1=b1, b2=b2),
        vote(axis_name, method=method, wire=wire),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _sum_of_signs(leaves: list[Array], axis_name: str) -> list[Array]:
    devices = jax.lax.axis_size(axis_name)
    if devices > 127:
        raise ValueError(
            f"distributed: a sum of int8 signs holds at most 127 devices, got {devices}; use "
            "wire='bits'."
        )
    return jax.lax.psum([jnp.sign(leaf).astype(jnp.int8) for leaf in leaves], axis_name)


def _split(flat: Array, leaves: list[Array]) -> list[Array]:
    parts, start = [], 0
    for leaf in leaves:
        parts.append(flat[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return parts
