"""SAF: the trajectory loss against each example's own outputs of some epochs ago."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_free._batch import (
    ApplyFn,
    Array,
    BaseLoss,
    Batch,
    Outputs,
    PyTree,
    mean_loss,
    model_inputs,
)
from sam_free._checks import (
    check_choice,
    check_logits,
    check_not_negative,
    check_positive,
    check_whole,
    is_traced,
)
from sam_free._losses import check_labels
from sam_free._table import DTYPES, Table, check_index, count_bad, make_table, read, write
from sam_free._trajectory import trajectory_loss


def saf(
    apply_fn: ApplyFn,
    base_loss: BaseLoss,
    *,
    num_classes: int,
    lag_epochs: int = 3,
    start_epoch: int = 5,
    weight: float = 0.3,
    temperature: float = 5.0,
    tau_squared: bool = True,
    buffer_dtype: str = "float16",
    ring: str = "lag_plus_one",
    stale: str = "mask",
    end_epoch: int | None = None,
    order: str = "global",
    published_ranks: int = 1,
    raise_on_bad_index: bool = False,
    axis_name: str | None = None,
) -> "SAF":
    """Sharpness-Aware Training for Free (Du et al. 2022, arXiv:2205.14083, Eq. 8 and Alg. 1).

    The loss is `mean(base_loss) + weight * mean(trajectory_loss(logits, past))`, where `past` are
    the outputs of the same example `lag_epochs` epochs ago, from the training pass of that epoch.
    They live in a table with `lag_epochs` (+ 1) rows for every example, which is the objective's
    state: it belongs into the checkpoint. The weight counts once (the paper prints it in Eq. 8 and
    again in Alg. 1).

    A row says in which epoch it was written. With `stale="mask"` an example whose row is not
    exactly `lag_epochs` old (never written, or skipped by an incomplete epoch) adds nothing to the
    trajectory loss, and the metrics `saf_fresh`, `saf_stale` and `saf_never` count such rows. The
    mean is over the whole batch either way.

    An index out of range or twice in a batch makes the loss NaN and shows in `saf_bad_indices`;
    where the batch is known before the program runs, and with `raise_on_bad_index`, it is an error
    that names the index. `check_index` is the same check for the host, and the objective's
    `check_batch` lets a loop name what was wrong after the fact, at no cost to the step.

    Args:
      apply_fn: `(params, model_state, inputs, *, train, key) -> (logits, model_state)`.
      base_loss: `(logits, batch) -> [batch]`, for example `sam_free.cross_entropy`.
      num_classes: width of the logits.
      lag_epochs: E~ >= 1, the age of the target in epochs.
      start_epoch: counts from 0, strict: the term is on in epochs > start_epoch (the published
        code; the paper, which counts from 1, begins one epoch earlier).
      weight: lambda >= 0. At 0 there is no table and no cost.
      temperature: tau > 0.
      tau_squared: the published scale; False is the literal paper form, 25 times weaker.
      buffer_dtype: "float16", "float32", "int8" (256 steps a row) or "float64".
      ring: "lag_plus_one" keeps lag_epochs + 1 rows of an example, as published; "lag" keeps
        lag_epochs, reading a row before it is overwritten. Both give the same numbers when every
        example is seen once an epoch; otherwise they differ in which stale rows survive.
      stale: "mask", or "official": whatever stands in the row is the target, and rows never
        written are zeros, a uniform target.
      end_epoch: strict end, in epochs from 0, as the published code has; None: never.
      order: "global", any example on any device: a gather of the batch's indices and outputs; or
        "owner_local", for data that gives device d only examples of its own block of rows: no
        communication at all.
      published_ranks: with R > 1, what the published script does in R processes: R tables that
        know nothing of each other, and examples that wander between them, by their place in the
        global batch. Needs "official"; not for batches in parts (group_size, accumulation).
      raise_on_bad_index: check in the compiled program through a host callback. Slow.
      axis_name: of the mapped axis over which batch and table are split; None: neither is.
    Returns:
      An objective with `init`, `loss`, `update` and `sharded`.
    Raises:
      ValueError: an argument is out of its range.
    """
    check_whole("saf", least=1, lag_epochs=lag_epochs, published_ranks=published_ranks)
    check_whole("saf", least=2, num_classes=num_classes)
    check_whole("saf", least=-1, start_epoch=start_epoch)
    check_not_negative("saf", weight=weight)
    check_positive("saf", temperature=temperature)
    check_choice("saf", choices=DTYPES, buffer_dtype=buffer_dtype)
    check_choice("saf", choices=("lag_plus_one", "lag"), ring=ring)
    check_choice("saf", choices=("mask", "official"), stale=stale)
    check_choice("saf", choices=("global", "owner_local"), order=order)
    if end_epoch is not None:
        check_whole("saf", least=start_epoch + 1, end_epoch=end_epoch)
    if published_ranks > 1 and (stale != "official" or order != "global"):
        raise ValueError(
            f"saf: published_ranks={published_ranks} needs stale='official' and order='global', "
            f"got {stale!r} and {order!r}."
        )
    return SAF(
        apply_fn=apply_fn,
        base_loss=base_loss,
        num_classes=num_classes,
        lag_epochs=lag_epochs,
        start_epoch=start_epoch,
        weight=weight,
        temperature=temperature,
        tau_squared=tau_squared,
        buffer_dtype=buffer_dtype,
        slots=lag_epochs + (ring == "lag_plus_one"),
        mask=stale == "mask",
        end_epoch=end_epoch,
        gather=order == "global",
        published_ranks=published_ranks,
        raise_on_bad_index=raise_on_bad_index,
        axis_name=axis_name,
    )


@dataclasses.dataclass(frozen=True)
class SAF:
    """The objective that `saf` makes. Its state is a `Table`, or () where the weight is 0."""

    apply_fn: ApplyFn
    base_loss: BaseLoss
    num_classes: int
    lag_epochs: int
    start_epoch: int
    weight: float
    temperature: float
    tau_squared: bool
    buffer_dtype: str
    slots: int
    mask: bool
    end_epoch: int | None
    gather: bool
    published_ranks: int
    raise_on_bad_index: bool
    axis_name: str | None

    def init(self, params: PyTree, num_examples: int, *, model_state: PyTree = ()) -> PyTree:
        """An empty table for `num_examples` examples; params and model_state are not needed."""
        del params, model_state
        check_whole("saf", least=1, num_examples=num_examples)
        if self.weight == 0:
            return ()
        rows = num_examples * self.published_ranks
        table = make_table(rows, self.slots, self.num_classes, self.buffer_dtype)
        return table._replace(num_examples=jnp.asarray(num_examples, jnp.int32))

    def check_batch(self, batch: Batch, num_examples: int) -> None:
        """Refuses, on the host, a batch that makes the loss NaN; see `check_index`."""
        if self.weight:
            check_index(batch["index"], num_examples)
        check_labels(batch, self.num_classes)

    def sharded(self, state: PyTree) -> PyTree:
        """True for the leaves whose leading axis is split over devices."""
        return Table(True, True, True, False) if isinstance(state, Table) else ()

    def loss(
        self,
        params: PyTree,
        model_state: PyTree,
        state: PyTree,
        batch: Batch,
        epoch: Array,
        key: Array,
    ) -> tuple[Array, Outputs]:
        """The base loss plus the weighted trajectory loss, a mean over this share of the batch."""
        logits, model_state = self.apply_fn(
            params, model_state, model_inputs(batch), train=True, key=key
        )
        check_logits("saf", logits, num_classes=self.num_classes)
        base = mean_loss(self.base_loss, logits, batch)
        if self.weight == 0:
            return base, Outputs(logits, model_state, {})
        index = self._index(batch, state)
        epoch = jnp.asarray(epoch, jnp.int32)
        dtype = jnp.promote_types(logits.dtype, jnp.float32)
        past, written = read(
            state,
            self._row(index, state),
            jnp.mod(epoch - self.lag_epochs, self.slots),
            slots=self.slots,
            dtype=dtype,
            axis_name=self.axis_name,
            gather=self.gather,
        )
        fresh = (written == epoch - self.lag_epochs + 1) & (written > 0)
        past = jnp.where(fresh[:, None], past, jnp.zeros_like(past)) if self.mask else past
        distance = trajectory_loss(
            logits.astype(dtype),
            past,
            temperature=self.temperature,
            tau_squared=self.tau_squared,
        )
        if self.mask:
            distance = jnp.where(fresh, distance, 0.0)
        term = jnp.mean(distance)
        on = epoch > self.start_epoch
        if self.end_epoch is not None:
            on &= epoch < self.end_epoch
        bad = count_bad(index, state.num_examples, self.axis_name)
        # The recorded outputs are tied to everything that was read (see _table), by the one case
        # in which nothing may be recorded.
        broken = (bad > 0) | jnp.any(jnp.isnan(past)) | jnp.any(written < 0)
        total = base + jnp.where(on, self.weight * term, 0.0).astype(base.dtype)
        total = jnp.where(broken, jnp.nan, total)
        metrics = {
            "base_loss": base,
            "trajectory_loss": jnp.where(on, term, 0.0),
            "saf_fresh": jnp.mean(fresh, dtype=dtype),
            "saf_never": jnp.mean(written == 0, dtype=dtype),
            "saf_stale": jnp.mean(~fresh & (written > 0), dtype=dtype),
            "saf_bad_indices": bad.astype(dtype),
        }
        recorded = jnp.where(broken, jnp.nan, logits)
        return total, Outputs(recorded, model_state, metrics)

    def update(
        self,
        state: PyTree,
        *,
        params: PyTree,
        model_state: PyTree,
        logits: Array,
        batch: Batch,
        epoch: Array,
    ) -> PyTree:
        """The table with this batch's outputs in the row of this epoch."""
        del params, model_state
        if self.weight == 0:
            return state
        check_logits("saf", logits, num_classes=self.num_classes)
        epoch = jnp.asarray(epoch, jnp.int32)
        index = batch["index"]
        return write(
            state,
            self._row(index, state),
            jnp.mod(epoch, self.slots),
            logits,
            epoch + 1,
            slots=self.slots,
            axis_name=self.axis_name,
            gather=self.gather,
        )

    def _index(self, batch: Batch, state: Table) -> Array:
        if "index" not in batch:
            raise ValueError(f"saf: a batch must hold 'index', got {sorted(batch)}.")
        index = batch["index"]
        if not jnp.issubdtype(jnp.result_type(index), jnp.integer):
            raise ValueError(f"saf: batch['index'] must be whole numbers, got {index.dtype}.")
        if not is_traced(index) and not is_traced(state.num_examples):
            check_index(index, int(state.num_examples))
        elif self.raise_on_bad_index:
            whole = index
            if self.axis_name is not None:
                whole = jax.lax.all_gather(index, self.axis_name, tiled=True)
            jax.debug.callback(_check_on_host, whole, state.num_examples)
        return index

    def _row(self, index: Array, state: Table) -> Array:
        """The example's place in the table; with published_ranks, in its rank's own table."""
        if self.published_ranks == 1:
            return index
        share = index.shape[0]
        first, whole = 0, share
        if self.axis_name is not None:
            first = share * jax.lax.axis_index(self.axis_name)
            whole = share * jax.lax.axis_size(self.axis_name)
        rank = (first + jnp.arange(share, dtype=jnp.int32)) * self.published_ranks // whole
        return rank * state.num_examples + index


def _check_on_host(index: Any, num_examples: Any) -> None:
    check_index(np.asarray(index), int(num_examples))
