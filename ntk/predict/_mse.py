"""`gradient_descent_mse`: training on the squared loss, in closed form."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ntk.predict._fit import (
    Fit,
    check_regularizer,
    factorize,
    first_gap,
    moved_outputs,
    predict,
    solve,
)
from ntk.predict._frame import (
    Frame,
    check_finite,
    check_kernel,
    check_starts,
    check_times,
    is_traced,
    make_frame,
)
from ntk.predict._spectral import HIGHEST

Array = jax.Array
NAME = "gradient_descent_mse"


def gradient_descent_mse(
    k_train_train: Array,
    y_train: Array,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> Callable[..., Any]:
    """Outputs during gradient descent (flow) on the squared loss, in function space.

    The loss is 1/2 mean((f - y)^2), the mean over all entries of `y_train`; arXiv:1902.06720,
    equations 8 to 11.

    Args:
      k_train_train: tangent kernel, the axes of `y_train` zipped, without `trace_axes`.
      y_train: targets.
      learning_rate: multiplies the time.
      diag_reg: added to the diagonal, in units of its mean unless `diag_reg_absolute_scale`.
      diag_reg_absolute_scale: whether `diag_reg` is in the kernel's own units.
      trace_axes: axes of `y_train` that the kernel lacks and does not mix.
    Returns:
      `predict_fn(t=None, fx_train_0=0.0, fx_test_0=None, k_test_train=None)`; see
      `ntk.predict.predict`, which is this without the memory of earlier factorizations.
    Raises:
      ValueError: shapes do not fit, `diag_reg` is negative, or a number is not finite (times may be
        infinite).

    >>> import jax.numpy as jnp
    >>> predict_fn = gradient_descent_mse(jnp.eye(2), jnp.array([[1.0], [2.0]]))
    >>> predict_fn(None)
    Array([[1.],
           [2.]], dtype=float32)
    """
    check_regularizer(NAME, diag_reg)
    frame = make_frame(NAME, y_train, trace_axes)
    check_kernel(NAME, "k_train_train", k_train_train, frame, square=True)
    k_train_train, y_train = jnp.asarray(k_train_train), jnp.asarray(y_train)
    check_finite(NAME, k_train_train=k_train_train, y_train=y_train, learning_rate=learning_rate)
    fits: dict[str, Fit] = {}
    solved: dict[bytes, Array] = {}  # kernel^-1 (targets - start) of the latest start

    def fitted(method: str) -> Fit:
        if method not in fits:
            state = factorize(
                k_train_train, y_train, frame, diag_reg, diag_reg_absolute_scale, method=method
            )
            if is_traced(state):
                return state
            fits[method] = state
        return fits[method]

    def weights(fx_train_0: Any) -> Array:
        state = fitted("cholesky")
        if isinstance(fx_train_0, Tracer):
            return _weights(state, fx_train_0)
        start = np.asarray(0.0 if fx_train_0 is None else fx_train_0)
        key = f"{start.shape}{start.dtype}".encode() + start.tobytes()
        if key not in solved:
            found = _weights(state, fx_train_0)
            if is_traced(found):
                return found
            solved.clear()
            solved[key] = found
        return solved[key]

    def predict_fn(
        t: Any = None,
        fx_train_0: Any = 0.0,
        fx_test_0: Any = None,
        k_test_train: Array | None = None,
    ) -> Any:
        """Outputs at time t; see `ntk.predict.predict`."""
        check_starts(NAME, fx_train_0, fx_test_0)
        if fx_test_0 is not None:
            if k_test_train is None:
                raise ValueError(f"{NAME}: pass k_test_train for predictions on test inputs.")
            check_kernel(NAME, "k_test_train", k_test_train, frame, square=False)
        check_finite(NAME, fx_train_0=fx_train_0, fx_test_0=fx_test_0, k_test_train=k_test_train)
        check_times(NAME, t)
        if t is not None:
            return _predict(fitted("eigh"), t, fx_train_0, fx_test_0, k_test_train, learning_rate)
        if fx_test_0 is None:
            return y_train
        test = _at_infinity(k_test_train, weights(fx_train_0), fx_test_0, frame)
        return test if fx_train_0 is None else (y_train, test)

    return predict_fn


@jax.jit
def _weights(state: Fit, fx_train_0: Any) -> Array:
    return solve(state, first_gap(state, fx_train_0))


@jax.jit(static_argnums=3)
def _at_infinity(k_test_train: Array, weights: Array, fx_test_0: Any, frame: Frame) -> Array:
    k_test_train = jnp.asarray(k_test_train)
    moved = jnp.matmul(frame.matrix(k_test_train), weights, precision=HIGHEST)
    start = jnp.asarray(fx_test_0, weights.dtype)
    return moved_outputs(frame, k_test_train.shape[0::2], start, moved)


@jax.jit
def _predict(state, t, fx_train_0, fx_test_0, k_test_train, learning_rate):
    return predict(state, t, fx_train_0, fx_test_0, k_test_train, learning_rate=learning_rate)
