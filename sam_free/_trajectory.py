"""The trajectory loss: how far the outputs have moved from what they were."""

import jax
import jax.numpy as jnp

from sam_free._checks import check_logits, check_positive

Array = jax.Array


def trajectory_loss(
    logits: Array,
    past_logits: Array,
    *,
    temperature: float | Array = 5.0,
    tau_squared: bool = True,
) -> Array:
    """KL(past || now) between softened outputs, for each example (Du et al. 2022, Eq. 8).

    With p = softmax(past_logits / tau) and q = softmax(logits / tau), the loss is
    `sum_k p_k (log p_k - log q_k)`, times tau^2 where `tau_squared`. The paper
    (arXiv:2205.14083) has no such factor; its published code multiplies by tau^2. The gradient
    with respect to the logits is tau (q - p) with the factor and (q - p) / tau without it: at the
    default temperature 5 they differ by 25, and the literal paper form at the paper's weight 0.3
    does nothing that can be measured. No gradient flows to `past_logits`.

    Log-softmax is used throughout, so the loss is finite wherever the logits are (`softmax().log()`
    is not, once the logits of one example are spread over more than about 103 tau in float32).

    Args:
      logits: outputs now, [batch, classes].
      past_logits: outputs recorded before, [batch, classes]; zeros mean a uniform target.
      temperature: tau > 0.
      tau_squared: multiply by tau^2, as the published code does.
    Returns:
      The loss of each example, [batch], in the dtype of `logits`.
    Raises:
      ValueError: a shape or dtype is wrong, or the temperature is not a finite number > 0.

    >>> now = jnp.array([[1.0, 0.0]])
    >>> float(trajectory_loss(now, jnp.array([[1.0, 0.0]]))[0])
    0.0
    >>> round(float(trajectory_loss(now, jnp.zeros((1, 2)))[0]), 4)
    0.1248
    """
    check_positive("trajectory_loss", temperature=temperature)
    check_logits("trajectory_loss", logits)
    check_logits("trajectory_loss", past_logits)
    if logits.shape != past_logits.shape:
        raise ValueError(
            f"trajectory_loss: past_logits must have the shape of logits, {logits.shape}, "
            f"got {past_logits.shape}."
        )
    # Half precision has too few digits for a difference of logarithms.
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    log_q = jax.nn.log_softmax(logits.astype(dtype) / temperature, axis=-1)
    past = jax.lax.stop_gradient(past_logits).astype(dtype)
    log_p = jax.nn.log_softmax(past / temperature, axis=-1)
    loss = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    if tau_squared:
        loss = loss * temperature**2
    return loss.astype(logits.dtype)
