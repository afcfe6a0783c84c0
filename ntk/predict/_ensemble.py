"""`gradient_descent_mse_ensemble`: the law of an infinite ensemble during training."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.predict._fit import Fit, check_regularizer, factorize, solve
from ntk.predict._frame import Frame, check_finite, check_kernel, check_times, is_traced, make_frame
from ntk.predict._gp import trained_covariance
from ntk.predict._kernels import Gaussian, answer, as_get, entry, nonnegative_diagonal
from ntk.predict._spectral import HIGHEST, decay, gain, quiet_null, scale_columns, scale_rows

Array = jax.Array
NAME = "gradient_descent_mse_ensemble"


def gradient_descent_mse_ensemble(
    kernel_fn: Callable[..., Any],
    x_train: Any,
    y_train: Array,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    **kernel_fn_train_train_kwargs: Any,
) -> Callable[..., Any]:
    """Mean and covariance of infinitely many wide networks trained on the squared loss.

    arXiv:1902.06720, equations 13 to 16. "ntk": all layers are trained; "nngp": the last one only.

    Args:
      kernel_fn: `kernel_fn(x1, x2, get, **kwargs)`, with fields `nngp` and `ntk` in what it returns
        for a tuple `get`.
      x_train, y_train: training set.
      learning_rate: multiplies the time.
      diag_reg: added to the diagonal, in units of its mean unless `diag_reg_absolute_scale`.
      diag_reg_absolute_scale: whether `diag_reg` is in the kernel's own units.
      trace_axes: axes of `y_train` that the kernels lack and do not mix.
      **kernel_fn_train_train_kwargs: for `kernel_fn`. Between test and training inputs, values that
        differ are passed as pairs (test, train).
    Returns:
      `predict_fn(t=None, x_test=None, get=None, compute_cov=False, **kernel_fn_test_test_kwargs)`:
      the mean or a Gaussian, axes of t first; a tuple of them unless `get` is a string. x_test=None
      is the training set without noise. Kernels and factorizations are kept for further calls.
    Raises:
      ValueError: shapes do not fit, `get` names something else, or a number is not finite.
    """
    check_regularizer(NAME, diag_reg)
    frame = make_frame(NAME, y_train, trace_axes)
    y_train = jnp.asarray(y_train)
    check_finite(NAME, y_train=y_train, learning_rate=learning_rate)
    kernels: dict[str, Array] = {}
    fits: dict[tuple[str, str], Fit] = {}

    def train_kernel(name: str, wanted: tuple[str, ...]) -> Array:
        known = dict(kernels)
        missing = tuple(k for k in wanted if k not in known)
        if missing:
            found = kernel_fn(x_train, None, missing, **kernel_fn_train_train_kwargs)
            for k in missing:
                known[k] = entry(NAME, found, k)
                label = f"kernel_fn(x_train, None).{k}"
                check_kernel(NAME, label, known[k], frame, square=True)
                check_finite(NAME, **{label: known[k]})
            if not is_traced(known):
                kernels.update(known)
        return known[name]

    def fitted(name: str, method: str, wanted: tuple[str, ...]) -> Fit:
        if (name, method) not in fits:
            kernel = train_kernel(name, wanted)
            state = factorize(
                kernel, y_train, frame, diag_reg, diag_reg_absolute_scale, method=method
            )
            if is_traced(state):
                return state
            fits[name, method] = state
        return fits[name, method]

    def predict_fn(
        t: Any = None,
        x_test: Any = None,
        get: Any = None,
        compute_cov: bool = False,
        **kernel_fn_test_test_kwargs: Any,
    ) -> Any:
        """Mean, or mean and covariance, at time t."""
        names = as_get(NAME, get, ("nngp", "ntk"))
        check_times(NAME, t)
        wanted = tuple(dict.fromkeys((*names, "nngp") if compute_cov else names))
        tau = None if t is None else jnp.asarray(t, y_train.dtype) * learning_rate / frame.size
        method = "cholesky" if t is None else "eigh"
        if x_test is None:
            found = {}
            for name in names:
                state = None if t is None else fitted(name, method, wanted)
                nngp = train_kernel("nngp", wanted) if compute_cov and t is not None else None
                found[name] = _on_training_set(state, y_train, frame, tau, nngp, name, compute_cov)
            return answer(get, found)
        cross = kernel_fn(
            x_test,
            x_train,
            wanted,
            **_paired_kwargs(kernel_fn_test_test_kwargs, kernel_fn_train_train_kwargs),
        )
        prior = None
        if compute_cov:
            prior_kwargs = {**kernel_fn_train_train_kwargs, **kernel_fn_test_test_kwargs}
            prior = kernel_fn(x_test, None, ("nngp",), **prior_kwargs)
            prior = entry(NAME, prior, "nngp")
        found = {}
        for name in names:
            state = fitted(name, method, wanted)
            label, between = f"kernel_fn(x_test, x_train).{name}", entry(NAME, cross, name)
            check_kernel(NAME, label, between, frame, square=False)
            check_finite(NAME, **{label: between})
            found[name] = _on_test_set(
                state,
                tau,
                between,
                entry(NAME, cross, "nngp") if compute_cov else None,
                train_kernel("nngp", wanted) if compute_cov else None,
                prior,
                name == "nngp",
            )
        return answer(get, found)

    return predict_fn


def _paired_kwargs(test: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments between test and training inputs.

    Pairs give their first value to the first inputs; what is set for one side only goes to both.
    """
    merged = {}
    for name in {**train, **test}:
        first, second = test.get(name, train.get(name)), train.get(name, test.get(name))
        if isinstance(first, tuple) or isinstance(second, tuple):
            a = first[0] if isinstance(first, tuple) else first
            b = second[0] if isinstance(second, tuple) else second
            merged[name] = (a, b)
        elif first is second or _equal(first, second):
            merged[name] = first
        else:
            raise ValueError(
                f"{NAME}: keyword {name!r} has one value for training and another for test inputs; "
                "pass a pair in both places if it belongs to the inputs."
            )
    return merged


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(jnp.array_equal(a, b))
    except TypeError:
        return a == b


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=HIGHEST)


@jax.jit(static_argnums=(2, 5, 6))
def _on_training_set(state, y_train, frame: Frame, tau, nngp, name: str, compute_cov: bool) -> Any:
    rows = tuple(frame.shape[k] for k in frame.kept)
    if tau is None:
        if not compute_cov:
            return y_train
        zeros = jnp.zeros((frame.rows, frame.rows), y_train.dtype)
        return Gaussian(y_train, frame.zipped(zeros, rows, rows))
    left = decay(state.values, tau)
    modes = _matmul(state.vectors.T, state.targets)
    remaining = _matmul(state.vectors, scale_rows(left, modes))
    mean = frame.outputs(jnp.broadcast_to(state.targets, remaining.shape) - remaining, rows)
    if not compute_cov:
        return mean
    if name == "nngp":
        kept = jnp.einsum("n,...n->...n", jnp.maximum(state.values, 0.0), left**2)
        covariance = _matmul(scale_columns(state.vectors, kept), state.vectors.T)
    else:
        remains = _matmul(scale_columns(state.vectors, left), state.vectors.T)
        covariance = _matmul(_matmul(remains, frame.matrix(nngp)), remains)
        covariance = 0.5 * (covariance + jnp.swapaxes(covariance, -1, -2))
    return Gaussian(mean, frame.zipped(nonnegative_diagonal(covariance), rows, rows))


@jax.jit(static_argnums=(6,))
def _on_test_set(state, tau, cross, nngp_cross, nngp, prior, last_layer: bool) -> Any:
    frame = state.frame
    rows = cross.shape[0::2]
    cross = frame.matrix(cross)
    if tau is None:
        if prior is None:
            return frame.outputs(_matmul(cross, solve(state, state.targets)), rows)
        shrink = solve(state, cross.T).T
        mean = _matmul(shrink, state.targets)
        twice = shrink
    else:
        modes = quiet_null(_matmul(cross, state.vectors), state.values)
        scaled = scale_rows(gain(state.values, tau), _matmul(state.vectors.T, state.targets))
        mean = _matmul(modes, scaled)
        if prior is None:
            return frame.outputs(mean, rows)
        if last_layer:
            twice = _matmul(scale_columns(modes, gain(state.values, 2 * tau)), state.vectors.T)
            shrink = twice
        else:
            shrink = _matmul(scale_columns(modes, gain(state.values, tau)), state.vectors.T)
            twice = shrink
    if last_layer:
        explained = _matmul(twice, cross.T)
        covariance = jnp.broadcast_to(frame.matrix(prior), explained.shape) - explained
        covariance = 0.5 * (covariance + jnp.swapaxes(covariance, -1, -2))
    else:
        covariance = trained_covariance(
            frame.matrix(prior), shrink, frame.matrix(nngp_cross), frame.matrix(nngp)
        )
    covariance = frame.zipped(nonnegative_diagonal(covariance), rows, rows)
    return Gaussian(frame.outputs(mean, rows), covariance)
