"""Every law gives back the parameters that made the data."""

import dataclasses

import numpy as np
import pytest
from scaling_cases import SCHEDULE, TABLE, Known, curves_of, table_of

import scaling_laws
from scaling_laws import laws
from scaling_laws.laws import Law, Parameter

QUICK = ("chinchilla", "power_law", "annealing")


def by_law_and_loss(names):
    """Least squares of the QUICK laws in the fast tests, the rest in the slow ones."""
    for name in names:
        for loss in ("lsq", "huber"):
            marks = () if name in QUICK and loss == "lsq" else pytest.mark.slow
            yield pytest.param(name, loss, marks=marks)


@pytest.mark.parametrize(("name", "loss"), list(by_law_and_loss(TABLE)))
def test_laws_of_the_final_loss_are_recovered(name, loss):
    law, truth = TABLE[name]
    result = scaling_laws.fit(law, table_of(law, truth), loss=loss)
    for symbol, value in truth.items():
        assert result.params[symbol] == pytest.approx(value, rel=1e-6), symbol


@pytest.mark.parametrize(("name", "loss"), list(by_law_and_loss(SCHEDULE)))
def test_schedule_laws_are_recovered(name, loss):
    law, truth = SCHEDULE[name]
    result = scaling_laws.fit(law, curves_of(law, truth), loss=loss)
    for symbol, value in truth.items():
        assert result.params[symbol] == pytest.approx(value, rel=1e-6), symbol


def test_the_steeper_law_of_a_crossover_comes_first_from_any_start():
    law, truth = TABLE["crossover"]
    mirrored = truth | {"A": truth["B"], "B": truth["A"]}
    mirrored |= {"alpha": truth["beta"], "beta": truth["alpha"]}
    result = scaling_laws.fit(law, table_of(law, truth), loss="lsq", starts=[mirrored])
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
        losses = scaling_laws.FitResult.predict(Known(law, truth), sized)
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
