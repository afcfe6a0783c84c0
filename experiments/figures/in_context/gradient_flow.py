"""Two and four heads of the reduced model pass three phases and end as debiased gradient descent.

Gradient descent with small steps on the 2 H numbers of He et al. (arXiv:2503.12734): all heads grow
and overshoot, their sizes meet and sum mu vanishes, then |omega| creeps to 0 at fixed 2 omega mu.
"""

from typing import Any

import jax
import numpy as np

from experiments.figures import claim
from experiments.figures.in_context._common import NOISE
from in_context import softmax_attention
from shared import plotting

N, D = 40, 5
STARTS = {
    "2": ([0.02, -0.01], [0.01, -0.03]),
    "4": ([0.02, -0.01, 0.015, -0.03], [0.01, -0.03, 0.02, -0.01]),
}


def compute(fast: bool) -> dict[str, Any]:
    """The flow for H = 2 and 4."""
    steps = 20_000 if fast else 200_000
    limit = softmax_attention.approximate_limit(N, D, noise=NOISE)
    flows = {}
    claims = []
    with jax.enable_x64(True):
        for heads, (omega, mu) in STARTS.items():
            flow = dense_at_first(np.array(omega), np.array(mu), steps)
            flows[heads] = {name: value.tolist() for name, value in flow.items()}
            size = np.abs(flow["omega"])
            spread = np.ptp(size[-1]) / size[-1].mean()
            claims += [
                claim(
                    f"H = {heads}: loss over its limit",
                    flow["losses"][-1] / limit - 1,
                    low=0.0,
                    high=0.01,
                ),
                claim(f"H = {heads}: |sum mu|", abs(flow["mu"][-1].sum()), high=1e-4),
                claim(f"H = {heads}: spread of |omega|", spread, high=0.01),
                claim(f"H = {heads}: overshoot", size.max() / size[-1].max(), low=1.5),
            ]
    return {
        "data": f"reduced loss at n {N}, d {D}, noise variance 0.1; {steps} steps of 0.01; float64",
        "seeds": [],
        "limit": limit,
        "flows": flows,
        "claims": claims,
    }


def dense_at_first(omega: np.ndarray, mu: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """The flow with records every 5 steps at first: the heads grow within some hundred."""
    flows = [
        softmax_attention.gradient_flow(omega, mu, N, D, noise=NOISE, num_steps=count)
        for count in (2000, steps)
    ]
    later = np.asarray(flows[1].steps) > 2000
    return {
        name: np.concatenate([getattr(flows[0], name), np.asarray(getattr(flows[1], name))[later]])
        for name in ("steps", "omega", "mu", "losses")
    }


def draw(result: dict[str, Any]):
    """omega, mu and the loss over steps."""
    figure, axes = plotting.new_figure(2, 3, width=3.4, height=2.6)
    for row, (heads, flow) in zip(axes, result["flows"].items()):
        row[0].semilogx(flow["steps"], flow["omega"])
        row[0].set(ylabel="omega of each head", title=f"H = {heads}")
        row[1].semilogx(flow["steps"], flow["mu"])
        row[1].semilogx(flow["steps"], np.sum(flow["mu"], axis=1), "k--", label="sum")
        row[1].set(ylabel="mu of each head")
        row[1].legend()
        row[2].loglog(flow["steps"], np.array(flow["losses"]) - result["limit"])
        row[2].set(ylabel="reduced loss - limit")
        for axis in row:
            axis.set_xlabel("step")
    return figure
