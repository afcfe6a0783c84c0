"""Fully connected kernels against recursions in 60-digit arithmetic."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from ntk import stax

W, B = 1.3, 0.2


def relu_dual(cross, v1, v2):
    cosine = cross / mp.sqrt(v1 * v2)
    theta = mp.acos(min(max(cosine, mp.mpf(-1)), mp.mpf(1)))
    slope = (mp.pi - theta) / (2 * mp.pi)
    return mp.sqrt(v1 * v2) * mp.sin(theta) / (2 * mp.pi) + slope * cross, slope


def erf_dual(cross, v1, v2):
    root = mp.sqrt((1 + 2 * v1) * (1 + 2 * v2) - 4 * cross**2)
    return 2 / mp.pi * mp.atan2(2 * cross, root), 4 / mp.pi / root


def reference(x, y, depth, dual, weight, bias):
    """nngp and ntk of `depth` blocks of Dense and nonlinearity, and a last Dense."""
    with mp.workdps(60):
        x, y = [mp.mpf(float(a)) for a in x], [mp.mpf(float(a)) for a in y]
        w, b = mp.mpf(weight) ** 2, mp.mpf(bias or 0) ** 2
        cross, v1, v2 = (
            sum(p * q for p, q in zip(*pair)) / len(x) for pair in ((x, y), (x, x), (y, y))
        )
        ntk = mp.mpf(0)
        for layer in range(depth + 1):
            cross, v1, v2 = w * cross + b, w * v1 + b, w * v2 + b
            ntk = cross + w * ntk
            if layer < depth:
                cross, slope = dual(cross, v1, v2)
                v1, v2 = dual(v1, v1, v1)[0], dual(v2, v2, v2)[0]
                ntk *= slope
        return float(cross), float(ntk)


@functools.cache  # compiled once for all tests that use it
def network(depth, name, bias=B):
    act = ACTS[name][0]
    return stax.serial(
        *[layer for _ in range(depth) for layer in (stax.Dense(1, W, bias), act)],
        stax.Dense(1, W, bias),
    )[2]


ACTS = {"relu": (stax.Relu(), relu_dual), "erf": (stax.Erf(), erf_dual)}


def errors(depth, name, x, y, pairs, bias=B, **options):
    """Largest relative error over nngp and ntk of some pairs."""
    dual = ACTS[name][1]
    with jax.enable_x64(True):
        found = network(depth, name, bias)(x, y, ("nngp", "ntk"), **options)
        found = [np.asarray(a) for a in found]
    other = x if y is None else y
    worst = 0.0
    for i, j in pairs:
        for value, true in zip(found, reference(x[i], other[j], depth, dual, W, bias)):
            worst = max(worst, abs(value[i, j] - true) / np.max(np.abs(value)))
    return worst


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).normal(size=(4, 6))


@pytest.mark.parametrize("name", ["relu", "erf"])
def test_generic_pairs(points, name):
    pairs = [(0, 1), (2, 3), (1, 2)]
    assert errors(4, name, points, points[::-1] * 1.5, pairs) < 1e-13


@pytest.mark.parametrize("depth", [1, pytest.param(7, marks=pytest.mark.slow), 50])
@pytest.mark.parametrize("name", ["relu", "erf"])
def test_variances_and_tangents_of_equal_inputs_are_exact(points, depth, name):
    repeated = np.concatenate([points[:2], points[:1]])
    assert errors(depth, name, repeated, None, [(0, 0), (1, 1), (0, 2)]) < 1e-13


@pytest.mark.parametrize("bias", [None, B])
def test_opposite_inputs_and_multiples(points, bias):
    y = np.stack([-points[0], 3.7 * points[1], -0.3 * points[2], points[3]])
    assert errors(3, "relu", points, y, [(0, 0), (1, 1), (2, 2), (3, 3)], bias) < 1e-12


@pytest.mark.parametrize("accurate", [False, True])
@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-13])
def test_near_duplicates(points, distance, accurate):
    y = points + distance * np.random.default_rng(1).normal(size=points.shape)
    bar = 1e-12 if accurate else 1e-8
    assert errors(3, "relu", points, y, [(0, 0), (1, 1)], accurate=accurate) < bar


def test_many_near_duplicates_in_the_accurate_mode(points):
    rng = np.random.default_rng(2)
    x = points[:1] + 1e-7 * rng.normal(size=(40, 6))
    pairs = [(0, 39), (17, 3), (30, 31)]
    assert errors(3, "relu", x, None, pairs, accurate=True) < 1e-12
    assert errors(3, "relu", x, None, pairs) < 1e-7


def test_single_precision_diagonal_at_depth_20(points):
    single = points.astype(np.float32)
    found = network(20, "relu")(single, None, "ntk")
    assert found.dtype == jnp.float32
    for i in range(len(single)):
        true = reference(single[i], single[i], 20, relu_dual, W, B)[1]
        assert abs(float(found[i, i]) / true - 1) < 2e-6


def test_large_weights_of_erf_in_single_precision():
    x = np.ones((2, 3), np.float32)
    kernel_fn = stax.serial(stax.Dense(1, 30.0, 0.1), stax.Erf(), stax.Dense(1))[2]
    found = float(kernel_fn(x, x.copy(), "ntk")[0, 1])
    with mp.workdps(40):
        v = mp.mpf(30.0) ** 2 + mp.mpf(0.1) ** 2
        nngp, slope = erf_dual(v, v, v)
    assert abs(found / float(nngp + slope * v) - 1) < 1e-5


@pytest.mark.parametrize("act", ["Relu", "Abs", "Erf", "Gelu", "Sign", "Gabor"])
def test_zero_inputs_are_finite_without_bias(act):
    x = np.zeros((2, 3), np.float32)
    x[1] = 1.0
    net = [stax.Dense(1), getattr(stax, act)(), stax.Dense(1)]
    assert np.isfinite(np.asarray(stax.serial(*net)[2](x, None, "ntk"))).all()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_rectified_monomials_at_equal_opposite_and_zero_inputs(degree):
    x = np.array([[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]])
    net = stax.serial(stax.Dense(1), stax.RectifiedMonomial(degree), stax.Dense(1))
    with jax.enable_x64(True):
        nngp = np.asarray(net[2](x, None, "nngp"))
    v = 2.5
    moment = {0: 0.5, 1: v / 2, 2: 3 * v**2 / 2, 3: 15 * v**3 / 2}[degree]
    np.testing.assert_allclose(nngp[[0, 1], [0, 1]], moment, rtol=1e-13)
    np.testing.assert_allclose(nngp[0, 1], 0.0, atol=1e-13)
    assert np.isfinite(nngp).all()


def branches_reference(x, y, blocks):
    """ntk of Dense, `blocks` sums of the identity and Dense over ReLU, ReLU and Dense."""
    with mp.workdps(60):
        x, y = [mp.mpf(float(a)) for a in x], [mp.mpf(float(a)) for a in y]
        w, b = mp.mpf(W) ** 2, mp.mpf(B) ** 2
        k = [
            w * sum(p * q for p, q in zip(*pair)) / len(x) + b for pair in ((x, y), (x, x), (y, y))
        ]
        ntk = k[0]

        def behind(k, ntk):
            dual, slope = relu_dual(*k)
            new = [w * a + b for a in (dual, k[1] / 2, k[2] / 2)]
            return new, new[0] + w * ntk * slope

        for _ in range(blocks):
            new, inner = behind(k, ntk)
            k, ntk = [a + c for a, c in zip(k, new)], ntk + inner
        return float(behind(k, ntk)[1])


@pytest.mark.parametrize("distance", [0.0, 1e-3, 1e-9])
def test_sums_of_branches_carry_the_residual(points, distance):
    y = points + distance * np.random.default_rng(1).normal(size=points.shape)
    dense = stax.Dense(1, W, B)
    block = stax.serial(
        stax.FanOut(2), stax.parallel(stax.Identity(), stax.serial(stax.Relu(), dense)),
        stax.FanInSum(),
    )  # fmt: skip
    kernel_fn = stax.serial(dense, block, block, stax.Relu(), dense).kernel_fn
    with jax.enable_x64(True):
        found = np.asarray(kernel_fn(points, y, "ntk", accurate=True))
    for i in range(2):
        assert abs(found[i, i] / branches_reference(points[i], y[i], 2) - 1) < 1e-12


def rows_reference(x, y, depth):
    """ntk of `depth` convolutions of 3 zero-padded positions with ReLUs, Flatten, and Dense."""
    with mp.workdps(60):
        w, b = mp.mpf(W) ** 2, mp.mpf(B) ** 2
        rows = [[[mp.mpf(float(a)) for a in p] for p in z] for z in (x, y)]
        state = [
            [sum(p * q for p, q in zip(s, t)) / len(s) for s, t in zip(*pair)]
            for pair in (rows, (rows[0], rows[0]), (rows[1], rows[1]))
        ]
        ntk = [mp.mpf(0)] * len(x)

        def seen(field):
            wide = [mp.mpf(0), *field, mp.mpf(0)]
            return [sum(wide[i : i + 3]) / 3 for i in range(len(field))]

        for _ in range(depth):
            cross, v1, v2 = ([w * a + b for a in seen(field)] for field in state)
            ntk = [k + w * a for k, a in zip(cross, seen(ntk))]
            duals = [relu_dual(*at) for at in zip(cross, v1, v2)]
            state = [[d[0] for d in duals], [a / 2 for a in v1], [a / 2 for a in v2]]
            ntk = [a * d[1] for a, d in zip(ntk, duals)]
        total = w * sum(state[0]) / len(x) + b
        return float(total + w * sum(ntk) / len(x))


def test_equal_images_are_exact_in_either_batch():
    x = np.random.default_rng(1).normal(size=(3, 4, 2))
    net = stax.serial(
        *[stax.Conv(1, (3,), padding="SAME", W_std=W, b_std=B), stax.Relu()] * 3,
        stax.Flatten(), stax.Dense(1, W, B),
    )  # fmt: skip
    with jax.enable_x64(True):
        own = np.asarray(net.kernel_fn(np.concatenate([x, x[:1]]), None, "ntk"))
        cross = np.asarray(net.kernel_fn(x, x[[1, 0]].copy(), "ntk"))
    for value, i, j in ((own[1, 1], 1, 1), (own[0, 3], 0, 0), (cross[0, 1], 0, 0),
                        (cross[2, 0], 2, 1)):  # fmt: skip
        assert abs(value / rows_reference(x[i], x[j], 3) - 1) < 1e-13
