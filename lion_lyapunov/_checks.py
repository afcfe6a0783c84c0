"""Refusing bad arguments, by name, before any work is done.

Arrays and tracers pass: `optax.inject_hyperparams` rebuilds an optimizer inside jit.
"""

import math
from typing import Any

import numpy as np

Number = Any  # a Python or NumPy number, or a scalar array


def _is_concrete(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def check_number(caller: str, **values: Any) -> None:
    """Raises TypeError for what is neither a number nor an array, ValueError for NaN."""
    for name, value in values.items():
        if _is_concrete(value):
            if math.isnan(value):
                raise ValueError(f"{caller}: {name} must be a number, got NaN.")
        elif isinstance(value, bool) or not hasattr(value, "dtype"):
            raise TypeError(f"{caller}: {name} must be a number, got {value!r}.")


def check_positive(caller: str, **values: Any) -> None:
    """Raises ValueError unless every number is finite and above 0."""
    check_number(caller, **values)
    for name, value in values.items():
        if _is_concrete(value) and not 0 < value < math.inf:
            raise ValueError(f"{caller}: {name} must be a finite number above 0, got {value!r}.")


def check_non_negative(caller: str, **values: Any) -> None:
    """Raises ValueError unless every number is finite and at least 0."""
    check_number(caller, **values)
    for name, value in values.items():
        if _is_concrete(value) and not 0 <= value < math.inf:
            raise ValueError(f"{caller}: {name} must be a finite number >= 0, got {value!r}.")


def check_unit_interval(caller: str, *, closed: bool, **values: Any) -> None:
    """Raises ValueError unless every number is in [0, 1], or in [0, 1) when not `closed`."""
    check_number(caller, **values)
    for name, value in values.items():
        if _is_concrete(value) and not (0 <= value < 1 or (closed and value == 1)):
            interval = "[0, 1]" if closed else "[0, 1)"
            raise ValueError(f"{caller}: {name} must be in {interval}, got {value!r}.")


def check_count(caller: str, **values: Any) -> None:
    """Raises unless every value is a Python integer of at least 1: it decides shapes."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{caller}: {name} must be an integer >= 1, got {value!r}.")


def check_choice(caller: str, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{caller}: {name} must be one of {', '.join(allowed)}, got {value!r}.")
