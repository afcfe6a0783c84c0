"""What every model promises: keys, dtypes, gradients, batch statistics, refusals; and adapters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from shared import models
from shared.models._norm import apply_batch_norm, init_batch_norm
from shared.models._scale import Scale

KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(7), 8)
IMAGES = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
TOKENS = jax.random.randint(jax.random.key(2), (8, 6), 0, 11)

ALL = {
    "mlp": (lambda **more: models.mlp(num_outputs=3, width=8, **more), IMAGES),
    "convnet": (lambda **more: models.convnet(num_outputs=3, width=8, **more), IMAGES),
    "resnet": (lambda **more: models.resnet(num_outputs=3, width=4, depth=8, **more), IMAGES),
    "transformer": (
        lambda **more: models.transformer(vocabulary_size=11, width=16, **more),
        TOKENS,
    ),
}
FAST = {("mlp", "mup"), ("transformer", "standard")}

SLOW = pytest.mark.slow


def some_fast(*fast, among=tuple(ALL)):
    """All models, those that are not named as tests of the slow tier."""
    return [pytest.param(name, marks=() if name in fast else SLOW) for name in among]


def squares(model, params, state, inputs, key=None):
    logits, _ = model.apply(params, state, inputs, train=True, key=key)
    return jnp.mean(jnp.square(logits - 1))


CASES = [
    pytest.param(name, parameterization, marks=() if fast else SLOW)
    for name in ALL
    for parameterization in ("standard", "ntk", "mup")
    for fast in [(name, parameterization) in FAST]
]


@pytest.mark.parametrize(("name", "parameterization"), CASES)
def test_a_gradient_reaches_every_parameter(name, parameterization):
    make, inputs = ALL[name]
    model = make(parameterization=parameterization, base_width=2)
    params, state = model.init(KEY, inputs)
    grads = jax.jit(jax.grad(lambda p: squares(model, p, state, inputs)))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


@pytest.mark.parametrize("name", some_fast("mlp", "transformer"))
def test_parameters_in_half_precision_give_logits_in_half_precision(name):
    make, inputs = ALL[name]
    model = make()
    params, state = model.init(KEY, inputs)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    apply = jax.jit(model.apply, static_argnames="train")
    exact, _ = apply(params, state, inputs, train=True, key=None)
    rough, new = apply(half, state, inputs, train=True, key=None)
    assert rough.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new))
    assert np.abs(rough.astype(jnp.float32) - exact).max() < 0.15 * np.abs(exact).max()


@pytest.mark.parametrize("name", some_fast("mlp", "convnet"))
def test_init_depends_on_the_key_and_on_shapes_alone(name):
    make, inputs = ALL[name]
    model = make()
    params, state = model.init(KEY, inputs)
    again, _ = model.init(KEY, jnp.zeros_like(inputs))
    other, _ = model.init(jax.random.key(1), inputs)
    weights = [x for x in jax.tree.leaves(params) if x.ndim > 1]
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(again)))
    assert all(
        (x != y).all() for x, y in zip(weights, [y for y in jax.tree.leaves(other) if y.ndim > 1])
    )
    shapes = jax.eval_shape(model.init, KEY, inputs)
    assert jax.tree.structure(shapes) == jax.tree.structure((params, state))


@pytest.mark.parametrize(
    "name", some_fast("mlp", "transformer", among=("mlp", "convnet", "transformer"))
)
def test_dropout_follows_the_examples_key(name):
    make, inputs = ALL[name]
    model = make(dropout=0.5)
    params, _ = model.init(KEY, inputs)
    apply = jax.jit(model.apply, static_argnames="train")

    def logits(inputs, key, train=True):
        return np.asarray(apply(params, (), inputs, train=train, key=key)[0])

    whole = logits(inputs, KEYS)
    order = np.array([5, 2, 7])
    np.testing.assert_allclose(logits(inputs[order], KEYS[order]), whole[order], rtol=1e-5)
    assert (np.abs(logits(inputs, KEYS[::-1]) - whole).max((-1,)) > 0).any()
    np.testing.assert_array_equal(logits(inputs, KEY), logits(inputs, KEY))
    off = make()
    expected, _ = off.apply(params, (), inputs, train=True, key=None)
    off_logits = logits(inputs, None, train=False)
    np.testing.assert_allclose(off_logits, expected, rtol=1e-5, atol=1e-6)  # fused otherwise
    with pytest.raises(ValueError, match="key must be given"):
        logits(inputs, None)
    with pytest.raises(ValueError, match=r"got shape \(8,\) for a batch of 3"):
        logits(inputs[order], KEYS)
    with pytest.raises(ValueError, match="typed key"):
        logits(inputs, jax.random.PRNGKey(0))


def test_dropout_keeps_the_mean_and_zeroes_its_share():
    from shared.models._model import dropout

    x = jnp.ones((8, 5000))
    dropped = np.asarray(dropout(x, 0.3, KEYS, 0))
    assert abs((dropped == 0).mean() - 0.3) < 4 * np.sqrt(0.21 / x.size)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.7, rtol=1e-6)
    assert (dropped != np.asarray(dropout(x, 0.3, KEYS, 1))).any()


def statistics_and_gradients(model, params, state, inputs):
    """Of one batch: logits, new statistics, gradients of a loss."""

    def loss(params):
        logits, new = model.apply(params, state, inputs, train=True, key=None)
        return jnp.mean(jnp.square(logits - 1)), (logits, new)

    (_, (logits, new)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return logits, new, grads


def normalized_squares(axis_name):
    """A dense layer, batch normalization and a cube: the smallest network with statistics."""
    scale = Scale()

    def init(key, inputs):
        norm, statistics = init_batch_norm(scale, 5)
        return {"weight": jax.random.normal(key, (64, 5)), "norm": norm}, statistics

    def apply(params, state, inputs, *, train, key):
        hidden = inputs.reshape(len(inputs), -1) @ params["weight"]
        out, state = apply_batch_norm(
            params["norm"], state, hidden, scale, train=train, axis_name=axis_name, momentum=0.9
        )
        return out**3, state

    return models.Model(init, apply)


def tanh_resnet(axis_name):
    return models.resnet(num_outputs=3, width=4, depth=8, activation="tanh", axis_name=axis_name)


@pytest.mark.parametrize(
    ("make", "devices"),
    [
        (normalized_squares, 2),
        (normalized_squares, 8),
        *(pytest.param(tanh_resnet, n, marks=SLOW) for n in (2, 4, 8)),
    ],
)
def test_synchronised_statistics_are_those_of_one_device(make, devices):
    with jax.enable_x64(True):
        inputs = IMAGES.astype(jnp.float64)
        alone, together = make(None), make("data")
        params, state = alone.init(KEY, inputs)
        expected = jax.jit(lambda p, x: statistics_and_gradients(alone, p, state, x))(
            params, inputs
        )

        def step(params, inputs):
            own = jax.tree.map(lambda x: jax.lax.pcast(x, "data", to="varying"), params)
            logits, new, grads = statistics_and_gradients(together, own, state, inputs)
            return logits, new, jax.lax.pmean(grads, "data")

        mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P("data"), P(), P())
        )
        ours = jax.tree.leaves(jax.jit(mapped)(params, inputs))
        for x, y in zip(ours, jax.tree.leaves(expected)):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.mlp(num_outputs=0), "num_outputs must be a positive integer"),
        (lambda: models.mlp(num_outputs=2, activation="rellu"), "activation must be one of"),
        (lambda: models.mlp(num_outputs=2, parameterization="mup"), "needs base_width"),
        (lambda: models.mlp(num_outputs=2, parameterization="mf"), "parameterization must be"),
        (lambda: models.mlp(num_outputs=2, init_scale=float("nan")), "init_scale"),
        (lambda: models.mlp(num_outputs=2, init_scale=0.0), "init_scale"),
        (lambda: models.mlp(num_outputs=2, bias_scale=-1.0), "bias_scale"),
        (lambda: models.mlp(num_outputs=2, updates="adam"), "updates must be"),
        (lambda: models.mlp(num_outputs=2, dropout=1.0), "dropout must be in"),
        (lambda: models.resnet(num_outputs=2, depth=18), "depth must be 6 n"),
        (lambda: models.resnet(num_outputs=2, momentum=1.0), "momentum"),
        (lambda: models.transformer(vocabulary_size=9, width=10), "multiple of num_heads"),
        (lambda: models.transformer(vocabulary_size=9, width=12), "even width / num_heads"),
        (
            lambda: models.transformer(vocabulary_size=9, positions="sinus"),
            "positions must be",
        ),
        (
            lambda: models.convnet(num_outputs=2).init(KEY, jnp.zeros((2, 8, 8))),
            r"images must be .*\(2, 8, 8\)",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_learned_positions_end_where_they_end():
    model = models.transformer(vocabulary_size=11, width=16, positions="learned", max_length=8)
    params, _ = model.init(KEY, TOKENS)
    assert params["positions"].shape == (8, 16)
    with pytest.raises(ValueError, match="up to 8; raise max_length"):
        model.apply(params, (), jnp.zeros((1, 9), jnp.int32), train=False, key=None)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(64)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class PlainNnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(64, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x.reshape(len(x), -1)))
        return self.last(self.dropout(x))


class NormedNnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(64, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x.reshape(len(x), -1)))))


@pytest.mark.parametrize(
    "model",
    [models.from_linen(Plain()), models.from_nnx(lambda rngs: PlainNnx(rngs))],
    ids=["linen", "nnx"],
)
def test_a_flax_module_is_a_model(model):
    params, state = model.init(KEY, IMAGES)
    assert state == ()
    assert all(isinstance(layer, dict) for layer in params.values())
    dense = [jax.tree.map(np.asarray, params[name]) for name in sorted(params)]
    flat = np.asarray(IMAGES.reshape(8, -1))
    hidden = np.maximum(flat @ dense[0]["kernel"] + dense[0]["bias"], 0)
    expected = hidden @ dense[1]["kernel"] + dense[1]["bias"]
    apply = jax.jit(model.apply, static_argnames="train")
    logits, _ = apply(params, state, IMAGES, train=False, key=None)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    noisy = np.asarray(apply(params, state, IMAGES, train=True, key=KEYS)[0])
    assert (np.abs(noisy - expected).max(1) > 1e-3).all()
    order = np.array([6, 1])
    part, _ = apply(params, state, IMAGES[order], train=True, key=KEYS[order])
    np.testing.assert_allclose(part, noisy[order], rtol=1e-5, atol=1e-6)
    other, _ = apply(params, state, IMAGES, train=True, key=KEYS[::-1])
    assert (np.abs(other - noisy).max(1) > 1e-3).all()


@pytest.mark.parametrize(
    ("model", "momentum"),
    [
        (models.from_linen(Normed()), 0.99),
        (models.from_nnx(lambda rngs: NormedNnx(rngs)), 0.9),
    ],
    ids=["linen", "nnx"],
)
def test_batch_statistics_of_a_flax_module_are_model_state(model, momentum):
    params, state = model.init(KEY, IMAGES)
    apply = jax.jit(model.apply, static_argnames="train")
    _, new = apply(params, state, IMAGES, train=True, key=KEYS)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    first = jax.tree.map(np.asarray, params["Dense_0" if "Dense_0" in params else "first"])
    hidden = np.asarray(IMAGES.reshape(8, -1)) @ first["kernel"] + first["bias"]
    means = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(new)
        if "mean" in jax.tree_util.keystr(path)
    ]
    np.testing.assert_allclose(means[0], (1 - momentum) * hidden.mean(0), atol=1e-5)
    logits, unchanged = apply(params, new, IMAGES, train=False, key=None)
    assert unchanged.keys() == new.keys()
    old, _ = apply(params, state, IMAGES, train=False, key=None)
    assert np.abs(logits - old).max() > 1e-4  # evaluation uses the running averages


def test_a_linen_module_without_a_train_argument():
    model = models.from_linen(nn.Dense(3), train_argument=None)
    params, state = model.init(KEY, jnp.ones((2, 4)))
    logits, _ = model.apply(params, state, jnp.ones((2, 4)), train=True, key=None)
    expected = np.ones((2, 4)) @ params["kernel"] + np.asarray(params["bias"])[None]
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
