"""Every law gives back the parameters that made the data, and its intervals cover them."""

import dataclasses

import numpy as np
import pytest

import scaling_laws
from scaling_laws import curves, laws
from scaling_laws.laws import Law, Parameter

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
QUICK = ("chinchilla", "power_law")
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
    return data | {"loss": scaling_laws.FitResult.predict(_Bare(law, params), data)}


@dataclasses.dataclass
class _Bare:
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
    losses = scaling_laws.FitResult.predict(_Bare(law, params), made)
    return [dataclasses.replace(c, losses=y) for c, y in zip(made, losses)]


@pytest.mark.parametrize(
    "name",
    [
        "chinchilla",
        "power_law",
        *(pytest.param(n, marks=pytest.mark.slow) for n in TABLE if n not in QUICK),
    ],
)
def test_laws_of_the_final_loss_are_recovered(name):
    law, truth = TABLE[name]
    result = scaling_laws.fit(law, table_of(law, truth), loss="lsq")
    for symbol, value in truth.items():
        assert result.params[symbol] == pytest.approx(value, rel=1e-6), symbol


@pytest.mark.parametrize(
    "name",
    ["annealing", *(pytest.param(n, marks=pytest.mark.slow) for n in list(SCHEDULE)[1:])],
)
def test_schedule_laws_are_recovered(name):
    law, truth = SCHEDULE[name]
    result = scaling_laws.fit(law, curves_of(law, truth), loss="lsq")
    for symbol, value in truth.items():
        assert result.params[symbol] == pytest.approx(value, rel=1e-6), symbol


@pytest.mark.slow
def test_annealing_with_model_size_is_recovered():
    law = laws.LRAnnealing(decay=0.98, size=True)
    truth = {"L0": 2.0, "A": 0.6, "alpha": 0.45, "C": 3.0, "lambda": 0.98,
             "B": 80.0, "beta": 0.3, "gamma": -0.1}  # fmt: skip
    data = []
    for size in (2.5e7, 1e8, 4e8):
        plain = curves_of(laws.LRAnnealing(), {k: truth[k] for k in laws.LRAnnealing().symbols})
        sized = [dataclasses.replace(c, params=size) for c in plain[:2]]
        losses = scaling_laws.FitResult.predict(_Bare(law, truth), sized)
        data += [dataclasses.replace(c, losses=y) for c, y in zip(sized, losses)]
    result = scaling_laws.fit(law, data, loss="lsq")
    for symbol, value in truth.items():
        assert result.params[symbol] == pytest.approx(value, rel=1e-6), symbol


def test_a_fixed_amplitude_keeps_its_unit_while_its_exponent_is_fitted():
    law, truth = TABLE["chinchilla"]
    result = scaling_laws.fit(law, table_of(law, truth), loss="lsq", fixed={"A": truth["A"]})
    for symbol, value in truth.items():
        assert result.params[symbol] == pytest.approx(value, rel=1e-6), symbol


class Exponential(Law):
    """A law of a user, in ten lines."""

    parameters = (
        Parameter("E", "loss at infinite size", linear=True, unit={"loss": 1}),
        Parameter("A", "reducible loss", linear=True, unit={"loss": 1}),
        Parameter("x0", "scale of its decay", starts=(0.3, 1.0, 3.0), unit={"params": 1}),
    )
    inputs = ("params",)

    def predict(self, params, inputs):
        return params["E"] + params["A"] * np.e ** (-inputs["params"] / params["x0"])


def test_a_law_of_ones_own_is_fitted_in_natural_units():
    size = np.linspace(1e6, 9e6, 15)
    data = {"params": size, "loss": 1.5 + 2.0 * np.exp(-size / 2e6)}
    result = scaling_laws.fit(Exponential(), data, loss="lsq")
    assert result.params["x0"] == pytest.approx(2e6, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TABLE, *SCHEDULE])
def test_intervals_cover_the_truth_19_times_in_20(name):
    """500 noisy copies; at 95 % the share that covers has a standard error of 1 %."""
    rng = np.random.default_rng(7)
    schedule = name in SCHEDULE
    law, truth = (SCHEDULE if schedule else TABLE)[name]
    clean = curves_of(law, truth) if schedule else table_of(law, truth, 120)
    noise = 1e-4
    covered = dict.fromkeys(law.symbols, 0)
    for _ in range(500):
        if schedule:
            data = [
                dataclasses.replace(
                    c, losses=c.losses * np.exp(noise * rng.standard_normal(len(c.losses)))
                )
                for c in clean
            ]
        else:
            shake = np.exp(noise * rng.standard_normal(len(clean["loss"])))
            data = clean | {"loss": clean["loss"] * shake}
        result = scaling_laws.fit(law, data, loss="lsq", starts=[truth])
        for symbol in law.symbols:
            low, high = scaling_laws.interval(result, symbol)
            covered[symbol] += low <= truth[symbol] <= high
    shares = {symbol: count / 500 for symbol, count in covered.items()}
    assert all(0.92 <= share <= 0.98 for share in shares.values()), shares
