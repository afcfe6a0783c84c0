"""How well a kernel explains its training data: evidence and leave-one-out, with gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk.predict._fit import Fit, half_solve, solve, upper_cholesky
from ntk.predict._spectral import null_tolerance

Array = jax.Array


class LeaveOneOut(NamedTuple):
    """Predictions for every training point by a process fitted to all the others."""

    mean: Array  # of the shape of the targets
    variance: Array  # one per row of the kernel; the same for all columns
    log_likelihood: Array  # sum over points and columns of the log predictive density


def _factor(state: Fit) -> Array:
    return upper_cholesky(state.kernel) if state.factor is None else state.factor


def log_marginal_likelihood(state: Fit) -> Array:
    """log N(y; 0, K) of the targets, summed over columns (Rasmussen & Williams 2006, eq. 2.30).

    Args:
      state: from `fit`; the regularizer of the fit is the noise. Traced in a function of kernel
        parameters, its gradient learns them.
    Returns:
      A scalar; -inf where the kernel is singular.
    """
    count, columns = state.targets.shape
    factor = _factor(state)
    half = half_solve(factor, state.targets)
    log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    value = -0.5 * (jnp.sum(half**2) + columns * (log_det + count * jnp.log(2.0 * jnp.pi)))
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


def leave_one_out(state: Fit) -> LeaveOneOut:
    """Leave-one-out predictions from one factorization (Rasmussen & Williams 2006, eqs. 5.10-12).

    A row of the kernel is left out with all its columns. With a kernel over outputs
    (trace_axes=()) that is one output of one example.
    """
    frame = state.frame
    rows = tuple(frame.shape[k] for k in frame.kept)
    inverse = solve(state, jnp.eye(state.kernel.shape[0], dtype=state.kernel.dtype))
    precision = jnp.diagonal(inverse)
    gap = (inverse @ state.targets) / precision[:, None]
    variance = 1.0 / precision
    density = -0.5 * (gap**2 / variance[:, None] + jnp.log(2.0 * jnp.pi * variance)[:, None])
    return LeaveOneOut(
        frame.outputs(state.targets - gap, rows), variance.reshape(rows), jnp.sum(density)
    )


def effective_rank(state: Fit) -> Any:
    """Number of eigenvalues that can be told from zero; needs a fit with method="eigh"."""
    if state.values is None:
        raise ValueError("effective_rank: pass a fit made with method='eigh'.")
    return jnp.sum(state.values > null_tolerance(state.values))
