"""Every figure of the package holds its claims in fast mode and can be drawn from its JSON."""

import importlib
import json
import pkgutil

import pytest

from experiments.figures import lion_lyapunov as figures

NAMES = [m.name for m in pkgutil.iter_modules(figures.__path__) if not m.name.startswith("_")]


def test_there_are_ten():
    assert len(NAMES) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_figure_holds_its_claims(name):
    module = importlib.import_module(f"experiments.figures.lion_lyapunov.{name}")
    result = module.compute(fast=True)
    assert result["claims"]
    failed = [claim for claim in result["claims"] if not claim["holds"]]
    assert not failed
    figure = module.draw(json.loads(json.dumps(result)))
    assert all(axis.get_xlabel() for axis in figure.axes)
