"""Reading kernels out of arrays, named tuples and Kernel objects; answering `get`."""

import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Gaussian(NamedTuple):
    """A mean and a covariance."""

    mean: Any
    covariance: Any = None


def as_get(caller: str, get: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The regimes that `get` names; None stands for both nngp and ntk.

    Raises:
      ValueError: one of them is not allowed.
    """
    names = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else tuple(get)
    for name in names:
        if name not in allowed:
            raise ValueError(f"{caller}: get={get!r} must name {', '.join(allowed)}, got {name!r}.")
    return names


@functools.cache
def _answer_type(names: tuple[str, ...]) -> Any:
    return collections.namedtuple("Prediction", names)


def answer(get: Any, found: dict[str, Any]) -> Any:
    """The one result for a string; a named tuple of results otherwise."""
    return found[get] if isinstance(get, str) else _answer_type(tuple(found))(**found)


def entry(caller: str, kernel: Any, name: str) -> Array:
    """The kernel `name` of an array (which stands for any), a named tuple or a Kernel.

    Raises:
      ValueError: it is not there.
    """
    if isinstance(kernel, dict):
        found = kernel.get(name)
    elif hasattr(kernel, name):
        found = getattr(kernel, name)
    elif hasattr(kernel, "nngp") or hasattr(kernel, "ntk"):
        found = None
    else:
        found = kernel
    if found is None:
        raise ValueError(
            f"{caller}: this needs the kernel {name!r}, which is not there; compute it with "
            f"get=('nngp', 'ntk')."
        )
    return jnp.asarray(found)


def nonnegative_diagonal(covariance: Array) -> Array:
    """Raises variances that rounding made negative to 0."""
    diagonal = jnp.arange(covariance.shape[-1])
    variance = jnp.maximum(covariance[..., diagonal, diagonal], 0.0)
    return covariance.at[..., diagonal, diagonal].set(variance)
