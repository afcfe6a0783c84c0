"""Networks of the reference set, written against the names of neural_tangents.stax.

Loaded by `make_neural_tangents.py` with the old library and by the tests with ours, so that both
compute the same thing. Each entry is `name: (inputs, make, options)`: `make(stax, np)` returns a
layer, `inputs` names the arrays, `options` are keyword arguments of kernel_fn.
"""

import numpy as np


def inputs(kind):
    """Two batches of inputs; the first also serves alone."""
    rng = np.random.RandomState(7)
    shapes = {
        "vector": (7,),
        "unit": (7,),
        "image": (5, 4, 3),
        "row": (6, 3),
        "nchw": (3, 5, 4),
        "last": (3,),
        "masked": (5, 4, 3),
        "masked_row": (6, 3),
    }
    shape = shapes[kind]
    x1, x2 = rng.randn(4, *shape), rng.randn(3, *shape)
    if kind == "unit":
        x1 = x1 / np.sqrt((x1**2).mean(-1, keepdims=True))
        x2 = x2 / np.sqrt((x2**2).mean(-1, keepdims=True))
    if kind.startswith("masked"):
        for x in (x1, x2):
            hide = rng.rand(*x.shape[:-1]) < 0.3
            hide[:, 0] = False
            x[hide] = 100.0
    if kind == "last":
        x1, x2 = np.moveaxis(x1, 0, -1), np.moveaxis(x2, 0, -1)
    return x1, x2


def patterns(x1, x2, axes):
    """Random weighted graphs on some axes of the inputs."""
    rng = np.random.RandomState(3)
    sizes = [x1.shape[a] for a in axes]
    return tuple(rng.rand(len(x), *sizes, *sizes) * (rng.rand(len(x), *sizes, *sizes) < 0.5)
                 for x in (x1, x2))  # fmt: skip


def _activations(stax, np):
    return {
        "relu": stax.Relu(),
        "leaky_relu": stax.LeakyRelu(0.3),
        "abrelu": stax.ABRelu(0.4, 1.3),
        "abs": stax.Abs(),
        "sign": stax.Sign(),
        "erf": stax.Erf(),
        "erf_affine": stax.Erf(1.3, 0.7, 0.2),
        "sigmoid_like": stax.Sigmoid_like(),
        "gelu": stax.Gelu(),
        "sin": stax.Sin(1.1, 0.8, 0.3),
        "cos": stax.Cos(0.9, 1.2, 0.4),
        "rbf": stax.Rbf(0.6),
        "gaussian": stax.Gaussian(1.2, -0.5),
        "exp": stax.Exp(0.8, 0.4),
        "exp_normalized": stax.ExpNormalized(1.2, -0.7),
        "gabor": stax.Gabor(),
        "monomial_2": stax.Monomial(2),
        "monomial_3": stax.Monomial(3),
        "monomial_5": stax.Monomial(5),
        "polynomial": stax.Polynomial([0.3, -0.4, 0.5, 0.2]),
        "rectified_0": stax.RectifiedMonomial(0),
        "rectified_1": stax.RectifiedMonomial(1),
        "rectified_2": stax.RectifiedMonomial(2),
        "rectified_3": stax.RectifiedMonomial(3),
    }


NETWORKS = {}


def add(name, kind, make, **options):
    """Enters a network; `make(stax, np)`."""
    NETWORKS[name] = (kind, make, options)


def _two_layers(name):
    def make(stax, np):
        act = _activations(stax, np)[name]
        return stax.serial(stax.Dense(5, 1.2, 0.3), act, stax.Dense(5, 0.9, 0.2), act,
                           stax.Dense(1, 1.1, 0.1))  # fmt: skip

    return make


for _name in (
    "relu", "leaky_relu", "abrelu", "abs", "erf", "erf_affine", "sigmoid_like", "gelu",
    "sin", "cos", "rbf", "gaussian", "exp", "exp_normalized", "gabor", "monomial_2",
    "polynomial", "rectified_1", "rectified_2",
):  # fmt: skip
    add(f"fc_{_name}", "vector", _two_layers(_name))


def _one_layer(name):
    def make(stax, np):
        return stax.serial(stax.Dense(5, 1.2, 0.3), _activations(stax, np)[name],
                           stax.Dense(1, 1.1, 0.1))  # fmt: skip

    return make


for _name in ["sign", "monomial_3", "monomial_5", "rectified_0", "rectified_3"]:
    add(f"fc1_{_name}", "vector", _one_layer(_name))


def _numerical(stax, np):
    import jax.numpy as jnp

    return stax.serial(stax.Dense(5, 1.2, 0.3), stax.ElementwiseNumerical(jnp.tanh, 11),
                       stax.Dense(1))  # fmt: skip


def _elementwise(stax, np):

    def nngp_fn(cov12, var1, var2):
        return cov12**3 * 6 + 9 * var1 * var2 * cov12

    return stax.serial(stax.Dense(5, 1.2, 0.3), stax.Elementwise(lambda x: x**3, nngp_fn),
                       stax.Dense(1))  # fmt: skip


def _hermite(stax, np):
    return stax.serial(stax.Identity(), stax.Dense(5), stax.Hermite(3), stax.Dense(1))


add("fc_numerical", "vector", _numerical)
add("fc_elementwise", "vector", _elementwise)
add("fc_hermite", "unit", _hermite)
add(
    "fc_no_bias",
    "vector",
    lambda s, np: s.serial(s.Dense(3), s.Relu(), s.Dense(3), s.Relu(), s.Dense(1)),
)
add("fc_no_readout", "vector", lambda s, np: s.serial(s.Dense(3, 1.3, 0.2), s.Relu()))
add(
    "fc_standard",
    "vector",
    lambda s, np: s.serial(
        s.Dense(32, 1.3, 0.2, parameterization="standard", s=(1, 2)),
        s.Erf(),
        s.Dense(16, 1.1, parameterization="standard", s=(2, 3)),
        s.Relu(),
        s.Dense(1, 1.1, 0.3, parameterization="standard", s=(3, 1)),
    ),
)
add(
    "fc_dropout",
    "vector",
    lambda s, np: s.serial(
        s.Dense(3, 1.3, 0.2),
        s.Relu(),
        s.Dropout(0.7),
        s.Dense(3, 1.1, 0.1),
        s.Erf(),
        s.Dropout(0.9),
        s.Dense(1),
    ),
)
add(
    "fc_dropout_test",
    "vector",
    lambda s, np: s.serial(s.Dense(3, 1.3, 0.2), s.Relu(), s.Dropout(0.7, "test"), s.Dense(1)),
)
add(
    "fc_layer_norm",
    "vector",
    lambda s, np: s.serial(
        s.Dense(3, 1.3, 0.2),
        s.LayerNorm(),
        s.Relu(),
        s.Dense(3),
        s.LayerNorm(eps=0.1),
        s.Erf(),
        s.Dense(1),
    ),
)
add(
    "fc_layer_norm_batch",
    "vector",
    lambda s, np: s.serial(s.Dense(3, 1.3, 0.2), s.LayerNorm(axis=(0, 1)), s.Relu(), s.Dense(1)),
)
add(
    "fc_residual",
    "vector",
    lambda s, np: s.serial(
        s.Dense(3, 1.3, 0.2),
        s.FanOut(2),
        s.parallel(
            s.Identity(), s.serial(s.Relu(), s.Dense(3, 1.1, 0.3), s.Erf(), s.Dense(3, 0.9))
        ),
        s.FanInSum(),
        s.Relu(),
        s.Dense(1),
    ),
)
add(
    "fc_product",
    "vector",
    lambda s, np: s.serial(
        s.FanOut(2),
        s.parallel(
            s.serial(s.Dense(3, 1.3, 0.2), s.Relu(), s.Dense(3, 1.2)),
            s.serial(s.Dense(3, 0.8, 0.5), s.Erf(), s.Dense(3, 1.1, 0.1)),
        ),
        s.FanInProd(),
        s.Dense(1),
    ),
)
add(
    "fc_concat",
    "vector",
    lambda s, np: s.serial(
        s.FanOut(3),
        s.parallel(
            s.serial(s.Dense(3, 1.3, 0.2), s.Relu()),
            s.Dense(5, 0.8, 0.5),
            s.serial(s.Dense(4, 0.7), s.Gelu()),
        ),
        s.FanInConcat(-1),
        s.Dense(2, 1.1),
        s.Relu(),
        s.Dense(1),
    ),
)
add(
    "fc_repeat",
    "vector",
    lambda s, np: s.serial(s.repeat(s.serial(s.Dense(3, 1.3, 0.2), s.Relu()), 9), s.Dense(1)),
)
add(
    "fc_batch_last",
    "last",
    lambda s, np: s.serial(
        s.Dense(3, 1.3, 0.2, batch_axis=1, channel_axis=0),
        s.Relu(),
        s.Dense(1, batch_axis=1, channel_axis=0),
    ),
)
add(
    "fc_on_image",
    "image",
    lambda s, np: s.serial(
        s.Dense(3, 1.3, 0.2), s.Relu(), s.Dense(3, 1.1), s.Erf(), s.Flatten(), s.Dense(1)
    ),
)


def conv(pad, strides=None, shape=(3, 3), **more):
    """Convolution with a weight and a bias scale."""
    return lambda s: s.Conv(4, shape, strides, pad, 1.3, 0.2, **more)


for _pad in ("SAME", "VALID", "CIRCULAR"):
    add(
        f"cnn_flatten_{_pad.lower()}",
        "image",
        lambda s, np, p=_pad: s.serial(
            conv(p, shape=(3, 2))(s), s.Relu(), s.Flatten(), s.Dense(1, 1.2, 0.1)
        ),
    )
    add(
        f"cnn_gap_{_pad.lower()}",
        "image",
        lambda s, np, p=_pad: s.serial(
            conv(p, shape=(2, 3))(s),
            s.Relu(),
            conv("SAME")(s),
            s.Erf(),
            s.GlobalAvgPool(),
            s.Dense(1),
        ),
    )
    add(
        f"cnn_strided_{_pad.lower()}",
        "image",
        lambda s, np, p=_pad: s.serial(conv(p, (2, 1))(s), s.Relu(), s.Flatten(), s.Dense(1)),
    )
    add(
        f"cnn_avg_pool_{_pad.lower()}",
        "image",
        lambda s, np, p=_pad: s.serial(
            conv("SAME")(s),
            s.Relu(),
            s.AvgPool((2, 3), (1, 2), p),
            conv("SAME")(s),
            s.Gelu(),
            s.GlobalAvgPool(),
        ),
    )
    add(
        f"cnn_transpose_{_pad.lower()}",
        "image",
        lambda s, np, p=_pad: s.serial(
            s.ConvTranspose(4, (3, 2), (2, 1), p, 1.2, 0.3), s.Relu(), s.GlobalAvgPool(), s.Dense(1)
        ),
    )
    add(
        f"cnn_local_{_pad.lower()}",
        "image",
        lambda s, np, p=_pad: s.serial(
            s.ConvLocal(4, (3, 2), (1, 2), p, 1.2, 0.3), s.Relu(), s.GlobalAvgPool(), s.Dense(1)
        ),
    )
add(
    "cnn_sum_pool",
    "image",
    lambda s, np: s.serial(
        conv("SAME")(s),
        s.Relu(),
        s.SumPool((2, 2), (2, 2), "SAME"),
        conv("VALID", shape=(2, 2))(s),
        s.Relu(),
        s.GlobalSumPool(),
        s.Dense(1),
    ),
)
add(
    "cnn_avg_pool_edges",
    "image",
    lambda s, np: s.serial(
        conv("SAME")(s),
        s.Relu(),
        s.AvgPool((2, 3), (1, 2), "SAME", normalize_edges=True),
        conv("SAME")(s),
        s.Relu(),
        s.Flatten(),
        s.Dense(1),
    ),
)
add(
    "cnn_standard",
    "image",
    lambda s, np: s.serial(
        s.Conv(8, (3, 3), None, "SAME", 1.3, 0.2, parameterization="standard", s=(1, 2)),
        s.Relu(),
        s.Conv(8, (2, 2), None, "VALID", 1.1, parameterization="standard", s=(2, 1)),
        s.Erf(),
        s.GlobalAvgPool(),
        s.Dense(1, 1.1, 0.3, parameterization="standard"),
    ),
)
add(
    "cnn_1d",
    "row",
    lambda s, np: s.serial(
        s.Conv(4, (3,), None, "SAME", 1.3, 0.2),
        s.Relu(),
        s.Conv(4, (2,), (2,), "VALID", 1.1),
        s.Erf(),
        s.GlobalAvgPool(),
        s.Dense(1),
    ),
)
add(
    "cnn_nchw",
    "nchw",
    lambda s, np: s.serial(
        s.Conv(4, (3, 2), None, "SAME", 1.3, 0.2, dimension_numbers=("NCHW", "OIHW", "NCHW")),
        s.Relu(),
        s.Conv(4, (2, 2), None, "VALID", 1.3, 0.2, dimension_numbers=("NCHW", "OIHW", "NHWC")),
        s.Relu(),
        s.AvgPool((2, 2)),
        s.GlobalAvgPool(),
        s.Dense(1),
    ),
)
add(
    "cnn_residual",
    "image",
    lambda s, np: s.serial(
        conv("SAME")(s),
        s.FanOut(2),
        s.parallel(
            s.Identity(),
            s.serial(s.Relu(), conv("SAME")(s), s.Relu(), conv("SAME", shape=(1, 3))(s)),
        ),
        s.FanInSum(),
        s.AvgPool((2, 2), (2, 2), "SAME"),
        s.Flatten(),
        s.Dense(1),
    ),
)
add(
    "cnn_layer_norm",
    "image",
    lambda s, np: s.serial(
        conv("SAME")(s),
        s.LayerNorm(axis=(1, 2, 3)),
        s.Relu(),
        conv("SAME")(s),
        s.LayerNorm(axis=-1),
        s.Relu(),
        s.GlobalAvgPool(),
        s.Dense(1),
    ),
)
add(
    "cnn_no_readout",
    "image",
    lambda s, np: s.serial(conv("SAME")(s), s.Relu(), conv("VALID", shape=(2, 2))(s), s.Relu()),
)
add(
    "cnn_diagonal",
    "image",
    lambda s, np: s.serial(conv("SAME")(s), s.Relu(), conv("VALID", shape=(2, 2))(s), s.Relu()),
    diagonal_spatial=True,
)
add(
    "cnn_concat_positions",
    "image",
    lambda s, np: s.serial(
        s.FanOut(2),
        s.parallel(conv("SAME")(s), s.serial(conv("SAME")(s), s.Relu(), conv("SAME")(s))),
        s.FanInConcat(1),
        s.Relu(),
        conv("SAME")(s),
        s.Erf(),
        s.GlobalAvgPool(),
        s.Dense(1),
    ),
)
add(
    "cnn_dropout",
    "image",
    lambda s, np: s.serial(
        conv("SAME")(s),
        s.Relu(),
        s.Dropout(0.8),
        conv("SAME")(s),
        s.Relu(),
        s.GlobalAvgPool(),
        s.Dense(1),
    ),
)
add(
    "cnn_resize",
    "image",
    lambda s, np: s.serial(
        conv("SAME")(s),
        s.Relu(),
        conv("SAME")(s),
        s.Relu(),
        s.ImageResize((-1, 3, 7, -1), "linear"),
        conv("SAME")(s),
        s.Relu(),
        s.GlobalAvgPool(),
    ),
)
add(
    "cnn_resize_nearest",
    "image",
    lambda s, np: s.serial(
        s.ImageResize((-1, 7, 3, -1), "nearest"),
        conv("SAME")(s),
        s.Relu(),
        conv("SAME")(s),
        s.Flatten(),
    ),
)
add(
    "cnn_index",
    "image",
    lambda s, np: s.serial(
        conv("SAME")(s),
        s.Relu(),
        s.Index(s.Slice[:, 1:4, ::2]),
        conv("SAME", shape=(2, 2))(s),
        s.Relu(),
        s.Index(s.Slice[:, 0, ...]),
        s.Conv(3, (2,), None, "VALID", 1.2),
        s.Relu(),
        s.GlobalAvgPool(),
        s.Dense(1),
    ),
)
add(
    "cnn_dot_general",
    "image",
    lambda s, np: s.serial(
        conv("SAME")(s),
        s.Relu(),
        s.DotGeneral(
            rhs=np.asarray(__import__("numpy").random.RandomState(5).randn(5, 2)),
            dimension_numbers=(((1,), (0,)), ((), ())),
            batch_axis=0,
            channel_axis=3,
        ),
        s.GlobalAvgPool(channel_axis=2),
        s.Dense(1),
    ),
)
add(
    "cnn_dot_left",
    "image",
    lambda s, np: s.serial(
        conv("SAME")(s), s.DotGeneral(lhs=2.5), s.Relu(), s.GlobalAvgPool(), s.Dense(1)
    ),
)
add(
    "graph",
    "row",
    lambda s, np: s.serial(
        s.Dense(4, 1.3, 0.2),
        s.Relu(),
        s.Aggregate(1),
        s.Dense(4, 1.2, 0.1),
        s.Relu(),
        s.Aggregate(1),
        s.GlobalSumPool(),
        s.Dense(1),
    ),
    pattern=(1,),
)
add(
    "graph_image",
    "image",
    lambda s, np: s.serial(
        s.Dense(4, 1.3, 0.2),
        s.Relu(),
        s.Aggregate((1, 2)),
        s.Dense(4, 1.2, 0.1),
        s.Erf(),
        s.GlobalAvgPool(),
        s.Dense(1),
    ),
    pattern=(1, 2),
)


def attention(**more):
    """Attention after a convolution."""
    return lambda s, np: s.serial(
        s.Conv(4, (2, 2), None, "SAME", 1.3, 0.2),
        s.GlobalSelfAttention(4, 4, 4, 2, W_key_std=0.9, W_value_std=1.1, W_query_std=1.2,
                              W_out_std=1.3, b_std=0.2, **more),
        s.Relu(), s.GlobalAvgPool(), s.Dense(1))  # fmt: skip


add("attention_softmax", "image", attention())
add("attention_relu", "image", attention(attention_mechanism="RELU"))
add("attention_abs", "image", attention(attention_mechanism="ABS"))
add("attention_identity", "image", attention(attention_mechanism="IDENTITY"))
add("attention_sqrt", "image", attention(attention_mechanism="IDENTITY", linear_scaling=False))
add("attention_sum", "image", attention(pos_emb_type="SUM", W_pos_emb_std=0.7))
add(
    "attention_sum_values",
    "image",
    attention(
        pos_emb_type="SUM",
        val_pos_emb=True,
        pos_emb_decay_fn=lambda d: 1 / (1 + d),
        pos_emb_p_norm=1,
    ),
)
add(
    "attention_concat",
    "image",
    attention(pos_emb_type="CONCAT", n_chan_pos_emb=3, val_pos_emb=True),
)
add(
    "attention_sqrt_sum",
    "image",
    attention(
        attention_mechanism="IDENTITY", linear_scaling=False, pos_emb_type="SUM", val_pos_emb=True
    ),
)
add(
    "masked_gap",
    "masked",
    lambda s, np: s.serial(
        conv("SAME")(s), s.Relu(), conv("VALID", (1, 2))(s), s.Relu(), s.GlobalAvgPool(), s.Dense(1)
    ),
    mask_constant=100.0,
)
add(
    "masked_flatten",
    "masked",
    lambda s, np: s.serial(conv("SAME")(s), s.Relu(), s.Flatten(), s.Dense(1, 1.1, 0.2)),
    mask_constant=100.0,
)
add(
    "masked_pool",
    "masked",
    lambda s, np: s.serial(
        conv("SAME")(s),
        s.Relu(),
        s.AvgPool((2, 2), (2, 2), "SAME"),
        conv("SAME")(s),
        s.Erf(),
        s.GlobalAvgPool(),
    ),
    mask_constant=100.0,
)
add(
    "masked_attention",
    "masked_row",
    lambda s, np: s.serial(
        s.Conv(4, (2,), None, "SAME", 1.3, 0.2),
        s.GlobalSelfAttention(4, 4, 4, 2, b_std=0.1),
        s.Relu(),
        s.GlobalAvgPool(),
        s.Dense(1),
    ),
    mask_constant=100.0,
)
add(
    "masked_residual",
    "masked_row",
    lambda s, np: s.serial(
        s.Dense(3, 1.2, 0.3),
        s.FanOut(2),
        s.parallel(s.Identity(), s.serial(s.Relu(), s.Conv(3, (3,), None, "SAME", 1.2, 0.3))),
        s.FanInSum(),
        s.LayerNorm(axis=(1, 2)),
        s.Erf(),
        s.GlobalSumPool(),
        s.Dense(1),
    ),
    mask_constant=100.0,
)
