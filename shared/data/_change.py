"""Subsets and wrong labels, from a seed."""

import numpy as np

from shared.data._index import shuffled
from shared.data._source import Arrays


def subset(source: Arrays, size: int, *, seed: int) -> Arrays:
    """`size` examples drawn without replacement; a smaller set of the same seed is a part of it.

    Args:
      source: in-memory data.
      size: number of examples, at most as many as there are.
      seed: of the draw.
    Returns:
      A source whose examples are numbered anew from 0.

    >>> source = Arrays({"label": np.arange(6)})
    >>> subset(source, 3, seed=0).arrays["label"].tolist()
    [4, 0, 1]
    """
    if not 0 < size <= source.num_examples:
        raise ValueError(
            f"subset: size must be between 1 and the {source.num_examples} examples of "
            f"{source.name}, got {size!r}."
        )
    rows = shuffled(seed, source.num_examples, stream=1)[:size]
    return Arrays(
        {name: array[rows] for name, array in source.arrays.items()},
        name=f"{size} of {source.name}",
    )


def with_label_noise(source: Arrays, fraction: float, *, num_classes: int, seed: int) -> Arrays:
    """Gives a share of the examples another class, each wrong one as likely as the next.

    Args:
      source: in-memory data with "label", whole numbers below num_classes.
      fraction: share of the examples whose label becomes wrong, in [0, 1]; their number is rounded,
        not drawn. The examples of a smaller fraction are among those of a larger one.
      num_classes: number of classes, at least 2.
      seed: of the draw.
    Returns:
      The same examples with the new "label", and the old one as "clean_label".
    """
    if "label" not in source.arrays:
        raise ValueError(f'with_label_noise: {source.name} holds no "label".')
    if not 0 <= fraction <= 1:
        raise ValueError(f"with_label_noise: fraction must be in [0, 1], got {fraction!r}.")
    labels = source.arrays["label"]
    if num_classes < 2 or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"with_label_noise: num_classes = {num_classes!r}, but the labels of {source.name} "
            f"run from {labels.min()} to {labels.max()}."
        )
    rows = shuffled(seed, len(labels), stream=2)[: round(fraction * len(labels))]
    # One word for every example, so that its wrong class does not depend on the fraction.
    words = np.random.Philox(key=np.array([seed, 2**64 - 4], np.uint64)).random_raw(len(labels))
    shift = 1 + (words % np.uint64(num_classes - 1)).astype(labels.dtype)
    noisy = labels.copy()
    noisy[rows] = (labels[rows] + shift[rows]) % num_classes
    return Arrays(
        {**source.arrays, "label": noisy, "clean_label": labels},
        name=f"{source.name} with {fraction:.3g} wrong labels",
    )
