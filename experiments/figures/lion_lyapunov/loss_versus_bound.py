"""A tighter bound settles sooner and ends worse: loss against steps and against 1 / decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import descend, digits_loss, logistic, mlp_params
from lion_lyapunov import kappas, lion_k
from shared.plotting import new_figure

DECAYS = (4.0, 2.0, 1.0, 0.5, 0.25)


def compute(fast):
    """Lion on logistic regression (with the exact bounded optimum) and on a small network."""
    steps = 1500 if fast else 4000
    rows = logistic(200, 20, 0)

    def numpy_loss(x):
        margins = rows @ x
        return np.logaddexp(0, -margins).mean(), -rows.T @ (1 / (1 + np.exp(margins))) / len(rows)

    def loss(x):
        return jnp.mean(jnp.logaddexp(0.0, -jnp.asarray(rows) @ x))

    curves, exact = {}, []
    with jax.enable_x64(True):
        for decay in DECAYS:
            # Lion hovers at the square of the last rate: constant first, then down to 5e-5.
            rate = optax.exponential_decay(0.05, steps // 2, 1e-3, transition_begin=steps // 2)
            optimizer = lion_k(rate, kappas.l1(), weight_decay=decay)
            start = jnp.zeros(20)
            curves[f"{decay:g}"] = descend(optimizer, loss, start, steps, loss)[1].tolist()
            best = optimize.minimize(
                numpy_loss,
                np.zeros(20),
                jac=True,
                bounds=[(-1 / decay, 1 / decay)] * 20,
                method="L-BFGS-B",
                options={"ftol": 1e-15, "gtol": 1e-11, "maxiter": 5000},
            )
            exact.append(float(best.fun))
    final = np.array([curves[f"{decay:g}"][-1] for decay in DECAYS])
    settled = [
        int(np.argmax(np.array(curves[f"{decay:g}"]) <= 1.01 * curves[f"{decay:g}"][-1]))
        for decay in DECAYS
    ]
    network = digits_loss(300 if fast else 800)
    network_steps = 200 if fast else 600
    network_final = [
        float(
            descend(
                lion_k(3e-3, kappas.l1(), weight_decay=10 * decay),
                network,
                mlp_params(0, (64, 16, 10)),
                network_steps,
                network,
            )[1][-10:].mean()
        )
        for decay in DECAYS
    ]
    return {
        "data": "logistic regression, 200 x 20 Gaussian inputs, float64; digits MLP 64-16-10",
        "seeds": "one seed (0) for each problem",
        "curves": curves,
        "exact": exact,
        "final": final.tolist(),
        "network_final": network_final,
        "claims": [
            claim(
                "relative gap to the bounded optimum, worst decay",
                np.max((final - exact) / np.array(exact)),
                high=1e-4,
            ),
            claim("steps to 1 % of its end: decay 0.25 over 4", settled[-1] / settled[0], low=3),
            claim("loss at decay 4 over loss at 0.25, end", final[0] / final[-1], low=1.2),
            claim(
                "network: loss at the tightest over the loosest bound, end",
                network_final[0] / network_final[-1],
                low=1.2,
            ),
        ],
    }


def draw(result):
    """Loss against steps, and the end against the bound."""
    figure, axes = new_figure(1, 2, width=4.6, height=3.4)
    left, right = axes[0]
    for decay in DECAYS:
        curve = np.array(result["curves"][f"{decay:g}"])
        left.loglog(1 + np.arange(len(curve)), curve, label=f"decay {decay:g}")
    left.set(xlabel="step + 1", ylabel="logistic loss", title="Loss for several bounds, n = 1 run")
    left.legend(fontsize=8)
    bounds = 1 / np.array(DECAYS)
    right.loglog(bounds, result["exact"], "k-", lw=1, label="bounded optimum (L-BFGS-B)")
    right.loglog(bounds, result["final"], "o", label="Lion, logistic regression")
    right.loglog(
        bounds / 10, result["network_final"], "s--", ms=4, label="Lion, network (train loss)"
    )
    right.set(xlabel="bound on |w|, 1 / decay", ylabel="loss at the end", title="Price of a bound")
    right.legend(fontsize=8)
    return figure
