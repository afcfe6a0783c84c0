"""Refuses wrong arguments before any work is done, with the fix in the message."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Array = jax.Array


def is_traced(value: Any) -> bool:
    """Whether a value is known only when compiled code runs."""
    return isinstance(value, Tracer)


def finite(caller: str, **arrays: Any) -> None:
    """Raises ValueError for a concrete array that holds NaN or infinity; tracers pass."""
    for name, value in arrays.items():
        if value is None or is_traced(value):
            continue
        bad = ~np.isfinite(np.asarray(value))
        if bad.any():
            raise ValueError(
                f"{caller}: {name} holds {int(bad.sum())} values that are NaN or infinite; "
                "drop or repair those entries first."
            )


def shape(caller: str, name: str, value: Any, expected: tuple[int, ...], meaning: str) -> None:
    """Raises ValueError unless `value` has the expected shape."""
    if np.shape(value) != expected:
        raise ValueError(
            f"{caller}: {name} must have shape {expected} ({meaning}), got {np.shape(value)}."
        )


def integer(caller: str, *, low: int = 1, **values: int | None) -> None:
    """Raises ValueError unless every given value is an integer of at least `low`."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise ValueError(f"{caller}: {name} must be an integer >= {low}, got {value!r}.")


def number(
    caller: str, *, low: float = -math.inf, strict: bool = False, **values: float | None
) -> None:
    """Raises ValueError unless every given Python number is finite and at least (above) `low`."""
    for name, value in values.items():
        if value is None or isinstance(value, jax.Array):
            continue
        allowed = math.isfinite(value) and (value > low if strict else value >= low)
        if not allowed:
            bar = "finite" if low == -math.inf else f"finite and {'>' if strict else '>='} {low:g}"
            raise ValueError(f"{caller}: {name} must be {bar}, got {value!r}.")


def floating(*arrays: Any) -> tuple[Any, ...]:
    """The arrays (or None) in their common floating dtype; integers become the default float."""
    given = [None if value is None else jnp.asarray(value) for value in arrays]
    dtype = jnp.result_type(*[value for value in given if value is not None])
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return tuple(None if value is None else value.astype(dtype) for value in given)
