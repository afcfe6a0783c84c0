"""Five kappas, five feasible sets: an optimum inside is reached, one outside gives the boundary."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import descend
from lion_lyapunov import analysis, kappas, lion_k
from shared.plotting import new_figure

DECAY = 1.0
KAPPAS = {
    "l1 (box)": kappas.l1,
    "l2 (ball)": kappas.l2,
    "linf (l1 ball)": kappas.linf,
    "lp 1.5 (l3 ball)": lambda: kappas.lp(1.5),
    "positive part": kappas.positive_part,
}
GOALS = {"inside": (0.35, 0.2), "outside": (1.4, 0.9)}


def compute(fast):
    """Lion-K on |x - goal|^2 / 2 in two dimensions with a decreasing learning rate."""
    steps = 1500 if fast else 4000
    ticks = np.linspace(-1.7, 1.7, 61 if fast else 121)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    paths, sets, errors, outside = {}, {}, [], []

    def rate(t):
        return jnp.minimum(0.02, 8.0 / (t + 1.0))

    with jax.enable_x64(True):
        for name, make in KAPPAS.items():
            kappa = make()
            optimizer = lion_k(rate, kappa, weight_decay=DECAY)
            points = jnp.asarray(grid.reshape(-1, 2))
            far = jax.vmap(lambda x, k=kappa: analysis.distance(k, x, DECAY))(points)
            sets[name] = np.asarray(far).reshape(grid.shape[:2]).tolist()
            for side, goal in GOALS.items():
                start = jnp.asarray([-1.5, 1.2])

                def loss(x, goal=goal):
                    return 0.5 * jnp.sum((x - jnp.asarray(goal)) ** 2)

                last, path = descend(optimizer, loss, start, steps, lambda x: x)
                # For this f the constrained optimum is the projection of the goal.
                best = np.asarray(kappa.project(jnp.asarray(goal) * DECAY)) / DECAY
                paths[f"{name}|{side}"] = path[:: max(1, steps // 400)].tolist()
                errors.append(float(np.abs(last - best).max()))
                outside.append(float(analysis.distance(kappa, jnp.asarray(last), DECAY)))
    return {
        "data": f"f(x) = |x - goal|^2 / 2, goals {GOALS}, decay 1, float64",
        "seeds": "none: deterministic",
        "ticks": ticks.tolist(),
        "sets": sets,
        "paths": paths,
        "claims": [
            claim("distance to the constrained optimum, worst of ten", max(errors), high=0.02),
            claim("violation at the end, worst of ten", max(outside), high=1e-6),
        ],
    }


def draw(result):
    """Feasible sets in grey, trajectories towards both goals."""
    figure, axes = new_figure(1, len(KAPPAS), width=2.7, height=2.9)
    ticks = np.array(result["ticks"])
    for axis, name in zip(axes[0], KAPPAS):
        far = np.array(result["sets"][name])
        axis.contourf(ticks, ticks, far, levels=[-1, 0.01], colors=["#d0d0d0"])
        axis.contour(ticks, ticks, far, levels=6, colors="C7", linewidths=0.5)
        for side, color in (("inside", "C0"), ("outside", "C2")):
            path = np.array(result["paths"][f"{name}|{side}"])
            axis.plot(path[:, 0], path[:, 1], color=color, lw=1.2)
            axis.plot(*path[-1], "o", color=color, ms=4)
            axis.plot(*GOALS[side], "*", color=color, ms=9, label=f"goal {side}")
        axis.set(title=name, xlabel="x1", xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
    axes[0, 0].set_ylabel("x2")
    axes[0, 0].legend(fontsize=6, loc="lower left", frameon=True, facecolor="white", framealpha=1.0)
    return figure
