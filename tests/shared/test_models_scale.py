"""Parameterizations: what starts where, what infinite width predicts, what a learning rate does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shared import models

KEY = jax.random.key(0)


def test_weights_start_as_the_table_says():
    # m = 256 / 64 = 4 and gain sqrt(2) for ReLU; the last layer has gain 1.
    inputs = jnp.zeros((1, 50))
    hidden, fan_in = np.sqrt(2 / 256), np.sqrt(2 / 50)
    expected = {
        ("standard", "gradient"): (fan_in, hidden, np.sqrt(1 / 256)),
        ("ntk", "gradient"): (1, 1, 1),
        ("mup", "gradient"): (fan_in / 2, hidden, np.sqrt(1 / 256)),
        ("mup", "sign"): (fan_in, 4 * hidden, 2 * np.sqrt(1 / 256)),
    }
    for (parameterization, updates), stds in expected.items():
        model = models.mlp(
            num_outputs=200,
            width=256,
            depth=2,
            parameterization=parameterization,
            updates=updates,
            base_width=64,
        )
        params, _ = model.init(KEY, inputs)
        for i, std in enumerate(stds):
            weight = np.asarray(params[f"layer_{i}"]["weight"])
            # A sample deviation of n Gaussians has relative error 1 / sqrt(2 n); four of them.
            assert abs(weight.std() / std - 1) < 4 / np.sqrt(2 * weight.size)


@pytest.mark.parametrize("updates", ["gradient", "sign"])
def test_mup_at_its_base_width_is_the_standard_parameterization(updates):
    inputs = jax.random.normal(KEY, (3, 8, 8, 1))
    for make in (models.mlp, models.convnet):
        standard = make(num_outputs=4, width=16)
        mup = make(num_outputs=4, width=16, parameterization="mup", base_width=16, updates=updates)
        params, _ = standard.init(KEY, inputs)
        same, _ = mup.init(KEY, inputs)
        for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(same)):
            np.testing.assert_array_equal(x, y)
        ours, _ = mup.apply(params, (), inputs, train=False, key=None)
        expected, _ = standard.apply(params, (), inputs, train=False, key=None)
        np.testing.assert_array_equal(ours, expected)


def test_init_scale_scales_a_linear_network_by_its_power():
    inputs = jax.random.normal(KEY, (3, 5))
    for parameterization in ("standard", "ntk", "mup"):
        outputs = []
        for init_scale in (1.0, 2.0):
            model = models.mlp(
                num_outputs=4,
                width=6,
                depth=2,
                activation="identity",
                parameterization=parameterization,
                base_width=3,
                init_scale=init_scale,
            )
            params, _ = model.init(KEY, inputs)
            outputs.append(model.apply(params, (), inputs, train=False, key=None)[0])
        np.testing.assert_allclose(outputs[1], 8 * outputs[0], rtol=1e-5)


WEIGHT_VARIANCE, BIAS_SCALE = 2.0, 0.4


def arc_cosine(covariance):
    """E[relu relu] and E[relu' relu'] by the angle (Cho and Saul 2009)."""
    norm = np.sqrt(np.diag(covariance))
    cosine = np.clip(covariance / np.outer(norm, norm), -1, 1)
    angle = np.arccos(cosine)
    first = np.outer(norm, norm) * (np.sin(angle) + (np.pi - angle) * cosine) / (2 * np.pi)
    return first, (np.pi - angle) / (2 * np.pi)


def infinite_kernels(inputs):
    """NNGP and NTK of two hidden ReLU layers: the recursion of Jacot et al., arXiv:1806.07572."""
    nngp = WEIGHT_VARIANCE * inputs @ inputs.T / inputs.shape[1] + BIAS_SCALE**2
    ntk = nngp
    for variance in (WEIGHT_VARIANCE, 1.0):  # hidden gain sqrt(2), then the last layer's 1
        first, derivative = arc_cosine(nngp)
        nngp = variance * first + BIAS_SCALE**2
        ntk = nngp + variance * ntk * derivative
    return nngp, ntk


def test_ntk_parameterization_has_the_kernels_of_infinite_width():
    inputs = jax.random.normal(KEY, (4, 5))
    model = models.mlp(
        num_outputs=1, width=512, depth=2, parameterization="ntk", bias_scale=BIAS_SCALE
    )
    params, _ = model.init(KEY, inputs)
    for leaf in jax.tree.leaves(params):
        assert abs(np.std(leaf) - 1) < 4 / np.sqrt(2 * leaf.size) or leaf.size == 1

    def outputs(params):
        return model.apply(params, (), inputs, train=False, key=None)[0][:, 0]

    def sample(key):
        params, _ = model.init(key, inputs)
        rows = jax.tree.leaves(jax.jacobian(outputs)(params))
        flat = [row.reshape(len(inputs), -1) for row in rows]
        return outputs(params), sum(row @ row.T for row in flat)

    values, kernels = jax.lax.map(jax.jit(sample), jax.random.split(KEY, 300))
    nngp, ntk = infinite_kernels(np.asarray(inputs, float))
    covariance = np.einsum("sa,sb->ab", values, values) / len(values)
    # Entry (a, b) of a sample covariance has variance (K_aa K_bb + K_ab^2) / samples.
    error = np.sqrt((np.outer(np.diag(nngp), np.diag(nngp)) + nngp**2) / len(values))
    assert (np.abs(covariance - nngp) < 4 * error).all()
    spread = np.std(kernels, axis=0) / np.sqrt(len(kernels))
    # The finite width adds a bias of order 1 / width to the sampling error.
    assert (np.abs(np.mean(kernels, axis=0) - ntk) < 4 * spread + ntk / 512 * 4).all()


def test_ntk_parameterization_without_bias_scale_has_no_biases():
    model = models.mlp(num_outputs=2, width=8, parameterization="ntk")
    params, _ = model.init(KEY, jnp.zeros((1, 3)))
    assert all(set(layer) == {"weight"} for layer in params.values())


def change_of_outputs(make, width, optimizer, inputs, targets, *, steps=3, seeds):
    """Root mean square of what a few steps change, averaged over seeds."""
    model = make(width)

    def run(key):
        params, model_state = model.init(key, inputs)

        def logits(params):
            out, _ = model.apply(params, model_state, inputs, train=True, key=None)
            return out

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(logits(params), targets).mean()

        first, state = logits(params), optimizer.init(params)
        for _ in range(steps):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sqrt(jnp.mean(jnp.square(logits(params) - first))), jnp.std(first)

    changes, sizes = jax.jit(jax.vmap(run))(jax.random.split(KEY, seeds))
    return float(changes.mean()), float(sizes.mean())


def slope(widths, values):
    """Exponent of a power law through the values."""
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


OPTIMIZERS = {"gradient": lambda: optax.sgd(0.1), "sign": lambda: optax.adam(3e-3)}
WIDE = [256, 1024]  # the base width is 64: below four times that, the start still shows


def mlp_slopes(parameterization, updates):
    """How the change of the outputs and their size at the start go with the width."""
    inputs = jax.random.normal(jax.random.key(3), (16, 10))
    targets = jnp.arange(16) % 3

    def make(width):
        return models.mlp(
            num_outputs=3,
            width=width,
            depth=3,
            parameterization=parameterization,
            base_width=64,
            updates=updates,
        )

    measured = [
        change_of_outputs(make, width, OPTIMIZERS[updates](), inputs, targets, seeds=8)
        for width in WIDE
    ]
    return [slope(WIDE, column) for column in zip(*measured)]


@pytest.mark.slow
@pytest.mark.parametrize("updates", ["gradient", "sign"])
def test_one_learning_rate_serves_all_widths_under_mup(updates):
    change, size = mlp_slopes("mup", updates)
    assert abs(change) < 0.15
    assert abs(size + 0.5) < 0.15  # the function starts as 1 / sqrt(width)


@pytest.mark.slow
@pytest.mark.parametrize("updates", ["gradient", "sign"])
def test_the_standard_parameterization_needs_a_learning_rate_for_each_width(updates):
    change, size = mlp_slopes("standard", updates)
    assert change > 0.3
    assert abs(size) < 0.15


WIDTHS = [64, 128, 256, 512]


def hidden_layers(params, x, multipliers):
    """Pre-activations of every layer of a ReLU MLP, by the table of multipliers."""
    out = []
    for i, multiplier in enumerate(multipliers):
        layer = params[f"layer_{i}"]
        x = multiplier * (np.asarray(x) @ np.asarray(layer["weight"]))
        out.append(x)
        x = np.maximum(x, 0)
    return out


@pytest.mark.parametrize("updates", ["gradient", "sign"])
def test_every_layer_moves_by_the_same_amount_at_every_width_under_mup(updates):
    # The coordinate check of arXiv:2203.03466, Appendix D.1, with the forward pass written again.
    inputs = jax.random.normal(jax.random.key(3), (16, 10))
    targets = jnp.arange(16) % 3
    moved = []
    for width in WIDTHS:
        m = width / 64
        roots = {"gradient": (m**0.5, 1, 1, m**-0.5), "sign": (1, 1 / m, 1 / m, 1 / m)}
        model = models.mlp(
            num_outputs=3,
            width=width,
            depth=3,
            parameterization="mup",
            base_width=64,
            updates=updates,
        )
        optimizer = OPTIMIZERS[updates]()

        @jax.jit
        def step(params, state, model=model, optimizer=optimizer):
            def loss(params):
                logits, _ = model.apply(params, (), inputs, train=True, key=None)
                return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

            grads = jax.grad(loss)(params)
            changes, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, changes), state

        per_seed = []
        for seed in range(3):
            params, _ = model.init(jax.random.key(seed), inputs)
            # Biases start at zero and would follow their own multiplier: keep them out.
            before = hidden_layers(params, inputs, roots[updates])
            ours, _ = model.apply(params, (), inputs, train=False, key=None)
            np.testing.assert_allclose(before[-1], ours, rtol=1e-3, atol=1e-5)
            state = optimizer.init(params)
            for _ in range(3):
                params, state = step(params, state)
            after = hidden_layers(params, inputs, roots[updates])
            per_seed.append([np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(after, before)])
        moved.append(np.mean(per_seed, axis=0))
    slopes = [slope(WIDTHS, column) for column in np.array(moved).T]
    assert np.abs(slopes).max() < 0.15, slopes


IMAGE = jax.random.normal(jax.random.key(3), (1, 8, 8, 1))
# name -> (model of a width, input)
NETWORKS = {
    "mlp": (lambda **shape: models.mlp(num_outputs=1, depth=2, bias_scale=0.3, **shape), IMAGE),
    "convnet": (lambda **shape: models.convnet(num_outputs=1, depth=2, **shape), IMAGE),
}


def tangents(name, width, updates, *, seeds=24):
    """How far a unit step on each parameter moves one output, by parameter, over seeds.

    "gradient": |slope|^2, the parameter's share of the tangent kernel. "sign": the sum of |slope|,
    the effect of a step that is as long in every coordinate.
    """
    make, inputs = NETWORKS[name]
    model = make(width=width, parameterization="mup", base_width=32, updates=updates)

    def one(key):
        params, state = model.init(key, inputs)

        def output(params):
            logits, _ = model.apply(params, state, inputs, train=False, key=None)
            return logits.ravel()[-1]

        size = jnp.square if updates == "gradient" else jnp.abs
        return jax.tree.map(lambda slope: jnp.sum(size(slope)), jax.grad(output)(params))

    means = jax.tree.map(jnp.mean, jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds)))
    return {
        jax.tree_util.keystr(path): float(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(means)
    }


@pytest.mark.parametrize("updates", ["gradient", "sign"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_moves_the_output_alike_at_every_width_under_mup(name, updates):
    # Four times the width: a multiplier that is off by sqrt(m) shows as 2, 4 or their inverses.
    narrow, wide = (tangents(name, width, updates) for width in (64, 256))
    ratios = {path: wide[path] / narrow[path] for path in narrow if narrow[path] > 0}
    limit = 1.6  # the mean over seeds is within a fifth
    strange = {path: r for path, r in ratios.items() if not 1 / limit < r < limit}
    assert not strange
    assert len(ratios) > len(narrow) / 2
