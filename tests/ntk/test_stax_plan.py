"""Blocks, budgets, loops over layers, ways of asking, and errors that name the layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk
from ntk import stax
from ntk.stax import _plan


def cnn():
    return stax.serial(
        stax.Conv(1, (3, 2), padding="SAME", W_std=1.3, b_std=0.1), stax.Relu(),
        stax.GlobalAvgPool(), stax.Dense(1),
    )  # fmt: skip


def fc(depth=1):
    return stax.serial(*[stax.Dense(8, 1.4, 0.1), stax.Relu()] * depth, stax.Dense(1))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 4, 3, 2)).astype("f"), rng.normal(size=(5, 4, 3, 2)).astype("f")


def test_blocks_give_the_whole_kernel_on_ragged_sizes(images, monkeypatch):
    x1, x2 = images
    whole = cnn().kernel_fn(x1, x2, "ntk"), cnn().kernel_fn(x1, None, "ntk")
    monkeypatch.setattr(_plan, "ENTRIES", 6 * 144)
    parts = cnn().kernel_fn(x1, x2, "ntk"), cnn().kernel_fn(x1, None, "ntk")
    for a, b in zip(whole, parts):
        np.testing.assert_allclose(a, b, atol=2e-6 * float(np.max(np.abs(b))))
    np.testing.assert_allclose(parts[1], parts[1].T, rtol=1e-6)


def test_the_memory_budget_is_kept(images):
    x = np.concatenate([images[0]] * 6)
    budget = 300_000
    kernel_fn = cnn().kernel_fn
    compiled = jax.jit(lambda a: kernel_fn(a, None, "ntk", max_memory=budget)).lower(x).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 1.2 * budget
    with pytest.raises(ValueError, match="one pair of inputs alone needs"):
        kernel_fn(x, None, "ntk", max_memory=100)


@pytest.mark.slow
def test_the_memory_budget_of_vectors_is_kept_by_blocks_of_many_pairs(monkeypatch):
    x = np.random.default_rng(0).normal(size=(600, 50)).astype("f")
    seen = []
    sizes = _plan.block_sizes
    monkeypatch.setattr(_plan, "block_sizes", lambda *args: seen.append(sizes(*args)) or seen[-1])
    kernel_fn, budget = fc(2).kernel_fn, 400_000
    second = x[::-1] + 1
    compiled = (
        jax.jit(lambda a, b: kernel_fn(a, b, "ntk", max_memory=budget)).lower(x, second).compile()
    )
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 1.2 * budget
    assert seen[-1][0] * seen[-1][1] >= 400
    whole = fc(2).kernel_fn(x, second, "ntk")
    np.testing.assert_allclose(compiled(x, second), whole, atol=2e-6 * float(np.max(whole)))


def test_repeated_layers_are_compiled_once(images):
    x = images[0].reshape(7, -1)
    sizes = [
        len(jax.jit(lambda a, d=d: fc(d).kernel_fn(a, None, "ntk")).lower(x).as_text())
        for d in (10, 50)
    ]
    assert sizes[1] < 1.02 * sizes[0]
    # One loop of equal layers is the same map as layers that differ by object and width.
    loop = fc(9).kernel_fn(x, None, ("nngp", "ntk"))
    split = stax.serial(
        *[part for i in range(9) for part in (stax.Dense(8, 1.4 + 1e-9 * i, 0.1), stax.Relu())],
        stax.Dense(1),
    ).kernel_fn(x, None, ("nngp", "ntk"))
    np.testing.assert_allclose(loop.ntk, split.ntk, rtol=1e-5)


def test_forms_of_get(images):
    x1, x2 = (x.reshape(len(x), -1) for x in images)
    kernel_fn = fc().kernel_fn
    both = kernel_fn(x1, x2, ("ntk", "nngp"))
    assert both._fields == ("ntk", "nngp")
    np.testing.assert_allclose(both.ntk, kernel_fn(x1, x2, "NTK"), rtol=1e-6)
    assert isinstance(kernel_fn(x1, x2), ntk.Kernel)
    assert kernel_fn(x1, None).cov2 is None
    assert kernel_fn(x1, None).x1_is_x2
    assert kernel_fn(x1, x1.copy()).x1_is_x2
    assert not kernel_fn(x1, x2, "x1_is_x2")
    assert kernel_fn(x1, x2, "shape1") == (7, 1)
    assert kernel_fn(x1, x2, get="cov1", diagonal_batch=False).shape == (7, 7)
    for wrong in ((), "", ("ntk", "ntk"), "gram"):
        with pytest.raises(ValueError, match="get"):
            kernel_fn(x1, x2, wrong)


def test_kernels_compose(images):
    x1, x2 = (x.reshape(len(x), -1) for x in images)
    lower, upper = stax.serial(stax.Dense(4, 1.2), stax.Relu()), stax.serial(stax.Dense(2, 0.9))
    joined = stax.serial(lower, upper).kernel_fn(x1, x2, "ntk")
    np.testing.assert_allclose(
        upper.kernel_fn(lower.kernel_fn(x1, x2), get="ntk"), joined, rtol=1e-5
    )
    double = lower.kernel_fn(x1, x2) * 3.0
    np.testing.assert_allclose(double.nngp, 9 * lower.kernel_fn(x1, x2, "nngp"), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_keeps_the_dtype(dtype):
    x = jnp.ones((2, 3), dtype)
    assert fc().kernel_fn(x, None, "ntk").dtype == dtype


def test_full_and_diagonal_positions(images):
    x1, x2 = images
    net = stax.serial(stax.Conv(1, (3, 2), padding="SAME"), stax.Relu()).kernel_fn
    full = net(x1, x2, "nngp")
    assert full.shape == (7, 5, 4, 4, 3, 3)
    few = net(x1, x2, "nngp", diagonal_spatial=True)
    np.testing.assert_allclose(few, np.einsum("abiijj->abij", full), rtol=1e-5)
    whole = net(x1, x2, None, diagonal_batch=False)
    assert whole.cov1.shape == (7, 7, 4, 4, 3, 3)


def test_errors_name_the_layer():
    x = np.ones((2, 5, 5, 3), "f")
    with pytest.raises(NotImplementedError, match=r"layer 0 \(ABRelu\).*Dense or Conv"):
        stax.serial(stax.Relu(), stax.Dense(1)).kernel_fn(x[:, 0, 0], None, "ntk")
    with pytest.raises(ValueError, match=r"layer 1 \(Conv\).*2 dimensions"):
        stax.serial(stax.Flatten(), stax.Conv(1, (3, 3))).kernel_fn(x, None, "ntk")
    with pytest.raises(ValueError, match=r"layer 0 \(Conv\).*does not fit"):
        stax.serial(stax.Conv(1, (7, 3))).kernel_fn(x, None, "ntk")
    with pytest.raises(ValueError, match=r"layer 1 \(serial\): layer 0 \(AvgPool\).*window_shape"):
        stax.serial(stax.Dense(1), stax.serial(stax.AvgPool((2,)))).kernel_fn(x, None, "ntk")
    with pytest.raises(ValueError, match="diagonal_spatial=True"):
        stax.serial(stax.Conv(1, (3, 3)), stax.GlobalAvgPool()).kernel_fn(
            x, None, "ntk", diagonal_spatial=True
        )
    with pytest.raises(ValueError, match=r"layer 1 \(FanInSum\).*FanOut"):
        stax.serial(stax.Dense(1), stax.FanInSum()).kernel_fn(x, None, "ntk")
    with pytest.raises(TypeError, match=r"layer 1: expected a layer.*parentheses"):
        stax.serial(stax.Dense(1), stax.Relu)
    with pytest.raises(ValueError, match="padding must be one of"):
        stax.Conv(1, (3, 3), padding="REFLECT")
    with pytest.raises(ValueError, match="same number"):
        fc().kernel_fn(x, x[0], "ntk")


def test_a_layer_of_the_user():
    @stax.layer
    @stax.supports_masking(remask_kernel=True)
    def Double():
        @stax.requires(diagonal_spatial=stax.Diagonal())
        def kernel_fn(kernel, **kwargs):
            return kernel * 2.0

        return lambda key, shape: (shape, ()), lambda params, x, **kwargs: 2 * x, kernel_fn

    x = np.random.default_rng(0).normal(size=(3, 4)).astype("f")
    net = stax.serial(stax.Dense(2), Double(), stax.Dense(1))
    plain = stax.serial(stax.Dense(2), stax.Dense(1))
    nngp = net.kernel_fn(x, None, "nngp")
    np.testing.assert_allclose(nngp, 4 * plain.kernel_fn(x, None, "nngp"), rtol=1e-6)
    shape, params = net.init_fn(jax.random.key(0), (3, 4))
    assert shape == (3, 1)
    assert net.apply_fn(params, x).shape == (3, 1)
