"""How much a trained model does what gradient descent does: von Oswald et al.'s measures."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Predictor = Callable[[Any], Array]  # prompt with leading axes -> answers [...]


class Alignment(NamedTuple):
    """Means over a batch of prompts (arXiv:2212.07677, section 3)."""

    model_loss: Array  # mean squared error
    reference_loss: Array
    prediction_difference: Array  # mean |model - reference|
    sensitivity_difference: Array  # mean ||d model / d query - d reference / d query||_2
    sensitivity_cosine: Array  # mean cosine of those two


def compare(model: Predictor, reference: Predictor, prompt: Any) -> Alignment:
    """Compares two predictors on the same prompts.

    Args:
      model, reference: functions of a batch of prompts, differentiable in the query.
      prompt: a batch with a target, `tasks.Prompt`.
    """
    answers, slopes = _with_slopes(model, prompt)
    others, other_slopes = _with_slopes(reference, prompt)
    lengths = jnp.linalg.norm(slopes, axis=-1) * jnp.linalg.norm(other_slopes, axis=-1)
    inner = jnp.sum(slopes * other_slopes, axis=-1)
    return Alignment(
        jnp.mean((answers - prompt.target) ** 2),
        jnp.mean((others - prompt.target) ** 2),
        jnp.mean(jnp.abs(answers - others)),
        jnp.mean(jnp.linalg.norm(slopes - other_slopes, axis=-1)),
        jnp.mean(jnp.where(lengths > 0, inner / jnp.where(lengths > 0, lengths, 1.0), 0.0)),
    )


def _with_slopes(predictor: Predictor, prompt: Any) -> tuple[Array, Array]:
    def total(query):
        answers = predictor(prompt._replace(query=query))
        return jnp.sum(answers), answers  # a prompt's answer depends on its own query alone

    slopes, answers = jax.grad(total, has_aux=True)(prompt.query)
    return answers, slopes
