"""Finite networks of the same descriptions agree with the kernels, within four standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax

WIDTH = 256


def conv(*args, **more):
    return stax.Conv(WIDTH, *args, W_std=1.2, b_std=0.3, **more)


NETS = {
    "dense": lambda: [stax.Dense(WIDTH, 1.2, 0.3), stax.Relu(), stax.Dense(WIDTH), stax.Erf()],
    "standard": lambda: [
        stax.Dense(WIDTH, 1.2, 0.3, parameterization="standard"), stax.Gelu(),
    ],
    "residual": lambda: [
        stax.Dense(WIDTH, 1.2), stax.FanOut(2), stax.parallel(
            stax.Identity(), stax.serial(stax.Relu(), stax.Dense(WIDTH, 1.1))), stax.FanInSum(),
    ],
    "product": lambda: [
        stax.FanOut(2), stax.parallel(stax.Dense(WIDTH), stax.Dense(WIDTH, 0.7, 0.4)),
        stax.FanInProd(),
    ],
    "layer_norm": lambda: [stax.Dense(WIDTH, 1.2, 0.3), stax.LayerNorm(), stax.Relu()],
    "conv_same": lambda: [conv((3, 2), padding="SAME"), stax.Relu(), stax.Flatten()],
    "conv_strided": lambda: [conv((3, 2), (2, 1)), stax.Relu(), stax.GlobalAvgPool()],
    "conv_circular": lambda: [conv((2, 3), padding="CIRCULAR"), stax.Erf(), stax.GlobalAvgPool()],
    "conv_dilated": lambda: [conv((2, 2), dilation=(2, 1)), stax.Relu(), stax.GlobalAvgPool()],
    "conv_groups": lambda: [
        stax.Dense(WIDTH), stax.Relu(), conv((2, 2), groups=2), stax.Relu(), stax.GlobalAvgPool()],
    "transpose": lambda: [
        stax.ConvTranspose(WIDTH, (3, 2), (2, 1), "SAME", 1.2, 0.3), stax.Relu(),
        stax.GlobalAvgPool()],
    "transpose_circular": lambda: [
        stax.ConvTranspose(WIDTH, (3, 2), (2, 1), "CIRCULAR", 1.2, 0.3), stax.Relu(),
        stax.GlobalAvgPool()],
    "local": lambda: [
        stax.ConvLocal(WIDTH, (3, 2), (1, 2), "SAME", 1.2, 0.3), stax.Relu(), stax.GlobalAvgPool()],
    "pool_resize": lambda: [
        conv((3, 3), padding="SAME"), stax.Relu(), stax.ImageResize((-1, 3, 5, -1), "linear"),
        stax.AvgPool((2, 2), (1, 2), "SAME", normalize_edges=True), stax.Flatten()],
    "index_dot": lambda: [
        conv((2, 2)), stax.Relu(), stax.Index(stax.Slice[:, 1:, ::-1]), stax.DotGeneral(
            rhs=np.array([1.0, -2.0, 0.5], np.float32),
            dimension_numbers=(((1,), (0,)), ((), ()))), stax.Flatten()],
    "attention": lambda: [
        stax.Dense(WIDTH, 1.2, 0.3), stax.GlobalSelfAttention(WIDTH, WIDTH, WIDTH, 8, b_std=0.2),
        stax.Relu(), stax.GlobalAvgPool()],
    "recurrent": lambda: [
        stax.Index(stax.Slice[:, :, 0]), stax.RNN(WIDTH, stax.Relu(), 1.1, 0.9, 0.3),
        stax.GlobalAvgPool()],
}  # fmt: skip
VECTORS = ("dense", "standard", "residual", "product", "layer_norm")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_finite_networks_agree(name):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 4) if name in VECTORS else (3, 5, 4, 3)).astype("f")
    # Independent output channels are independent draws of the last layer.
    init_fn, apply_fn, kernel_fn = stax.serial(*NETS[name](), stax.Dense(1))
    true = kernel_fn(x, None, ("nngp", "ntk"))

    @jax.jit
    def one(key):
        _, params = init_fn(key, x.shape)

        def f(p):
            return apply_fn(p, x)[:, 0]

        out = f(params)
        jacobian = jax.tree.leaves(jax.jacrev(f)(params))
        rows = [j.reshape(3, -1) for j in jacobian]
        return jnp.outer(out, out), sum(r @ r.T for r in rows)

    count = 200
    found = jax.lax.map(one, jax.random.split(jax.random.key(0), count))
    for sample, exact in zip(found, true):
        sample = np.asarray(sample, np.float64)
        error = sample.std(0, ddof=1) / np.sqrt(count)
        # Kernels of width n differ from the limit by a few parts in n.
        bias = 4 / WIDTH * np.max(np.abs(exact))
        assert np.all(np.abs(sample.mean(0) - exact) < 4 * error + bias)
