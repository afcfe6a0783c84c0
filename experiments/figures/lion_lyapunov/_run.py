"""What the figures share: an optimizer run as one compiled scan, and small problems."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

PyTree = Any


def descend(
    optimizer: optax.GradientTransformation,
    loss: Callable[[PyTree], Any],
    params: PyTree,
    num_steps: int,
    record: Callable[[PyTree], PyTree],
) -> tuple[PyTree, PyTree]:
    """Final parameters, and `record(params)` before every step and after the last, as NumPy."""

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(loss)(x), state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), record(x)

    def run(x):
        (last, _), rest = jax.lax.scan(step, (x, optimizer.init(x)), length=num_steps)
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), record(x), rest)
        return last, joined

    return jax.tree.map(np.asarray, jax.jit(run)(params))


def quadratic(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hessian with eigenvalues >= 0.1 and minimiser of a random quadratic."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size)) / np.sqrt(size)
    return root.T @ root + 0.1 * np.eye(size), 2.0 * rng.normal(size=size)


def logistic(num: int, size: int, seed: int) -> np.ndarray:
    """Rows label * input of a linearly separable-up-to-noise problem."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num, size))
    return inputs * np.sign(inputs @ rng.normal(size=size) + 0.5 * rng.normal(size=num))[:, None]


def digits(num: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, pixels in [-1, 1], in a fixed random order."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[:num]
    return images[order] / 8.0 - 1.0, labels[order]


def mlp_params(seed: int, sizes: tuple[int, ...] = (64, 32, 10), scale: float = 1.0) -> PyTree:
    """Weights [in, out] and biases of a fully connected network."""
    rng = np.random.default_rng(seed)
    return [
        {
            "kernel": jnp.asarray(scale * rng.normal(size=(a, b)) / np.sqrt(a), jnp.float32),
            "bias": jnp.zeros(b),
        }
        for a, b in itertools.pairwise(sizes)
    ]


def mlp(params: PyTree, inputs: Any) -> Any:
    """Logits of the network with tanh units."""
    *hidden, last = params
    for layer in hidden:
        inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"][None])
    return inputs @ last["kernel"] + last["bias"][None]


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Mean over the examples."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def digits_loss(num: int | None = None) -> Callable[[PyTree], Any]:
    """Full-batch cross-entropy of the network on digits."""
    inputs, labels = digits(num)
    inputs, labels = jnp.asarray(inputs, jnp.float32), jnp.asarray(labels)
    return lambda params: cross_entropy(mlp(params, inputs), labels)
