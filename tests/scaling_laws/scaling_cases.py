"""Laws with known parameters, and noise-free data that they make."""

import dataclasses

import numpy as np

import scaling_laws
from scaling_laws import curves, laws
from scaling_laws.laws import Law

TABLE = {
    "chinchilla": (
        laws.Chinchilla(),
        {"E": 1.7, "A": 406.0, "B": 1200.0, "alpha": 0.34, "beta": 0.38},
    ),
    "tied": (
        laws.Chinchilla(tie_exponents=True),
        {"E": 1.7, "A": 406.0, "B": 1200.0, "alpha": 0.36},
    ),
    "power_law": (laws.PowerLaw("flops"), {"E": 2.1, "A": 500.0, "alpha": 0.15}),
    "encoder_decoder": (laws.EncoderDecoder(), {"E": 1.2, "A": 90.0, "pe": 0.18, "pd": 0.11}),
    "broken": (
        laws.BrokenPowerLaw("params"),
        {"E": 0.5, "A": 30.0, "c0": 0.2, "c1": 0.4, "d": 3e8, "f": 0.4},
    ),
    "crossover": (
        laws.Crossover("params"),
        {"E": 0.7, "A": 4e6, "B": 20.0, "alpha": 0.8, "beta": 0.12},
    ),
}
SCHEDULE = {
    "annealing": (
        laws.LRAnnealing(),
        {"L0": 2.6, "A": 0.6, "alpha": 0.45, "C": 15.0, "lambda": 0.98},
    ),
    "multi_power": (
        laws.MultiPower(),
        {"L0": 2.6, "A": 0.6, "alpha": 0.45, "B": 400.0, "C": 4.0, "beta": 0.5, "gamma": 0.6},
    ),
    "functional": (
        laws.FunctionalScaling(),
        {"L0": 2.6, "A": 0.6, "alpha": 0.45, "B": 300.0, "C": 60.0, "beta": 0.5},
    ),
    "power_relaxation": (
        laws.PowerRelaxation(),
        {"L0": 2.6, "A": 0.6, "alpha": 0.45, "B": 500.0, "C": 0.2},
    ),
}


def table_of(law, params, points=60, seed=0):
    rng = np.random.default_rng(seed)
    ranges = {
        "params": (1e7, 1e10), "tokens": (1e9, 1e12), "flops": (1e17, 1e23),
        "encoder_params": (1e6, 1e9), "decoder_params": (1e6, 1e9),
    }  # fmt: skip
    data = {}
    for name in law.inputs:
        low, high = np.log(ranges[name])
        data[name] = np.exp(rng.permutation(np.linspace(low, high, points)))
    return data | {"loss": scaling_laws.FitResult.predict(Known(law, params), data)}


@dataclasses.dataclass
class Known:
    """A law with known parameters: all that `predict` reads."""

    law: Law
    params: dict


def curves_of(law, params, total=1500):
    steps = np.arange(100, total, 25)
    common = {"peak": 1e-3, "warmup": 60}
    schedules = {
        "cosine": curves.cosine(total, end=1e-4, **common),
        "wsd": curves.wsd(total, decay_start=1000, end=5e-5, **common),
        "two_stage": curves.two_stage(total, switch=600, end=3e-4, **common),
        "constant": curves.constant(total, **common),
    }
    made = [curves.Curve(steps, np.ones(len(steps)), r, name=n) for n, r in schedules.items()]
    losses = scaling_laws.FitResult.predict(Known(law, params), made)
    return [dataclasses.replace(c, losses=y) for c, y in zip(made, losses)]
