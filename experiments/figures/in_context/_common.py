"""What several of these figures need: common prompts, and the setting of He et al."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from in_context import tasks

DIM = 5
NOISE = 0.1**0.5
PRIOR_VARIANCE = 1 / DIM
SETTING = {"noise": NOISE, "prior_variance": PRIOR_VARIANCE}


def regression(num_context: int, mean: np.ndarray | None = None) -> tasks.LinearRegression:
    """d = 5, noise variance 0.1, weights N(0, I / d), as in arXiv:2503.12734."""
    prior = PRIOR_VARIANCE * jnp.eye(DIM)
    return tasks.LinearRegression(num_context, DIM, noise=NOISE, prior=prior, mean=mean)


def losses(
    predictors: Mapping[str, Callable[[Any], jax.Array]],
    task: Any,
    key: jax.Array,
    num_prompts: int,
    *,
    baseline: str | None = None,
) -> dict[str, dict[str, float]]:
    """Mean squared errors on common prompts, with standard errors.

    Args:
      predictors: name to function of a batch of prompts.
      task, key: of the prompts, drawn in batches of 2000.
      num_prompts: in all.
      baseline: where given, every predictor also gets the paired difference to it.
    """

    def one(key):
        prompt = task.sample(key, 2000)
        return {name: (f(prompt) - prompt.target) ** 2 for name, f in predictors.items()}

    keys = jax.random.split(key, max(1, num_prompts // 2000))
    drawn = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    squares = {name: np.asarray(value, np.float64).ravel() for name, value in drawn.items()}
    result = {}
    for name, value in squares.items():
        root = value.size**0.5
        result[name] = {"mean": float(value.mean()), "error": float(value.std() / root)}
        if baseline is not None:
            difference = value - squares[baseline]
            result[name]["difference"] = float(difference.mean())
            result[name]["difference_error"] = float(difference.std() / root)
    return result
