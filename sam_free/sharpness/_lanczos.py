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
    """Ritz pairs after `num_iters` products, from a start vector [n]; num_iters <= n."""
    basis, (diagonal, beside), remainder, _ = decomp.tridiag_sym(
        num_iters, materialize=False, reortho="full", custom_vjp=False
    )(product, start)
    # An exactly invariant space makes the next basis vector 0 / 0; what came before it stands.
    known = jnp.cumprod(jnp.isfinite(diagonal)).astype(bool)
    diagonal = jnp.where(known, diagonal, 0.0)
    beside = jnp.where(known[1:] & jnp.isfinite(beside), beside, 0.0)
    basis = jnp.asarray(basis).reshape(start.shape[0], num_iters)
    basis = jnp.where(known[None, :], basis, 0.0)
    last = jnp.linalg.norm(remainder)
    last = jnp.where(jnp.isfinite(last) & known[-1], last, 0.0)
    matrix = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    values, small = jnp.linalg.eigh(matrix)
    # Below this, a residual says more about rounding than about the eigenvalue.
    floor = 8 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    return Ritz(
        values=values,
        residuals=jnp.abs(last * small[-1]) + floor,
        first=small[0],
        vectors=(basis @ small).T,
        valid=jnp.sum(jnp.where(known[:, None], 0.0, small**2), axis=0) < 0.5,
    )
