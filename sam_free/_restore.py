"""What to do with a checkpoint that does not hold an objective's state."""

from typing import Any

import jax
import jax.numpy as jnp

from sam_free._checks import check_choice

PyTree = Any


def restore_state(saved: PyTree, fresh: PyTree, *, missing: str = "refuse") -> PyTree:
    """The objective's state to go on with: the saved one, or by choice an empty one.

    A run that lost SAF's table and does not say so is pulled to the uniform distribution for some
    epochs, as the published code is after a resume.

    Args:
      saved: the objective's state in the checkpoint; None or () where it holds none.
      fresh: what `init` returns.
      missing: "refuse" raises where `saved` is absent or of another shape; "mask" starts from
        `fresh`, whose rows count as never written, so that they are masked out of the loss.
    Returns:
      `saved` if it has the structure, shapes and dtypes of `fresh`; else, with "mask", `fresh`.
    Raises:
      ValueError: `missing` is "refuse" and the state is not there.
    """
    check_choice("restore_state", choices=("refuse", "mask"), missing=missing)

    def describe(tree: PyTree) -> list[tuple[str, tuple[int, ...], str]]:
        return [
            (jax.tree_util.keystr(path), jnp.shape(leaf), str(jnp.result_type(leaf)))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        ]

    wanted, found = describe(fresh), describe(saved)
    if wanted == found:
        return saved
    if missing == "mask":
        return fresh
    what = "holds no state of the objective"
    if found:
        first = next((pair for pair in zip(wanted, found) if pair[0] != pair[1]), None)
        what = (
            f"has {len(found)} arrays in it where {len(wanted)} are needed"
            if first is None
            else f"has {first[1]} where {first[0]} is needed"
        )
    raise ValueError(
        f"restore_state: the checkpoint {what}. Start from the right checkpoint, or pass "
        "missing='mask' to begin with an empty state, masked out of the loss until it is filled."
    )
