"""Extreme eigenvalues of the Hessian or the Gauss-Newton matrix."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sam_free._checks import check_choice, check_whole
from sam_free.sharpness._data import Array, Data, LossFn, PyTree, gather_data
from sam_free.sharpness._lanczos import lanczos
from sam_free.sharpness._operator import check_curvature, curvature_product


class Eigenvalues(NamedTuple):
    """Extreme eigenvalues and how well they are known."""

    value: Array  # [k]
    error: Array  # [k] norm of C v - value v: some eigenvalue lies within it
    vectors: PyTree  # trees like the parameters with a leading axis [k]; unit length


def top_eigenvalues(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    *,
    k: int = 1,
    which: str = "LA",
    num_iters: int = 40,
    key: Array,
    curvature: str = "hessian",
    devices: Sequence[Any] | None = None,
) -> Eigenvalues:
    """The k largest, smallest, or largest-in-magnitude eigenvalues of the loss's curvature.

    Lanczos with full re-orthogonalisation on products with the Hessian of the mean loss over all
    batches. Power iteration, the usual snippet, finds the largest magnitude: where the Hessian has
    eigenvalues -0.9 and 0.4 it reports the wrong one.

    Args:
      loss_fn: `(params, batch) -> mean loss`, or that with something beside it.
      params: where; the result has their dtype (float32 resolves about 1e-6 of the largest).
      batches: the data set, see `sharpness`.
      k: how many.
      which: "LA" largest, "SA" smallest, "LM" largest in magnitude.
      num_iters: products with the matrix, each about two gradients of the data set; at most as
        many as there are parameters. Raise it until `error` is small enough.
      key: for the start vector.
      curvature: "hessian", or "gauss_newton" with a `split_loss`.
      devices: spread the examples over these.
    Returns:
      `value` [k], `error` [k], and `vectors`. The error is the norm of the residual: an
      eigenvalue lies within it.
    Raises:
      ValueError: an argument is out of its range, or the data set is empty.
    """
    check_whole("top_eigenvalues", least=1, k=k, num_iters=num_iters)
    check_choice("top_eigenvalues", choices=("LA", "SA", "LM"), which=which)
    check_curvature("top_eigenvalues", loss_fn, curvature)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    num_iters = min(num_iters, size)
    if k > num_iters:
        raise ValueError(
            f"top_eigenvalues: k={k} must be at most num_iters and the number of parameters, "
            f"{num_iters}."
        )
    data = gather_data(batches, devices=devices)
    return _solve(loss_fn, params, data, key, k, which, num_iters, curvature)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def _solve(
    loss_fn: LossFn,
    params: PyTree,
    data: Data,
    key: Array,
    k: int,
    which: str,
    num_iters: int,
    curvature: str,
) -> Eigenvalues:
    product, flat = curvature_product(loss_fn, params, data, curvature)
    ritz = lanczos(product, jax.random.normal(key, flat.shape, flat.dtype), num_iters)
    score = {"LA": ritz.values, "SA": -ritz.values, "LM": jnp.abs(ritz.values)}[which]
    chosen = jax.lax.top_k(jnp.where(ritz.valid, score, -jnp.inf), k)[1]
    unravel = ravel_pytree(params)[1]
    return Eigenvalues(
        value=ritz.values[chosen],
        error=ritz.residuals[chosen],
        vectors=jax.vmap(unravel)(ritz.vectors[chosen]),
    )
