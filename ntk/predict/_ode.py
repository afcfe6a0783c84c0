"""`gradient_descent`: training on any loss, with or without momentum, by an ODE solver."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ntk.predict._frame import check_finite, check_kernel, check_starts, make_frame

Array = jax.Array
NAME = "gradient_descent"
TOLERANCE = {"float64": 1e-10, "float32": 1e-6}
MAX_STEPS = 1_000_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ODEState:
    """Outputs and auxiliary variables of training in function space: a pytree.

    `qx_train` and `qx_test` are the velocities of momentum; None without it, or at rest.
    """

    fx_train: Any = None
    fx_test: Any = None
    qx_train: Any = None
    qx_test: Any = None


def gradient_descent(
    loss: Callable[[Array, Array], Any],
    k_train_train: Array,
    y_train: Array,
    learning_rate: float = 1.0,
    momentum: float | None = None,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = MAX_STEPS,
) -> Callable[..., Any]:
    """Outputs during gradient descent (flow) on any loss, in function space.

    Without momentum d f / ds = -K grad loss(f) at s = learning_rate t. With it f' = q and
    q' = -(1 - momentum) / sqrt(learning_rate) q - K grad loss(f) at s = sqrt(learning_rate) t,
    heavy-ball momentum in continuous time (arXiv:1902.06720, section B).

    Args:
      loss: `loss(f(x_train), y_train)`, a scalar.
      k_train_train: tangent kernel, the axes of `y_train` zipped, without `trace_axes`.
      y_train: targets.
      learning_rate: step size.
      momentum: in [0, 1), or None.
      trace_axes: axes of `y_train` that the kernel lacks and does not mix.
      rtol, atol: tolerances of the solver (Dopri8); 1e-10 in float64 and 1e-6 in float32.
      max_steps: of the solver; more are an error.
    Returns:
      `predict_fn(t=None, fx_train_or_state_0=0.0, fx_test_0=None, k_test_train=None)`. Times are a
      number or an array of any shape and order; None goes on until nothing moves any more. Given
      an ODEState it returns one, from which a later call can go on.
    Raises:
      ValueError: shapes do not fit, an option is out of range, or a number is not finite.
      RuntimeError: the solver did not finish within `max_steps` (raised outside of jit).
    """
    if momentum is not None and isinstance(momentum, int | float) and not 0.0 <= momentum < 1.0:
        raise ValueError(f"{NAME}: momentum must be in [0, 1) or None, got {momentum!r}.")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not 0.0 < value < 1.0:
            raise ValueError(f"{NAME}: {name} must be in (0, 1), got {value!r}.")
    frame = make_frame(NAME, y_train, trace_axes)
    check_kernel(NAME, "k_train_train", k_train_train, frame, square=True)
    y_train = jnp.asarray(y_train)
    check_finite(NAME, k_train_train=k_train_train, y_train=y_train, learning_rate=learning_rate)
    dtype = jnp.result_type(y_train, jnp.asarray(k_train_train))
    y_train = y_train.astype(dtype) if jnp.issubdtype(y_train.dtype, jnp.inexact) else y_train
    kernel = frame.matrix(jnp.asarray(k_train_train, dtype))
    default = TOLERANCE.get(str(dtype), 1e-3)
    tolerances = (default if rtol is None else rtol, default if atol is None else atol)
    scale = learning_rate if momentum is None else jnp.sqrt(learning_rate)
    friction = None if momentum is None else (1.0 - momentum) / jnp.sqrt(learning_rate)
    grad = jax.grad(lambda fx, y: jnp.asarray(loss(fx, y), dtype))

    def velocity(time: Any, state: ODEState, arguments: Any) -> ODEState:
        del time
        kernel, cross, y = arguments
        gradient = frame.columns(grad(state.fx_train, y))
        rows = tuple(frame.shape[k] for k in frame.kept)
        force = -frame.outputs(_matmul(kernel, gradient), rows)
        push = None
        if state.fx_test is not None:
            test_rows = tuple(state.fx_test.shape[k] for k in frame.kept)
            push = -frame.outputs(_matmul(cross, gradient), test_rows)
        if friction is None:
            return ODEState(force, push)
        q_test = None if push is None else push - jnp.asarray(friction, dtype) * state.qx_test
        return ODEState(
            state.qx_train,
            state.qx_test,
            force - jnp.asarray(friction, dtype) * state.qx_train,
            q_test,
        )

    @jax.jit
    def until(state: ODEState, times: Array, kernel: Array, cross: Any, y: Array) -> Any:
        return _integrate(velocity, state, times, (kernel, cross, y), tolerances, max_steps)

    @jax.jit
    def forever(state: ODEState, kernel: Array, cross: Any, y: Array) -> Any:
        return _settle(velocity, state, (kernel, cross, y), tolerances, max_steps)

    def start(first: ODEState, k_test_train: Any) -> tuple[ODEState, Any]:
        fx = jnp.asarray(0.0 if first.fx_train is None else first.fx_train, dtype)
        fx = jnp.broadcast_to(fx, frame.shape)
        test = cross = None
        if first.fx_test is not None:
            if k_test_train is None:
                raise ValueError(f"{NAME}: pass k_test_train for predictions on test inputs.")
            check_kernel(NAME, "k_test_train", k_test_train, frame, square=False)
            k_test_train = jnp.asarray(k_test_train, dtype)
            cross = frame.matrix(k_test_train)
            shape = frame.shape_for(k_test_train.shape[0::2])
            test = jnp.broadcast_to(jnp.asarray(first.fx_test, dtype), shape)
        if momentum is None:
            return ODEState(fx, test), cross

        def at_rest(q: Any, like: Any) -> Any:
            if like is None:
                return None
            return jnp.broadcast_to(jnp.asarray(0.0 if q is None else q, dtype), like.shape)

        return ODEState(fx, test, at_rest(first.qx_train, fx), at_rest(first.qx_test, test)), cross

    def predict_fn(
        t: Any = None,
        fx_train_or_state_0: Any = 0.0,
        fx_test_0: Any = None,
        k_test_train: Array | None = None,
    ) -> Any:
        """Outputs, or the whole state, at the times t."""
        given = isinstance(fx_train_or_state_0, ODEState)
        if given and fx_test_0 is not None:
            raise ValueError(f"{NAME}: pass the test outputs in the ODEState, not in fx_test_0.")
        first = fx_train_or_state_0 if given else ODEState(fx_train_or_state_0, fx_test_0)
        check_starts(NAME, first.fx_train, first.fx_test)
        named = ("fx_train_or_state_0", "fx_test_0", "qx_train", "qx_test")
        check_finite(NAME, k_test_train=k_test_train, **dict(zip(named, _fields(first))))
        state, cross = start(first, k_test_train)
        if t is None:
            final, done = forever(state, kernel, cross, y_train)
        else:
            times = jnp.asarray(t, dtype)
            _check_times(times)
            order = jnp.argsort(times.ravel())
            final, done = until(state, times.ravel()[order] * scale, kernel, cross, y_train)
            back = jnp.argsort(order)
            final = jax.tree.map(lambda a: a[back].reshape((*times.shape, *a.shape[1:])), final)
        if not isinstance(done, Tracer) and not bool(done):
            raise RuntimeError(
                f"{NAME}: the solver did not reach t={t!r} in {max_steps} steps. Without an end "
                "(t=None) the loss may have no minimum; otherwise raise max_steps or tolerances."
            )
        if given:
            return final
        found = [
            a
            for a, asked in ((final.fx_train, fx_train_or_state_0), (final.fx_test, fx_test_0))
            if asked is not None
        ]
        return found[0] if len(found) == 1 else tuple(found)

    return predict_fn


def _fields(state: ODEState) -> tuple[Any, Any, Any, Any]:
    return state.fx_train, state.fx_test, state.qx_train, state.qx_test


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _check_times(times: Array) -> None:
    if isinstance(times, Tracer):
        return
    values = np.asarray(times)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(
            f"{NAME}: times must be finite and >= 0, got {values.tolist()}. "
            "Pass t=None for the end of training."
        )


def _integrate(velocity, state, times, arguments, tolerances, max_steps) -> Any:
    """States at increasing times, from time 0; and whether the solver got there."""
    import diffrax

    end = jnp.where(times[-1] > 0, times[-1], 1.0)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Dopri8(),
        t0=0.0,
        t1=end,
        dt0=None,
        y0=state,
        args=arguments,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=tolerances[0], atol=tolerances[1]),
        max_steps=max_steps,
        throw=False,
    )
    return solution.ys, solution.result == diffrax.RESULTS.successful


def _settle(velocity, state, arguments, tolerances, max_steps) -> Any:
    """The state at rest, and whether it came to rest."""
    import diffrax

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Dopri8(),
        t0=0.0,
        t1=jnp.inf,
        dt0=None,
        y0=state,
        args=arguments,
        stepsize_controller=diffrax.PIDController(rtol=tolerances[0], atol=tolerances[1]),
        # Absolute: relative to outputs that grow without end, any speed is rest in the end.
        event=diffrax.Event(diffrax.steady_state_event(rtol=0.0, atol=tolerances[1])),
        max_steps=max_steps,
        throw=False,
    )
    final = jax.tree.map(lambda a: a[0], solution.ys)
    return final, solution.result == diffrax.RESULTS.event_occurred
