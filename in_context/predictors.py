"""What an ideal learner answers to a prompt: Bayes, least squares, and steps of gradient descent.

Every predictor takes a prompt (`in_context.tasks.Prompt`, or any tuple that starts with x, y and
query) with any number of leading axes, and answers [...], one number per query.
"""

from typing import Any

import jax
import jax.numpy as jnp

from in_context import _check

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


def _parts(caller: str, prompt: Any) -> tuple[Array, Array, Array]:
    x, y, query = (jnp.asarray(part) for part in prompt[:3])
    if x.ndim < 2 or y.shape != x.shape[:-1] or query.shape != x.shape[:-2] + x.shape[-1:]:
        raise ValueError(
            f"{caller}: a prompt needs x [..., n, d], y [..., n] and query [..., d], got shapes "
            f"{x.shape}, {y.shape} and {query.shape}."
        )
    return x, y, query


def _dot(a: Array, b: Array) -> Array:
    return jnp.einsum("...d,...d->...", a, b, precision=HIGHEST)


def _moment(x: Array, y: Array) -> Array:
    """X^T y, [..., d]."""
    return jnp.einsum("...nd,...n->...d", x, y, precision=HIGHEST)


def _gram(x: Array) -> Array:
    """X^T X, [..., d, d]."""
    return jnp.einsum("...nd,...ne->...de", x, x, precision=HIGHEST)


def ridge(prompt: Any, penalty: Any) -> Array:
    """<(X^T X + penalty I)^-1 X^T y, query>.

    Args:
      prompt: see the module.
      penalty: > 0; noise^2 / variance of the weights makes it Bayes.
    """
    x, y, query = _parts("ridge", prompt)
    _check.number("ridge", low=0.0, strict=True, penalty=penalty)
    matrix = _gram(x) + penalty * jnp.broadcast_to(jnp.eye(x.shape[-1]), _gram(x).shape)
    return _dot(jnp.linalg.solve(matrix, _moment(x, y)[..., None])[..., 0], query)


def bayes(prompt: Any, *, noise: float, prior: Any = None) -> Array:
    """The posterior mean for weights from N(0, prior): no predictor has a smaller expected loss.

    Args:
      prompt: see the module.
      noise: standard deviation, >= 0. Without noise and with n >= d it is exact.
      prior: [d, d]; None is the identity.
    """
    x, y, query = _parts("bayes", prompt)
    _check.number("bayes", low=0.0, noise=noise)
    prior = jnp.eye(x.shape[-1], dtype=x.dtype) if prior is None else jnp.asarray(prior, x.dtype)
    # In the space of answers the covariance needs no inverse of the prior, which may be singular.
    spread = jnp.einsum("...nd,de->...ne", x, prior, precision=HIGHEST)
    covariance = jnp.einsum("...nd,...md->...nm", spread, x, precision=HIGHEST)
    n = x.shape[-2]
    noisy = covariance + noise**2 * jnp.broadcast_to(jnp.eye(n, dtype=x.dtype), covariance.shape)
    if noise > 0:
        weights = jnp.linalg.solve(noisy, y[..., None])[..., 0]
    else:
        inverse = jnp.linalg.pinv(noisy, hermitian=True)
        weights = jnp.einsum("...nm,...m->...n", inverse, y, precision=HIGHEST)
    return _dot(_moment(spread, weights), query)


def least_squares(prompt: Any) -> Array:
    """The minimum-norm least-squares fit, at the query."""
    x, y, query = _parts("least_squares", prompt)
    fitted = jnp.einsum("...dn,...n->...d", jnp.linalg.pinv(x), y, precision=HIGHEST)
    return _dot(fitted, query)


def gradient_descent(prompt: Any, learning_rate: Any, *, num_steps: int = 1) -> Array:
    """Steps on 0.5 ||X w - y||^2 from w = 0; one step answers learning_rate sum_i y_i <x_i, query>.

    The sum over the context carries no 1 / n; pass learning_rate / n for the mean.
    """
    x, y, query = _parts("gradient_descent", prompt)
    _check.integer("gradient_descent", num_steps=num_steps)

    def step(w, _):
        residual = y - jnp.einsum("...nd,...d->...n", x, w, precision=HIGHEST)
        return w + learning_rate * _moment(x, residual), None

    w, _ = jax.lax.scan(step, jnp.zeros_like(query), length=num_steps)
    return _dot(w, query)


def gd_plus_plus(prompt: Any, learning_rate: Any, curvature: Any, *, num_steps: int = 1) -> Array:
    """GD++ of von Oswald et al. (arXiv:2212.07677): each step also whitens the inputs.

    Beside the gradient step, x <- (I - curvature X^T X) x for context and query, and the context
    answers become residuals.

    Args:
      prompt: see the module.
      learning_rate: of the gradient, on the sum over the context.
      curvature: gamma; 0 is `gradient_descent`.
      num_steps: k.
    """
    x, y, query = _parts("gd_plus_plus", prompt)
    _check.integer("gd_plus_plus", num_steps=num_steps)

    def step(carry, _):
        x, y, query, answer = carry
        w = learning_rate * _moment(x, y)
        gram = _gram(x)
        answer = answer + _dot(w, query)
        y = y - jnp.einsum("...nd,...d->...n", x, w, precision=HIGHEST)
        moved = jnp.einsum("...nd,...de->...ne", x, gram, precision=HIGHEST)
        query = query - curvature * jnp.einsum("...d,...de->...e", query, gram, precision=HIGHEST)
        return (x - curvature * moved, y, query, answer), None

    start = (x, y, query, jnp.zeros(query.shape[:-1], query.dtype))
    (_, _, _, answer), _ = jax.lax.scan(step, start, length=num_steps)
    return answer


def preconditioned(prompt: Any, P: Any) -> Array:
    """query^T P sum_i y_i x_i: one preconditioned step, what linear attention computes.

    Args:
      prompt: see the module.
      P: [d, d]; see `linear_attention.optimal`.
    """
    x, y, query = _parts("preconditioned", prompt)
    d = x.shape[-1]
    _check.shape("preconditioned", "P", P, (d, d), "[d, d]")
    moved = jnp.einsum("...d,de->...e", query, jnp.asarray(P, x.dtype), precision=HIGHEST)
    return _dot(moved, _moment(x, y))


def debiased(prompt: Any, learning_rate: Any) -> Array:
    """learning_rate sum_i y_i <x_i - mean(x), query>: one step on centred inputs.

    What two-head softmax attention computes in the limit of small key-query weights, with
    learning_rate = sum_h mu_h omega_h / n (He et al., arXiv:2503.12734).
    """
    x, y, query = _parts("debiased", prompt)
    centred = x - jnp.mean(x, axis=-2, keepdims=True)
    return learning_rate * _dot(_moment(centred, y), query)


def discrete_mmse(prompt: Any, pool: Any, *, noise: float) -> Array:
    """The posterior mean when the weights are one of finitely many (Raventos et al., 2306.15063).

    Args:
      prompt: see the module.
      pool: [m, d], equally likely weights.
      noise: standard deviation, > 0.
    """
    x, y, query = _parts("discrete_mmse", prompt)
    _check.number("discrete_mmse", low=0.0, strict=True, noise=noise)
    pool = jnp.asarray(pool, x.dtype)
    _check.shape("discrete_mmse", "pool", pool, (pool.shape[0], x.shape[-1]), "[m, d]")
    fitted = jnp.einsum("...nd,md->...nm", x, pool, precision=HIGHEST)
    errors = jnp.sum((y[..., None] - fitted) ** 2, axis=-2)
    posterior = jax.nn.softmax(-errors / (2 * noise**2))
    answers = jnp.einsum("...d,md->...m", query, pool, precision=HIGHEST)
    return jnp.sum(posterior * answers, axis=-1)


def bayes_loss(task: Any, key: Array, *, num_prompts: int = 100_000) -> tuple[Array, Array]:
    """Monte Carlo mean of the Bayes loss of `tasks.LinearRegression`, and its standard error.

    Each prompt contributes its exact posterior variance at the query, noise^2 +
    query^T cov(w | context) query, so the error is far below that of squared residuals.

    Args:
      task: with identity response; its noise must be > 0.
      key: for the prompts.
      num_prompts: drawn in batches of at most 1000.
    """
    _check.integer("bayes_loss", num_prompts=num_prompts, low=1000)
    if task.response != "identity":
        raise ValueError(
            f"bayes_loss: task.response must be 'identity', got {task.response!r}: the posterior "
            "of other responses is not Gaussian."
        )
    _check.number("bayes_loss", low=0.0, strict=True, noise=task.noise)
    values = jax.jit(_posterior_losses, static_argnums=2)(task, key, num_prompts // 1000)
    return jnp.mean(values), jnp.std(values) / values.size**0.5


def _posterior_losses(task: Any, key: Array, rounds: int) -> Array:
    def one(key):
        prompt = task.sample(key, 1000)
        d = prompt.query.shape[-1]
        prior = jnp.eye(d, dtype=prompt.x.dtype)
        if task.prior is not None:
            prior = jnp.asarray(task.prior, prompt.x.dtype)
        spread = jnp.einsum("bnd,de->bne", prompt.x, prior, precision=HIGHEST)
        answers = jnp.einsum("bnd,bmd->bnm", spread, prompt.x, precision=HIGHEST)
        answers = answers + task.noise**2 * jnp.eye(answers.shape[1], dtype=answers.dtype)[None]
        cross = jnp.einsum("bnd,bd->bn", spread, prompt.query, precision=HIGHEST)
        explained = _dot(cross, jnp.linalg.solve(answers, cross[..., None])[..., 0])
        total = jnp.einsum("bd,de,be->b", prompt.query, prior, prompt.query, precision=HIGHEST)
        return task.noise**2 + total - explained

    return jax.lax.map(one, jax.random.split(key, rounds)).reshape(-1)
