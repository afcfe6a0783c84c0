"""What neural-tangents does not have: quadrature, flax modules, spheres, scale mixtures, more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import ntk
from ntk import operators, scale_mixture, stax
from ntk.stax._quadrature import find_kinks


def two_layers(act):
    return stax.serial(stax.Dense(1, 1.2, 0.3), act, stax.Dense(1, 1.1)).kernel_fn


@pytest.mark.parametrize(
    ("fn", "kinks"),
    [
        (jax.nn.relu, (0.0,)),
        (jax.nn.hard_tanh, (-1.0, 1.0)),
        (lambda x: jnp.maximum(x, 0) ** 2, (0.0,)),
        (lambda x: jnp.abs(x - 1 / 3), (1 / 3,)),
        (jnp.tanh, ()),
        (jax.nn.gelu, ()),
    ],
)
def test_kinks_are_found(fn, kinks):
    np.testing.assert_allclose(find_kinks(fn), kinks, atol=1e-9)


@pytest.mark.parametrize("exact", ["Relu", pytest.param("Gelu", marks=pytest.mark.slow)])
def test_quadrature_agrees_with_closed_forms(exact):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5))
    y = np.stack([x[0], -x[1], x[2] + 1e-3])
    layer = getattr(stax, exact)()
    with jax.enable_x64(True):
        found = two_layers(stax.Elementwise(layer.kernel_fn.layer.fn))(x, y, ("nngp", "ntk"))
        true = two_layers(layer)(x, y, ("nngp", "ntk"))
        for a, b in zip(found, true):
            assert np.max(np.abs(a - b)) < 1e-10 * np.max(np.abs(b))


@pytest.mark.slow
def test_tanh_against_an_independent_integral():
    x = np.array([[1.0, 0.2], [-0.4, 0.9]])
    with jax.enable_x64(True):
        nngp = np.asarray(stax.serial(stax.Dense(1, 1.3), stax.Tanh()).kernel_fn(x, None, "nngp"))
    cov = 1.3**2 * x @ x.T / 2
    root = np.linalg.cholesky(cov)

    def integrand(a, b):
        u, v = root @ (a, b)
        return np.tanh(u) * np.tanh(v) * np.exp(-(a * a + b * b) / 2) / (2 * np.pi)

    true, _ = integrate.dblquad(integrand, -9, 9, -9, 9, epsabs=1e-9)
    assert abs(nngp[0, 1] - true) < 1e-8


def linen_network():
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Conv(8, (3, 3))(x))
            y = linen.Conv(8, (3, 3))(x)
            x = linen.Conv(8, (1, 1), use_bias=False)(x) + y
            x = linen.avg_pool(jnp.tanh(x), (2, 2), (2, 2))
            x = linen.relu(linen.Dense(8)(x.reshape(x.shape[0], -1)))
            return linen.Dense(1)(x)

    return Net()


def stax_network():
    std = {"parameterization": "standard", "b_std": 0.0}
    conv = stax.Conv(8, (3, 3), None, "SAME", **std)
    plain = stax.Conv(8, (1, 1), None, "SAME", parameterization="standard")
    return stax.serial(
        conv, stax.Relu(), stax.FanOut(2), stax.parallel(conv, plain), stax.FanInSum(), stax.Tanh(),
        stax.AvgPool((2, 2), (2, 2)), stax.Flatten(), stax.Dense(8, **std), stax.Relu(),
        stax.Dense(1, **std),
    )  # fmt: skip


def test_kernel_of_a_linen_module():
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 2)).astype("f")
    kernel_fn = ntk.kernel_fn_from_flax(
        linen_network(), inputs=x, key=jax.random.key(0), W_std=1.0, b_std=0.0
    )
    true = stax_network().kernel_fn(x, None, ("nngp", "ntk"))
    found = kernel_fn(x, None, ("nngp", "ntk"))
    np.testing.assert_allclose(found.nngp, true.nngp, rtol=1e-5)
    np.testing.assert_allclose(found.ntk, true.ntk, rtol=1e-5)


def test_kernel_of_an_nnx_module_and_a_refusal():
    from flax import nnx

    x = np.random.default_rng(0).normal(size=(3, 5)).astype("f")
    module = nnx.Sequential(
        nnx.Linear(5, 7, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(7, 1, rngs=nnx.Rngs(1))
    )
    kernel_fn = ntk.kernel_fn_from_flax(module, inputs=x, W_std=1.0, b_std=0.0)
    std = {"parameterization": "standard", "b_std": 0.0}
    true = stax.serial(stax.Dense(7, **std), stax.Tanh(), stax.Dense(1, **std)).kernel_fn
    np.testing.assert_allclose(kernel_fn(x, None, "ntk"), true(x, None, "ntk"), rtol=1e-5)
    soft = nnx.Sequential(nnx.Linear(5, 7, rngs=nnx.Rngs(0)), lambda x: jax.nn.softmax(x))
    with pytest.raises(NotImplementedError, match="no layer with a known"):
        ntk.kernel_fn_from_flax(soft, inputs=x)


def test_functions_that_jax_inlines_are_gathered():
    from flax import nnx

    x = np.random.default_rng(0).normal(size=(3, 5)).astype("f")
    std = {"parameterization": "standard", "b_std": 0.0}

    def gelu(x):
        return jax.nn.gelu(x, approximate=True)

    first, last = nnx.Linear(5, 7, rngs=nnx.Rngs(0)), nnx.Linear(7, 1, rngs=nnx.Rngs(1))
    module = nnx.Sequential(first, gelu, last)
    kernel_fn = ntk.kernel_fn_from_flax(module, inputs=x, W_std=1.0, b_std=0.0)
    true = stax.serial(stax.Dense(7, **std), stax.Elementwise(gelu), stax.Dense(1, **std))
    np.testing.assert_allclose(kernel_fn(x, None, "ntk"), true.kernel_fn(x, None, "ntk"), rtol=1e-5)


def test_dependent_branches_and_tied_weights_of_modules_are_refused():
    from flax import linen

    class Net(linen.Module):
        tied: bool

        @linen.compact
        def __call__(self, x):
            first = linen.Dense(4)
            x = first(x)
            if self.tied:
                return first(jnp.tanh(x))
            y = linen.Dense(4)(jnp.sin(x))
            return x + y + jnp.tanh(x)

    x = np.ones((2, 4), "f")
    for tied, message in ((True, "an earlier operation uses"), (False, "depend on each other")):
        with pytest.raises(NotImplementedError, match=message):
            ntk.kernel_fn_from_flax(Net(tied), inputs=x, key=jax.random.key(0))


def test_spectrum_on_the_sphere():
    with jax.enable_x64(True):
        # The arc-cosine kernel on the circle: h = (sin t + (pi - t) cos t) / (2 pi) / 2.
        kernel_fn = stax.serial(stax.Dense(1), stax.Relu()).kernel_fn
        h = ntk.cosine_form(kernel_fn, 2, get="nngp")
        values = np.asarray(ntk.sphere_spectrum(h, 2, 4))
        angle = np.linspace(0, np.pi, 7)
        true = (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (4 * np.pi)
        np.testing.assert_allclose(h(jnp.cos(jnp.asarray(angle))), true, atol=1e-12)
    for k in range(4):
        true, _ = integrate.quad(
            lambda t, k=k: (np.sin(t) + (np.pi - t) * np.cos(t)) / (4 * np.pi) * np.cos(k * t),
            0, np.pi,
        )  # fmt: skip
        assert abs(values[k] - true / np.pi) < 1e-12
    assert abs(values[1] - 1 / 16) < 1e-12


def mixture_problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 3))
    with jax.enable_x64(True):
        k = np.asarray(two_layers(stax.Erf())(x, None, "nngp")) + 1e-3 * np.eye(9)
    return k[:7, :7], k[7:, :7], k[7:, 7:], rng.normal(size=7)


def test_scale_mixture_against_integrals_over_the_scale():
    k, cross, test, y = mixture_problem()
    a, b = 2.3, 1.7

    def evidence(s):
        return stats.multivariate_normal(np.zeros(7), s * k).pdf(y) * stats.invgamma(
            a, scale=b
        ).pdf(s)

    total, _ = integrate.quad(
        lambda t: evidence(np.exp(t)) * np.exp(t), -12, 12, epsabs=0, limit=200
    )
    mean = cross @ np.linalg.solve(k, y)
    rest = test - cross @ np.linalg.solve(k, cross.T)
    at = mean + 0.3

    def density(s):
        return evidence(s) * stats.multivariate_normal(mean, s * rest).pdf(at)

    joint, _ = integrate.quad(
        lambda t: density(np.exp(t)) * np.exp(t), -12, 12, epsabs=0, limit=200
    )
    with jax.enable_x64(True):
        prior = scale_mixture.InverseGamma(a, b)
        args = [jnp.asarray(v) for v in (k, cross, test, y)]
        assert (
            abs(float(scale_mixture.log_evidence(prior, args[0], args[3])) - np.log(total)) < 1e-9
        )
        law = scale_mixture.predict(prior, *args)
        found = float(law.log_density(jnp.asarray(at)[:, None]))
        assert abs(found - np.log(joint / total)) < 1e-9
        mixture = scale_mixture.predict_mixture(prior, *args)
        np.testing.assert_allclose(mixture.covariance, law.covariance, rtol=1e-8)
        noisy = scale_mixture.log_evidence(prior, args[0], args[3], noise=1e-12)
        assert abs(float(noisy) - np.log(total)) < 1e-6
        burr = scale_mixture.BurrXII(2.0, 1.5)
        nodes = [
            float(scale_mixture.log_evidence(burr, args[0], args[3], nodes=n)) for n in (64, 200)
        ]
        assert abs(nodes[0] - nodes[1]) < 1e-8
        same = scale_mixture.trained(
            prior, (args[0], args[1], args[2]), args[3], (args[0], args[1])
        )
        last = scale_mixture.trained(prior, (args[0], args[1], args[2]), args[3])
        np.testing.assert_allclose(same.loc, last.loc, rtol=1e-9)
        np.testing.assert_allclose(same.scale, last.scale, atol=1e-9)


@pytest.mark.slow
def test_operators_against_dense_algebra():
    x = np.random.default_rng(0).normal(size=(60, 4))
    kernel_fn = stax.serial(stax.Dense(1, 1.4, 0.2), stax.Relu(), stax.Dense(1)).kernel_fn
    with jax.enable_x64(True):
        operator = operators.from_kernel_fn(kernel_fn, x, block=25)
        dense = np.asarray(kernel_fn(x, None, "ntk"))
        y = jnp.asarray(np.random.default_rng(1).normal(size=(60, 2)))
        np.testing.assert_allclose(operator @ y, dense @ y, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(operator.diagonal, np.diag(dense), rtol=1e-12)
        inverse = operators.nystrom(operator, 20, noise=0.1, key=jax.random.key(0))
        found = operators.solve(operator, y, noise=0.1, preconditioner=inverse, tolerance=1e-11)
        true = np.linalg.solve(dense + 0.1 * np.eye(60), y)
        np.testing.assert_allclose(found.value, true, rtol=1e-7, atol=1e-9)
        assert found.steps < operators.solve(operator, y, noise=0.1, tolerance=1e-11).steps
        value, error = operators.log_determinant(
            operator, noise=0.1, num_steps=40, num_samples=30, key=jax.random.key(1)
        )
        assert abs(value - np.linalg.slogdet(dense + 0.1 * np.eye(60))[1]) < 4 * error + 1e-6


@pytest.mark.parametrize("columns", [3, 5000])
def test_solutions_tell_of_nan(columns):
    """With thousands of columns XLA's maximum on a CPU passes over NaN."""
    matrix = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    y = jnp.ones((3, columns)).at[1, 1].set(jnp.nan)
    operator = operators.KernelOperator(lambda v: matrix @ v, 3)
    found = operators.solve(operator, y, noise=0.5)
    assert np.isnan(found.residual)
    np.testing.assert_array_equal(np.isnan(found.value).any(axis=0), np.arange(columns) == 1)
    np.testing.assert_allclose(found.value[:, 0], 1 / np.array([1.5, 2.5, 3.5]), rtol=1e-6)
    assert operators.solve(operator, jnp.ones((3, columns)), noise=0.5).residual < 1e-6


def test_recurrent_limit_of_one_and_two_steps():
    x = np.random.default_rng(0).normal(size=(3, 2, 4))
    net = stax.serial(
        stax.RNN(1, stax.Relu(), 1.2, 0.9, 0.3), stax.Index(stax.Slice[:, -1]), stax.Dense(1)
    )
    with jax.enable_x64(True):
        found = net.kernel_fn(x, None, ("nngp", "ntk"))
        # By hand: weights of the two steps are shared, so the tangent kernels add.
        act = stax.Relu().kernel_fn.layer
        first, last = (x[:, t] @ x[:, t].T / 4 for t in (0, 1))
        one = 0.81 * first + 0.09
        dual = act.dual(one, np.diag(one)[:, None], np.diag(one)[None],
                        np.maximum(np.outer(np.diag(one), np.diag(one)) - one**2, 0))  # fmt: skip
        two = 0.81 * last + 0.09 + 1.44 * dual.nngp
        theta = two + 1.44 * one * dual.slope
        top = act.dual(two, np.diag(two)[:, None], np.diag(two)[None],
                       np.maximum(np.outer(np.diag(two), np.diag(two)) - two**2, 0))  # fmt: skip
        off = ~np.eye(3, dtype=bool)
        np.testing.assert_allclose(found.nngp[off], top.nngp[off], rtol=1e-9)
        np.testing.assert_allclose(found.ntk[off], (top.nngp + theta * top.slope)[off], rtol=1e-9)


def test_max_pooling_of_a_window_of_one_is_nothing():
    x = np.random.default_rng(0).normal(size=(2, 3, 2)).astype("f")
    pool = stax.MaxPool((1,), num_samples=20000, key=jax.random.key(0))
    conv = stax.Conv(1, (2,), padding="SAME", b_std=0.5)
    found = stax.serial(conv, pool).kernel_fn(x, None, ("nngp", "ntk"))
    true = conv.kernel_fn(x, None, ("nngp", "ntk"))
    np.testing.assert_allclose(found.ntk, true.ntk, rtol=1e-4)
    np.testing.assert_allclose(found.nngp, true.nngp, atol=0.1)


def test_max_pooling_of_independent_channels_has_a_known_mean_square():
    # max of two independent standard normals has E[max^2] = 1.
    x = np.eye(2, dtype="f").reshape(1, 2, 2) * np.sqrt(2)
    pool = stax.MaxPool((2,), num_samples=20000, key=jax.random.key(0))
    net = stax.serial(stax.Dense(1), pool)
    assert abs(float(net.kernel_fn(x, None, "nngp")[0, 0, 0, 0]) - 1) < 4 * 1.5 / np.sqrt(20000)


@pytest.mark.slow
def test_batch_norm_normalizes():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("f")
    norm = stax.BatchNorm(num_samples=500, key=jax.random.key(0))
    nngp = stax.serial(stax.Dense(1, 2.0), norm).kernel_fn(x, None, "nngp")
    assert abs(float(jnp.trace(nngp)) / 5 - 1) < 1e-3
    assert float(jnp.abs(jnp.sum(nngp))) < 1e-3
