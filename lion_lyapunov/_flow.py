"""Solving the flow: diffrax where the field is smooth, the discrete implicit scheme elsewhere."""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lion_lyapunov._checks import (
    Number,
    check_choice,
    check_count,
    check_non_negative,
    check_positive,
)
from lion_lyapunov._kappa import Array, Kappa
from lion_lyapunov._lyapunov import lyapunov
from lion_lyapunov._parts import on_tree

PyTree = Any
LossFn = Callable[[PyTree], Array]
EventFn = Callable[[Array, PyTree, PyTree], Array]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Flow:
    """A path of the flow."""

    times: Array  # [n]
    params: PyTree  # leaves [n, ...]
    momentum: PyTree  # leaves [n, ...], the paper's sign
    loss: Array  # [n], f(x)
    lyapunov: Array  # [n], H(x, m); +inf while x is infeasible
    method: str  # "adaptive" or "implicit"
    message: str  # how the method was chosen and how the solve ended
    num_steps: int  # accepted steps
    event_time: float | None  # when `event` crossed 0, if it did
    evaluate: Callable[[float], tuple[PyTree, PyTree]]  # time -> (params, momentum)


def vector_field(
    kappa: Kappa,
    loss_fn: LossFn,
    weight_decay: Number,
    *,
    alpha: Number = 1.0,
    gamma: Number = 1.0,
    eps: Number = 0.1,
) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    """The function (x, m) -> (x', m') of the flow."""
    subgradient = on_tree(kappa).subgradient

    def field(params, momentum):
        grads = jax.grad(loss_fn)(params)
        speed = jax.tree.map(lambda g, m: -alpha * g - gamma * m, grads, momentum)
        slope = subgradient(jax.tree.map(lambda m, v: m + eps * v, momentum, speed))
        return jax.tree.map(lambda s, x: s - weight_decay * x, slope, params), speed

    return field


def solve(
    kappa: Kappa,
    loss_fn: LossFn,
    params: PyTree,
    *,
    duration: float,
    weight_decay: float,
    momentum: PyTree = None,
    alpha: float = 1.0,
    gamma: float = 1.0,
    eps: float = 0.1,
    method: str = "auto",
    rtol: float = 1e-8,
    atol: float = 1e-10,
    step_size: float | None = None,
    num_saves: int = 200,
    event: EventFn | None = None,
    max_steps: int = 16_384,
) -> Flow:
    """Follows the flow from time 0 to `duration`.

    Args:
      kappa: the convex function K.
      loss_fn: f, a function of the parameters alone.
      params: x at time 0. Work in float64 for tolerances below 1e-6.
      duration: > 0.
      weight_decay: lam >= 0.
      momentum: m at time 0, in the paper's sign; zero by default.
      alpha, gamma, eps: of `vector_field`; the theorem needs eps gamma <= 1, and it is enforced.
      method: "adaptive" (Tsit5 with step control), "implicit" (fixed steps of the scheme
        x+ = x + h (subgradient(z) - lam x+), which the optimizer follows), or "auto": adaptive for
        smooth kappas, implicit for the others, where step control fails at every kink.
      rtol, atol: of the adaptive solver.
      step_size: h of the implicit scheme; default duration / 20000.
      num_saves: number of saved times, equally spaced, both ends included.
      event: stops where event(t, x, m) crosses 0, the last saved point: found by Newton's method
        (adaptive) or by a line between the saved times around it (implicit).
      max_steps: of the adaptive solver.
    Returns:
      A `Flow`; `message` says which method ran and why.
    Raises:
      ValueError: a setting is out of range, or eps gamma > 1.
      RuntimeError: the adaptive solver did not arrive.
    """
    check_positive("flow.solve", duration=duration, alpha=alpha, gamma=gamma, rtol=rtol, atol=atol)
    check_non_negative("flow.solve", weight_decay=weight_decay, eps=eps)
    check_choice("flow.solve", "method", method, ("auto", "adaptive", "implicit"))
    check_count("flow.solve", num_saves=num_saves, max_steps=max_steps)
    if num_saves < 2:
        raise ValueError(f"flow.solve: num_saves must be >= 2, got {num_saves}.")
    if eps * gamma > 1:
        raise ValueError(
            f"flow.solve: eps * gamma must be <= 1 (that is b1 >= 0), got {eps * gamma:.6g}; the "
            "Lyapunov function may rise beyond it. Lower eps."
        )
    if momentum is None:
        momentum = jax.tree.map(jnp.zeros_like, params)
    chosen = method
    reason = f"{method} was asked for"
    if method == "auto":
        chosen = "adaptive" if kappa.is_smooth else "implicit"
        reason = (
            f"{kappa.name} is smooth, so the adaptive solver was chosen"
            if kappa.is_smooth
            else f"{kappa.name} has kinks, where an adaptive solver would shrink its steps without "
            "end; the implicit scheme was chosen"
        )
        logger.info("flow.solve: %s.", reason)
    field = vector_field(kappa, loss_fn, weight_decay, alpha=alpha, gamma=gamma, eps=eps)
    if chosen == "adaptive":
        path = _adaptive(
            field, params, momentum, duration, rtol, atol, num_saves, event, max_steps, kappa
        )
    else:
        step = duration / 20_000 if step_size is None else step_size
        check_positive("flow.solve", step_size=step)
        path = _implicit(
            kappa,
            loss_fn,
            params,
            momentum,
            duration,
            step,
            num_saves,
            event,
            (weight_decay, alpha, gamma, eps),
        )

    def energies(x, m):
        loss = loss_fn(x)
        h = lyapunov(kappa, x, m, loss, weight_decay, alpha=alpha, gamma=gamma, eps=eps)
        return loss, h

    loss, h = jax.jit(jax.vmap(energies))(path["params"], path["momentum"])
    message = f"{reason}; {path.pop('ending')}"
    return Flow(**path, loss=loss, lyapunov=h, method=chosen, message=message)


def _adaptive(field, params, momentum, duration, rtol, atol, num_saves, event, max_steps, kappa):
    import diffrax  # here, so that the optimizers import without it
    import optimistix

    stop = None
    if event is not None:
        stop = diffrax.Event(
            lambda t, y, args, **kwargs: event(t, *y), optimistix.Newton(1e-10, 1e-10)
        )
    times = jnp.linspace(0.0, duration, num_saves)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(*y)),
        diffrax.Tsit5(),
        t0=0.0,
        t1=duration,
        dt0=None,
        y0=(params, momentum),
        saveat=diffrax.SaveAt(ts=times, t1=event is not None, dense=True),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        event=stop,
        throw=False,
    )
    stats = {name: int(value) for name, value in solution.stats.items() if value is not None}
    done = bool(solution.result == diffrax.RESULTS.successful)
    crossed = bool(solution.result == diffrax.RESULTS.event_occurred)
    if not (done or crossed):
        raise RuntimeError(
            f"flow.solve: the adaptive solver gave up after {stats['num_steps']} steps "
            f"({stats['num_rejected_steps']} rejected) with {kappa.name}. Use method='implicit' "
            "for a kappa with kinks, a larger rtol, or float64."
        )
    keep = jnp.isfinite(solution.ts)
    ys = jax.tree.map(lambda leaf: leaf[keep], solution.ys)
    times = solution.ts[keep]
    return {
        "times": times,
        "params": ys[0],
        "momentum": ys[1],
        "num_steps": stats["num_accepted_steps"],
        "event_time": float(times[-1]) if crossed else None,
        "evaluate": solution.evaluate,
        "ending": f"{stats['num_accepted_steps']} steps, {stats['num_rejected_steps']} rejected",
    }


def _implicit(kappa, loss_fn, params, momentum, duration, step_size, num_saves, event, settings):
    weight_decay, alpha, gamma, eps = settings
    subgradient = on_tree(kappa).subgradient
    per_save = max(1, math.ceil(duration / step_size / (num_saves - 1)))
    h = duration / (per_save * (num_saves - 1))

    def advance(carry, _):
        x, m = carry
        speed = jax.tree.map(lambda g, a: -alpha * g - gamma * a, jax.grad(loss_fn)(x), m)
        slope = subgradient(jax.tree.map(lambda a, v: a + eps * v, m, speed))
        x = jax.tree.map(lambda a, s: (a + h * s) / (1.0 + h * weight_decay), x, slope)
        return (x, jax.tree.map(lambda a, v: a + h * v, m, speed)), None

    def save(carry, _):
        carry, _ = jax.lax.scan(advance, carry, length=per_save)
        return carry, carry

    start = (params, momentum)
    _, ys = jax.jit(lambda carry: jax.lax.scan(save, carry, length=num_saves - 1))(start)
    ys = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, ys)
    times = jnp.linspace(0.0, duration, num_saves)
    event_time = None
    if event is not None:
        values = jax.vmap(event)(times, *ys)
        change = (jnp.sign(values[1:]) != jnp.sign(values[:-1])) & (values[:-1] != 0)
        if bool(jnp.any(change)):
            last = int(jnp.argmax(change))
            a, b = values[last], values[last + 1]
            share = a / (a - b)
            event_time = float(times[last] + (times[last + 1] - times[last]) * share)

            def cut(leaf):
                crossing = (1 - share) * leaf[last] + share * leaf[last + 1]
                return jnp.concatenate([leaf[: last + 1], crossing[None]])

            ys, times = jax.tree.map(cut, ys), cut(times)

    def evaluate(time):
        """Linear between saved times."""
        after = jnp.clip(jnp.searchsorted(times, time), 1, times.size - 1)
        share = (time - times[after - 1]) / (times[after] - times[after - 1])
        return jax.tree.map(lambda y: (1 - share) * y[after - 1] + share * y[after], ys)

    return {
        "times": times,
        "params": ys[0],
        "momentum": ys[1],
        "num_steps": per_save * (times.size - 1),  # up to the saved time after an event
        "event_time": event_time,
        "evaluate": evaluate,
        "ending": f"{per_save * (times.size - 1)} steps of {h:.3g}",
    }
