"""Empirical output kernels and both kernels at once."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.empirical._arguments import NtkImplementation, check_inputs, split_kwargs
from ntk.empirical._layout import Factor, arrange, kernel_layout, multiply
from ntk.empirical._ntk import empirical_ntk_fn

Array = jax.Array
PyTree = Any


@functools.cache
def empirical_kernel_type(names: tuple[str, ...]) -> Any:
    """The named tuple that holds the kernels asked for, and no others."""
    return collections.namedtuple("EmpiricalKernel", names)


def empirical_nngp_fn(
    f: Callable[..., PyTree],
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
) -> Callable[..., PyTree]:
    """A function that computes the outer product f(x1) f(x2)^T.

    Args:
      f: `f(params, x, **kwargs)`; pytrees in and out.
      trace_axes: output axes to trace over, divided by their size. They are absent in the kernel.
      diagonal_axes: output axes of which only the diagonal is computed. They appear once.
    Returns:
      `nngp_fn(x1, x2, params, **kwargs)`, with the axes of `f(x1)` and `f(x2)` zipped.

    >>> import jax.numpy as jnp
    >>> kernel_fn = empirical_nngp_fn(lambda w, x: x @ w)
    >>> kernel_fn(jnp.array([[1.0, 2.0]]), None, jnp.ones((2, 3)))
    Array([[9.]], dtype=float32)
    """

    def nngp_fn(x1: PyTree, x2: PyTree | None, params: PyTree, **apply_fn_kwargs: Any) -> PyTree:
        """The output kernel of `f` between `x1` and `x2` at `params`."""
        check_inputs("empirical_nngp_fn", x1, x2)
        kwargs1, kwargs2 = split_kwargs(apply_fn_kwargs, x1, x2)
        same = x2 is None and all(kwargs1[k] is kwargs2[k] for k in kwargs1)
        out1 = f(params, x1, **kwargs1)
        out2 = out1 if same else f(params, x1 if x2 is None else x2, **kwargs2)

        def outer(a: Array, b: Array) -> Array:
            a, b = jnp.asarray(a), jnp.asarray(b)
            layout = kernel_layout("empirical_nngp_fn", a.shape, b.shape, trace_axes, diagonal_axes)
            product = multiply(Factor(a, layout.rows1), Factor(b, layout.rows2), layout.entries)
            return arrange(product, layout.entries) / layout.normalizer

        return jax.tree.map(outer, out1, out2)

    return nngp_fn


def empirical_kernel_fn(
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
) -> Callable[..., Any]:
    """A function that computes either kernel of a finite network, or both.

    Args: those of `empirical_ntk_fn`.
    Returns:
      `kernel_fn(x1, x2, get, params, **kwargs)`. `get` is "nngp", "ntk", a tuple of them, or None
      for both. A string gives the kernel itself, a tuple a named tuple with these fields; where `f`
      returns a tree, a tree of named tuples.
    Raises:
      ValueError: `get` asks for something else.
    """
    functions = {
        "nngp": empirical_nngp_fn(f, trace_axes, diagonal_axes),
        "ntk": empirical_ntk_fn(
            f,
            trace_axes,
            diagonal_axes,
            vmap_axes,
            implementation,
            max_memory=max_memory,
        ),
    }

    def kernel_fn(
        x1: PyTree,
        x2: PyTree | None,
        get: str | tuple[str, ...] | None,
        params: PyTree,
        **apply_fn_kwargs: Any,
    ) -> Any:
        """The kernels named by `get` between `x1` and `x2` at `params`."""
        wanted = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else tuple(get)
        for name in wanted:
            if name not in functions:
                raise ValueError(
                    f"empirical_kernel_fn: get={get!r} must name 'nngp' or 'ntk', got {name!r}."
                )
        found = {name: functions[name](x1, x2, params, **apply_fn_kwargs) for name in wanted}
        if isinstance(get, str):
            return found[get]
        kernel = empirical_kernel_type(wanted)
        return jax.tree.map(lambda *leaves: kernel(*leaves), *(found[name] for name in wanted))

    return kernel_fn
