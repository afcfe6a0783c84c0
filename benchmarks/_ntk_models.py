"""Networks for timing the choice of a method: ten that the bar names, five more of other kinds."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Model = tuple[Any, Any, Any]  # function, parameters, inputs
NHWC = ("NHWC", "HWIO", "NHWC")


def weights(seed: int, *shape: int) -> jax.Array:
    """Normal entries of standard deviation 1 / sqrt(fan in)."""
    scale = float(np.prod(shape[:-1])) ** 0.5
    values = np.random.default_rng(seed).normal(size=shape) / max(scale, 1.0)
    return jnp.asarray(values, jnp.float32)


def layers(*sizes: int) -> list:
    """Weights and biases of dense layers."""
    pairs = itertools.pairwise(sizes)
    return [(weights(k, a, b), weights(50 + k, b)) for k, (a, b) in enumerate(pairs)]


def filters(*sizes: int) -> list:
    """Weights and biases of 3 x 3 convolutions."""
    return [
        (weights(k, 3, 3, a, b), weights(50 + k, b))
        for k, (a, b) in enumerate(itertools.pairwise(sizes))
    ]


def mlp(params: Any, x: Any) -> Any:
    """Dense ReLU layers."""
    for k, (w, b) in enumerate(params):
        x = x @ w + b[None]
        x = jax.nn.relu(x) if k < len(params) - 1 else x
    return x


def conv(x: Any, w: Any, stride: int = 1, groups: int = 1) -> Any:
    """A convolution with padding SAME."""
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=NHWC, feature_group_count=groups
    )


def cnn(params: Any, x: Any) -> Any:
    """Convolutions with biases, the mean over positions, a dense layer."""
    for w, b in params[0]:
        x = jax.nn.relu(conv(x, w) + b[None, None, None])
    return x.mean((1, 2)) @ params[1]


def _normalized(x: Any, axes: tuple[int, ...]) -> Any:
    centered = x - x.mean(axes, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, axes, keepdims=True) + 1e-5)


def ten_models() -> dict[str, Model]:
    """Networks of many kinds; no rule was written for any of them."""

    def residual(params: Any, x: Any) -> Any:
        for w, v in params[1]:
            x = x + jnp.tanh(x @ w) @ v
        return x @ params[0]

    def recurrent(params: Any, x: Any) -> Any:
        def cell(h: Any, xt: Any) -> Any:
            return jnp.tanh(h @ params["w"] + xt @ params["u"]), None

        start = jnp.zeros((x.shape[0], params["w"].shape[0]))
        return lax.scan(cell, start, jnp.swapaxes(x, 0, 1))[0] @ params["o"]

    def attention(params: Any, x: Any) -> Any:
        q, k, v = (jnp.einsum("ntd,dhe->nthe", x, w) for w in params[:3])
        a = jax.nn.softmax(jnp.einsum("nthe,nshe->nhts", q, k), -1)
        return jnp.einsum("nhts,nshe,heo->nto", a, v, params[3]).mean(1)

    def gated(params: Any, x: Any) -> Any:
        return (jax.nn.sigmoid(x @ params[0]) * (x @ params[1])) @ params[2]

    def autoencoder(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params) @ params.T

    def batch_norm(params: Any, x: Any) -> Any:
        h = x @ params[0]
        h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
        return jax.nn.relu(h) @ params[1]

    def depthwise(params: Any, x: Any) -> Any:
        x = conv(x, params[0], groups=x.shape[-1])
        return jax.nn.gelu(x).mean((1, 2)) @ params[1]

    w = weights
    return {
        "scalar MLP": (mlp, layers(64, 256, 256, 1), w(9, 256, 64)),
        "wide output": (mlp, layers(32, 64, 200), w(9, 12, 32)),
        "small CNN": (cnn, (filters(3, 16, 16), w(8, 16, 10)), w(9, 8, 12, 12, 3)),
        "residual": (
            residual,
            (w(1, 64, 5), [(w(2, 64, 64), w(3, 64, 64)), (w(4, 64, 64), w(5, 64, 64))]),
            w(9, 64, 64),
        ),
        "recurrent": (
            recurrent,
            {"w": w(1, 64, 64), "u": w(2, 8, 64), "o": w(3, 64, 4)},
            w(9, 16, 12, 8),
        ),
        "attention": (
            attention,
            [w(1, 32, 4, 8), w(2, 32, 4, 8), w(3, 32, 4, 8), w(4, 4, 8, 5)],
            w(9, 24, 10, 32),
        ),
        "gated": (gated, [w(1, 64, 128), w(2, 64, 128), w(3, 128, 8)], w(9, 64, 64)),
        "tied autoencoder": (autoencoder, w(1, 32, 64), w(9, 16, 32)),
        "batch norm": (batch_norm, [w(1, 32, 128), w(2, 128, 3)], w(9, 48, 32)),
        "depthwise": (depthwise, [w(1, 3, 3, 1, 16), w(2, 16, 5)], w(9, 16, 10, 10, 16)),
    }


def five_more_models() -> dict[str, Model]:
    """Networks that came after the cost model was fixed."""

    def separable(params: Any, x: Any) -> Any:
        for w, v, stride in zip(params[0], params[1], (2, 1)):
            x = jax.nn.relu(conv(conv(x, w, stride, x.shape[-1]), v))
        return x.mean((1, 2)) @ params[2]

    def gru(params: Any, x: Any) -> Any:
        def cell(h: Any, xt: Any) -> Any:
            z, r = (jax.nn.sigmoid(xt @ params["u"][k] + h @ params["w"][k]) for k in (0, 1))
            new = jnp.tanh(xt @ params["u"][2] + (r * h) @ params["w"][2])
            return (1 - z) * h + z * new, None

        start = jnp.zeros((x.shape[0], params["o"].shape[0]))
        return lax.scan(cell, start, jnp.swapaxes(x, 0, 1))[0] @ params["o"]

    def transformer(params: Any, tokens: Any) -> Any:
        x = params["embedding"][tokens] + params["position"][None]
        y = _normalized(x, (-1,)) * params["scale"][None, None]
        q, k, v = (jnp.einsum("ntd,dhe->nthe", y, params[name]) for name in "qkv")
        scores = jnp.einsum("nthe,nshe->nhts", q, k) / q.shape[-1] ** 0.5
        mixed = jnp.einsum("nhts,nshe->nthe", jax.nn.softmax(scores, -1), v)
        x = x + jnp.einsum("nthe,hed->ntd", mixed, params["o"])
        x = x + jax.nn.gelu(_normalized(x, (-1,)) @ params["up"]) @ params["down"]
        return x.mean(1) @ params["head"]

    def mixer(params: Any, x: Any) -> Any:
        for tokens, back, channels, down in params[0]:
            y = jnp.swapaxes(_normalized(x, (-1,)), 1, 2)
            x = x + jnp.swapaxes(jax.nn.gelu(y @ tokens) @ back, 1, 2)
            x = x + jax.nn.gelu(_normalized(x, (-1,)) @ channels) @ down
        return x.mean(1) @ params[1]

    def resnet(params: Any, x: Any) -> Any:
        x = conv(x, params["stem"])
        for first, second, skip, scale, stride in zip(
            params["first"], params["second"], params["skip"], params["scale"], (1, 2)
        ):
            y = jax.nn.relu(_normalized(conv(x, first, stride), (1, 2)) * scale[None, None, None])
            x = jax.nn.relu(conv(y, second) + conv(x, skip, stride))
        return x.mean((1, 2)) @ params["head"]

    w = weights
    three = lambda seed, *shape: [w(seed + k, *shape) for k in range(3)]  # noqa: E731
    return {
        "separable convolutions": (
            separable,
            (
                [w(1, 3, 3, 1, 8), w(2, 3, 3, 1, 32)],
                [w(3, 1, 1, 8, 32), w(4, 1, 1, 32, 32)],
                w(5, 32, 10),
            ),
            w(9, 8, 16, 16, 8),
        ),
        "GRU": (
            gru,
            {"u": three(1, 12, 32), "w": three(4, 32, 32), "o": w(8, 32, 3)},
            w(9, 16, 10, 12),
        ),
        "transformer block": (
            transformer,
            {
                "embedding": w(1, 100, 32),
                "position": w(2, 12, 32),
                "scale": 1 + w(3, 32),
                **{name: w(4 + k, 32, 4, 8) for k, name in enumerate("qkv")},
                "o": w(11, 4, 8, 32),
                "up": w(12, 32, 64),
                "down": w(13, 64, 32),
                "head": w(14, 32, 4),
            },
            jnp.asarray(np.random.default_rng(10).integers(0, 100, size=(16, 12))),
        ),
        "mixer": (
            mixer,
            (
                [
                    (w(1, 16, 32), w(2, 32, 16), w(3, 24, 48), w(4, 48, 24)),
                    (w(5, 16, 32), w(6, 32, 16), w(7, 24, 48), w(8, 48, 24)),
                ],
                w(9, 24, 6),
            ),
            w(10, 16, 16, 24),
        ),
        "ResNet with stride": (
            resnet,
            {
                "stem": w(1, 3, 3, 3, 16),
                "first": [w(2, 3, 3, 16, 16), w(3, 3, 3, 16, 32)],
                "second": [w(4, 3, 3, 16, 16), w(5, 3, 3, 32, 32)],
                "skip": [w(6, 1, 1, 16, 16), w(7, 1, 1, 16, 32)],
                "scale": [1 + w(8, 16), 1 + w(9, 32)],
                "head": w(10, 32, 10),
            },
            w(11, 6, 12, 12, 3),
        ),
    }
