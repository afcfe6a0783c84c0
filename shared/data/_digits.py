"""The handwritten digits inside scikit-learn: real images with nothing to download."""

import math

import numpy as np

from shared.data._index import shuffled
from shared.data._source import Arrays


def digits(*, seed: int = 0, test_fraction: float = 0.2) -> tuple[Arrays, Arrays]:
    """1797 images of 8 x 8 pixels in 10 classes, split at random.

    Args:
      seed: of the split; the images are always the same.
      test_fraction: share of the test set, in (0, 1).
    Returns:
      (train, test), each with "image" float32 [n, 8, 8, 1] in [0, 1] and "label" int32 [n]; 1437
      and 360 examples by default.
    Reference: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.

    >>> [part.num_examples for part in digits()]
    [1437, 360]
    """
    from sklearn.datasets import load_digits  # imported late: half a second that few commands need

    if not 0 < test_fraction < 1:
        raise ValueError(f"digits: test_fraction must be in (0, 1), got {test_fraction!r}.")
    data = load_digits()
    images = (data["images"] / 16.0).astype(np.float32)[..., None]  # 17 grey levels, 0 to 16
    labels = data["target"].astype(np.int32)
    order = shuffled(seed, len(labels))
    split = len(labels) - math.ceil(len(labels) * test_fraction)
    if not 0 < split < len(labels):
        raise ValueError(f"digits: test_fraction = {test_fraction!r} leaves one part empty.")
    parts = (("digits train", order[:split]), ("digits test", order[split:]))
    train, test = (
        Arrays({"image": images[rows], "label": labels[rows]}, name=name) for name, rows in parts
    )
    return train, test
