"""How a kernel moves while its network is trained, and how well it fits the task."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.empirical import empirical_ntk_fn

Array = jax.Array
PyTree = Any


def _matrix(kernel: Array) -> Array:
    """A kernel with zipped axes as a matrix."""
    if kernel.ndim % 2:
        raise ValueError(f"a kernel has pairs of axes; got shape {kernel.shape}.")
    ndim = kernel.ndim // 2
    order = [2 * k for k in range(ndim)] + [2 * k + 1 for k in range(ndim)]
    moved = jnp.transpose(kernel, order)
    return moved.reshape((math.prod(moved.shape[:ndim]), -1))


def kernel_drift(kernel: Array, reference: Array) -> Array:
    """Relative change |kernel - reference| / |reference| in Frobenius norm.

    >>> import jax.numpy as jnp
    >>> print(kernel_drift(1.5 * jnp.eye(3), jnp.eye(3)))
    0.5
    """
    return jnp.linalg.norm((kernel - reference).ravel()) / jnp.linalg.norm(reference.ravel())


def kernel_distance(kernel: Array, reference: Array) -> Array:
    """1 - cosine between two kernels: 0 where they differ by a factor only (arXiv:2010.15110)."""
    a, b = kernel.ravel(), reference.ravel()
    return 1.0 - (a @ b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


def alignment(kernel: Array, targets: Array, *, centered: bool = False) -> Array:
    """Cosine between a kernel and the outer product of the targets (kernel-target alignment).

    Args:
      kernel: [n, n], or zipped with the axes of the targets.
      targets: [n] or [n, outputs]; a kernel [n, n] sees the sum over outputs.
      centered: remove the means of rows and columns first (arXiv:1203.0550).
    Returns:
      A scalar in [-1, 1]; 1 where the kernel is proportional to y y^T.
    """
    matrix = _matrix(kernel)
    columns = targets.reshape((matrix.shape[0], -1))
    outer = columns @ columns.T
    if centered:
        matrix, outer = _center(matrix), _center(outer)
    return jnp.sum(matrix * outer) / (jnp.linalg.norm(matrix) * jnp.linalg.norm(outer))


def _center(matrix: Array) -> Array:
    rows = matrix - jnp.mean(matrix, axis=0, keepdims=True)
    return rows - jnp.mean(rows, axis=1, keepdims=True)


def spectrum(kernel: Array) -> Array:
    """Eigenvalues of a kernel, largest first."""
    return jnp.linalg.eigvalsh(_matrix(kernel))[::-1]


def participation_ratio(kernel: Array) -> Array:
    """(sum of eigenvalues)^2 / sum of squares: how many directions the kernel has, smoothly."""
    matrix = _matrix(kernel)
    return jnp.trace(matrix) ** 2 / jnp.sum(matrix**2)


def parameter_distance(params: PyTree, reference: PyTree) -> Array:
    """Relative distance of parameters in Euclidean norm."""
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(reference)))
    moved = sum(jnp.sum((a - b) ** 2) for a, b in pairs)
    return jnp.sqrt(moved / sum(jnp.sum(b**2) for _, b in pairs))


def probe(
    f: Callable[[PyTree, Any], Array],
    inputs: Any,
    params: PyTree,
    *,
    targets: Array | None = None,
    trace_axes: int | Sequence[int] = (-1,),
    num_eigenvalues: int = 0,
) -> Callable[..., Mapping[str, Array]]:
    """A probe of a training loop: how far the tangent kernel has moved.

    Args:
      f: `f(params, x)`.
      inputs: the fixed inputs on which the kernel is followed.
      params: where it started.
      targets: of these inputs, for the alignment.
      trace_axes: of the kernel.
      num_eigenvalues: how many of the largest to report.
    Returns:
      `(state, batch) -> dict of scalars` for a state with a field `params`; `batch` is not used.
      `drift`, `distance`, `parameters`, `alignment` (with targets), `eigenvalue_0`, ...
    """
    kernel_fn = empirical_ntk_fn(f, trace_axes)
    reference = kernel_fn(inputs, None, params)
    first = jax.tree.map(jnp.array, params)  # a copy: a loop may donate its own

    def measure(state: Any, batch: Any = None) -> Mapping[str, Array]:
        """Scalars at the parameters of `state`."""
        del batch
        kernel = kernel_fn(inputs, None, state.params)
        found = {
            "drift": kernel_drift(kernel, reference),
            "distance": kernel_distance(kernel, reference),
            "parameters": parameter_distance(state.params, first),
        }
        if targets is not None:
            found["alignment"] = alignment(kernel, targets)
        if num_eigenvalues:
            for k, value in enumerate(spectrum(kernel)[:num_eigenvalues]):
                found[f"eigenvalue_{k}"] = value
        return found

    return measure
