"""Finite networks of the same descriptions agree with the kernels, within four standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax

# Kernels of width n differ from the limit by parts in n, those of one draw by parts in sqrt(n):
# with n / 8 draws the first is about a third of a standard error of their mean.
WIDTH, DRAWS = 512, 64
IMAGES, VECTORS, ROWS = (3, 5, 4, 3), (3, 4), (3, 6, 3)


def conv(*args, **more):
    return stax.Conv(WIDTH, *args, W_std=1.2, b_std=0.3, **more)


def attention(**more):
    return [stax.Dense(WIDTH, 1.2, 0.3),
            stax.GlobalSelfAttention(WIDTH, WIDTH, WIDTH, 8, b_std=0.2, **more),
            stax.Relu(), stax.GlobalAvgPool()]  # fmt: skip


def branches(join, *more):
    return [stax.FanOut(2), stax.parallel(
        stax.Dense(WIDTH), stax.serial(stax.Dense(WIDTH, 0.7, 0.4), stax.Relu(),
                                       stax.Dense(WIDTH, 1.2))), join, *more]  # fmt: skip


NETS = {
    "dense": (VECTORS, lambda: [
        stax.Dense(WIDTH, 1.2, 0.3), stax.Relu(), stax.Dense(WIDTH), stax.Erf()]),
    "standard": (VECTORS, lambda: [
        stax.Dense(WIDTH, 1.2, 0.3, parameterization="standard"), stax.Gelu()]),
    "widths": (VECTORS, lambda: [
        stax.Dense(WIDTH // 2, 1.2, 0.3, parameterization="standard", s=(1, 2)), stax.Relu(),
        stax.Dense(WIDTH // 4, 0.9, 0.2, parameterization="standard", s=(2, 4)), stax.Relu()]),
    "repeat": (VECTORS, lambda: [
        stax.Dense(WIDTH), stax.repeat(stax.serial(stax.Relu(), stax.Dense(WIDTH, 1.3, 0.2)), 3)]),
    "dropout": (VECTORS, lambda: [
        stax.Dense(WIDTH, 1.2, 0.3), stax.Relu(), stax.Dropout(0.6), stax.Dense(WIDTH),
        stax.Erf(), stax.Dropout(0.8)]),
    "residual": (VECTORS, lambda: [
        stax.Dense(WIDTH, 1.2), stax.FanOut(2), stax.parallel(
            stax.Identity(), stax.serial(stax.Relu(), stax.Dense(WIDTH, 1.1))), stax.FanInSum()]),
    "product": (VECTORS, lambda: branches(stax.FanInProd())),
    "concat_channels": (VECTORS, lambda: branches(stax.FanInConcat(-1))),
    "layer_norm": (VECTORS, lambda: [
        stax.Dense(WIDTH, 1.2, 0.3), stax.LayerNorm(eps=0.3), stax.Relu()]),
    "layer_norm_images": (IMAGES, lambda: [
        conv((3, 2)), stax.LayerNorm((1, 2, 3)), stax.Relu(), stax.GlobalAvgPool()]),
    "layer_norm_batch": (VECTORS, lambda: [
        stax.Dense(WIDTH, 1.2, 0.3), stax.LayerNorm((0, 1)), stax.Relu()]),
    "conv_same": (IMAGES, lambda: [conv((3, 2), padding="SAME"), stax.Relu(), stax.Flatten()]),
    "conv_strided": (IMAGES, lambda: [conv((3, 2), (2, 1)), stax.Relu(), stax.GlobalAvgPool()]),
    "conv_circular": (IMAGES, lambda: [
        conv((2, 3), padding="CIRCULAR"), stax.Erf(), stax.GlobalAvgPool()]),
    "conv_thrice": (IMAGES, lambda: [
        conv((3, 1), padding="SAME"), stax.Relu(), conv((1, 3)), stax.Relu(),
        conv((3, 2), (2, 1), "CIRCULAR"), stax.Relu(), stax.AvgPool((2, 1)), stax.Flatten()]),
    "conv_dilated": (IMAGES, lambda: [
        conv((2, 2), dilation=(2, 1)), stax.Relu(), stax.GlobalAvgPool()]),
    "conv_groups": (IMAGES, lambda: [
        stax.Dense(WIDTH), stax.Relu(), conv((2, 2), groups=2), stax.Relu(),
        stax.GlobalAvgPool()]),
    "conv_turned": (IMAGES, lambda: [
        conv((3, 2), dimension_numbers=("NHWC", "HWIO", "NWHC")), stax.Relu(),
        stax.AvgPool((2, 2)), stax.Flatten()]),
    "transpose": (IMAGES, lambda: [
        stax.ConvTranspose(WIDTH, (3, 2), (2, 1), "SAME", 1.2, 0.3), stax.Relu(),
        stax.GlobalAvgPool()]),
    "transpose_valid": (IMAGES, lambda: [
        stax.ConvTranspose(WIDTH, (2, 3), (1, 2), "VALID", 1.2, 0.3), stax.Relu(),
        stax.GlobalAvgPool()]),
    "transpose_circular": (IMAGES, lambda: [
        stax.ConvTranspose(WIDTH, (3, 2), (2, 1), "CIRCULAR", 1.2, 0.3), stax.Relu(),
        stax.GlobalAvgPool()]),
    "local": (IMAGES, lambda: [
        stax.ConvLocal(WIDTH, (3, 2), (1, 2), "SAME", 1.2, 0.3), stax.Relu(),
        stax.GlobalAvgPool()]),
    "pools_alone": (IMAGES, lambda: [
        stax.AvgPool((2, 2), (2, 1), "CIRCULAR"), stax.SumPool((2, 1)), stax.GlobalSumPool()]),
    "pools": (IMAGES, lambda: [
        conv((1, 2)), stax.SumPool((2, 2), (1, 2), "SAME"), stax.AvgPool((2, 2), padding="SAME"),
        stax.GlobalAvgPool()]),
    "pool_resize": (IMAGES, lambda: [
        conv((3, 3), padding="SAME"), stax.Relu(), stax.ImageResize((-1, 3, 5, -1), "linear"),
        stax.AvgPool((2, 2), (1, 2), "SAME", normalize_edges=True), stax.Flatten()]),
    "index_dot": (IMAGES, lambda: [
        conv((2, 2)), stax.Relu(), stax.Index(stax.Slice[:, 1:, ::-1]), stax.DotGeneral(
            rhs=np.array([1.0, -2.0, 0.5], np.float32),
            dimension_numbers=(((1,), (0,)), ((), ()))), stax.Flatten()]),
    "concat_positions": (ROWS, lambda: branches(
        stax.FanInConcat(1), stax.Relu(), conv((3,), padding="SAME"), stax.Relu(),
        stax.GlobalAvgPool())),
    "aggregate": (ROWS, lambda: [
        stax.Dense(WIDTH, 1.2, 0.3), stax.Relu(), stax.Aggregate(), stax.Dense(WIDTH),
        stax.Relu(), stax.GlobalSumPool()]),
    "masked": (ROWS, lambda: [
        conv((3,), padding="SAME"), stax.Relu(), conv((2,)), stax.Relu(), stax.GlobalAvgPool()]),
    "attention": (IMAGES, lambda: attention()),
    "attention_relu": (ROWS, lambda: attention(attention_mechanism="RELU")),
    "attention_sum": (ROWS, lambda: attention(
        pos_emb_type="SUM", W_pos_emb_std=0.7, val_pos_emb=True)),
    "attention_concat": (ROWS, lambda: attention(
        pos_emb_type="CONCAT", n_chan_pos_emb=WIDTH // 2)),
    "recurrent": (ROWS, lambda: [
        stax.RNN(WIDTH, stax.Relu(), 1.1, 0.9, 0.3), stax.GlobalAvgPool()]),
}  # fmt: skip

FUNCTIONS = {
    "leaky_relu": lambda: stax.LeakyRelu(0.3),
    "abrelu": lambda: stax.ABRelu(-0.4, 1.3),
    "abs": stax.Abs,
    "sign": stax.Sign,
    "erf": lambda: stax.Erf(1.3, 0.7, 0.2),
    "sigmoid_like": stax.Sigmoid_like,
    "gelu": stax.Gelu,
    "sin": lambda: stax.Sin(1.1, 0.8, 0.3),
    "cos": lambda: stax.Cos(0.9, 1.2, 0.4),
    "rbf": lambda: stax.Rbf(0.6),
    "gaussian": lambda: stax.Gaussian(1.2, -0.5),
    "exp": lambda: stax.Exp(0.8, 0.3),
    "gabor": stax.Gabor,
    "hermite": lambda: stax.Hermite(2),
    "monomial": lambda: stax.Monomial(3),
    "polynomial": lambda: stax.Polynomial([0.3, -0.4, 0.5]),
    "rectified": lambda: stax.RectifiedMonomial(2),
    "step": lambda: stax.RectifiedMonomial(0),
    "elementwise": lambda: stax.Elementwise(lambda x: jnp.maximum(x - 0.3, 0)),
    "numerical": lambda: stax.ElementwiseNumerical(jnp.tanh, 15),
    "tanh": stax.Tanh,
    "silu": stax.Silu,
    "softplus": stax.Softplus,
    "sigmoid": stax.Sigmoid,
    "elu": lambda: stax.Elu(0.7),
}
OPTIONS = {
    "aggregate": {"pattern": np.random.default_rng(5).random((3, 6, 6)).astype("f")},
    "masked": {"mask_constant": 100.0},
}


def draws_of(net, x, key, options):
    """nngp (given the last hidden layer) and ntk of random networks, [draws, 3, 3] each."""
    init_fn, apply_fn, _ = stax.serial(*net, stax.Dense(1))
    apply_fn, below_fn = stax.unmask_fn(apply_fn), stax.unmask_fn(stax.serial(*net).apply_fn)

    @jax.jit
    def one(key):
        key_init, key_rng = jax.random.split(key)
        _, params = init_fn(key_init, x.shape)

        def f(p):
            return apply_fn(p, x, rng=key_rng, **options)[:, 0]

        hidden = below_fn(params[:-1], x, rng=key_rng, **options)
        jacobian = jax.tree.leaves(jax.jacrev(f)(params))
        rows = [j.reshape(3, -1) for j in jacobian]
        return hidden @ hidden.T / hidden.shape[1], sum(r @ r.T for r in rows)

    return jax.lax.map(one, jax.random.split(key, DRAWS))


def assert_agrees(found, true):
    """Every entry within four standard errors of the mean of the draws."""
    for sample, exact in zip(found, true):
        sample = np.asarray(sample, np.float64)
        error = sample.std(0, ddof=1) / np.sqrt(DRAWS)
        off = np.abs(sample.mean(0) - exact)
        assert np.all(off < 4 * error + 1e-6 * np.max(np.abs(exact))), (off / error).max()
        assert np.all(error < 0.15 * np.max(np.abs(exact)))  # it could have failed


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_finite_networks_agree(name):
    shape, make = NETS[name]
    x = np.random.default_rng(3).normal(size=shape).astype("f")
    if name == "masked":
        x[0, 4:], x[2, 1] = 100.0, 100.0
    options = OPTIONS.get(name, {})
    net = make()
    true = stax.serial(*net, stax.Dense(1)).kernel_fn(x, None, ("nngp", "ntk"), **options)
    assert_agrees(draws_of(net, x, jax.random.key(0), options), true)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_finite_nonlinearities_agree(name):
    x = np.random.default_rng(4).normal(size=VECTORS).astype("f")
    net = [stax.Dense(WIDTH, 0.9, 0.3), FUNCTIONS[name]()]
    true = stax.serial(*net, stax.Dense(1)).kernel_fn(x, None, ("nngp", "ntk"))
    if name in ("sign", "step"):
        # Derivatives of jumps are 0 almost everywhere, and so is the tangent kernel below.
        np.testing.assert_allclose(true.ntk, true.nngp, rtol=1e-6)
    assert_agrees(draws_of(net, x, jax.random.key(1), {}), true)


@pytest.mark.slow
def test_covariances_of_positions_after_one_convolution():
    # Height and width stay in their places after an odd number of convolutions.
    x = np.random.default_rng(3).normal(size=(2, 5, 3, 2)).astype("f")
    init_fn, apply_fn, kernel_fn = stax.serial(conv((3, 2), (2, 1), "SAME"), stax.Relu())
    true = np.asarray(kernel_fn(x, None, "nngp"))
    assert true.shape == (2, 2, 3, 3, 3, 3)

    def one(key):
        out = apply_fn(init_fn(key, x.shape)[1], x)
        return jnp.einsum("ahwc,bijc->abhiwj", out, out) / WIDTH

    sample = np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(0), DRAWS)), np.float64)
    error = sample.std(0, ddof=1) / np.sqrt(DRAWS)
    assert np.all(np.abs(sample.mean(0) - true) < 4.5 * error)  # 324 entries
