"""The direction of a Newton step, downhill also where the Hessian is indefinite or singular."""

import jax
import jax.numpy as jnp

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


def newton_direction(hessian: Array, gradient: Array) -> tuple[Array, Array]:
    """-|H|^+ g and the slope of the loss along it, -g^T |H|^+ g.

    |H| has the eigenvalues of `hessian` [d, d] without their signs; those that rounding made
    count as zero, and their directions are left alone.
    """
    epsilon = jnp.finfo(hessian.dtype).eps
    eigenvalues, vectors = jnp.linalg.eigh(hessian)
    size = jnp.abs(eigenvalues)
    usable = size > 8 * len(hessian) * epsilon * jnp.max(size)
    inverse = jnp.where(usable, 1 / jnp.where(usable, size, 1.0), 0.0)
    along = jnp.matmul(gradient, vectors, precision=HIGHEST)
    return -jnp.matmul(vectors, inverse * along, precision=HIGHEST), -jnp.sum(inverse * along**2)
