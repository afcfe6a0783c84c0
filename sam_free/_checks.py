"""Refusals that name the argument, its value and what is allowed."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

NUMBERS = (int, float, np.integer, np.floating)


def check_positive(caller: str, **values: Any) -> None:
    """Each value, where it is a plain number, is finite and above zero."""
    for name, value in values.items():
        if isinstance(value, NUMBERS) and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{caller}: {name} must be a finite number > 0, got {value!r}.")


def check_not_negative(caller: str, **values: Any) -> None:
    """Each value, where it is a plain number, is finite and at least zero."""
    for name, value in values.items():
        if isinstance(value, NUMBERS) and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{caller}: {name} must be a finite number >= 0, got {value!r}.")


def check_whole(caller: str, *, least: int, **values: Any) -> None:
    """Each value is an int (not a bool) of at least `least`."""
    for name, value in values.items():
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(f"{caller}: {name} must be a whole number >= {least}, got {value!r}.")


def check_choice(caller: str, *, choices: Sequence[str], **values: Any) -> None:
    """Each value is one of the choices."""
    for name, value in values.items():
        if value not in choices:
            allowed = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"{caller}: {name} must be one of {allowed}; got {value!r}.")


def check_logits(caller: str, logits: Any, *, num_classes: int | None = None) -> None:
    """Logits are a floating array [batch, classes] with the stated number of classes."""
    shape, dtype = jnp.shape(logits), jnp.result_type(logits)
    if len(shape) != 2:
        raise ValueError(f"{caller}: logits must have shape [batch, classes], got {shape}.")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{caller}: logits must be floating point, got dtype {dtype}.")
    if num_classes is not None and shape[1] != num_classes:
        raise ValueError(
            f"{caller}: logits have {shape[1]} classes, but num_classes={num_classes}."
        )


def is_traced(value: Any) -> bool:
    """True where a value is known only when the compiled program runs."""
    return isinstance(value, Tracer)
