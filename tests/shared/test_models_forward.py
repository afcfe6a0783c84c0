"""The forward pass of every model beside one that was written independently: flax or loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from shared import models

KEY = jax.random.key(0)


def shaken(tree, key=KEY):
    """The tree with noise on every leaf, so that gains of one and offsets of zero say something."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    )


def linen_dense(layer):
    return {"kernel": layer["weight"], "bias": layer["bias"]}


def test_mlp_is_the_one_of_flax():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(7)(x.reshape(len(x), -1)))
            x = nn.tanh(nn.Dense(7)(x))
            return nn.Dense(3)(x)

    with jax.enable_x64(True):
        inputs = jax.random.normal(KEY, (5, 2, 3))
        model = models.mlp(num_outputs=3, width=7, depth=2, activation="tanh", bias_scale=0.5)
        params, state = model.init(KEY, inputs)
        ours, after = model.apply(params, state, inputs, train=True, key=None)
        theirs = {f"Dense_{i}": linen_dense(params[f"layer_{i}"]) for i in range(3)}
        np.testing.assert_allclose(ours, Network().apply({"params": theirs}, inputs), rtol=1e-12)
        assert state == after == ()
        assert ours.dtype == jnp.float64


def test_convnet_is_the_one_of_flax():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(3):
                x = nn.relu(nn.Conv(6, (3, 3))(x))
                if i < 2:
                    x = nn.avg_pool(x, (2, 2), (2, 2))
            return nn.Dense(4)(x.mean((1, 2)))

    with jax.enable_x64(True):
        inputs = jax.random.normal(KEY, (2, 9, 8, 2))  # an odd height: the last row is left out
        model = models.convnet(num_outputs=4, width=6, depth=3, bias_scale=0.3)
        params, state = model.init(KEY, inputs)
        ours, _ = model.apply(params, state, inputs, train=False, key=None)
        theirs = {
            f"Conv_{i}": {
                "kernel": params[f"conv_{i}"]["weight"],
                "bias": params[f"conv_{i}"]["bias"],
            }
            for i in range(3)
        } | {"Dense_0": linen_dense(params["readout"])}
        with jax.numpy_rank_promotion("allow"):  # flax adds its biases by promotion
            expected = Network().apply({"params": theirs}, inputs)
        np.testing.assert_allclose(ours, expected, rtol=1e-11)


class LinenResNet(nn.Module):
    """Depth 8: one block a stage. Convolutions in the order in which ours are listed."""

    @nn.compact
    def __call__(self, x, train):
        def unit(x, name, channels, size, stride=1):
            padding = ((size - 1) // 2, size // 2)
            x = nn.Conv(
                channels,
                (size, size),
                (stride, stride),
                padding=(padding, padding),
                use_bias=False,
                name=f"{name}_conv",
            )(x)
            return nn.BatchNorm(
                use_running_average=not train, momentum=0.8, epsilon=1e-5, name=f"{name}_norm"
            )(x)

        x = nn.relu(unit(x, "stem", 4, 3))
        for stage in range(3):
            channels, stride = 4 * 2**stage, 2 if stage else 1
            branch = unit(x, f"stage_{stage}_first", channels, 3, stride)
            branch = unit(nn.relu(branch), f"stage_{stage}_second", channels, 3)
            if stage:
                x = unit(x, f"stage_{stage}_projection", channels, 1, stride)
            x = nn.relu(x + branch)
        return nn.Dense(5, name="readout")(x.mean((1, 2)))


@pytest.mark.parametrize("train", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_resnet_and_its_running_averages_are_those_of_flax(train):
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        inputs = jax.random.normal(KEY, (3, 8, 8, 2))
        model = models.resnet(num_outputs=5, width=4, depth=8, momentum=0.8)
        params, state = model.init(KEY, inputs)
        params = shaken(params)
        state = jax.tree.map(jnp.abs, shaken(state))
        theirs = {"readout": linen_dense(params["readout"])}
        averages = {}

        def names():
            yield "stem", lambda tree: tree["stem"]
            for stage in range(3):
                for layer in ("first", "second", "projection"):
                    if layer != "projection" or stage:
                        block = f"stage_{stage}_block_0"
                        yield (
                            f"stage_{stage}_{layer}",
                            lambda t, b=block, i=layer: t[b][i],
                        )

        for name, pick in names():
            layer = pick(params)
            theirs[f"{name}_conv"] = {"kernel": layer["conv"]["weight"]}
            theirs[f"{name}_norm"] = {
                "scale": layer["norm"]["gain"],
                "bias": layer["norm"]["offset"],
            }
            old = pick(state)
            averages[f"{name}_norm"] = {"mean": old["mean"], "var": old["variance"]}
        network = jax.jit(
            lambda variables: LinenResNet().apply(variables, inputs, train, mutable=["batch_stats"])
        )
        expected, new = network({"params": theirs, "batch_stats": averages})
        ours, after = jax.jit(model.apply, static_argnames="train")(
            params, state, inputs, train=train, key=None
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-11)
        for name, pick in names():
            mine, flaxs = pick(after), new["batch_stats"][f"{name}_norm"]
            np.testing.assert_allclose(mine["mean"], flaxs["mean"], rtol=1e-9, atol=1e-12)
            # flax takes E[x^2] - E[x]^2, which loses a few digits.
            np.testing.assert_allclose(mine["variance"], flaxs["var"], rtol=1e-9)


def rms(x, gain):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain


def gelu(x):
    return x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2


def turn(x, position, base=10_000.0):
    """Rotary embedding of one head by complex numbers."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def slow_transformer(params, tokens, *, num_heads, rotary, qk_norm, branch_scale):
    """One sequence, one position, one head at a time."""
    p = jax.tree.map(np.asarray, params)
    x = p["embed"][tokens]
    if not rotary:
        x = x + p["positions"][: len(tokens)]
    size = x.shape[1] // num_heads
    for i in range(sum(name.startswith("block_") for name in p)):
        block = p[f"block_{i}"]
        attention = block["attention"]
        h = rms(x, block["attention_norm"]["gain"])
        mixed = np.zeros_like(x)
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = (h @ attention[name][:, part] for name in ("query", "key", "value"))
            if qk_norm:
                q = rms(q, attention["query_norm"]["gain"])
                k = rms(k, attention["key_norm"]["gain"])
            if rotary:
                q, k = (np.stack([turn(row, t) for t, row in enumerate(m)]) for m in (q, k))
            for t in range(len(tokens)):
                scores = np.array([q[t] @ k[s] / np.sqrt(size) for s in range(t + 1)])
                weights = np.exp(scores - scores.max())
                mixed[t, part] = (weights / weights.sum()) @ v[: t + 1]
        x = x + branch_scale * mixed @ attention["output"]
        h = rms(x, block["feed_forward_norm"]["gain"])
        hidden = gelu(h @ block["feed_forward_in"]) @ block["feed_forward_out"]
        x = x + branch_scale * hidden
    return rms(x, p["norm"]["gain"]) @ p["readout"]["weight"]


@pytest.mark.parametrize(("positions", "qk_norm"), [("rotary", True), ("learned", False)])
def test_transformer_is_the_slow_one(positions, qk_norm):
    with jax.enable_x64(True):
        tokens = jax.random.randint(KEY, (2, 6), 0, 11)
        model = models.transformer(
            vocabulary_size=11,
            width=12,
            depth=2,
            num_heads=3,
            positions=positions,
            qk_norm=qk_norm,
            branch_scale=0.7,
        )
        params, state = model.init(KEY, tokens)
        params = shaken(params)
        ours, _ = jax.jit(model.apply, static_argnames="train")(
            params, state, tokens, train=False, key=None
        )
        for row, sequence in zip(ours, np.asarray(tokens)):
            expected = slow_transformer(
                params,
                sequence,
                num_heads=3,
                rotary=positions == "rotary",
                qk_norm=qk_norm,
                branch_scale=0.7,
            )
            np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("positions", ["rotary", pytest.param("learned", marks=pytest.mark.slow)])
def test_no_token_sees_a_later_one(positions):
    tokens = jax.random.randint(KEY, (1, 8), 0, 11)
    model = models.transformer(vocabulary_size=11, width=16, depth=2, positions=positions)
    params, _ = model.init(KEY, tokens)

    def logits(embedded):
        changed = {**params, "embed": params["embed"] + 0 * embedded.sum()}
        changed["embed"] = embedded  # a row for each place, so that places can be told apart
        return model.apply(changed, (), jnp.arange(8)[None], train=False, key=None)[0][0]

    # d logits[t] / d input[s], by place: zero above the diagonal, not zero on and below it.
    slopes = jax.jit(jax.jacobian(logits))(params["embed"][tokens[0]])
    size = np.abs(slopes).max((1, 3))
    assert (size[np.triu_indices(8, 1)] == 0).all()
    assert (size[np.tril_indices(8)] > 1e-6).all()


def test_rotary_scores_depend_on_the_distance_alone():
    from shared.models._attention import rotate

    with jax.enable_x64(True):
        q, k = jax.random.normal(KEY, (2, 6))
        many = rotate(jnp.broadcast_to(jnp.stack([q, k])[:, None, None], (2, 9, 1, 6)))
        scores = many[0, :, 0] @ many[1, :, 0].T
        for distance in range(-8, 9):
            diagonal = np.diagonal(scores, distance)
            np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-5)


def test_next_token_loss_and_its_z_term():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(2, 3, 5)) * 3, rng.integers(0, 5, (2, 4))
    expected = np.zeros((2, 3))
    for b in range(2):
        for t in range(3):
            log_z = np.log(np.exp(logits[b, t]).sum())
            expected[b, t] = log_z - logits[b, t, tokens[b, t + 1]] + 0.01 * log_z**2
    ours = models.next_token_loss(jnp.asarray(logits), jnp.asarray(tokens), z_loss=0.01)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    half = models.next_token_loss(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(tokens))
    assert half.dtype == jnp.float32


@pytest.mark.parametrize("kind", ["mlp", "convnet", "resnet"])
def test_one_nan_pixel_shows_in_its_logits_and_no_others(kind):
    """XLA's maximum followed by a mean passes over NaN on a CPU; the loss would look fine."""
    images = jax.random.normal(KEY, (32, 16, 16, 3))
    model = {"mlp": models.mlp, "convnet": models.convnet, "resnet": models.resnet}[kind](
        num_outputs=3
    )
    params, state = model.init(KEY, images)
    run = jax.jit(lambda x: model.apply(params, state, x, train=False, key=None)[0])
    found = np.isnan(run(images.at[5, 8, 8, 1].set(jnp.nan)))
    np.testing.assert_array_equal(found.all(axis=1), np.arange(32) == 5)
    np.testing.assert_array_equal(found.any(axis=1), np.arange(32) == 5)


def test_bytes_of_an_image_become_numbers_between_zero_and_one():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1)).astype(np.uint8)
    model = models.mlp(num_outputs=2, width=5)
    params, _ = model.init(KEY, images)
    from_bytes, _ = model.apply(params, (), images, train=False, key=None)
    scaled = (images / 255).astype(np.float32)
    from_floats, _ = model.apply(params, (), scaled, train=False, key=None)
    np.testing.assert_allclose(from_bytes, from_floats, rtol=1e-6)
