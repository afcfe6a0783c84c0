"""Taylor expansions of a function in its parameters."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any


def _is_live(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def _split(params: PyTree) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """The floating-point leaves, and the tree with others in their place."""
    leaves, tree = jax.tree.flatten(params)
    live = [k for k, leaf in enumerate(leaves) if _is_live(leaf)]

    def join(values: list[Array]) -> PyTree:
        full = list(leaves)
        for k, value in zip(live, values):
            full[k] = value
        return jax.tree.unflatten(tree, full)

    return [jnp.asarray(leaves[k]) for k in live], join


def _direction(caller: str, params: PyTree, new_params: PyTree) -> list[Array]:
    if jax.tree.structure(params) != jax.tree.structure(new_params):
        raise ValueError(
            f"{caller}: the parameters must have the structure they were expanded at, "
            f"{jax.tree.structure(params)}, got {jax.tree.structure(new_params)}."
        )
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(new_params)))
    for old, new in pairs:
        if jnp.shape(old) != jnp.shape(new):
            raise ValueError(
                f"{caller}: an array of the parameters has shape {jnp.shape(new)}, but the "
                f"expansion is about one of shape {jnp.shape(old)}; pass parameters of one network."
            )
    return [
        (jnp.asarray(new) - old).astype(jnp.result_type(old)) for old, new in pairs if _is_live(old)
    ]


def linearize(f: Callable[..., PyTree], params: PyTree) -> Callable[..., PyTree]:
    """The first-order Taylor series of `f` in its parameters.

    Args:
      f: `f(params, *args, **kwargs)`, pytrees in and out.
      params: the point of expansion.
    Returns:
      A function of the same signature, affine in its first argument. It may be differentiated and
      trained like any network, on minibatches or on everything.

    >>> import jax.numpy as jnp
    >>> linear = linearize(lambda w, x: x * w**2, jnp.float32(1.0))
    >>> print(linear(jnp.float32(1.5), 1.0))
    2.0
    """

    def linear(new_params: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        """`f` to first order in `new_params - params`."""
        direction = _direction("linearize", params, new_params)
        point, join = _split(params)
        value, slope = jax.jvp(
            lambda leaves: f(join(leaves), *args, **kwargs), (point,), (direction,)
        )
        return jax.tree.map(_add, value, slope)

    return linear


def taylor_expand(f: Callable[..., PyTree], params: PyTree, degree: int) -> Callable[..., PyTree]:
    """The Taylor series of `f` in its parameters, up to `degree`.

    All orders come from one pass of Taylor-mode differentiation (`jax.experimental.jet`), whose
    cost grows with the square of the degree. Where the function holds an operation that has no
    Taylor rule, directional derivatives are nested, and the cost is exponential in the degree.

    Args:
      f: `f(params, *args, **kwargs)`, pytrees in and out.
      params: the point of expansion.
      degree: order of the highest term, at least 0.
    Returns:
      A function of the signature of `f`, polynomial in `new_params - params`.
    Raises:
      ValueError: `degree` is not a non-negative integer.

    >>> import jax.numpy as jnp
    >>> cubic = taylor_expand(lambda w, x: x * w**3, jnp.float32(1.0), 2)
    >>> print(f"{cubic(jnp.float32(2.0), 1.0):.4f}")
    7.0000
    """
    if isinstance(degree, bool) or int(degree) != degree or degree < 0:
        raise ValueError(f"taylor_expand: degree must be an integer >= 0, got {degree!r}.")

    def expansion(new_params: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        """`f` to the chosen order in `new_params - params`."""
        direction = _direction("taylor_expand", params, new_params)
        point, join = _split(params)

        def along(leaves: list[Array]) -> PyTree:
            return f(join(leaves), *args, **kwargs)

        if degree == 0:
            return along(point)
        if degree == 1:
            return linearize(f, params)(new_params, *args, **kwargs)
        try:
            value, terms = _jet_terms(along, point, direction, int(degree))
        except (NotImplementedError, TypeError):
            value, terms = _nested_terms(along, point, direction, int(degree))
        for order, term in enumerate(terms, start=1):
            factor = 1.0 / math.factorial(order)
            value = jax.tree.map(lambda v, t, c=factor: _add(v, t, c), value, term)
        return value

    return expansion


def _add(value: Array, term: Array, factor: float = 1.0) -> Array:
    """value + factor * term, where term may be float0 (the derivative of an integer)."""
    if getattr(term, "dtype", None) == jax.dtypes.float0:
        return value
    return value + term if factor == 1.0 else value + factor * term


def _jet_terms(
    along: Callable[[list[Array]], PyTree], point: list[Array], direction: list[Array], degree: int
) -> tuple[PyTree, list[PyTree]]:
    """Value, and derivatives of order 1 to degree along a straight line."""
    from jax.experimental.jet import jet

    tree = jax.tree.structure(jax.eval_shape(along, point))

    def flat(*leaves: Array) -> list[Array]:
        return jax.tree.leaves(along(list(leaves)))

    series = tuple([d, *(jnp.zeros_like(d) for _ in range(degree - 1))] for d in direction)
    values, terms = jet(flat, tuple(point), series)
    by_order = [
        jax.tree.unflatten(tree, [term[order] for term in terms]) for order in range(degree)
    ]
    return jax.tree.unflatten(tree, values), by_order


def _nested_terms(
    along: Callable[[list[Array]], PyTree], point: list[Array], direction: list[Array], degree: int
) -> tuple[PyTree, list[PyTree]]:
    """The same by directional derivatives of directional derivatives."""
    functions = [along]
    for _ in range(degree):
        previous = functions[-1]
        functions.append(
            lambda leaves, previous=previous: jax.jvp(previous, (leaves,), (direction,))[1]
        )
    return along(point), [function(point) for function in functions[1:]]
