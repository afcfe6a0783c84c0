"""A bootstrap of points misses the error of the law: its band covers too few points of new runs."""

from typing import Any

import jax
import numpy as np

import scaling_laws
from experiments.figures import claim
from scaling_laws import curves, laws
from shared.plotting import COLORS, new_figure

TRUTH = {"L0": 2.6, "A": 0.6, "alpha": 0.45, "B": 500.0, "C": 0.05}
NOISE = 2e-4
STEPS = 6000


def _run(name: str, rates: np.ndarray, seed: int) -> curves.Curve:
    """A run of another law than the fitted one: the fitted law is always a little wrong."""
    at = np.arange(300, len(rates), 60)
    shell = curves.Curve(at, np.ones(len(at)), rates, name=name)
    law = laws.PowerRelaxation()
    loss = scaling_laws.FitResult.predict(_Known(law, TRUTH), shell)
    shake = NOISE * np.random.default_rng(seed).standard_normal(len(at))
    return curves.Curve(at, loss * np.exp(shake), rates, name=name)


class _Known:
    """A law with known parameters, all that `predict` reads."""

    def __init__(self, law, params):
        self.law, self.params = law, params


def compute(fast: bool) -> dict[str, Any]:
    """Coverage of both bands on new runs."""
    common = {"peak": 3e-4, "warmup": 100}
    fitted = [
        _run("cosine", curves.cosine(STEPS, end=3e-5, **common), 1),
        _run("constant", curves.constant(STEPS, **common), 2),
        _run("two stages", curves.two_stage(STEPS, switch=2500, end=9e-5, **common), 3),
    ]
    new = [
        _run("WSD", curves.wsd(STEPS, decay_start=4800, end=3e-5, **common), 4),
        _run("long cosine", curves.cosine(2 * STEPS, end=3e-5, **common), 5),
        _run("lower stage", curves.two_stage(STEPS, switch=2500, end=3e-5, **common), 6),
    ]
    result = scaling_laws.fit(laws.LRAnnealing(), fitted)
    drawn = scaling_laws.bootstrap(result, 20 if fast else 100, key=jax.random.key(0))
    points, whole, bands = [], [], []
    for curve in new:
        rows = range(len(drawn.objectives))
        samples = [
            result.predict(curve, params={s: v[i] for s, v in drawn.samples.items()}) for i in rows
        ]
        low, high = np.quantile(samples, [0.025, 0.975], axis=0)
        shake = 1.96 * NOISE * result.predict(curve)
        points.append(float(np.mean((curve.losses > low - shake) & (curve.losses < high + shake))))
        band = scaling_laws.curve_interval(result, curve)
        whole.append(float(np.mean((curve.losses > band.low) & (curve.losses < band.high))))
        bands.append(
            {
                "name": curve.name,
                "steps": curve.steps.tolist(),
                "error": (100 * np.log(curve.losses / band.prediction)).tolist(),
                "bootstrap": (100 * np.log((high + shake) / band.prediction)).tolist(),
                "whole": (100 * np.log(band.high / band.prediction)).tolist(),
            }
        )
    return {
        "data": "simulated: runs of PowerRelaxation, fitted by LRAnnealing, noise 0.02 %",
        "seeds": [1, 2, 3, 4, 5, 6],
        "samples": len(drawn.objectives),
        "coverage_bootstrap": points,
        "coverage_interval": whole,
        "bands": bands,
        "claims": [
            # An interval holds where it covers 92 to 98 %; a band that knows only noise does not.
            claim("coverage of the bootstrap band (95 %)", float(np.mean(points)), high=0.92),
            claim("coverage of curve_interval, nominal 95 %", float(np.mean(whole)), low=0.9),
        ],
    }


def draw(result: dict[str, Any]):
    """Errors on new runs inside both bands."""
    figure, axes = new_figure(1, len(result["bands"]), width=3.4)
    shares = zip(result["coverage_bootstrap"], result["coverage_interval"])
    for axis, band, (few, most) in zip(axes[0], result["bands"], shares):
        steps = np.array(band["steps"])
        for name, color, share in (("whole", COLORS[0], most), ("bootstrap", COLORS[1], few)):
            width = np.array(band[name])
            label = "interval with model error" if name == "whole" else "bootstrap of points"
            axis.fill_between(
                steps, -width, width, color=color, alpha=0.25, label=f"{label}: {share:.0%} inside"
            )
        axis.plot(steps, band["error"], "k.", ms=2)
        axis.set(xlabel="step", title=band["name"])
        axis.legend(fontsize=7, loc="upper left")
    axes[0, 0].set_ylabel("log error of the prediction (%)")
    return figure
