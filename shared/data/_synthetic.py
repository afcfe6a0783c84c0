"""Tasks whose examples are made on the device: from their number, or anew at every visit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from shared.data._source import Arrays, Example


class Generated:
    """A source that generates its examples inside the step.

    Args:
      generate: `(key, index) -> example`, pure, one example at a time. One that ignores the key
        defines a fixed data set; one that uses it draws a new example at every visit.
      num_examples: size of the data set, or, where every visit is new, the length of an "epoch".
    """

    def __init__(self, generate: Callable[[jax.Array, jax.Array], Example], *, num_examples: int):
        if num_examples < 1:
            raise ValueError(f"Generated: num_examples must be positive, got {num_examples!r}.")
        self.generate = generate
        self._num_examples = num_examples

    @property
    def num_examples(self) -> int:
        """Size of the data set or length of an epoch."""
        return self._num_examples

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """ "index" alone: the rest is made on the device."""
        return {"index": np.asarray(indices, np.int32)}

    def materialize(self, key: jax.Array) -> Arrays:
        """All examples as arrays in memory.

        Args:
          key: folded with the index for tasks that draw anew; without effect on the others.
        """
        indices = jnp.arange(self.num_examples, dtype=jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        examples = jax.jit(jax.vmap(self.generate))(keys, indices)
        return Arrays({name: np.asarray(value) for name, value in examples.items()})


def _example_key(data_key: jax.Array, key: jax.Array, index: jax.Array, fresh: bool) -> jax.Array:
    """The key of an example: its own for ever, or of this visit."""
    if not fresh:
        return jax.random.fold_in(data_key, index)
    # Bits of the visit's key, folded into the task's: two tasks differ under the same visit.
    return jax.random.fold_in(data_key, jax.random.bits(key))


def teacher_student(
    teacher: Callable[[jax.Array], jax.Array],
    *,
    num_examples: int,
    input_size: int,
    key: jax.Array,
    noise: float = 0.0,
    fresh: bool = False,
) -> Generated:
    """Regression on a teacher's outputs at Gaussian inputs.

    Args:
      teacher: inputs [input_size] -> outputs [outputs], pure.
      num_examples: size of the set; with `fresh`, length of an epoch.
      input_size: entries of an input, each from N(0, 1).
      key: of the inputs and the noise.
      noise: standard deviation of what is added to the outputs.
      fresh: draw new inputs at every visit, as in online learning.
    Returns:
      A source with "inputs" [batch, input_size] and "targets" [batch, outputs].
    """
    if input_size < 1:
        raise ValueError(f"teacher_student: input_size must be positive, got {input_size!r}.")
    if not 0 <= noise < np.inf:
        raise ValueError(f"teacher_student: noise must be >= 0 and finite, got {noise!r}.")

    def generate(visit_key: jax.Array, index: jax.Array) -> Example:
        own = _example_key(key, visit_key, index, fresh)
        inputs_key, noise_key = jax.random.split(own)
        inputs = jax.random.normal(inputs_key, (input_size,))
        targets = teacher(inputs)
        targets = targets + noise * jax.random.normal(noise_key, targets.shape, targets.dtype)
        return {"inputs": inputs, "targets": targets}

    return Generated(generate, num_examples=num_examples)


def gaussian_regression(
    *,
    num_examples: int,
    input_size: int,
    key: jax.Array,
    spectrum_exponent: float = 0.0,
    target_exponent: float = 0.0,
    noise: float = 0.0,
    fresh: bool = False,
) -> Generated:
    """Linear regression with power laws in the inputs' variances and the target's weights.

    Input k = 1, 2, ... has variance k^-spectrum_exponent; the target is sum_k w_k x_k + noise with
    w_k = k^(-target_exponent / 2) s_k and random signs s_k.

    Args:
      num_examples: size of the set; with `fresh`, length of an epoch.
      input_size: number of inputs.
      key: of the signs, the inputs and the noise.
      spectrum_exponent, target_exponent: of the two power laws; 0 is isotropic.
      noise: standard deviation of the noise.
      fresh: draw new examples at every visit.
    Returns:
      A source with "inputs" [batch, input_size] and "targets" [batch, 1].
    """
    if not np.isfinite([spectrum_exponent, target_exponent]).all():
        raise ValueError(
            "gaussian_regression: exponents must be finite, got "
            f"{spectrum_exponent!r} and {target_exponent!r}."
        )
    sign_key, data_key = jax.random.split(key)

    def target(inputs: jax.Array) -> jax.Array:
        ranks = jnp.arange(1, input_size + 1, dtype=inputs.dtype)
        signs = jax.random.rademacher(sign_key, (input_size,), inputs.dtype)
        # inputs are still white here: their scale is part of the sum, so that both agree.
        return jnp.sum(signs * ranks ** (-(target_exponent + spectrum_exponent) / 2) * inputs)[None]

    white = teacher_student(
        target,
        num_examples=num_examples,
        input_size=input_size,
        key=data_key,
        noise=noise,
        fresh=fresh,
    )

    def generate(visit_key: jax.Array, index: jax.Array) -> Example:
        example = white.generate(visit_key, index)
        ranks = jnp.arange(1, input_size + 1, dtype=example["inputs"].dtype)
        return {**example, "inputs": example["inputs"] * ranks ** (-spectrum_exponent / 2)}

    return Generated(generate, num_examples=num_examples)


def gaussian_classes(
    *,
    num_examples: int,
    num_classes: int,
    input_size: int,
    key: jax.Array,
    separation: float = 3.0,
    fresh: bool = False,
) -> Generated:
    """Classes that are Gaussians of unit covariance around random centres.

    Args:
      num_examples: size of the set; with `fresh`, length of an epoch.
      num_classes: at least 2; every example's class is drawn uniformly.
      input_size: entries of an input.
      key: of the centres, the classes and the inputs.
      separation: distance of each centre from the origin.
      fresh: draw new examples at every visit.
    Returns:
      A source with "inputs" [batch, input_size] and "label" int32 [batch].
    """
    if num_classes < 2 or input_size < 1:
        raise ValueError(
            "gaussian_classes: num_classes must be at least 2 and input_size at least 1, got "
            f"{num_classes!r} and {input_size!r}."
        )
    if not 0 <= separation < np.inf:
        raise ValueError(f"gaussian_classes: separation must be >= 0, got {separation!r}.")
    centre_key, data_key = jax.random.split(key)

    def generate(visit_key: jax.Array, index: jax.Array) -> Example:
        centres = jax.random.normal(centre_key, (num_classes, input_size))
        centres *= separation / jnp.linalg.norm(centres, axis=1, keepdims=True)
        class_key, inputs_key = jax.random.split(_example_key(data_key, visit_key, index, fresh))
        label = jax.random.randint(class_key, (), 0, num_classes)
        inputs = centres[label] + jax.random.normal(inputs_key, (input_size,))
        return {"inputs": inputs, "label": label.astype(jnp.int32)}

    return Generated(generate, num_examples=num_examples)
