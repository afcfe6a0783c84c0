"""`max_learning_rate`: the largest stable step, by Lanczos."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk.predict._frame import check_finite

Array = jax.Array
NAME = "max_learning_rate"
DENSE = 64  # up to this size the whole spectrum costs less than the iteration


def max_learning_rate(
    ntk_train_train: Array,
    y_train_size: int | None = None,
    momentum: float = 0.0,
    eps: float = 1e-12,
) -> Array:
    """The largest learning rate at which gradient descent on the squared loss does not diverge.

    2 (1 + momentum) y_train_size / lambda_max, for the loss 1/2 mean((f - y)^2).

    Args:
      ntk_train_train: tangent kernel, [n, n] or with zipped axes [n, n, o, o, ...].
      y_train_size: number of targets. None: as many as the kernel has rows (trace_axes=()).
      momentum: of heavy-ball momentum.
      eps: added to lambda_max.
    Returns:
      A scalar.
    Raises:
      ValueError: the kernel is not square, or an entry is not finite.

    >>> import jax.numpy as jnp
    >>> print(max_learning_rate(jnp.diag(jnp.array([1.0, 4.0]))))
    1.0
    """
    kernel = jnp.asarray(ntk_train_train)
    if kernel.ndim % 2 or kernel.shape[0::2] != kernel.shape[1::2]:
        raise ValueError(
            f"{NAME}: ntk_train_train must have pairs of equal axes, (n, n) or (n, n, o, o), "
            f"got shape {kernel.shape}."
        )
    check_finite(NAME, ntk_train_train=kernel)
    ndim = kernel.ndim // 2
    order = [2 * k for k in range(ndim)] + [2 * k + 1 for k in range(ndim)]
    rows = int(np.prod(kernel.shape[0::2]))
    matrix = jnp.transpose(kernel, order).reshape((rows, rows))
    size = rows if y_train_size is None else y_train_size
    return 2.0 * (1.0 + momentum) * size / (top_eigenvalue(matrix) + eps)


def top_eigenvalue(matrix: Array, num_iters: int = 48, restarts: int = 20) -> Array:
    """The largest eigenvalue of a symmetric matrix.

    Lanczos with full reorthogonalization, restarted from its best vector until the residual is at
    the level of rounding; dense below size 64.

    Args:
      matrix: [n, n].
      num_iters: steps between restarts.
      restarts: at most so many.
    Returns:
      A scalar, differentiable: its derivative is v v^T for the eigenvector v.
    """
    count = matrix.shape[0]
    if count <= DENSE:
        return jnp.linalg.eigvalsh(matrix)[-1]
    fixed = jax.lax.stop_gradient(0.5 * (matrix + matrix.T))
    tolerance = 16 * jnp.finfo(fixed.dtype).eps

    def lanczos(start: Array) -> tuple[Array, Array]:
        basis = jnp.zeros((num_iters, count), fixed.dtype)

        def step(carry: Any, k: Any) -> Any:
            basis, vector = carry
            basis = basis.at[k].set(vector)
            image = fixed @ vector
            rest = image - basis.T @ (basis @ image)
            rest = rest - basis.T @ (basis @ rest)
            norm = jnp.linalg.norm(rest)
            # An invariant subspace was found: go on with a zero vector, which adds nothing.
            small = norm <= tolerance * jnp.linalg.norm(image)
            return (basis, jnp.where(small, 0.0, rest / jnp.where(small, 1.0, norm))), None

        (basis, _), _ = jax.lax.scan(step, (basis, start), jnp.arange(num_iters))
        values, vectors = jnp.linalg.eigh(basis @ (fixed @ basis.T))
        best = basis.T @ vectors[:, -1]
        return values[-1], best / jnp.linalg.norm(best)

    def unfinished(carry: Any) -> Array:
        _, _, residual, value, number = carry
        return (number < restarts) & (residual > tolerance * jnp.abs(value) * count**0.5)

    def again(carry: Any) -> Any:
        vector, _, _, _, number = carry
        value, best = lanczos(vector)
        residual = jnp.linalg.norm(fixed @ best - value * best)
        return best, vector, residual, value, number + 1

    # Positive entries: never orthogonal to the top vector of a kernel with positive entries, and
    # generic for any other.
    start = 1.0 + 0.5 * jnp.cos(jnp.arange(count, dtype=fixed.dtype) ** 2)
    start = start / jnp.linalg.norm(start)
    first = (start, start, jnp.asarray(jnp.inf, fixed.dtype), jnp.ones((), fixed.dtype), 0)
    vector = jax.lax.while_loop(unfinished, again, first)[0]
    vector = jax.lax.stop_gradient(vector)
    return vector @ (0.5 * (matrix + matrix.T)) @ vector
