"""Lanczos with full re-orthogonalisation (matfree), safe where the Krylov space ends early."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matfree import decomp

Array = jax.Array


class Ritz(NamedTuple):
    """Ritz pairs of a symmetric matrix, in ascending order of their values."""

    values: Array  # [m]
    residuals: Array  # [m] norm of C v - theta v
    first: Array  # [m] first component of each eigenvector of the tridiagonal matrix
    vectors: Array  # [m, n] Ritz vectors
    valid: Array  # bool [m]; False past the end of a Krylov space that ended early


def lanczos(product: Callable[[Array], Array], start: Array, num_iters: int) -> Ritz:
    """Ritz pairs after `num_iters` products, from a start vector [n]; num_iters <= n.

    A matrix with few distinct eigenvalues (a network with many idle weights) exhausts its Krylov
    space early. The next basis vector is then a normalised rounding error, or 0 / 0, and what it
    adds to the spectrum is noise; the space is cut there.
    """
    found = decomp.hessenberg(num_iters, reortho="full", custom_vjp=False)(product, start)
    basis = jnp.asarray(found.Q_tall)  # [m, n]
    diagonal = jnp.diagonal(found.J_small)
    # The lower diagonal holds norms of remainders; the upper one, products with the next vector.
    beside = jnp.diagonal(found.J_small, offset=-1)
    eps = jnp.finfo(start.dtype).eps
    size = jnp.maximum(jax.lax.cummax(jnp.abs(diagonal))[:-1], jax.lax.cummax(jnp.abs(beside)))
    goes_on = jnp.isfinite(beside) & (beside > 16 * eps * size)
    overlap = jnp.max(jnp.abs(jnp.triu(basis @ basis.T, 1)), axis=0)
    sound = jnp.isfinite(diagonal) & (overlap < jnp.sqrt(eps))
    known = jnp.cumprod(sound.at[1:].set(sound[1:] & goes_on)).astype(bool)

    diagonal = jnp.where(known, diagonal, 0.0)
    leaving = jnp.append(beside, jnp.linalg.norm(jnp.asarray(found.residual)))
    leaving = jnp.where(jnp.isfinite(leaving), leaving, 0.0)
    leaving = jnp.where(known & ~jnp.append(known[1:], False), leaving, 0.0)
    beside = jnp.where(known[1:], beside, 0.0)
    basis = jnp.where(known[:, None], basis, 0.0)
    matrix = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    values, small = jnp.linalg.eigh(matrix)
    # Below this, a residual says more about rounding than about the eigenvalue.
    floor = 8 * eps * jnp.max(jnp.abs(values))
    return Ritz(
        values=values,
        residuals=jnp.abs(leaving @ small) + floor,
        first=small[0],
        vectors=small.T @ basis,
        valid=jnp.sum(jnp.where(known[:, None], 0.0, small**2), axis=0) < 0.5,
    )
