"""Softmax attention whose output is the gradient of softmax regression.

With f = softmax(A x) and u = f - b, a query a_q that attends to the rows of A with logits
A x + eps A a_q and values u answers, for small eps,

    one head    (<u, softmax(A x + eps A a_q)> - <u, f>) / eps            = a_q . g + O(eps)
    two heads   <u, softmax(A x + eps A a_q) - softmax(A x - eps A a_q)> / (2 eps)
                                                                          = a_q . g + O(eps^2)

where g is the gradient of 0.5 ||softmax(A x) - b||^2. Two heads are its central difference, and
they are the pattern that trained two-head attention shows: key-query weights +-eps I, output
weights +-1 / (2 eps) of zero sum. At x = 0 with values b they are the debiased gradient step.

A gradient step moves the running logit l = a . x of every row by -learning_rate a . g. So tokens
that carry their logit and their residual let a stack of k layers perform k gradient steps in the
prompt, for the rows of A and for queries alike. A layer is the gradient heads, a pointwise exp,
one uniform head for its mean, a pointwise division (that is softmax again) and one head that
centres the residuals.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from in_context import _check
from in_context.softmax_regression._objective import prepare
from in_context.weight_shift import REMAINDER

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST

# Features of a token after the d entries of its row of A.
LOGIT, RESIDUAL, TARGET, EXP, MEAN, ONE = range(6)
NUM_FEATURES = 6


class HeadWeights(NamedTuple):
    """Weights of softmax attention without biases, in the layout of flax's MultiHeadAttention."""

    query: Array  # [features, heads, head_features]
    key: Array  # [features, heads, head_features]
    value: Array  # [features, heads, head_features]
    output: Array  # [heads, head_features, features]


class Stack(NamedTuple):
    """The running logits after every layer; layer 0 is the input, where x = 0."""

    logits: Array  # [num_layers + 1, n], A x_t
    query_logits: Array  # [num_layers + 1, q], queries . x_t


def attention(weights: HeadWeights, tokens: Array, *, num_context: int) -> Array:
    """Multi-head softmax attention, scaled by 1 / sqrt(head_features) as usual.

    Args:
      weights: of all heads.
      tokens: [tokens, features]; every token asks.
      num_context: only the first so many tokens are attended to, so queries do not see each other.
    Returns:
      [tokens, features], before the residual connection.
    """
    _check.integer("attention", num_context=num_context)
    query, key, value = (
        jnp.einsum("tf,fhk->htk", tokens, matrix, precision=HIGHEST)
        for matrix in (weights.query, weights.key, weights.value)
    )
    scale = weights.query.shape[-1] ** -0.5
    logits = scale * jnp.einsum("htk,hsk->hts", query, key[:, :num_context], precision=HIGHEST)
    mixed = jnp.einsum(
        "hts,hsk->htk", jax.nn.softmax(logits), value[:, :num_context], precision=HIGHEST
    )
    return jnp.einsum("htk,hkf->tf", mixed, weights.output, precision=HIGHEST)


def head_gradient(A: Any, x: Any, b: Any, queries: Any, *, eps: float, num_heads: int = 2) -> Array:
    """queries . gradient(A, x, b), computed by softmax attention over the rows of A.

    Args:
      A: [n, d]; x: [d]; b: [n].
      queries: [q, d].
      eps: size of the key-query weights, well below 1 / max |A a_q|; with one head the error is
        linear in it, with two quadratic. Below 1e-4 work in float64.
      num_heads: 1 or 2.
    Returns:
      [q].
    Raises:
      ValueError: shapes disagree, values are not finite, eps <= 0, or num_heads is not 1 or 2.
    """
    A, x, b, _ = prepare("head_gradient", A, x, b, None)
    _check_construction("head_gradient", eps, num_heads)
    queries = jnp.asarray(queries, A.dtype)
    _check.shape("head_gradient", "queries", queries, (len(queries), A.shape[1]), "rows like A's")
    logits = jnp.matmul(A, x, precision=HIGHEST)[None, :]
    nudge = eps * jnp.matmul(queries, A.T, precision=HIGHEST)
    f = jax.nn.softmax(logits)
    u = f[0] - b
    ahead = jax.nn.softmax(logits + nudge)
    if num_heads == 1:
        return jnp.matmul(ahead, u - jnp.sum(f[0] * u), precision=HIGHEST) / eps
    behind = jax.nn.softmax(logits - nudge)
    return jnp.matmul(ahead - behind, u, precision=HIGHEST) / (2 * eps)


def one_head_error_bound(A: Any, x: Any, b: Any, queries: Any, *, eps: float) -> Array:
    """A bound on |head_gradient(num_heads=1) - queries . gradient|, [q].

    ||u|| eps ||A a_q||^2 / sqrt(54), from the second derivative of softmax; the constant is exact
    for two rows and numerical beyond.
    """
    A, x, b, _ = prepare("one_head_error_bound", A, x, b, None)
    _check_construction("one_head_error_bound", eps, 1)
    u = jax.nn.softmax(jnp.matmul(A, x, precision=HIGHEST)) - b
    moved = jnp.matmul(jnp.asarray(queries, A.dtype), A.T, precision=HIGHEST)
    return REMAINDER * eps * jnp.linalg.norm(u) * jnp.sum(moved**2, axis=1)


def make_tokens(A: Any, x: Any, b: Any, queries: Any) -> Array:
    """The prompt of the construction at x: n context tokens, then q queries.

    Args:
      A: [n, d]; x: [d]; b: [n]; queries: [q, d].
    Returns:
      [n + q, d + 6]: the row of A, its logit, centred residual, target, exp(logit), 0 and 1.
      The residual and target of a query are 0; nobody reads them.
    """
    A, x, b, _ = prepare("make_tokens", A, x, b, None)
    rows = jnp.concatenate([A, jnp.asarray(queries, A.dtype)])
    logits = jnp.matmul(rows, x, precision=HIGHEST)
    f = jax.nn.softmax(logits[: len(b)])
    residual = f - b
    per_token = [
        logits,
        jnp.zeros_like(logits).at[: len(b)].set(residual - jnp.sum(f * residual)),
        jnp.zeros_like(logits).at[: len(b)].set(b),
        jnp.exp(logits),
        jnp.zeros_like(logits),
        jnp.ones_like(logits),
    ]
    return jnp.concatenate([rows, jnp.stack(per_token, axis=1)], axis=1)


def gradient_heads(
    dim: int, *, eps: float, num_heads: int = 2, learning_rate: float = 1.0
) -> HeadWeights:
    """Heads that add -learning_rate a . gradient to the running logit a . x of every token.

    Args:
      dim: d, the columns of A.
      eps, num_heads: as in `head_gradient`.
      learning_rate: of the gradient step.
    Raises:
      ValueError: eps <= 0, or num_heads is neither 1 nor 2.
    """
    _check_construction("gradient_heads", eps, num_heads)
    _check.integer("gradient_heads", dim=dim)
    signs = jnp.array([1.0, -1.0])[:num_heads]
    query, key, value, output = _zeros(dim, num_heads)
    rows = jnp.arange(dim)
    scale = (dim + 1) ** 0.5  # undoes the 1 / sqrt(head_features) of attention
    query = query.at[rows, :, rows].set(scale * eps * signs).at[dim + ONE, :, dim].set(scale)
    key = key.at[rows, :, rows].set(1.0).at[dim + LOGIT, :, dim].set(1.0)
    value = value.at[dim + RESIDUAL, :, 0].set(1.0)
    output = output.at[:, 0, dim + LOGIT].set(-learning_rate * signs / (num_heads * eps))
    return HeadWeights(query, key, value, output)


def mean_head(dim: int) -> HeadWeights:
    """A uniform head that writes the context's mean of exp(logit) into every token."""
    query, key, value, output = _zeros(dim, 1)
    value = value.at[dim + EXP, :, 0].set(1.0)
    return HeadWeights(query, key, value, output.at[:, 0, dim + MEAN].set(1.0))


def centring_head(dim: int) -> HeadWeights:
    """A head that attends by the running logits and takes <u, f> off every residual u."""
    query, key, value, output = _zeros(dim, 1)
    query = query.at[dim + ONE, :, dim].set((dim + 1) ** 0.5)
    key = key.at[dim + LOGIT, :, dim].set(1.0)
    value = value.at[dim + RESIDUAL, :, 0].set(1.0)
    return HeadWeights(query, key, value, output.at[:, 0, dim + RESIDUAL].set(-1.0))


def layer(tokens: Array, heads: HeadWeights, *, num_context: int) -> Array:
    """One constructed layer: one gradient step of softmax regression on every token.

    Args:
      tokens: [n + q, d + 6], from `make_tokens`; logits below 700 in float64 (88 in float32),
        because exp(logit) is carried.
      heads: from `gradient_heads`.
      num_context: n.
    """
    d = tokens.shape[1] - NUM_FEATURES
    tokens = tokens + attention(heads, tokens, num_context=num_context)
    tokens = tokens.at[:, d + EXP].set(jnp.exp(tokens[:, d + LOGIT]))
    tokens = tokens.at[:, d + MEAN].set(0.0)
    tokens = tokens + attention(mean_head(d), tokens, num_context=num_context)
    f = tokens[:, d + EXP] / (num_context * tokens[:, d + MEAN])
    tokens = tokens.at[:, d + RESIDUAL].set(f - tokens[:, d + TARGET])
    return tokens + attention(centring_head(d), tokens, num_context=num_context)


def stack(
    A: Any,
    b: Any,
    queries: Any,
    *,
    num_layers: int,
    learning_rate: float,
    eps: float,
    num_heads: int = 2,
) -> Stack:
    """k constructed layers, that is k gradient steps of softmax regression from x = 0.

    Args:
      A: [n, d]; b: [n]; queries: [q, d].
      num_layers: k.
      learning_rate, eps, num_heads: as in `gradient_heads`; the same weights serve every layer.
    Returns:
      The running logits A x_t and queries . x_t for t = 0 ... k.
    """
    _check.integer("stack", num_layers=num_layers)
    start = jnp.zeros(np.shape(A)[1:], jnp.asarray(A).dtype)
    tokens = make_tokens(A, start, b, queries)
    n, d = np.shape(A)
    heads = gradient_heads(d, eps=eps, num_heads=num_heads, learning_rate=learning_rate)
    heads = jax.tree.map(lambda leaf: leaf.astype(tokens.dtype), heads)
    logits = _run(tokens, heads, n, num_layers)
    return Stack(logits[:, :n], logits[:, n:])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _run(tokens: Array, heads: HeadWeights, num_context: int, num_layers: int) -> Array:
    place = tokens.shape[1] - NUM_FEATURES + LOGIT

    def body(tokens, _):
        tokens = layer(tokens, heads, num_context=num_context)
        return tokens, tokens[:, place]

    _, later = jax.lax.scan(body, tokens, length=num_layers)
    return jnp.concatenate([tokens[None, :, place], later])


def _zeros(dim: int, num_heads: int) -> tuple[Array, Array, Array, Array]:
    features = dim + NUM_FEATURES
    inner = jnp.zeros((features, num_heads, dim + 1))
    return inner, inner, inner, jnp.zeros((num_heads, dim + 1, features))


def _check_construction(caller: str, eps: float, num_heads: int) -> None:
    _check.number(caller, low=0.0, strict=True, eps=eps)
    if num_heads not in (1, 2):
        raise ValueError(f"{caller}: num_heads must be 1 or 2, got {num_heads!r}.")
