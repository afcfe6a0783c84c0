"""`fit` and `predict`: linear models trained by gradient flow on the squared loss, as functions."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.predict._frame import Frame, check_finite, check_kernel, check_starts, make_frame
from ntk.predict._spectral import (
    HIGHEST,
    gain,
    null_tolerance,
    quiet_null,
    scale_rows,
    spectral_apply,
)

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fit:
    """A factorized training kernel with its targets: a pytree, made by `fit`."""

    kernel: Array  # [n, n] with the regularizer
    targets: Array  # [n, c]
    values: Array | None  # eigenvalues, ascending
    vectors: Array | None
    factor: Array | None  # Cholesky factor, upper: factor.T @ factor is the kernel
    frame: Frame = dataclasses.field(metadata={"static": True})


@functools.partial(jax.jit, static_argnums=2)
def regularize(kernel: Array, diag_reg: Any, absolute: bool) -> Array:
    """kernel + diag_reg I, or diag_reg times the mean of the diagonal."""
    scale = diag_reg if absolute else diag_reg * jnp.trace(kernel) / kernel.shape[0]
    return kernel + jnp.asarray(scale, kernel.dtype) * jnp.eye(kernel.shape[0], dtype=kernel.dtype)


def check_regularizer(caller: str, diag_reg: Any) -> None:
    """Refuses a regularizer that is negative or not finite (where its value is known)."""
    if isinstance(diag_reg, int | float) and not 0.0 <= diag_reg < float("inf"):
        raise ValueError(f"{caller}: diag_reg must be finite and >= 0, got {diag_reg!r}.")


def fit(
    k_train_train: Array,
    y_train: Array,
    *,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    method: str = "eigh",
) -> Fit:
    """Factorizes a training kernel.

    Args:
      k_train_train: the axes of `y_train` zipped with themselves, without `trace_axes`.
      y_train: targets; several columns (traced axes) share one factorization.
      diag_reg: added to the diagonal, in units of its mean unless `diag_reg_absolute_scale`.
      diag_reg_absolute_scale: whether `diag_reg` is in the kernel's own units.
      trace_axes: axes of `y_train` that the kernel lacks and does not mix.
      method: "eigh", for any time, or "cholesky", for t = infinity, evidence and posterior at a
        fraction of the cost.
    Returns:
      A pytree for `predict`; a pure function, so it jits, maps and differentiates.
    Raises:
      ValueError: the shapes do not fit, an option is not one of these, or a number is not finite.
    """
    if method not in ("eigh", "cholesky"):
        raise ValueError(f"fit: method must be 'eigh' or 'cholesky', got {method!r}.")
    check_regularizer("fit", diag_reg)
    frame = make_frame("fit", y_train, trace_axes)
    k_train_train, y_train = jnp.asarray(k_train_train), jnp.asarray(y_train)
    check_kernel("fit", "k_train_train", k_train_train, frame, square=True)
    check_finite("fit", k_train_train=k_train_train, y_train=y_train)
    return factorize(
        k_train_train, y_train, frame, diag_reg, diag_reg_absolute_scale, method=method
    )


def factorize(
    k_train_train: Array,
    y_train: Array,
    frame: Frame,
    diag_reg: Any,
    diag_reg_absolute_scale: bool,
    *,
    method: str,
) -> Fit:
    """`fit` for arguments that were checked."""
    kernel = frame.matrix(k_train_train)
    if not (isinstance(diag_reg, int | float) and diag_reg == 0):  # else without a copy
        kernel = regularize(kernel, diag_reg, diag_reg_absolute_scale)
    targets = frame.columns(y_train)
    if method == "cholesky":
        return Fit(kernel, targets, None, None, upper_cholesky(kernel), frame)
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(kernel))
    return Fit(kernel, targets, values, vectors, None, frame)


@jax.jit
def upper_cholesky(kernel: Array) -> Array:
    """U with U.T @ U = kernel.

    LAPACK keeps matrices by columns and JAX by rows, so that U.T is at hand without a copy, and
    solving with it needs none either.
    """
    return jnp.linalg.cholesky(kernel).T


def half_solve(factor: Array, right: Array, *, transposed: bool = False) -> Array:
    """factor.T^-1 right, or factor^-1 right, for an upper Cholesky factor."""
    return jax.lax.linalg.triangular_solve(
        factor.T, right, left_side=True, lower=True, transpose_a=transposed
    )


def is_singular(factor: Array) -> Array:
    """Whether a Cholesky factor is not to be trusted: it broke down, or a pivot is rounding."""
    diagonal = jnp.diagonal(factor)
    eps = jnp.finfo(factor.dtype).eps
    small = jnp.min(diagonal) ** 2 <= 4 * eps * jnp.max(diagonal) ** 2
    return small | ~jnp.all(jnp.isfinite(diagonal))


def solve(state: Fit, right: Array) -> Array:
    """kernel^-1 right for right [n, c]; the pseudo-inverse where the kernel is singular."""
    if state.factor is None:
        return spectral_apply("gain", state.kernel, state.values, state.vectors, right, jnp.inf)
    factor = state.factor

    def by_cholesky(right: Array) -> Array:
        return half_solve(factor, half_solve(factor, right), transposed=True)

    def by_eigenvectors(right: Array) -> Array:
        values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(state.kernel))
        return spectral_apply("gain", state.kernel, values, vectors, right, jnp.inf)

    return jax.lax.cond(is_singular(factor), by_eigenvectors, by_cholesky, right)


def predict(
    state: Fit,
    t: Any = None,
    fx_train_0: Any = 0.0,
    fx_test_0: Any = None,
    k_test_train: Array | None = None,
    *,
    learning_rate: Any = 1.0,
) -> Any:
    """Outputs at time t of gradient flow on the squared loss.

    The loss is 1/2 mean((f - y)^2), so d f / dt = -learning_rate K (f - y) / y.size.

    Args:
      state: from `fit`.
      t: a number, an array of any shape, or None for infinity. Equivalent of training steps.
      fx_train_0: outputs at t = 0 on the training inputs, or one number for all; None for no
        predictions there.
      fx_test_0: the same on test inputs.
      k_test_train: kernel between test and training inputs.
      learning_rate: multiplies t.
    Returns:
      Training outputs, or test outputs, or both as a pair, by which of the two is not None; the
      axes of t come first.
    Raises:
      ValueError: no outputs are asked for, test outputs without `k_test_train`, shapes do not fit,
        or a number is not finite (times may be infinite).
    """
    frame = state.frame
    check_starts("predict", fx_train_0, fx_test_0)
    if fx_test_0 is not None and k_test_train is None:
        raise ValueError("predict: pass k_test_train for predictions on test inputs.")
    check_finite("predict", fx_train_0=fx_train_0, fx_test_0=fx_test_0, k_test_train=k_test_train)
    if state.values is None and t is not None:
        raise ValueError("predict: a finite t needs a fit with method='eigh'.")
    dtype = state.targets.dtype
    gap = first_gap(state, fx_train_0)
    tau = None if t is None else jnp.asarray(t, dtype) * learning_rate / frame.size
    results = []
    if fx_train_0 is not None:
        results.append(_train(state, tau, gap))
    if fx_test_0 is not None:
        check_kernel("predict", "k_test_train", k_test_train, frame, square=False)
        k_test_train = jnp.asarray(k_test_train)
        moved = test_shift(state, tau, frame.matrix(k_test_train), gap)
        rows = k_test_train.shape[0::2]
        results.append(moved_outputs(frame, rows, jnp.asarray(fx_test_0, dtype), moved))
    return results[0] if len(results) == 1 else tuple(results)


def first_gap(state: Fit, fx_train_0: Any) -> Array:
    """Targets minus outputs at t = 0, [n, c]; None is 0."""
    start = jnp.asarray(0.0 if fx_train_0 is None else fx_train_0, state.targets.dtype)
    return state.targets - state.frame.columns(jnp.broadcast_to(start, state.frame.shape))


def moved_outputs(frame: Frame, rows: Sequence[int], start: Array, moved: Array) -> Array:
    """start + moved as outputs, for moved [..., rows, columns]."""
    first = frame.columns(jnp.broadcast_to(start, frame.shape_for(rows)))
    return frame.outputs(jnp.broadcast_to(first, moved.shape) + moved, rows)


def _train(state: Fit, tau: Array | None, gap: Array) -> Array:
    frame = state.frame
    rows = tuple(frame.shape[k] for k in frame.kept)
    if tau is None:
        return frame.outputs(state.targets, rows)
    left = spectral_apply("decay", state.kernel, state.values, state.vectors, gap, tau)
    return frame.outputs(jnp.broadcast_to(state.targets, left.shape) - left, rows)


def test_shift(state: Fit, tau: Array | None, cross: Array, gap: Array) -> Array:
    """k_test_train (1 - exp(-K tau)) K^-1 gap, [*tau.shape, test rows, columns]."""
    if tau is None:
        return jnp.matmul(cross, solve(state, gap), precision=HIGHEST)
    return _cross_apply(cross, state.kernel, state.values, state.vectors, gap, tau)


@jax.custom_jvp
def _cross_apply(cross, kernel, values, vectors, gap, tau):
    matmul = functools.partial(jnp.matmul, precision=HIGHEST)
    scaled = scale_rows(gain(values, tau), matmul(vectors.T, gap))

    def by_modes() -> Array:
        return matmul(quiet_null(matmul(cross, vectors), values), scaled)

    if scaled.size >= cross.size:
        return by_modes()
    # Fewer columns than test rows: without null directions they are better multiplied first.
    singular = jnp.any(values <= null_tolerance(values))
    return jax.lax.cond(singular, by_modes, lambda: matmul(cross, matmul(vectors, scaled)))


@_cross_apply.defjvp
def _cross_apply_jvp(primals, tangents):
    cross, kernel, values, vectors, gap, tau = primals
    d_cross, d_kernel, _, _, d_gap, d_tau = tangents
    out = _cross_apply(*primals)
    inner, d_inner = jax.jvp(
        lambda k, g, s: spectral_apply("gain", k, values, vectors, g, s),
        (kernel, gap, tau),
        (d_kernel, d_gap, d_tau),
    )
    return out, jnp.matmul(d_cross, inner, precision=HIGHEST) + jnp.matmul(
        cross, d_inner, precision=HIGHEST
    )
