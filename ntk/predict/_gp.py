"""Gaussian-process inference: `gp_inference`, and `posterior` as a pure function."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.predict._fit import Fit, check_regularizer, factorize, solve
from ntk.predict._frame import Frame, check_finite, check_kernel, is_traced, make_frame
from ntk.predict._kernels import Gaussian, answer, as_get, entry, nonnegative_diagonal
from ntk.predict._spectral import HIGHEST

Array = jax.Array
NAME = "gp_inference"


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=HIGHEST)


def posterior(state: Fit, k_test_train: Array, k_test_test: Array | None = None) -> Any:
    """Mean, and covariance where `k_test_test` is given, of a Gaussian process given its targets.

    Args:
      state: from `fit`, with either method.
      k_test_train, k_test_test: kernels at the test inputs; axes as in the fit.
    Returns:
      The mean, or Gaussian(mean, covariance); no variance is negative.
    """
    frame = state.frame
    check_kernel("posterior", "k_test_train", k_test_train, frame, square=False)
    check_finite("posterior", k_test_train=k_test_train, k_test_test=k_test_test)
    k_test_train = jnp.asarray(k_test_train)
    rows = k_test_train.shape[0::2]
    cross = frame.matrix(k_test_train)
    count = state.targets.shape[1]
    if k_test_test is None:
        return frame.outputs(_matmul(cross, solve(state, state.targets)), rows)
    solved = solve(state, jnp.concatenate([state.targets, cross.T], axis=1))
    mean = frame.outputs(_matmul(cross, solved[:, :count]), rows)
    prior = frame.matrix(jnp.asarray(k_test_test))
    covariance = _symmetric(prior - _matmul(cross, solved[:, count:]))
    return Gaussian(mean, frame.zipped(nonnegative_diagonal(covariance), rows, rows))


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + jnp.swapaxes(matrix, -1, -2))


def trained_covariance(prior: Array, shrink: Array, cross: Array, train: Array) -> Array:
    """Covariance of f* - shrink f under a prior: the part of an ensemble that training leaves.

    Args:
      prior, cross, train: prior covariance test-test, test-train and train-train.
      shrink: how the test outputs follow the training outputs, [..., test, train].
    """
    half = _matmul(shrink, jnp.swapaxes(cross, -1, -2))
    explained = _matmul(_matmul(shrink, train), jnp.swapaxes(shrink, -1, -2))
    prior = jnp.broadcast_to(prior, explained.shape)
    return _symmetric(prior + explained - half - jnp.swapaxes(half, -1, -2))


def gp_inference(
    k_train_train: Any,
    y_train: Array,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> Callable[..., Any]:
    """Mean and covariance of a Gaussian process, or of an ensemble trained for ever.

    "nngp" is the exact posterior of an infinitely wide Bayesian network, "ntk" the distribution of
    an infinite ensemble of networks trained by gradient flow to convergence, "ntkgp" the posterior
    with the tangent kernel as covariance (arXiv:2007.05864).

    Args:
      k_train_train: an array, or an object with fields `nngp` and `ntk`.
      y_train: targets.
      diag_reg: added to the diagonal, in units of its mean unless `diag_reg_absolute_scale`.
      diag_reg_absolute_scale: whether `diag_reg` is in the kernel's own units.
      trace_axes: axes of `y_train` that the kernels lack and do not mix.
    Returns:
      `predict_fn(get=None, k_test_train=None, k_test_test=None)`. Without `k_test_train` the answer
      on the training set, `y_train` with covariance 0. With `k_test_test` a Gaussian, otherwise
      its mean. A string `get` gives one answer, a tuple (or None, for nngp and ntk) one of each.
      Factorizations are kept for further calls.
    Raises:
      ValueError: shapes do not fit, a kernel that is needed is missing, or a number is not finite.
    """
    check_regularizer(NAME, diag_reg)
    frame = make_frame(NAME, y_train, trace_axes)
    y_train = jnp.asarray(y_train)
    check_finite(NAME, y_train=y_train)
    fits: dict[str, Fit] = {}
    solved: dict[str, Array] = {}  # kernel^-1 targets

    def fitted(name: str) -> Fit:
        if name not in fits:
            kernel = entry(NAME, k_train_train, name)
            check_kernel(NAME, "k_train_train", kernel, frame, square=True)
            check_finite(NAME, k_train_train=kernel)
            state = factorize(
                kernel, y_train, frame, diag_reg, diag_reg_absolute_scale, method="cholesky"
            )
            if is_traced(state):
                return state
            fits[name] = state
        return fits[name]

    def weights(name: str) -> Array:
        if name not in solved:
            state = fitted(name)
            found = _solve(state, state.targets)
            if is_traced(found):
                return found
            solved[name] = found
        return solved[name]

    def predict_fn(get: Any = None, k_test_train: Any = None, k_test_test: Any = None) -> Any:
        """The distribution of the outputs on the test set."""
        names = as_get(NAME, get, ("nngp", "ntk", "ntkgp"))
        with_covariance = k_test_test is not None and k_test_test is not False
        found = {}
        for name in names:
            kernel = "ntk" if name == "ntkgp" else name
            if k_test_train is None:
                entry(NAME, k_train_train, kernel)
                found[name] = _on_training_set(y_train, frame, with_covariance)
                continue
            cross = entry(NAME, k_test_train, kernel)
            check_kernel(NAME, "k_test_train", cross, frame, square=False)
            check_finite(NAME, k_test_train=cross)
            if not with_covariance:
                found[name] = _mean(cross, weights(kernel), frame)
            elif name == "ntk":
                nngp = {
                    "k_test_train": entry(NAME, k_test_train, "nngp"),
                    "k_train_train": entry(NAME, k_train_train, "nngp"),
                    "k_test_test": entry(NAME, k_test_test, "nngp"),
                }
                check_finite(NAME, **nngp)
                found[name] = _trained(fitted("ntk"), cross, *nngp.values())
            else:
                prior = entry(NAME, k_test_test, kernel)
                check_finite(NAME, k_test_test=prior)
                found[name] = _posterior(fitted(kernel), cross, prior)
        return answer(get, found)

    return predict_fn


_posterior = jax.jit(posterior)
_solve = jax.jit(solve)


@jax.jit(static_argnums=2)
def _mean(cross: Array, weights: Array, frame: Frame) -> Array:
    return frame.outputs(_matmul(frame.matrix(cross), weights), cross.shape[0::2])


@jax.jit
def _trained(state: Fit, cross: Array, nngp_cross: Array, nngp: Array, prior: Array) -> Gaussian:
    frame = state.frame
    rows = cross.shape[0::2]
    shrink = solve(state, frame.matrix(cross).T).T
    mean = frame.outputs(_matmul(shrink, state.targets), rows)
    covariance = trained_covariance(
        frame.matrix(prior), shrink, frame.matrix(nngp_cross), frame.matrix(nngp)
    )
    return Gaussian(mean, frame.zipped(nonnegative_diagonal(covariance), rows, rows))


def _on_training_set(y_train: Array, frame: Any, with_covariance: bool) -> Any:
    if not with_covariance:
        return y_train
    rows = tuple(frame.shape[k] for k in frame.kept)
    zeros = jnp.zeros((frame.rows, frame.rows), y_train.dtype)
    return Gaussian(y_train, frame.zipped(zeros, rows, rows))
