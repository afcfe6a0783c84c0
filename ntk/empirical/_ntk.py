"""Empirical tangent kernels: `empirical_ntk_fn`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk.empirical._arguments import (
    NtkImplementation,
    VmapAxes,
    as_vmap_axes,
    check_implementation,
    check_inputs,
    split_kwargs,
)
from ntk.empirical._blocks import in_blocks
from ntk.empirical._choose import choose
from ntk.empirical._independence import is_independent
from ntk.empirical._jacobian import jacobian_kernels
from ntk.empirical._layout import kernel_layout
from ntk.empirical._problem import Side, make_side
from ntk.empirical._products import product_kernels
from ntk.empirical._structured import make_plan, structured_kernels

Array = jax.Array
PyTree = Any
NAME = "empirical_ntk_fn"


def empirical_ntk_fn(
    f: Callable[..., PyTree],
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = NtkImplementation.AUTO,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
    *,
    max_memory: float | None = None,
) -> Callable[..., PyTree]:
    """A function that computes the tangent kernel J(x1) J(x2)^T of a finite network.

    Args:
      f: `f(params, x, **kwargs)`; parameters, inputs and outputs are pytrees. Every output leaf has
        a kernel of its own; there are no terms between leaves.
      trace_axes: output axes to trace over, divided by their size. They are absent in the kernel.
      diagonal_axes: output axes of which only the diagonal is computed. They appear once.
      vmap_axes: an axis, or (in_axes, out_axes, kwargs_axes), along which `f` is a map over
        independent examples. None: whether axis 0 is one is read off the trace of `f`
        (`ntk.empirical._independence`), so it need not be given for speed.
      implementation: a method of NtkImplementation. The default predicts the cost of each.
      _j_rules, _s_rules, _fwd: accepted for neural-tangents' sake; they change nothing here.
      max_memory: bytes that intermediate values may take, the kernel itself not counted. Where
        no method fits, the mapped axis is worked off in blocks.
    Returns:
      `ntk_fn(x1, x2, params, **kwargs)`. Its result has the axes of `f(x1)` and `f(x2)` zipped,
      (n1, n2, o1, o2, ...), less the traced axes, with diagonal axes once. `x2=None` means `x1`.
      A keyword argument that is a pair gives one value to each side.
    Raises:
      ValueError: an axis does not exist or is named twice, or the sides do not fit.

    >>> import jax.numpy as jnp
    >>> kernel_fn = empirical_ntk_fn(lambda w, x: x @ w)
    >>> kernel_fn(jnp.array([[1.0, 2.0]]), None, jnp.ones((2, 3)))
    Array([[5.]], dtype=float32)
    """
    del _j_rules, _s_rules, _fwd
    method = check_implementation(NAME, implementation)
    axes = as_vmap_axes(NAME, vmap_axes)
    if max_memory is not None and not max_memory > 0:
        raise ValueError(f"{NAME}: max_memory must be a positive number of bytes or None.")

    @functools.partial(jax.jit, static_argnames=("frozen",))
    def compiled(x1, x2, params, arrays1, arrays2, frozen):
        rest1, rest2 = dict(frozen.value[0]), dict(frozen.value[1])
        return _kernel(
            f,
            x1,
            x2,
            params,
            {**arrays1, **rest1},
            {**arrays2, **rest2},
            trace_axes=trace_axes,
            diagonal_axes=diagonal_axes,
            axes=axes,
            method=method,
            max_memory=max_memory,
        )

    def ntk_fn(x1: PyTree, x2: PyTree | None, params: PyTree, **apply_fn_kwargs: Any) -> PyTree:
        """The tangent kernel of `f` between `x1` and `x2` at `params`."""
        check_inputs(NAME, x1, x2)
        kwargs1, kwargs2 = split_kwargs(apply_fn_kwargs, x1, x2)
        arrays1, rest1 = _partition(kwargs1)
        arrays2, rest2 = _partition(kwargs2)
        return compiled(x1, x2, params, arrays1, arrays2, frozen=Frozen((rest1, rest2)))

    return ntk_fn


class Frozen:
    """Keyword arguments that are not arrays, compared by value where they can be."""

    def __init__(self, value: tuple[dict[str, Any], dict[str, Any]]):
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frozen):
            return False
        try:
            return bool(self.value == other.value)
        except (ValueError, TypeError):
            return self is other

    def __hash__(self) -> int:
        return hash(tuple(tuple(sorted(side)) for side in self.value))


def _partition(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments made of arrays alone, and all others."""

    def is_arrays(value: Any) -> bool:
        leaves = jax.tree.leaves(value)
        return bool(leaves) and all(isinstance(v, jax.Array | np.ndarray) for v in leaves)

    arrays = {k: v for k, v in kwargs.items() if is_arrays(v)}
    return arrays, {k: v for k, v in kwargs.items() if k not in arrays}


def _kernel(
    f: Callable[..., PyTree],
    x1: PyTree,
    x2: PyTree | None,
    params: PyTree,
    kwargs1: dict[str, Any],
    kwargs2: dict[str, Any],
    *,
    trace_axes: int | Sequence[int],
    diagonal_axes: int | Sequence[int],
    axes: VmapAxes | None,
    method: NtkImplementation,
    max_memory: float | None,
) -> PyTree:
    params = jax.tree.map(jnp.asarray, params)
    x1 = jax.tree.map(jnp.asarray, x1)
    x2 = None if x2 is None else jax.tree.map(jnp.asarray, x2)
    leaves, tree = jax.tree.flatten(params)
    trainable = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    if not any(trainable):
        raise ValueError(f"{NAME}: params hold no floating-point array to differentiate in.")
    same = x2 is None and all(kwargs1[k] is kwargs2[k] for k in kwargs1)
    if axes is None:
        sides = [(x1, kwargs1)] if same else [(x1, kwargs1), (x1 if x2 is None else x2, kwargs2)]
        if all(is_independent(f, params, x, kwargs) for x, kwargs in sides):
            axes = VmapAxes(0, 0, {})
    side1 = make_side(f, tree, x1, kwargs1, leaves, axes, NAME)
    side2 = side1
    if not same:
        side2 = make_side(f, tree, x1 if x2 is None else x2, kwargs2, leaves, axes, NAME)
    if side1.output_tree != side2.output_tree:
        raise ValueError(f"{NAME}: f returns different trees on x1 and on x2.")
    layouts = [
        kernel_layout(NAME, shape1, shape2, trace_axes, diagonal_axes, axis)
        for shape1, shape2, axis in zip(side1.output_shapes, side2.output_shapes, side1.output_axes)
    ]
    plan = make_plan(side1, side2, leaves, trainable)
    decision = choose(side1, side2, leaves, trainable, layouts, plan, method, max_memory)

    def compute(one: Side, two: Side) -> list[Array]:
        if decision.method is NtkImplementation.JACOBIAN_CONTRACTION:
            return jacobian_kernels(one, two, leaves, trainable, layouts)
        if decision.method is NtkImplementation.NTK_VECTOR_PRODUCTS:
            return product_kernels(one, two, leaves, trainable, layouts, max_memory)
        return structured_kernels(one, two, leaves, trainable, layouts, plan)

    if decision.blocks is None:
        kernels = compute(side1, side2)
    else:
        kernels = in_blocks(compute, side1, side2, layouts, decision.blocks)
    return jax.tree.unflatten(side1.output_tree, kernels)
