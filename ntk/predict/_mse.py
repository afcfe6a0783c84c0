"""`gradient_descent_mse`: training on the squared loss, in closed form."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ntk.predict._fit import Fit, check_regularizer, fit, predict
from ntk.predict._frame import check_kernel, make_frame

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
      ValueError: shapes do not fit, or `diag_reg` is negative.

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
    fits: dict[str, Fit] = {}

    def fitted(method: str) -> Fit:
        if method not in fits:
            state = _fit(
                k_train_train, y_train, diag_reg, diag_reg_absolute_scale, frame.traced, method
            )
            if isinstance(state.kernel, Tracer):
                return state
            fits[method] = state
        return fits[method]

    def predict_fn(
        t: Any = None,
        fx_train_0: Any = 0.0,
        fx_test_0: Any = None,
        k_test_train: Array | None = None,
    ) -> Any:
        """Outputs at time t; see `ntk.predict.predict`."""
        if fx_test_0 is not None:
            if k_test_train is None:
                raise ValueError(f"{NAME}: pass k_test_train for predictions on test inputs.")
            check_kernel(NAME, "k_test_train", k_test_train, frame, square=False)
        needs_factor = t is not None or fx_test_0 is not None
        method = "cholesky" if t is None else "eigh"
        state = fitted(method) if needs_factor else _targets_only(y_train, frame)
        return _predict(state, t, fx_train_0, fx_test_0, k_test_train, learning_rate)

    return predict_fn


def _targets_only(y_train: Array, frame: Any) -> Fit:
    empty = jnp.zeros((0, 0), y_train.dtype)
    return Fit(empty, frame.columns(y_train), None, None, None, frame)


@jax.jit(static_argnums=(3, 4, 5))
def _fit(kernel, y_train, diag_reg, absolute, traced, method):
    return fit(
        kernel,
        y_train,
        diag_reg=diag_reg,
        diag_reg_absolute_scale=absolute,
        trace_axes=traced,
        method=method,
    )


@jax.jit
def _predict(state, t, fx_train_0, fx_test_0, k_test_train, learning_rate):
    return predict(state, t, fx_train_0, fx_test_0, k_test_train, learning_rate=learning_rate)
