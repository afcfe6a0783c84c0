"""Augmentation of one image on the device, for `Augmented`: pure functions of a key."""

import jax
import jax.numpy as jnp

from shared.data._source import Example, Transform


def random_crop(padding: int = 4, *, mode: str = "zeros") -> Transform:
    """Shifts the image by up to `padding` pixels each way, uniformly.

    Args:
      padding: pixels, at least 0.
      mode: what comes in from outside: "zeros" or "reflect".
    """
    if padding < 0:
        raise ValueError(f"random_crop: padding must be >= 0, got {padding!r}.")
    if mode not in ("zeros", "reflect"):
        raise ValueError(f'random_crop: mode must be "zeros" or "reflect", got {mode!r}.')

    def transform(key: jax.Array, example: Example) -> Example:
        image = example["image"]  # [height, width, channels]
        pad = ((padding, padding), (padding, padding), (0, 0))
        wide = jnp.pad(image, pad) if mode == "zeros" else jnp.pad(image, pad, mode="reflect")
        row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return {**example, "image": jax.lax.dynamic_slice(wide, (row, column, 0), image.shape)}

    return transform


def random_flip(probability: float = 0.5) -> Transform:
    """Mirrors the image left to right.

    Args:
      probability: in [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"random_flip: probability must be in [0, 1], got {probability!r}.")

    def transform(key: jax.Array, example: Example) -> Example:
        image = example["image"]
        mirrored = jax.random.bernoulli(key, probability)
        return {**example, "image": jnp.where(mirrored, image[:, ::-1], image)}

    return transform
