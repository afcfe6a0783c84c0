"""Half precision for past logits costs a thousandth of the trajectory loss's gradient.

Logits are synthetic: 1,000 classes, Gaussian with deviation 2, one class raised by 10; since they
were stored, each has moved by a Gaussian of deviation 1. The error is that of the gradient
tau (q - p), as a share of its norm, averaged over examples; a network that moved ten times less has
ten times the share. Each form is what the table of `saf` writes and reads.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import sam_free
from experiments.figures import claim
from shared import plotting

CLASSES, START = 1000, -1
FORMS = ("float32", "float16", "int8")


def compute(fast: bool) -> dict[str, Any]:
    """Relative error of the gradient by form and temperature, over seeds."""
    count, seeds = (128, [0, 1]) if fast else (1024, [0, 1, 2, 3, 4])
    temperatures = [1.0, 2.0, 5.0, 10.0]
    errors = {
        form: [[_error(form, tau, count, seed) for seed in seeds] for tau in temperatures]
        for form in FORMS
    }
    at_five = {form: float(np.mean(errors[form][2])) for form in FORMS}
    return {
        "data": f"synthetic logits, {count} examples, {CLASSES} classes",
        "seeds": seeds,
        "temperatures": temperatures,
        "errors": errors,
        "claims": [
            claim("float32, tau = 5", at_five["float32"], high=1e-5),
            claim("float16, tau = 5", at_five["float16"], high=5e-3),
            claim("int8, tau = 5", at_five["int8"], low=at_five["float16"], high=1e-1),
        ],
    }


def draw(result: dict[str, Any]) -> Figure:
    """One line per form, the range over seeds shaded."""
    figure, axes = plotting.new_figure(width=4.8)
    axis = axes[0, 0]
    for form in FORMS[1:]:  # float32 has no error to draw
        values = np.array(result["errors"][form])
        (line,) = axis.plot(result["temperatures"], values.mean(axis=1), "o-", label=form)
        axis.fill_between(
            result["temperatures"],
            values.min(axis=1),
            values.max(axis=1),
            alpha=0.25,
            color=line.get_color(),
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(result["temperatures"], [f"{tau:g}" for tau in result["temperatures"]])
    axis.minorticks_off()
    axis.set_xlabel("temperature")
    axis.set_ylabel("relative error of the gradient")
    axis.set_title(
        f"{result['data']}\nmean and range over {len(result['seeds'])} seeds; float32: none",
        fontsize=9,
    )
    axis.legend(title="stored as")
    return figure


def _error(form: str, temperature: float, count: int, seed: int) -> float:
    """Mean over examples of |gradient with the stored form - exact| / |exact|."""
    rng = np.random.default_rng(seed)
    past = rng.normal(size=(count, CLASSES)) * 2
    past[np.arange(count), rng.integers(0, CLASSES, count)] += 10
    now = jnp.asarray(past + rng.normal(size=past.shape), jnp.float32)
    past = jnp.asarray(past, jnp.float32)
    objective = sam_free.saf(
        lambda params, model_state, inputs, *, train, key: (inputs + params, model_state),
        lambda logits, batch: jnp.zeros(logits.shape[0]),
        num_classes=CLASSES,
        lag_epochs=1,
        start_epoch=START,
        weight=float(count),
        temperature=temperature,
        buffer_dtype=form,
    )
    batch = {"inputs": now, "index": jnp.arange(count, dtype=jnp.int32)}
    shift = jnp.zeros_like(now)
    table = objective.update(
        objective.init(shift, count),
        params=shift,
        model_state=(),
        logits=past,
        batch=batch,
        epoch=0,
    )
    found = jax.grad(lambda s: objective.loss(s, (), table, batch, 1, None)[0])(shift)
    exact = jax.grad(
        lambda s: sam_free.trajectory_loss(now + s, past, temperature=temperature).sum()
    )(shift)
    error = jnp.linalg.norm(found - exact, axis=1) / jnp.linalg.norm(exact, axis=1)
    return float(jnp.mean(error))
