"""A small byte-pair tokenizer: trained in seconds, one JSON file, every byte string round-trips."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared.data._error import DataError, existing_file

_SPACES = b" \t\n\r\x0b\x0c"


class BytePairs:
    """Byte-pair encoding: tokens 0 to 255 are bytes, token 256 + i is the i-th merged pair.

    A token that begins with white space is never the right half of a pair, so tokens do not reach
    over the start of a word.

    Args:
      merges: pairs of tokens, each below the token that the pair makes.
    Reference: Sennrich, Haddow and Birch, arXiv:1508.07909, Algorithm 1.

    >>> tokenizer = BytePairs.train(b"low lower lowest", vocabulary_size=258)
    >>> [tokenizer.decode([token]) for token in tokenizer.encode(b"slow")]
    [b's', b'low']
    """

    def __init__(self, merges: Sequence[tuple[int, int]]):
        self.merges = [(int(left), int(right)) for left, right in merges]
        self.pieces = [bytes([byte]) for byte in range(256)]
        for left, right in self.merges:
            if not (0 <= left < len(self.pieces) and 0 <= right < len(self.pieces)):
                raise ValueError(
                    f"BytePairs: the pair {(left, right)} names a token that does not exist before "
                    f"token {len(self.pieces)}."
                )
            self.pieces.append(self.pieces[left] + self.pieces[right])

    @property
    def vocabulary_size(self) -> int:
        """256 bytes and the merged pairs."""
        return len(self.pieces)

    @classmethod
    def train(cls, text: bytes, *, vocabulary_size: int) -> "BytePairs":
        """Merges the most frequent pair of neighbours until the vocabulary is full.

        Args:
          text: to learn from; the time is proportional to its length times the number of merges.
          vocabulary_size: at least 256. It ends up smaller where no pair occurs twice any more.
        """
        if not 256 <= vocabulary_size < 2**16:
            raise ValueError(
                "BytePairs.train: vocabulary_size must be in [256, 65536), "
                f"got {vocabulary_size!r}."
            )
        tokens = np.frombuffer(text, np.uint8).astype(np.int64)
        begins_word = np.zeros(vocabulary_size, bool)
        begins_word[list(_SPACES)] = True
        merges: list[tuple[int, int]] = []
        for new in range(256, vocabulary_size):
            codes = tokens[:-1] * vocabulary_size + tokens[1:]
            pairs, counts = np.unique(codes[~begins_word[tokens[1:]]], return_counts=True)
            if len(pairs) == 0 or counts.max() < 2:
                break
            left, right = divmod(int(pairs[counts.argmax()]), vocabulary_size)  # smallest of a tie
            begins_word[new] = begins_word[left]
            merges.append((left, right))
            tokens = _merge(tokens, left, right, new)
        return cls(merges)

    def encode(self, text: bytes) -> np.ndarray:
        """uint16 [n]: the bytes with all merges applied, in the order in which they were learnt."""
        tokens = np.frombuffer(text, np.uint8).astype(np.int64)
        for i, (left, right) in enumerate(self.merges):
            tokens = _merge(tokens, left, right, 256 + i)
        return tokens.astype(np.uint16)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> bytes:
        """The text that the tokens stand for."""
        return b"".join(self.pieces[int(token)] for token in tokens)

    def save(self, path: str | Path) -> None:
        """Writes the merges as JSON, atomically."""
        partial = Path(f"{path}.partial")
        partial.write_text(json.dumps({"merges": self.merges}) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "BytePairs":
        """Reads what `save` wrote.

        Raises:
          DataError: the file is missing, empty or holds something else.
        """
        path = existing_file(path)
        try:
            return cls(json.loads(path.read_text())["merges"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is no file of BytePairs.save ({error!r}).") from error


def _merge(tokens: np.ndarray, left: int, right: int, new: int) -> np.ndarray:
    """Replaces the pair (left, right) by `new`, from left to right, without overlap."""
    starts = np.flatnonzero((tokens[:-1] == left) & (tokens[1:] == right))
    if left == right and len(starts):
        # In a run such as a a a a the matches overlap: every second one counts, from its start.
        run_start = np.where(np.diff(starts, prepend=-2) == 1, 0, starts)
        starts = starts[(starts - np.maximum.accumulate(run_start)) % 2 == 0]
    if len(starts) == 0:
        return tokens
    merged = tokens.copy()
    merged[starts] = new
    keep = np.ones(len(tokens), bool)
    keep[starts + 1] = False
    return merged[keep]
