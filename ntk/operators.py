"""Kernels as linear operators: products, solves and determinants without the Gram matrix.

An operator computes K v block of rows by block of rows from `kernel_fn`, or through any function
v -> K v such as `empirical_ntk_vp_fn` makes. Memory is one block of rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class KernelOperator:
    """A symmetric positive semidefinite operator on vectors [n] or [n, C].

    Attributes:
      product: [n, C] -> [n, C].
      size: n.
      diagonal: [n], or None when unknown.
      columns: indices -> columns [n, k], or None; what `nystrom` needs.
    """

    product: Callable[[Array], Array]
    size: int
    diagonal: Array | None = None
    columns: Callable[[Array], Array] | None = None

    def __matmul__(self, v: Array) -> Array:
        """K v."""
        v = jnp.asarray(v)
        if v.ndim not in (1, 2) or v.shape[0] != self.size:
            raise ValueError(f"operator of size {self.size} cannot multiply shape {v.shape}.")
        return self.product(v[:, None])[:, 0] if v.ndim == 1 else self.product(v)

    def dense(self) -> Array:
        """The matrix, for small sizes."""
        return self @ jnp.eye(self.size)


def from_kernel_fn(
    kernel_fn: Callable[..., Any], x: Array, *, get: str = "ntk", block: int = 256, **kwargs: Any
) -> KernelOperator:
    """The operator of an infinite-width kernel on inputs.

    Args:
      kernel_fn: `kernel_fn(x1, x2, get)`.
      x: inputs, batch first.
      get: "ntk" or "nngp"; the kernel must have one number per pair of inputs.
      block: rows computed at a time.
      **kwargs: passed on to `kernel_fn`.
    """
    x = jnp.asarray(x)
    size = x.shape[0]
    if block < 1:
        raise ValueError(f"from_kernel_fn: block must be at least 1, got {block}.")
    block = min(block, size)
    count = -(-size // block)

    def rows(start):
        index = jnp.minimum(start + jnp.arange(block), size - 1)
        return kernel_fn(x[index], x, get, **kwargs)

    def product(v):
        out = jax.lax.map(lambda start: rows(start) @ v, jnp.arange(count) * block)
        return out.reshape((count * block, v.shape[1]))[:size]

    diagonal = jax.lax.map(lambda one: kernel_fn(one[None], None, get, **kwargs)[0, 0], x)
    return KernelOperator(
        product, size, diagonal, lambda index: kernel_fn(x, x[index], get, **kwargs)
    )


def from_product(product: Callable[[Array], Array], size: int) -> KernelOperator:
    """The operator of a function [n] -> [n], applied column by column.

    Args:
      product: linear, symmetric, positive semidefinite.
      size: n.
    """
    return KernelOperator(jax.vmap(product, in_axes=1, out_axes=1), size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """What `solve` returns.

    Attributes:
      value: approximately (K + noise)^-1 y, [n] or [n, C].
      residual: largest norm of a column of y - (K + noise) value, over that of y; NaN where y or K
        holds NaN.
      steps: iterations taken.
    """

    value: Array
    residual: Array
    steps: Array


def solve(
    operator: KernelOperator,
    y: Array,
    *,
    noise: Any,
    tolerance: float = 1e-8,
    max_steps: int = 1000,
    preconditioner: Callable[[Array], Array] | None = None,
) -> Solution:
    """Solves (K + noise) x = y by preconditioned conjugate gradients, all columns at once.

    Args:
      operator: K.
      y: right-hand sides, [n] or [n, C].
      noise: added to the diagonal.
      tolerance: relative residual at which a column is done.
      max_steps: iterations at most; look at `residual` of the result.
      preconditioner: an approximate inverse, such as `nystrom` makes.
    """
    y = jnp.asarray(y)
    flat = y[:, None] if y.ndim == 1 else y
    inverse = (lambda v: v) if preconditioner is None else preconditioner

    def dot(a, b):
        return jnp.sum(a * b, axis=0, keepdims=True)

    def ratio(a, b):
        return jnp.where(b <= 0, 0, a / jnp.where(b <= 0, 1, b))  # NaN where a or b is

    norm = jnp.sqrt(dot(flat, flat))

    def unfinished(state):
        _, rest, _, _, step = state
        left = jnp.sqrt(dot(rest, rest)) > tolerance * norm
        return jnp.any(left) & (step < max_steps)

    def iterate(state):
        x, rest, direction, rho, step = state
        image = operator @ direction + noise * direction
        length = ratio(rho, dot(direction, image))
        x, rest = x + length * direction, rest - length * image
        z = inverse(rest)
        new = dot(rest, z)
        return x, rest, z + ratio(new, rho) * direction, new, step + 1

    z = inverse(flat)
    start = (jnp.zeros_like(flat), flat, z, dot(flat, z), jnp.asarray(0))
    x, _, _, _, steps = jax.lax.while_loop(unfinished, iterate, start)
    true = flat - operator @ x - noise * x
    left = ratio(jnp.sqrt(dot(true, true)), norm)
    # XLA's maximum on a CPU passes over NaN where there are thousands of columns.
    worst = jnp.where(jnp.any(jnp.isnan(left)), jnp.nan, jnp.max(left))
    return Solution(x[:, 0] if y.ndim == 1 else x, worst, steps)


def nystrom(
    operator: KernelOperator, rank: int, *, noise: Any, key: Array
) -> Callable[[Array], Array]:
    """A preconditioner from `rank` columns: the inverse of their Nystrom approximation + noise.

    Args:
      operator: K, with `columns`.
      rank: number of columns, drawn without replacement.
      noise: added to the diagonal, positive.
      key: random key.
    """
    if operator.columns is None:
        raise ValueError("nystrom: the operator has no columns; make it with from_kernel_fn.")
    if not 1 <= rank <= operator.size:
        raise ValueError(f"nystrom: rank must be in 1..{operator.size}, got {rank}.")
    index = jax.random.choice(key, operator.size, (rank,), replace=False)
    tall = operator.columns(index)
    core = tall[index]
    # A jitter of a few roundings keeps the factorization of a nearly singular core real.
    jitter = 10 * rank * jnp.finfo(core.dtype).eps * jnp.trace(core) / rank
    core = core + jitter * jnp.eye(rank, dtype=core.dtype)
    inner = cho_factor(core * noise + tall.T @ tall, lower=True)

    def inverse(v):
        return (v - tall @ cho_solve(inner, tall.T @ v)) / noise

    return inverse


def log_determinant(
    operator: KernelOperator, *, noise: Any, num_steps: int, num_samples: int, key: Array
) -> tuple[Array, Array]:
    """log det (K + noise) by stochastic Lanczos quadrature, with its standard error.

    Args:
      operator: K.
      noise: added to the diagonal, positive.
      num_steps: of Lanczos, with full reorthogonalization.
      num_samples: random signs, at least 2.
      key: random key.
    """
    if num_samples < 2:
        raise ValueError(f"log_determinant: num_samples must be at least 2, got {num_samples}.")
    num_steps = min(num_steps, operator.size)
    size = operator.size

    def one(key):
        start = jax.random.rademacher(key, (size,), jnp.zeros(()).dtype) / jnp.sqrt(size)

        def step(carry, i):
            basis, vector = carry
            basis = basis.at[i].set(vector)
            image = operator @ vector + noise * vector
            alpha = image @ vector
            for _ in range(2):
                image = image - basis.T @ (basis @ image)
            beta = jnp.linalg.norm(image)
            return (basis, image / jnp.where(beta > 0, beta, 1)), (alpha, beta)

        empty = jnp.zeros((num_steps, size), start.dtype)
        _, (alphas, betas) = jax.lax.scan(step, (empty, start), jnp.arange(num_steps))
        values, vectors = jnp.linalg.eigh(
            jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
        )
        return size * jnp.sum(vectors[0] ** 2 * jnp.log(jnp.maximum(values, noise)))

    values = jax.lax.map(one, jax.random.split(key, num_samples))
    return jnp.mean(values), jnp.std(values, ddof=1) / jnp.sqrt(num_samples)
