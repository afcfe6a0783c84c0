"""Kernels of neural-tangents 0.6.5, made by tests/reference/ntk/make_neural_tangents.py."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax

FOLDER = Path(__file__).parents[1] / "reference" / "ntk"
SPEC = importlib.util.spec_from_file_location("ntk_reference_networks", FOLDER / "networks.py")
assert SPEC is not None
assert SPEC.loader is not None
networks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(networks)

# Compiled in every run; the others take minutes in all.
QUICK = {"fc_relu", "fc_residual", "fc_standard", "cnn_flatten_same", "cnn_gap_valid", "graph"}
# neural-tangents is wrong, and the tests below hold the truth: NaN where x1 is x2 (rectified
# monomials), `repeat` refuses to change the number of channels.
NOT_A_NUMBER = ("rectified",)
NOT_THERE = ("fc_repeat",)


def cases():
    for name in networks.NETWORKS:
        if name not in NOT_THERE:
            marks = () if name in QUICK else (pytest.mark.slow,)
            yield pytest.param(name, marks=marks)


@pytest.fixture(scope="module")
def reference():
    return np.load(FOLDER / "neural_tangents_0_6_5.npz")


def test_at_least_sixty_networks():
    assert len(networks.NETWORKS) >= 60


@pytest.mark.parametrize("name", list(cases()))
def test_agrees_with_neural_tangents(name, reference):
    kind, make, options = networks.NETWORKS[name]
    options = dict(options)
    graphs = options.pop("pattern", None)
    x1, x2 = networks.inputs(kind)
    with jax.enable_x64(True):
        kernel_fn = make(stax, jnp)[2]
        for tag, other in (("cross", x2), ("own", None)):
            if graphs is not None:
                first, second = networks.patterns(x1, x2, graphs)
                options["pattern"] = (first, first if other is None else second)
            get = ("nngp", "ntk", "cov1") if tag == "cross" else ("nngp", "ntk")
            found = kernel_fn(x1, other, get, **options)._asdict()
            for field, value in found.items():
                true = reference[f"{name}/{tag}/{field}"]
                value = np.asarray(value)
                assert value.dtype == np.float64
                assert value.shape == true.shape
                assert np.isfinite(value).all()
                difference = np.abs(value - true)
                if any(word in name for word in NOT_A_NUMBER):
                    difference = difference[np.isfinite(true)]
                elif tag == "own":
                    # Where x1 is x2 the old library loses half the digits; see test_stax_exact.
                    difference[np.arange(len(x1)), np.arange(len(x1))] = 0
                if difference.size:
                    assert difference.max() < 1e-12 * np.nanmax(np.abs(true)), field
