"""Blocks, random networks, posteriors and ensembles with the package's own infinite networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk

init_fn, apply_fn, kernel_fn = ntk.stax.serial(
    ntk.stax.Dense(256, 1.5, 0.1), ntk.stax.Relu(), ntk.stax.Dense(1, 1.5, 0.1)
)
X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


@pytest.mark.parametrize("get", ["ntk", ("nngp", "ntk"), None])
def test_blocks_of_an_analytic_kernel(get):
    batched = ntk.batch(kernel_fn, 3, 0)
    for x2 in (None, Y):
        found, expected = batched(X, x2, get), kernel_fn(X, x2, get)
        assert type(found).__name__ == type(expected).__name__
        assert len(jax.tree.leaves(found)) == len(jax.tree.leaves(expected))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_random_networks_approach_the_limit():
    estimate = ntk.monte_carlo_kernel_fn(
        init_fn, apply_fn, jax.random.key(0), 64, device_count=0, errors=True
    )(X, None, "ntk")
    deviation = np.abs(estimate.value - kernel_fn(X, None, "ntk")) / estimate.error
    assert deviation.max() < 4.5


def test_posterior_and_ensemble_agree_at_the_end():
    targets = jnp.sin(X[:, :1])
    kernels = [kernel_fn(*pair, ("nngp", "ntk")) for pair in ((X, None), (Y, X), (Y, None))]
    posterior = ntk.predict.gp_inference(kernels[0], targets, diag_reg=1e-3)(
        ("nngp", "ntk"), kernels[1], kernels[2]
    )
    ensemble = ntk.predict.gradient_descent_mse_ensemble(kernel_fn, X, targets, diag_reg=1e-3)(
        None, Y, compute_cov=True
    )
    for name in ("nngp", "ntk"):
        for a, b in zip(getattr(posterior, name), getattr(ensemble, name)):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
