"""Does a trained softmax attention layer do what one gradient step of softmax regression does?

The experiment of "The Closeness of In-Context Learning and Weight Shifting for Softmax Regression"
(Li et al., arXiv:2304.13276), made precise. A prompt shows the rows of a document A with targets b
= softmax(A x*), and asks for softmax(A_q x*) on query rows A_q that it has not shown.

- The layer sees tokens (a_i, n b_i) and queries (a_q, 0), and answers with the logit
  softmax(a_q . key_query . tokens) . tokens . value.
- The gradient step answers a_q . x_1 with x_1 = (learning_rate / n) A^T (b - 1 / n), the step of
  softmax regression from x = 0, with the one learning rate that is best over many prompts.

With `leak` the queries are the shown rows, targets and all. Then a layer copies b: at n = 25, d = 5
its loss is a third of the gradient step's. A comparison made so says nothing about closeness.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from in_context import _check
from in_context._training import Trained, fit, warmup_cosine_adam

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Documents:
    """Random documents: A ~ N(0, 1), x* ~ scale N(0, I / d)."""

    num_rows: int = dataclasses.field(metadata={"static": True})  # n
    dim: int = dataclasses.field(metadata={"static": True})  # d
    num_queries: int = dataclasses.field(default=25, metadata={"static": True})
    scale: float = 1.0  # the standard deviation of a logit
    leak: bool = dataclasses.field(default=False, metadata={"static": True})

    def sample(self, key: Array, batch_size: int) -> "DocumentPrompt":
        """Draws `batch_size` prompts.

        Raises:
          ValueError: a size is below 1 or scale is not positive and finite.
        """
        _check.integer(
            "Documents",
            num_rows=self.num_rows,
            dim=self.dim,
            num_queries=self.num_queries,
            batch_size=batch_size,
        )
        _check.number("Documents", low=0.0, strict=True, scale=self.scale)
        n, d, m = self.num_rows, self.dim, self.num_queries
        rows = (n + (0 if self.leak else m) + 1) * d
        flat = jax.random.normal(key, (batch_size * rows,)).reshape(batch_size, -1, d)
        A, x = flat[:, :n], self.scale * d**-0.5 * flat[:, -1]
        queries = A if self.leak else flat[:, n:-1]
        b = jax.nn.softmax(jnp.einsum("bnd,bd->bn", A, x))
        target = jax.nn.softmax(jnp.einsum("bqd,bd->bq", queries, x))
        return DocumentPrompt(A, b, queries, target)


class DocumentPrompt(NamedTuple):
    """A batch of prompts."""

    A: Array  # [batch, n, d]
    b: Array  # [batch, n]
    queries: Array  # [batch, m, d]
    target: Array  # [batch, m]


class LayerParams(NamedTuple):
    """One softmax attention layer with merged weights."""

    key_query: Array  # [d + 1, d + 1]
    value: Array  # [d + 1]


class Report(NamedTuple):
    """Layer and gradient step on the same prompts; means over prompts (and queries)."""

    layer_loss: Array  # 0.5 ||softmax(logits) - target||^2
    step_loss: Array
    uniform_loss: Array  # of the answer 1 / m
    ratio: Array  # layer_loss / step_loss
    prediction_difference: Array  # mean ||softmax(layer) - softmax(step)||_2
    sensitivity_difference: Array  # mean ||d logit / d a_q - x_1||_2
    sensitivity_cosine: Array  # mean cosine of the two
    diagonal_spread: Array  # standard deviation over |mean| of key_query's diagonal on the inputs


def init(key: Array, dim: int) -> LayerParams:
    """A small Gaussian key_query, and a value that reads the answers with a small minus sign.

    Of the two signs that (key_query, value) can share, the negative one has the better optimum: a
    query that attends to rows unlike itself averages small targets, which vary less than the large
    ones near it. The positive one only falls towards key_query = 0, where both are the gradient
    step. With `value` at 0 training starts on a saddle that it takes long to leave for d = 20.
    """
    _check.integer("init", dim=dim)
    key_query = 0.01 * jax.random.normal(key, (dim + 1, dim + 1))
    return LayerParams(key_query, jnp.zeros(dim + 1).at[dim].set(-0.3))


def tokens(prompt: DocumentPrompt, *, leak: bool = False) -> tuple[Array, Array]:
    """What the layer sees: context [batch, n, d + 1] and queries [batch, m, d + 1]."""
    # n b rather than b: its size does not shrink with the document, and Adam's steps fit it.
    answers = prompt.b.shape[-1] * prompt.b[..., None]
    context = jnp.concatenate([prompt.A, answers], axis=-1)
    if leak:
        return context, context
    blank = jnp.zeros(prompt.queries.shape[:-1] + (1,), prompt.queries.dtype)
    return context, jnp.concatenate([prompt.queries, blank], axis=-1)


def logits(params: LayerParams, context: Array, queries: Array) -> Array:
    """The layer's logit of every query, [batch, m], from what `tokens` returns."""
    asked = jnp.einsum("bqe,ef->bqf", queries, params.key_query)
    attention = jax.nn.softmax(jnp.einsum("bqf,bnf->bqn", asked, context))
    values = jnp.einsum("bnf,f->bn", context, params.value)
    return jnp.einsum("bqn,bn->bq", attention, values)


def gradient_step(prompt: DocumentPrompt, learning_rate: Any) -> Array:
    """x_1 [batch, d], one step of softmax regression on (A, b) from x = 0."""
    n = prompt.b.shape[-1]
    moved = jnp.einsum("bnd,bn->bd", prompt.A, prompt.b - 1 / n, precision=HIGHEST)
    return learning_rate / n * moved


def half_squared_error(logits: Array, target: Array) -> Array:
    """0.5 ||softmax(logits) - target||^2, mean over prompts."""
    return 0.5 * jnp.mean(jnp.sum((jax.nn.softmax(logits) - target) ** 2, axis=-1))


@functools.partial(jax.jit, static_argnames="num_candidates")
def best_learning_rate(prompt: DocumentPrompt, *, num_candidates: int = 400) -> Array:
    """The learning rate of the gradient step with the least mean loss on these prompts.

    Searched on a logarithmic grid from 0.1 n to 10 n: for small x*, n (b - 1 / n) is about A x*,
    so that learning_rate = n brings x_1 close to x*.
    """
    n = prompt.b.shape[-1]
    grid = n * jnp.logspace(-1, 1, num_candidates)
    answers = jnp.einsum("bqd,bd->bq", prompt.queries, gradient_step(prompt, 1.0))
    losses = jax.lax.map(lambda rate: half_squared_error(rate * answers, prompt.target), grid)
    return grid[jnp.argmin(losses)]


@functools.partial(jax.jit, static_argnames="leak")
def report(
    params: LayerParams, prompt: DocumentPrompt, learning_rate: Any, *, leak: bool = False
) -> Report:
    """Compares the layer with the gradient step on a batch of prompts."""
    context, queries = tokens(prompt, leak=leak)
    d = prompt.queries.shape[-1]

    def total(rows):
        answers = logits(params, context, jnp.concatenate([rows, queries[..., d:]], axis=-1))
        return jnp.sum(answers), answers  # a query's logit depends on its own row alone

    slopes, layer = jax.grad(total, has_aux=True)(prompt.queries)
    x = gradient_step(prompt, learning_rate)
    step = jnp.einsum("bqd,bd->bq", prompt.queries, x, precision=HIGHEST)
    layer_loss = half_squared_error(layer, prompt.target)
    step_loss = half_squared_error(step, prompt.target)
    apart = jax.nn.softmax(layer) - jax.nn.softmax(step)
    inner = jnp.einsum("bqd,bd->bq", slopes, x, precision=HIGHEST)
    lengths = jnp.linalg.norm(slopes, axis=-1) * jnp.linalg.norm(x, axis=-1)[:, None]
    diagonal = jnp.diag(params.key_query)[:d]
    return Report(
        layer_loss=layer_loss,
        step_loss=step_loss,
        uniform_loss=0.5 * jnp.mean(jnp.sum((prompt.target - 1 / layer.shape[1]) ** 2, axis=-1)),
        ratio=layer_loss / step_loss,
        prediction_difference=jnp.mean(jnp.linalg.norm(apart, axis=-1)),
        sensitivity_difference=jnp.mean(jnp.linalg.norm(slopes - x[:, None], axis=-1)),
        sensitivity_cosine=jnp.mean(inner / jnp.maximum(lengths, 1e-30)),
        diagonal_spread=jnp.std(diagonal) / jnp.abs(jnp.mean(diagonal)),
    )


def train(
    documents: Documents,
    *,
    key: Array,
    num_steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    num_records: int = 20,
) -> Trained:
    """Trains a layer on fresh prompts with Adam, warmup of a tenth and cosine decay."""
    start_key, data_key = jax.random.split(key)

    def loss(params, prompt):
        return half_squared_error(
            logits(params, *tokens(prompt, leak=documents.leak)), prompt.target
        )

    return fit(
        loss,
        lambda key: documents.sample(key, batch_size),
        init(start_key, documents.dim),
        warmup_cosine_adam(learning_rate, num_steps, warmup_steps=num_steps // 10),
        key=data_key,
        num_steps=num_steps,
        num_records=num_records,
    )
