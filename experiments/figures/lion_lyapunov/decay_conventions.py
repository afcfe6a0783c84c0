"""Six ways to write weight decay give six constraints; coupled decay gives none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import descend
from lion_lyapunov import analysis, cautious_lion_k, kappas, scale_by_lion_k
from shared.plotting import new_figure

PEAK, DECAY = 0.05, 1.0
GOAL = 4.0


def compute(fast):
    """Lion with a cosine schedule on (x - 4)^2 / 2 under each convention of one box."""
    steps = 600 if fast else 1500

    def schedule(t):
        return PEAK * (0.05 + 0.95 * 0.5 * (1 + jnp.cos(jnp.pi * t / steps)))

    def loss(x):
        return 0.5 * jnp.sum((x - GOAL) ** 2)

    # The number that makes each convention the box |x| <= 1 at the peak of the schedule.
    numbers = {
        "multiplied": DECAY,
        "relative": DECAY * PEAK,
        "fixed": DECAY * PEAK,
        "corrected": DECAY,
        "coupled": DECAY,
        "cautious": DECAY,
    }
    curves, bounds = {}, {}
    rates = np.asarray(schedule(np.arange(steps))).tolist()
    with jax.enable_x64(True):
        for name, number in numbers.items():
            _, path = descend(_optimizer(name, number, schedule), loss, jnp.zeros(1), steps, _first)
            curves[name] = path.tolist()
            bounds[name] = [
                analysis.constraint_radius(name, number, rate, peak_learning_rate=PEAK)
                for rate in rates
            ]
    last = {name: curve[-1] for name, curve in curves.items()}
    return {
        "data": "f(x) = (x - 4)^2 / 2, cosine learning rate 0.05 to 0.0025, float64",
        "seeds": "none: deterministic",
        "curves": curves,
        "bounds": bounds,
        "claims": [
            claim(
                "multiplied (optax): end of x, box 1", last["multiplied"], low=0.99, high=1 + 1e-9
            ),
            claim(
                "relative (lion-pytorch): end of x, box 1",
                last["relative"],
                low=0.99,
                high=1 + 1e-9,
            ),
            claim("fixed: end of x, box shrinks with the rate", last["fixed"], high=0.5),
            claim("corrected (timm): end of x, box grows", last["corrected"], low=1.1),
            claim("coupled: end of x, no box", last["coupled"], low=1.5),
            claim("cautious: end of x, no box, f alone", last["cautious"], low=3.5),
        ],
    }


def _first(x):
    return x[0]


def _optimizer(name, number, schedule):
    direction = scale_by_lion_k(kappas.l1(), b1=0.9, b2=0.99)
    rate = optax.scale_by_learning_rate(schedule)
    if name == "cautious":
        return cautious_lion_k(
            schedule, kappas.l1(), weight_decay=number, cautious_update=False, cautious_decay=True
        )
    if name == "coupled":
        return optax.chain(optax.add_decayed_weights(number), direction, rate)
    scale = {
        "multiplied": lambda t: number,
        "relative": lambda t: number / PEAK,
        "fixed": lambda t: number / schedule(t),
        "corrected": lambda t: number * schedule(t) / PEAK,
    }[name]
    return optax.chain(direction, optax.add_decayed_weights(scale), rate)


def draw(result):
    """The weight under each convention, with the bound that the convention implies."""
    figure, axes = new_figure(1, 1, width=6.2, height=4.0)
    axis = axes[0, 0]
    for index, (name, curve) in enumerate(result["curves"].items()):
        style = "--" if name == "relative" else "-"  # it lies on "multiplied"
        axis.plot(curve, color=f"C{index}", label=name, ls=style)
        bound = [np.nan if value is None else value for value in result["bounds"][name]]
        axis.plot(bound, color=f"C{index}", ls=":", lw=1)
    axis.axhline(GOAL, color="k", lw=0.8)
    axis.set(
        xlabel="step",
        ylabel="x",
        ylim=(0, 6.0),
        title="One box intended; bounds implied (dotted); minimiser of f at 4",
    )
    axis.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0.22, 0.73))
    return figure
