"""Monte Carlo kernels against the closed form of one hidden layer, with their own error bars."""

import jax
import numpy as np
import pytest

import ntk

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
WIDTH = 128


def init_fn(key, shape):
    first, second = jax.random.split(key)
    return (shape[0], 1), (
        jax.random.normal(first, (shape[-1], WIDTH)),
        jax.random.normal(second, (WIDTH, 1)) / WIDTH**0.5,
    )


def apply_fn(params, x, rng=None):
    out = jax.nn.relu(x @ params[0]) @ params[1]
    return out if rng is None else out + jax.random.normal(rng, out.shape)


def arc_cosine(x):
    """E[f f^T] of the network above: Cho & Saul's kernel of degree 1."""
    norm = np.linalg.norm(x, axis=1)
    cosine = np.clip(x @ x.T / np.outer(norm, norm), -1, 1)
    angle = np.arccos(cosine)
    return np.outer(norm, norm) * (np.sin(angle) + (np.pi - angle) * cosine) / (2 * np.pi)


def test_mean_lies_within_its_error_bars():
    kernel_fn = ntk.monte_carlo_kernel_fn(
        init_fn, apply_fn, jax.random.key(1), 400, device_count=0, errors=True
    )
    found = kernel_fn(X, None, "nngp")
    assert np.all(found.error > 0)
    deviation = np.abs(found.value - arc_cosine(X)) / found.error
    assert deviation.max() < 4.5
    # and the bars are not too wide: E[f^2 g^2] - E[fg]^2 is about 2 K^2 on the diagonal
    expected = np.sqrt(2.0 / 400) * np.diag(arc_cosine(X))
    np.testing.assert_allclose(np.diag(found.error), expected, rtol=0.35)


def test_several_numbers_share_their_samples():
    kernel_fn = ntk.monte_carlo_kernel_fn(
        init_fn, apply_fn, jax.random.key(1), [1, 3], batch_size=3, device_count=0, errors=True
    )
    first, second = kernel_fn(X, X[:2])
    samples = []
    for k in range(3):
        params = init_fn(jax.random.fold_in(jax.random.key(1), k), X.shape)[1]
        samples.append(ntk.empirical_kernel_fn(apply_fn)(X, X[:2], None, params))
    np.testing.assert_allclose(first.value.ntk, samples[0].ntk, rtol=1e-5)
    assert np.all(np.isinf(first.error.ntk))
    stacked = np.stack([s.ntk for s in samples])
    np.testing.assert_allclose(second.value.ntk, stacked.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        second.error.ntk, stacked.std(0, ddof=1) / 3**0.5, rtol=1e-3, atol=1e-6
    )


def test_refusals():
    with pytest.raises(ValueError, match="n_samples must be >= 1"):
        ntk.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(0), 0)
