"""What the empirical kernels accept: implementations, axes, and keyword arguments of two sides."""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

PyTree = Any


class NtkImplementation(enum.IntEnum):
    """How the tangent kernel is computed.

    AUTO picks by a static cost model and is the default. The values are those of neural-tangents.
    """

    AUTO = 0
    JACOBIAN_CONTRACTION = 1
    NTK_VECTOR_PRODUCTS = 2
    STRUCTURED_DERIVATIVES = 3


class VmapAxes(NamedTuple):
    """Along which axes a function is a map over independent examples."""

    inputs: PyTree  # an axis, or a tree (prefix) of axes and None
    outputs: PyTree
    kwargs: dict[str, Any]


def as_axes(axes: int | Sequence[int]) -> tuple[int, ...]:
    """A tuple, whatever form the axes come in."""
    return (axes,) if isinstance(axes, int | np.integer) else tuple(axes)


def canonical_axes(caller: str, name: str, axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Axes as sorted, distinct, non-negative numbers.

    Raises:
      ValueError: an axis is outside [-ndim, ndim), or two are the same.
    """
    numbers = as_axes(axes)
    for axis in numbers:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"{caller}: {name}={axes!r} names axis {axis}, but the output has {ndim} axes, "
                f"so it must lie in [{-ndim}, {ndim - 1}]. Pass {name}=() for none."
            )
    found = sorted(axis % ndim for axis in numbers)
    if len(set(found)) < len(found):
        raise ValueError(f"{caller}: {name}={axes!r} names one axis twice (ndim is {ndim}).")
    return tuple(found)


def as_vmap_axes(caller: str, vmap_axes: Any) -> VmapAxes | None:
    """The triple (in_axes, out_axes, kwargs_axes) that `vmap_axes` stands for."""
    if vmap_axes is None:
        return None
    if isinstance(vmap_axes, tuple) and len(vmap_axes) == 3 and isinstance(vmap_axes[2], dict):
        return VmapAxes(vmap_axes[0], vmap_axes[1], dict(vmap_axes[2]))
    if isinstance(vmap_axes, tuple) and len(vmap_axes) == 3 and vmap_axes[2] is None:
        return VmapAxes(vmap_axes[0], vmap_axes[1], {})
    if isinstance(vmap_axes, tuple) and len(vmap_axes) == 2:
        raise ValueError(
            f"{caller}: vmap_axes={vmap_axes!r} must be None, an axis, or a triple "
            "(in_axes, out_axes, kwargs_axes); add {} as the third."
        )
    return VmapAxes(vmap_axes, vmap_axes, {})


def same_inputs(x1: PyTree, x2: PyTree) -> bool:
    """Whether the two sides are known to hold the same inputs."""
    if x2 is None or x1 is x2:
        return True
    leaves1, tree1 = jax.tree.flatten(x1)
    leaves2, tree2 = jax.tree.flatten(x2)
    if tree1 != tree2:
        return False
    for a, b in zip(leaves1, leaves2):
        if a is b:
            continue
        if isinstance(a, Tracer) or isinstance(b, Tracer):
            return False
        if np.shape(a) != np.shape(b) or not np.array_equal(np.asarray(a), np.asarray(b)):
            return False
    return True


def split_kwargs(
    kwargs: dict[str, Any], x1: PyTree, x2: PyTree
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of the function at `x1` and at `x2`.

    A pair (a tuple of length 2) gives one value to each side. `rng` is used as it is on both sides
    when the inputs are the same, and split otherwise. Everything else goes to both.
    """
    first, second = {}, {}
    for name, value in kwargs.items():
        if isinstance(value, tuple) and len(value) == 2:
            first[name], second[name] = value
        elif name == "rng" and value is not None and not same_inputs(x1, x2):
            first[name], second[name] = jax.random.split(value)
        else:
            first[name] = second[name] = value
    return first, second


def check_implementation(caller: str, implementation: Any) -> NtkImplementation:
    """The member of NtkImplementation that a number or a member stands for."""
    try:
        return NtkImplementation(implementation)
    except ValueError:
        raise ValueError(
            f"{caller}: implementation must be an NtkImplementation or one of 0, 1, 2, 3, "
            f"got {implementation!r}."
        ) from None


def check_inputs(caller: str, x1: PyTree, x2: PyTree) -> None:
    """Refuses two sides of different structure before any work."""
    if x2 is None:
        return
    tree1, tree2 = jax.tree.structure(x1), jax.tree.structure(x2)
    if tree1 != tree2:
        raise ValueError(
            f"{caller}: x1 and x2 must have the same tree structure, got {tree1} and {tree2}. "
            "Pass x2=None for x2 = x1."
        )
