"""Softmax regression in closed form, against autodiff, 60-digit arithmetic and extremes."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from in_context import softmax_regression


def instance(seed, n=7, d=3, scale=1.0):
    rng = np.random.default_rng(seed)
    A = scale * rng.normal(size=(n, d))
    return A, rng.normal(size=d), rng.dirichlet(np.ones(n)), rng.uniform(size=n), rng.normal(size=d)


@jax.jit
def by_autodiff(A, x, b, w, v):
    def loss(x):
        logits = A @ x
        return 0.5 * jnp.sum((jax.nn.softmax(logits) - b) ** 2) + 0.5 * jnp.sum((w * logits) ** 2)

    hessian = jax.hessian(loss)(x)
    return loss(x), jax.grad(loss)(x), hessian, hessian @ v


@jax.jit
def closed(A, x, b, w, v):
    return (
        softmax_regression.loss(A, x, b, weights=w),
        softmax_regression.gradient(A, x, b, weights=w),
        softmax_regression.hessian(A, x, b, weights=w),
        softmax_regression.hvp(A, x, b, v, weights=w),
    )


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_matches_autodiff(scale):
    with jax.enable_x64(True):
        for seed in range(60):
            A, x, b, w, v = instance(seed, scale=scale)
            for value, expected in zip(closed(A, x, b, w, v), by_autodiff(A, x, b, w, v)):
                size = np.abs(expected).max()
                np.testing.assert_allclose(value, expected, rtol=0, atol=1e-13 * size)


def high_precision(A, x, b):
    """Loss, gradient and Hessian from the definition by 60-digit arithmetic and finite sums."""
    with mpmath.workdps(60):
        rows = [[mpmath.mpf(float(entry)) for entry in row] for row in A]
        n, d = A.shape
        logits = [mpmath.fsum(row[k] * mpmath.mpf(float(x[k])) for k in range(d)) for row in rows]
        top = max(logits)
        weights = [mpmath.exp(z - top) for z in logits]
        total = mpmath.fsum(weights)
        f = [z / total for z in weights]
        c = [f[i] - mpmath.mpf(float(b[i])) for i in range(n)]
        mean = [mpmath.fsum(f[i] * rows[i][k] for i in range(n)) for k in range(d)]
        slope = [[f[i] * (rows[i][k] - mean[k]) for k in range(d)] for i in range(n)]
        gradient = [mpmath.fsum(c[i] * slope[i][k] for i in range(n)) for k in range(d)]
        # d^2 f_i / dx_k dx_l = f_i ((a_k - m_k)(a_l - m_l) - cov_kl)
        hessian = [[mpmath.mpf(0)] * d for _ in range(d)]
        for k in range(d):
            for l in range(d):
                cov = mpmath.fsum(
                    f[i] * (rows[i][k] - mean[k]) * (rows[i][l] - mean[l]) for i in range(n)
                )
                second = [
                    f[i] * ((rows[i][k] - mean[k]) * (rows[i][l] - mean[l]) - cov) for i in range(n)
                ]
                hessian[k][l] = mpmath.fsum(
                    slope[i][k] * slope[i][l] + c[i] * second[i] for i in range(n)
                )
        loss = mpmath.fsum(z**2 for z in c) / 2
        as_float = np.vectorize(float)
        return float(loss), as_float(np.array(gradient)), as_float(np.array(hessian))


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_matches_sixty_digits(scale):
    with jax.enable_x64(True):
        for seed in range(4):
            A, x, b, _, v = instance(seed, scale=scale)
            loss, gradient, hessian = high_precision(A, x, b)
            values = closed(A, x, b, np.zeros(7), v)
            np.testing.assert_allclose(values[0], loss, rtol=1e-13)
            # Scaled by what the terms were before they cancelled: ||A|| and ||A||^2.
            size = np.linalg.norm(A)
            np.testing.assert_allclose(values[1], gradient, rtol=0, atol=1e-15 * size)
            np.testing.assert_allclose(values[2], hessian, rtol=0, atol=1e-15 * size**2)


@pytest.mark.parametrize("logit", [900.0, -1000.0, 1e6, -1e6])
def test_stable_for_huge_logits(logit):
    with jax.enable_x64(True):
        A = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        x = np.array([logit, logit])
        b = np.array([0.2, 0.3, 0.5])
        # Rows 0 and 1 tie; one side holds all the mass.
        f = np.array([0.5, 0.5, 0.0]) if logit > 0 else np.array([0.0, 0.0, 1.0])
        value, gradient, hessian, product = closed(A, x, b, np.zeros(3), np.ones(2))
        np.testing.assert_allclose(value, 0.5 * np.sum((f - b) ** 2), rtol=1e-15)
        P = np.diag(f) - np.outer(f, f)
        np.testing.assert_allclose(gradient, A.T @ P @ (f - b), atol=1e-15)
        g = P @ (f - b)
        B = P @ P + np.diag(g) - np.outer(g, f) - np.outer(f, g)
        np.testing.assert_allclose(hessian, A.T @ B @ A, atol=1e-15)
        np.testing.assert_allclose(product, A.T @ B @ A @ np.ones(2), atol=1e-15)


def test_one_row_is_flat_and_dependent_columns_are_fine():
    with jax.enable_x64(True):
        assert softmax_regression.loss([[3.0, 1.0]], [1.0, 2.0], [1.0]) == 0.0
        assert not np.any(softmax_regression.hessian([[3.0, 1.0]], [1.0, 2.0], [1.0]))
        A, x, b, w, v = instance(0)
        A[:, 2] = A[:, 0] + A[:, 1]
        for value, expected in zip(closed(A, x, b, w, v), by_autodiff(A, x, b, w, v)):
            np.testing.assert_allclose(value, expected, atol=1e-13)


def test_hvp_needs_no_matrix():
    with jax.enable_x64(True):
        n, d = 2000, 50
        A, x, b, w, v = instance(1, n=n, d=d)
        compiled = closed_hvp.lower(A, x, b, w, v).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 8 * 8 * n  # a few vectors of n
        expected = softmax_regression.hessian(A, x, b, weights=w) @ v
        np.testing.assert_allclose(compiled(A, x, b, w, v), expected, rtol=1e-11)


@jax.jit
def closed_hvp(A, x, b, w, v):
    return softmax_regression.hvp(A, x, b, v, weights=w)


def test_vmap_equals_a_loop_and_dtypes_are_kept():
    instances = [instance(seed) for seed in range(5)]
    batch = [np.stack(parts).astype(np.float32) for parts in zip(*instances)]
    together = jax.vmap(closed)(*batch)
    for place, single in enumerate(instances):
        alone = closed(*(np.asarray(part, np.float32) for part in single))
        for a, c in zip(together, alone):
            assert a.dtype == jnp.float32
            np.testing.assert_allclose(a[place], c, rtol=2e-5, atol=1e-6)


def test_refuses_bad_arguments():
    A, x, b, w, v = instance(0)
    with pytest.raises(ValueError, match=r"loss: x must have shape \(3,\)"):
        softmax_regression.loss(A, x[:2], b)
    with pytest.raises(ValueError, match="gradient: A must be a matrix"):
        softmax_regression.gradient(A[0], x, b)
    with pytest.raises(ValueError, match=r"hessian: weights must have shape \(7,\)"):
        softmax_regression.hessian(A, x, b, weights=w[:2])
    with pytest.raises(ValueError, match="hvp: v must have shape"):
        softmax_regression.hvp(A, x, b, v[:1])
    b[2] = np.nan
    with pytest.raises(ValueError, match="b holds 1 values that are NaN"):
        softmax_regression.loss(A, x, b)
