"""Losses of language models, by token."""

import jax
import jax.numpy as jnp

from shared.models._model import Array


def next_token_loss(logits: Array, tokens: Array, *, z_loss: float = 0.0) -> Array:
    """Cross-entropy of every token but the first, given those before it.

    Args:
      logits: [batch, length, vocabulary], of the model at tokens[:, :-1].
      tokens: int [batch, length + 1], as `shared.data.Tokens` gives.
      z_loss: weight of log(Z)^2, Z the sum of exponentials, which keeps logits from drifting away
        together (PaLM, arXiv:2204.02311, Section 5, uses 1e-4).
    Returns:
      [batch, length] in at least float32.
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_z = jax.nn.logsumexp(wide, axis=-1)
    chosen = jnp.take_along_axis(wide, tokens[:, 1:, None], axis=-1)[..., 0]
    return log_z - chosen + z_loss * jnp.square(log_z)
