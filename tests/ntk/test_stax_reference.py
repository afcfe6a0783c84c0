"""Kernels of neural-tangents 0.6.5, made by tests/reference/ntk/make_neural_tangents.py."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax

FOLDER = Path(__file__).parents[1] / "reference" / "ntk"


def load(name):
    """A module of the reference folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"ntk_reference_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


networks, random_networks = load("networks"), load("random_networks")

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


def test_enough_networks():
    assert len(networks.NETWORKS) >= 60
    assert len(random_seeds()) >= 40


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


def diagonal_of(array):
    return array if array.ndim == 1 else np.diagonal(array)


RANDOM = FOLDER / "neural_tangents_random.npz"
QUICK_SEEDS = (5, 8)


# Resizes after an odd number of convolutions, which the old library gets wrong; sums branches of
# different widths, which have no finite network; attention that reads covariances of positions
# behind Sign, all of which are 1 in the old library.
NOT_COMPARED = (1, 67, 77)


def random_seeds():
    with np.load(RANDOM) as arrays:
        return sorted({int(name.split("/")[0]) for name in arrays.files} - set(NOT_COMPARED))


@pytest.mark.parametrize(
    "seed",
    [pytest.param(s, marks=() if s in QUICK_SEEDS else pytest.mark.slow) for s in random_seeds()],
)
def test_random_networks_agree_with_neural_tangents(seed):
    with np.load(RANDOM) as arrays:
        true = {n: arrays[n] for n in arrays.files if n.split("/")[0] == str(seed)}
    kind, layers, cut, options = random_networks.build(stax, seed)
    x1, x2 = networks.inputs(kind)
    graphs = options.pop("pattern", None)
    below, above = stax.serial(*layers[:cut])[2], stax.serial(*layers[cut:])[2]
    kernel_fn = stax.serial(*layers)[2]
    with jax.enable_x64(True):
        variances = None
        for tag, other in (("cross", x2), ("own", None)):
            pattern = graphs if graphs is None or tag == "cross" else (graphs[0], graphs[0])
            found = kernel_fn(x1, other, ("nngp", "ntk", "cov1"), pattern=pattern, **options)
            if seed % 4 == 0:  # the kernel of the upper part, given that of the lower part
                kernel = above(below(x1, other, pattern=pattern, **options), pattern=pattern)
                np.testing.assert_allclose(kernel.nngp, found.nngp, rtol=1e-11)
                np.testing.assert_allclose(kernel.ntk, found.ntk, rtol=1e-11)
            for field, value in found._asdict().items():
                exact = true.get(f"{seed}/{tag}/{field}")
                if exact is None:
                    continue
                assert np.isfinite(value).all()
                known = np.isfinite(exact)  # rectified monomials are no numbers on the diagonal
                if field == "cov1":
                    # Full where the old library finds that a layer needs it.
                    exact, value = diagonal_of(exact), diagonal_of(np.asarray(value))
                    known, variances = np.isfinite(exact), value
                    if not np.allclose(exact, np.diagonal(true[f"{seed}/own/nngp"]), rtol=1e-5):
                        continue  # behind Sign the old library's variances of pools are wrong
                if not known.any():
                    continue
                difference = np.where(known, np.abs(np.asarray(value) - exact), 0)
                if tag == "own":
                    # Where x1 is x2 the old library loses half the digits; see test_stax_exact.
                    difference[np.arange(len(x1)), np.arange(len(x1))] = 0
                assert np.max(difference) < 1e-12 * np.nanmax(np.abs(exact)), (tag, field)
        np.testing.assert_allclose(np.diagonal(found.nngp), variances, rtol=1e-9)
