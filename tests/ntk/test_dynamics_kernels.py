"""Drift, alignment and spectra of kernels against NumPy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import dynamics


def spd(seed, n):
    a = np.random.default_rng(seed).normal(size=(n, n + 2)).astype(np.float32)
    return jnp.asarray(a @ a.T)


def test_drift_and_distance():
    a, b = spd(0, 5), spd(1, 5)
    np.testing.assert_allclose(
        dynamics.kernel_drift(a, b), np.linalg.norm(a - b) / np.linalg.norm(b), rtol=1e-6
    )
    assert dynamics.kernel_distance(3.0 * a, a) == pytest.approx(0.0, abs=1e-6)
    cosine = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(dynamics.kernel_distance(a, b), 1 - cosine, rtol=1e-5)


def test_alignment():
    y = jnp.asarray(np.random.default_rng(2).normal(size=(5, 2)).astype(np.float32))
    assert dynamics.alignment(y[:, :1] @ y[:, :1].T, y[:, 0]) == pytest.approx(1.0, abs=1e-6)
    center = np.eye(5) - 0.2
    k, outer = center @ spd(3, 5) @ center, center @ (y @ y.T) @ center
    expected = np.sum(k * outer) / np.linalg.norm(k) / np.linalg.norm(outer)
    found = dynamics.alignment(spd(3, 5), y, centered=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # a kernel over outputs pairs with all entries of the targets
    full = jnp.einsum("no,mp->nmop", y, y)
    assert dynamics.alignment(full, y) == pytest.approx(1.0, abs=1e-6)


def test_spectrum_and_participation():
    k = spd(4, 6)
    values = np.linalg.eigvalsh(k)[::-1]
    np.testing.assert_allclose(dynamics.spectrum(k), values, rtol=1e-4, atol=1e-4)
    expected = values.sum() ** 2 / (values**2).sum()
    np.testing.assert_allclose(dynamics.participation_ratio(k), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="pairs of axes"):
        dynamics.spectrum(jnp.ones(3))


def test_probe_of_a_training_loop():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32))
    w = jnp.ones((3, 1))
    measure = dynamics.probe(
        lambda w, x: (x @ w) ** 2, x, w, targets=jnp.ones((4, 1)), num_eigenvalues=2
    )
    still = measure(SimpleNamespace(params=w), None)
    moved = jax.jit(lambda p: measure(SimpleNamespace(params=p)))(2.0 * w)
    assert still["drift"] == 0.0
    # f is quadratic in w, so its kernel at 2 w is 4 times that at w
    np.testing.assert_allclose(moved["drift"], 3.0, rtol=1e-5)
    np.testing.assert_allclose(moved["distance"], 0.0, atol=1e-6)
    np.testing.assert_allclose(moved["parameters"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(moved["eigenvalue_1"], 4 * still["eigenvalue_1"], rtol=1e-3)
