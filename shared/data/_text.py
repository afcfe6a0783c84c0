"""Text for language models: windows of tokens over one long file."""

from pathlib import Path

import numpy as np

from shared.data._bpe import BytePairs
from shared.data._error import DataError, existing_file


class Tokens:
    """Windows of one stream of tokens; example i starts at token i * context_length.

    A window holds context_length + 1 tokens: each but the first is predicted once an epoch, and the
    last of one window is the first of the next.

    Args:
      tokens: integers [n]; kept, not copied, so a memory map stays one.
      context_length: tokens that the model sees at a time.
      vocabulary_size: all tokens are below it.
      name: what messages call the data.
    Raises:
      DataError: there are fewer than context_length + 1 tokens.
    """

    def __init__(
        self, tokens: np.ndarray, *, context_length: int, vocabulary_size: int, name: str = "text"
    ):
        if context_length < 1:
            raise ValueError(f"Tokens: context_length must be at least 1, got {context_length!r}.")
        if len(tokens) < context_length + 1:
            raise DataError(
                f"{name} holds {len(tokens)} tokens, fewer than one window of "
                f"{context_length + 1}; use a longer text or a smaller context_length."
            )
        self.tokens = tokens
        self.context_length = context_length
        self.vocabulary_size = vocabulary_size
        self.name = name

    @property
    def num_examples(self) -> int:
        """Whole windows; up to context_length tokens at the end are left out."""
        return (len(self.tokens) - 1) // self.context_length

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """ "tokens" int32 [batch, context_length + 1], and "index"."""
        starts = np.asarray(indices, np.int64)[:, None] * self.context_length
        windows = self.tokens[starts + np.arange(self.context_length + 1)]
        return {"tokens": windows.astype(np.int32), "index": np.asarray(indices, np.int32)}

    def __repr__(self) -> str:
        return f"Tokens({self.name}: {len(self.tokens)}, context_length={self.context_length})"


def text(
    path: str | Path,
    *,
    context_length: int,
    tokenizer: BytePairs | None = None,
    test_fraction: float = 0.1,
) -> tuple[Tokens, Tokens]:
    """A text file as (train, test) windows; the test part is the end of the file.

    Args:
      path: any file: bytes are tokens, unless a tokenizer is given.
      context_length: tokens that the model sees at a time.
      tokenizer: made by `BytePairs.train`, best on the first part of the same file.
      test_fraction: share of the bytes, in (0, 1).
    Raises:
      DataError: the file is missing or empty, or a part is shorter than one window.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"text: test_fraction must be in (0, 1), got {test_fraction!r}.")
    path = existing_file(path)
    stream = np.memmap(path, np.uint8, mode="r")
    split = len(stream) - round(len(stream) * test_fraction)
    parts = (stream[:split], stream[split:])
    size = 256
    if tokenizer is not None:
        parts = tuple(tokenizer.encode(part.tobytes()) for part in parts)
        size = tokenizer.vocabulary_size
    train, test = (
        Tokens(
            part, context_length=context_length, vocabulary_size=size, name=f"{path.name} {split}"
        )
        for part, split in zip(parts, ("train", "test"))
    )
    return train, test
