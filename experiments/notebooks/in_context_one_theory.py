# %% [markdown]
# # Attention is the gradient of softmax regression
#
# Three papers describe in-context learning: a gradient step of softmax regression, one step of
# preconditioned gradient descent by linear attention, and opposite heads of softmax attention.
# Here they meet: a softmax head with small key-query weights computes the gradient of softmax
# regression, two opposite heads compute it to second order, and at x = 0 that is the debiased step
# whose optimum is known exactly.

# %%
import os

import jax
import numpy as np

from in_context import (
    attention_gradient,
    linear_attention,
    predictors,
    softmax_attention,
    softmax_regression,
    tasks,
    weight_shift,
)

FAST = bool(os.environ.get("FAST"))
PROMPTS = 20_000 if FAST else 200_000

# %% [markdown]
# ## Heads that compute the gradient
#
# The error falls like eps with one head and like eps^2 with two.

# %%
rng = np.random.default_rng(0)
A, x = rng.normal(size=(25, 5)), 0.3 * rng.normal(size=5)
queries = rng.normal(size=(7, 5))
with jax.enable_x64(True):
    b = np.asarray(softmax_regression.softmax(A, rng.normal(size=5)))
    exact = queries @ np.asarray(softmax_regression.gradient(A, x, b))
    errors = {}
    for heads in (1, 2):
        for eps in (1e-3, 1e-4):
            answer = attention_gradient.head_gradient(A, x, b, queries, eps=eps, num_heads=heads)
            errors[heads, eps] = float(np.abs(answer - exact).max() / np.abs(exact).max())
print(errors)
assert 9 < errors[1, 1e-3] / errors[1, 1e-4] < 11
assert 90 < errors[2, 1e-3] / errors[2, 1e-4] < 110

# %% [markdown]
# ## A stack of layers is gradient descent

# %%
with jax.enable_x64(True):
    stack = attention_gradient.stack(A, b, queries, num_layers=10, learning_rate=3.0, eps=1e-4)
    descent = softmax_regression.gradient_descent(A, b, num_steps=10, learning_rate=3.0)
    gap = float(np.abs(stack.query_logits[-1] - queries @ descent.x).max())
print("10 layers against 10 steps:", gap)
assert gap < 1e-6

# %% [markdown]
# ## What the published theorem says, and what it does not
#
# It bounds how far one step moves the target. The sharp constant is 1 / 2; the published one is 28
# orders of magnitude larger at its smallest admissible R.

# %%
with jax.enable_x64(True):
    shift = weight_shift.shift_x(A, x, -np.asarray(softmax_regression.gradient(A, x, b)), b)
print("shift", float(shift.norm), "sharp bound", float(shift.sharp_bound))
print("published bound, log10", float(shift.log_published_bound) / np.log(10))
assert bool(shift.certificate.holds)

# %% [markdown]
# ## Small opposite heads are debiased gradient descent, and its loss is exact

# %%
NOISE = 0.1**0.5
best = softmax_attention.optimal_debiased(40, 5, noise=NOISE, prior_variance=0.2)
plain = linear_attention.optimal_step(40, 5, noise=NOISE, prior_variance=0.2)
task = tasks.LinearRegression(40, 5, noise=NOISE, prior=0.2 * np.eye(5))
prompt = task.sample(jax.random.key(0), PROMPTS)
small = 0.05
heads = softmax_attention.apply_heads(
    np.array([small, -small]), np.array([1, -1]) * best.learning_rate / (2 * small), prompt
)
for name, answers, expected in (
    ("two heads", heads, best.loss),
    ("plain step", predictors.gradient_descent(prompt, plain.learning_rate), plain.loss),
):
    squares = np.asarray((answers - prompt.target) ** 2, np.float64)
    error = squares.std() / squares.size**0.5
    print(f"{name}: measured {squares.mean():.4f} +- {error:.4f}, exact {expected:.4f}")
    assert abs(squares.mean() - expected) < 4 * error + 5e-4
