"""A decoder-only transformer."""

from typing import Literal

import jax
import jax.numpy as jnp

from shared.models._activation import activation as find_activation
from shared.models._attention import apply_attention, init_attention
from shared.models._model import (
    Array,
    Model,
    PyTree,
    check_positive,
    check_rate,
    example_keys,
)
from shared.models._model import dropout as apply_dropout
from shared.models._norm import apply_rms_norm, init_rms_norm
from shared.models._scale import (
    Parameterization,
    Updates,
    apply_dense,
    init_dense,
    init_weight,
    make_scale,
)

FEED_FORWARD = 4  # hidden units of a block's second half, as a multiple of the width


def transformer(
    *,
    vocabulary_size: int,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    positions: Literal["rotary", "learned"] = "rotary",
    max_length: int | None = None,
    qk_norm: bool = False,
    activation: str = "gelu",
    branch_scale: float = 1.0,
    parameterization: Parameterization = "standard",
    init_scale: float = 1.0,
    base_width: int | None = None,
    updates: Updates = "sign",
    dropout: float = 0.0,
) -> Model:
    """Pre-norm blocks of causal attention and a feed-forward layer, without biases.

    x = embed(tokens); for each block x += branch_scale * attention(norm(x)), then
    x += branch_scale * feed_forward(norm(x)); logits = readout(norm(x)). Norms divide by the root
    of the mean square.

    Args:
      vocabulary_size: tokens are below it.
      width: features of the residual stream, a multiple of num_heads.
      depth: number of blocks.
      num_heads: attention heads; with "rotary", width / num_heads must be even.
      positions: "rotary", or "learned" vectors that are added to the embeddings.
      max_length: longest input, for "learned"; by default that of the inputs given to `init`.
      qk_norm: normalize queries and keys over each head, so that scores stay bounded
        (arXiv:2010.04245).
      activation: of the feed-forward layer, as in `mlp`.
      branch_scale: multiplies every branch; 1 / sqrt(2 depth) keeps the stream's size at any depth.
      parameterization, init_scale, base_width, updates: as in `mlp`; embeddings have fan-in 1.
      dropout: rate on the embeddings and on every branch, in [0, 1).
    Returns:
      A `Model` of tokens int [batch, length] whose logits are [batch, length, vocabulary_size]; its
      model state is ().
    Raises:
      ValueError: an argument is outside what is listed here.
    """
    check_positive(
        "transformer",
        vocabulary_size=vocabulary_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
    )
    check_rate("transformer", dropout)
    if width % num_heads:
        raise ValueError(
            f"transformer: width = {width} must be a multiple of num_heads = {num_heads}."
        )
    if positions not in ("rotary", "learned"):
        raise ValueError(
            f'transformer: positions must be "rotary" or "learned", got {positions!r}.'
        )
    if positions == "rotary" and width // num_heads % 2:
        raise ValueError(
            "transformer: rotary positions need an even width / num_heads, "
            f"got {width // num_heads}."
        )
    function, gain = find_activation("transformer", activation)
    scale = make_scale(
        "transformer",
        width=width,
        parameterization=parameterization,
        init_scale=init_scale,
        base_width=base_width,
        updates=updates,
    )
    _, embed_multiplier = scale.weight("input", 1)

    def init(key: Array, inputs: Array) -> tuple[PyTree, PyTree]:
        embed_key, position_key, readout_key, *block_keys = jax.random.split(key, 3 + depth)
        embed_std, _ = scale.weight("input", 1)  # one-hot inputs: one of them is 1
        params = {"embed": embed_std * jax.random.normal(embed_key, (vocabulary_size, width))}
        if positions == "learned":
            length = max_length or inputs.shape[1]
            params["positions"] = embed_std * jax.random.normal(position_key, (length, width))
        for i, block_key in enumerate(block_keys):
            attention_key, in_key, out_key = jax.random.split(block_key, 3)
            params[f"block_{i}"] = {
                "attention_norm": init_rms_norm(scale, width),
                "attention": init_attention(
                    attention_key, scale, width, num_heads, qk_norm=qk_norm
                ),
                "feed_forward_norm": init_rms_norm(scale, width),
                "feed_forward_in": init_weight(
                    in_key, scale, "hidden", (width, FEED_FORWARD * width), gain=gain
                ),
                "feed_forward_out": init_weight(
                    out_key, scale, "hidden", (FEED_FORWARD * width, width)
                ),
            }
        params["norm"] = init_rms_norm(scale, width)
        params["readout"] = init_dense(
            readout_key, scale, "output", width, vocabulary_size, use_bias=False
        )
        return params, ()

    def feed_forward(block: PyTree, x: Array) -> Array:
        _, first = scale.weight("hidden", width, gain)
        _, second = scale.weight("hidden", FEED_FORWARD * width)
        return second * (
            function(first * (x @ block["feed_forward_in"])) @ block["feed_forward_out"]
        )

    def apply(
        params: PyTree, model_state: PyTree, inputs: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        keys = example_keys(key, len(inputs)) if train and dropout else None
        x = params["embed"][inputs]  # [batch, length, width]
        if positions == "learned":
            if inputs.shape[1] > len(params["positions"]):
                raise ValueError(
                    f"transformer: inputs have length {inputs.shape[1]}, but positions were "
                    f"learned up to {len(params['positions'])}; raise max_length."
                )
            x = x + jnp.broadcast_to(params["positions"][: inputs.shape[1]], x.shape)
        x = apply_dropout(embed_multiplier * x, dropout, keys, 0)
        for i in range(depth):
            block = params[f"block_{i}"]
            branch = apply_attention(
                block["attention"],
                apply_rms_norm(block["attention_norm"], x, scale),
                scale,
                num_heads=num_heads,
                rotary=positions == "rotary",
            )
            x = x + branch_scale * apply_dropout(branch, dropout, keys, 2 * i + 1)
            branch = feed_forward(block, apply_rms_norm(block["feed_forward_norm"], x, scale))
            x = x + branch_scale * apply_dropout(branch, dropout, keys, 2 * i + 2)
        x = apply_rms_norm(params["norm"], x, scale)
        return apply_dense(params["readout"], x, scale, "output"), model_state

    return Model(init, apply)
