"""What the loop reads from: sources on the host, and what they still do on the device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Example = dict[str, jax.Array]  # one example, without a batch axis
Transform = Callable[[jax.Array, Example], Example]  # (key, example) -> example, pure


@runtime_checkable
class Source(Protocol):
    """A finite, numbered set of examples.

    One of two more methods may be there, for work done on the device inside the step, one example
    at a time; `on_device` maps them over a batch:

    - `generate(key, index) -> example` makes the example from its number (synthetic tasks);
    - `transform(key, example) -> example` changes what `batch` has read (augmentation).

    The key is `fold_in(fold_in(key, step), index)`: it follows the example, not the device.
    """

    @property
    def num_examples(self) -> int:
        """How many examples there are; they are numbered from 0."""
        ...

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples `indices` (int [batch]) in that order, and "index" (int32) itself."""
        ...


def on_device(source: Source) -> Callable[[jax.Array, Mapping[str, Any]], dict[str, Any]]:
    """What the step does with a batch before the model sees it.

    Args:
      source: any source.
    Returns:
      A pure function from keys [batch], one for each example, and a batch as `source.batch` made
      it, to the batch for the model; the identity for a source without work for the device.
    """
    generate = getattr(source, "generate", None)
    transform = getattr(source, "transform", None)

    def prepare(keys: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        if generate is not None:
            return {**batch, **jax.vmap(generate)(keys, batch["index"])}
        if transform is not None:
            return {**batch, **jax.vmap(transform)(keys, dict(batch))}
        return dict(batch)

    return prepare


class Arrays:
    """Examples held in memory: a dict of arrays that share their leading axis.

    Args:
      arrays: name -> array [num_examples, ...]; kept, not copied. "index" is taken.
      name: what error messages call the data.
    Raises:
      ValueError: no array, no example, lengths that differ, or an array called "index".

    >>> Arrays({"label": np.array([5, 6, 7])}).batch(np.array([2, 0]))["label"].tolist()
    [7, 5]
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, name: str = "data"):
        self.name = name
        self.arrays = {key: np.asarray(value) for key, value in arrays.items()}
        if not self.arrays:
            raise ValueError(f"{name}: no arrays were given.")
        if "index" in self.arrays:
            raise ValueError(f'{name}: "index" is the example\'s own number; rename that array.')
        scalars = [key for key, value in self.arrays.items() if value.ndim == 0]
        if scalars:
            raise ValueError(f"{name}: {scalars} have no axis of examples.")
        lengths = {key: len(value) for key, value in self.arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{name}: arrays differ in their number of examples: {lengths}.")
        self._num_examples = next(iter(lengths.values()))
        if self._num_examples == 0:
            raise ValueError(f"{name}: holds zero examples; is the file or the filter empty?")

    @property
    def num_examples(self) -> int:
        """Length of the leading axis."""
        return self._num_examples

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Rows `indices` of every array, and "index"."""
        rows = {key: value.take(indices, axis=0) for key, value in self.arrays.items()}
        rows["index"] = np.asarray(indices, np.int32)
        return rows

    def __repr__(self) -> str:
        shapes = {key: (value.dtype.name, value.shape) for key, value in self.arrays.items()}
        return f"Arrays({self.name}: {shapes})"  # no address: the same in every process


class Augmented:
    """A source whose examples are changed on the device, anew at every visit.

    Args:
      source: any source; its own device work comes first.
      transforms: functions `(key, example) -> example`, applied in this order with keys of their
        own.
    """

    def __init__(self, source: Source, transforms: Sequence[Transform]):
        self.source = source
        self.transforms = tuple(transforms)

    @property
    def num_examples(self) -> int:
        """As many as the source holds."""
        return self.source.num_examples

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The source's own batch: the host does nothing more."""
        return self.source.batch(indices)

    def transform(self, key: jax.Array, example: Example) -> Example:
        """Applies the source's device work, then each transform."""
        keys = jax.random.split(key, len(self.transforms) + 1)
        generate = getattr(self.source, "generate", None)
        transform = getattr(self.source, "transform", None)
        if generate is not None:
            example = {**example, **generate(keys[0], example["index"])}
        elif transform is not None:
            example = transform(keys[0], example)
        for own_key, change in zip(keys[1:], self.transforms):
            example = change(own_key, example)
        return example
