"""A kappa from a linear minimisation oracle: any compact convex set as the constraint."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lion_lyapunov._kappa import Array, Kappa, keep_dtype, make_kappa


def from_lmo(
    fn: Callable[[Array], Array],
    *,
    project: Callable[[Array], Array] | None = None,
    is_even: bool = False,
    name: str = "from_lmo",
    num_iterations: int = 2000,
) -> Kappa:
    """The support function K(z) = max over C of <c, z>, so that weight_decay x stays in C.

    Args:
      fn: `fn(z)` returns a minimiser of <c, z> over C, of the shape of z (a Frank-Wolfe oracle).
      project: nearest point of C. Without it, Frank-Wolfe steps find it to a relative accuracy of
        1e-6 on round sets, less on polytopes; `subgradient` and `value` do not need it.
      is_even: whether C = -C.
      name: shown in messages.
      num_iterations: most Frank-Wolfe steps of the projection.
    """
    if not callable(fn):
        raise TypeError(f"from_lmo: fn must be a function of an array, got {fn!r}.")

    def subgradient(z):
        # Oracles that normalise their argument answer NaN at 0, where every point of C would do.
        zero = jnp.all(z == 0)
        vertex = fn(-jnp.where(zero, jnp.ones_like(z), z))
        return jnp.where(zero, 0.0, vertex) if is_even else vertex

    def frank_wolfe(y):
        def unfinished(carry):
            step, _, gap = carry
            return (step < num_iterations) & (gap > 1e-14 * (1.0 + jnp.sum(y * y)))

        def move(carry):
            step, x, _ = carry
            vertex = fn(x - y)
            direction = jnp.where(jnp.all(x == y), 0.0, vertex - x)
            gap = jnp.sum((y - x) * direction)
            length = jnp.sum(direction * direction)
            rate = jnp.clip(gap / jnp.where(length > 0, length, 1.0), 0.0, 1.0)
            return step + 1, x + rate * direction, gap

        start = (jnp.int32(0), subgradient(y), jnp.asarray(jnp.inf, y.dtype))
        return jax.lax.while_loop(unfinished, move, start)[1]

    nearest = project if project is not None else frank_wolfe
    tolerance = 1e-6 if project is None else None

    def conjugate(y):
        distance = jnp.sqrt(jnp.sum((y - nearest(y)) ** 2))
        allowed = tolerance if tolerance is not None else 64 * float(jnp.finfo(y.dtype).eps)
        inside = distance <= allowed * (1.0 + jnp.sqrt(jnp.sum(y * y)))
        return jnp.where(inside, 0.0, jnp.inf).astype(y.dtype)

    return make_kappa(
        name=name,
        value=keep_dtype(lambda z: jnp.sum(z * subgradient(z))),
        subgradient=subgradient,
        conjugate=keep_dtype(conjugate),
        project=keep_dtype(nearest),
        conjugate_subgradient=jnp.zeros_like,
        dual_norm=None,
        is_even=is_even,
        is_smooth=False,
        is_support=True,
        tie_rule="whatever the oracle returns; the zero array gets 0 if C = -C, else a point of C",
    )
