"""Global self-attention (arXiv:2006.10540)."""

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk._kernel import Kernel
from ntk.stax._covariance import spatial_shape
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network, axes_of, check_axes, with_size

Array = jax.Array


class AttentionMechanism(enum.Enum):
    """What is applied to the products of queries and keys."""

    SOFTMAX = "SOFTMAX"
    IDENTITY = "IDENTITY"
    ABS = "ABS"
    RELU = "RELU"

    def weights(self, scores: Array, hidden: Array | None) -> Array:
        """Attention weights [..., queries, keys]; keys that are `hidden` get none."""
        if self is AttentionMechanism.SOFTMAX:
            if hidden is None:
                return jax.nn.softmax(scores, axis=-1)
            # A finite floor: a row whose keys are all hidden must not become NaN.
            floor = jnp.finfo(scores.dtype).min
            return jnp.where(hidden, 0, jax.nn.softmax(jnp.where(hidden, floor, scores), axis=-1))
        out = {
            AttentionMechanism.IDENTITY: lambda x: x,
            AttentionMechanism.ABS: jnp.abs,
            AttentionMechanism.RELU: jax.nn.relu,
        }[self](scores)
        return out if hidden is None else jnp.where(hidden, 0, out)


class PositionalEmbedding(enum.Enum):
    """How random embeddings of positions enter."""

    NONE = "NONE"
    SUM = "SUM"
    CONCAT = "CONCAT"


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionLayer(Layer):
    """Description of `GlobalSelfAttention`; the arguments are documented there."""

    n_chan_out: int
    n_chan_key: int
    n_chan_val: int
    n_heads: int
    linear_scaling: bool
    W_key_std: Any
    W_value_std: Any
    W_query_std: Any
    W_out_std: Any
    b_std: Any
    mechanism: AttentionMechanism
    embedding: PositionalEmbedding
    p_norm: float
    decay_fn: Callable[[Any], Any] | None
    n_chan_pos_emb: int | None
    W_pos_emb_std: Any
    val_pos_emb: bool
    batch_axis: int
    channel_axis: int

    @property
    def name(self) -> str:
        """The name in messages."""
        return "GlobalSelfAttention"

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Concatenated embeddings make the kernel depend on widths."""
        return self.embedding is not PositionalEmbedding.CONCAT

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    def output_shape(self, shape: Any) -> Any:
        """The channels become `n_chan_out`."""
        axes_of(len(shape), self.batch_axis, self.channel_axis)
        return with_size(shape, self.channel_axis, self.n_chan_out)

    def _embedding_width(self, channels: int) -> int:
        wide = self.n_chan_pos_emb
        if self.embedding is PositionalEmbedding.SUM and wide not in (None, channels):
            raise ValueError(
                f"n_chan_pos_emb={wide}, but embeddings that are summed have the {channels} "
                "channels of the inputs; leave it None."
            )
        return channels if wide is None else wide

    def init(self, key: Array, shape: Any) -> Any:
        """Query, key, value and output weights, bias, embeddings."""
        batch, channel, _ = axes_of(len(shape), self.batch_axis, self.channel_axis)
        keys = jax.random.split(key, 6)
        channels = shape[channel]
        extra = 0
        positions = None
        if self.embedding is not PositionalEmbedding.NONE:
            wide = self._embedding_width(channels)
            extra = wide if self.embedding is PositionalEmbedding.CONCAT else 0
            one = with_size(with_size(shape, batch, 1), channel, wide)
            positions = jax.random.normal(keys[5], one)
        seen = channels + extra
        values = seen if self.val_pos_emb else channels
        query = jax.random.normal(keys[0], (self.n_heads, seen, self.n_chan_key))
        tied = self.linear_scaling
        own = None if tied else jax.random.normal(keys[1], (self.n_heads, seen, self.n_chan_key))
        value = jax.random.normal(keys[2], (self.n_heads, values, self.n_chan_val))
        out = jax.random.normal(keys[3], (self.n_chan_val * self.n_heads, self.n_chan_out))
        bias = with_size((1,) * len(shape), channel, self.n_chan_out)
        shift = None if self.b_std is None else jax.random.normal(keys[4], bias)
        return query, own, value, out, shift, positions

    def apply(self, params: Any, inputs: Any, mask: Any = None, **kwargs: Any) -> Any:
        """Heads of attention over all positions."""
        del kwargs
        if self.decay_fn is not None:
            raise NotImplementedError("pos_emb_decay_fn is known in the limit only.")
        query, own, value, out, bias, positions = params
        batch, channel, spatial = axes_of(inputs.ndim, self.batch_axis, self.channel_axis)
        order = (batch, *spatial, channel)

        def flat(x):
            x = x.transpose(order)
            return x.reshape(x.shape[0], -1, x.shape[-1])

        x = plain = flat(inputs)
        hidden = None
        if mask is not None:
            one = jnp.all(jnp.broadcast_to(mask, inputs.shape), axis=channel, keepdims=True)
            hidden = flat(one)[:, None, None, :, 0]
        if positions is not None:
            embedded = flat(positions) * self.W_pos_emb_std
            embedded = jnp.broadcast_to(embedded, x.shape[:-1] + embedded.shape[-1:])
            if self.embedding is PositionalEmbedding.SUM:
                x = x + embedded
            else:
                x = jnp.concatenate([x, embedded], axis=-1)
        read = x if self.val_pos_emb else plain

        def project(array, weights, std):
            scale = std / weights.shape[1] ** 0.5
            return scale * jnp.einsum("npc,hcd->nhpd", array, weights)

        queries = project(x, query, self.W_query_std)
        keys = project(x, query if own is None else own, self.W_key_std)
        scale = self.n_chan_key ** (-1.0 if self.linear_scaling else -0.5)
        scores = jnp.einsum("nhpd,nhqd->nhpq", queries, keys) * scale
        weights = self.mechanism.weights(scores, hidden)
        heads = jnp.einsum("nhpq,nhqd->nphd", weights, project(read, value, self.W_value_std))
        heads = heads.reshape(heads.shape[:2] + (-1,))
        result = heads @ out * (self.W_out_std / (self.n_chan_val * self.n_heads) ** 0.5)
        sizes = (inputs.shape[batch], *(inputs.shape[a] for a in spatial), self.n_chan_out)
        result = result.reshape(sizes).transpose([order.index(a) for a in range(inputs.ndim)])
        return result if bias is None else result + self.b_std * bias

    def mask(self, mask: Array, shape: Any) -> Array:
        """Masked where every channel is."""
        del shape
        return jnp.all(mask, axis=self.channel_axis, keepdims=True)

    def need(self, need: Need) -> Need:
        """Everything: attention weights depend on all pairs of positions of each input."""
        del need
        return Need(pairs=True, own=True, own_pairs=True)

    def embedding_covariance(self, spatial: tuple[int, ...], dtype: Any) -> Array:
        """Covariance [P, P] of the embeddings of positions in row-major order, without W_pos."""
        total = math.prod(spatial)
        if self.decay_fn is None:
            return jnp.eye(total, dtype=dtype)
        grid = np.stack(np.meshgrid(*map(np.arange, spatial), indexing="ij"), axis=-1)
        grid = grid.reshape(total, -1)
        distance = np.sum(np.abs(grid[:, None] - grid[None]) ** float(self.p_norm), axis=-1)
        return jnp.asarray(self.decay_fn(jnp.asarray(distance, dtype)), dtype)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Averages over positions with the attention weights of either input."""
        del kwargs
        check_axes(kernel, self.batch_axis, self.channel_axis)
        if not self.linear_scaling and self.mechanism is not AttentionMechanism.IDENTITY:
            raise NotImplementedError(
                f"attention_mechanism={self.mechanism.value!r} with linear_scaling=False has no "
                "known kernel; use linear_scaling=True, or attention_mechanism='IDENTITY', or "
                "monte_carlo_kernel_fn."
            )
        if kernel.diagonal_spatial or kernel.diagonal_cov:
            raise ValueError("the kernel holds only equal positions (diagonal_spatial=True).")
        spatial = spatial_shape(kernel)
        count, total = len(spatial), math.prod(spatial)
        batch, channel, _ = axes_of(len(kernel.shape1), self.batch_axis, self.channel_axis)
        dtype = kernel.nngp.dtype

        def flat(array, lead):
            one = [lead + 2 * i for i in range(count)]
            two = [lead + 2 * i + 1 for i in range(count)]
            array = array.transpose(list(range(lead)) + one + two)
            return array.reshape(array.shape[:lead] + (total, total))

        def back(array, lead):
            array = array.reshape(array.shape[:lead] + spatial * 2)
            order = list(range(lead)) + [lead + i + s for i in range(count) for s in (0, count)]
            return array.transpose(order)

        seen_share, added = 1.0, jnp.zeros((total, total), dtype)
        if self.embedding is not PositionalEmbedding.NONE:
            channels = kernel.shape1[channel]
            wide = self._embedding_width(channels)
            added = self.embedding_covariance(spatial, dtype) * self.W_pos_emb_std**2
            if self.embedding is PositionalEmbedding.CONCAT:
                seen_share = channels / (channels + wide)
                added = added * (1 - seen_share)

        def seen(array):
            """What queries and keys see of a covariance [..., P, P]."""
            return array * seen_share + added.reshape((1,) * (array.ndim - 2) + added.shape)

        def hidden(mask):
            if mask is None:
                return None
            rows = jnp.squeeze(jnp.moveaxis(mask, batch, 0), channel + (channel < batch))
            return rows.reshape(rows.shape[0], 1, total)

        def own(cov, diagonal):
            cov = flat(cov, 1 if diagonal else 2)
            return cov if diagonal else jnp.moveaxis(jnp.diagonal(cov, axis1=0, axis2=1), -1, 0)

        cov2 = kernel.cov1 if kernel.cov2 is None else kernel.cov2
        own1, own2 = own(kernel.cov1, kernel.diagonal_batch), own(cov2, kernel.diagonal_batch)
        factor = (self.W_out_std * self.W_value_std) ** 2
        bias = 0.0 if self.b_std is None else self.b_std**2
        score = self.W_query_std * self.W_key_std
        outer = 1 if kernel.diagonal_batch else 2
        # Embeddings are trained: their own tangent kernel is their covariance.
        trained = added

        if self.linear_scaling:
            g1 = self.mechanism.weights(score * seen(own1), hidden(kernel.mask1))
            g2 = self.mechanism.weights(score * seen(own2), hidden(kernel.mask2))

            def mixed(array, left, right, lead):
                rule = "apq,bst,abqt->abps" if lead == 2 else "apq,ast,aqt->aps"
                return factor * jnp.einsum(rule, left, right, array, precision="highest")

            def output(array, left, right, lead):
                values = flat(array, lead)
                values = seen(values) if self.val_pos_emb else values
                return mixed(values, left, right, lead)

            plain = output(kernel.nngp, g1, g2, 2)
            tangent = kernel.ntk
            if tangent is not None:
                inner = flat(tangent, 2) if tangent.ndim else jnp.zeros_like(plain)
                if self.val_pos_emb:
                    inner = inner * seen_share + trained.reshape((1, 1) + trained.shape)
                tangent = 2 * plain + bias + mixed(inner, g1, g2, 2)
            new1 = output(kernel.cov1, g1, g1, outer)
            new2 = None if kernel.cov2 is None else output(kernel.cov2, g2, g2, outer)
        else:
            factor = factor * score**2

            def product(array, lead, keep):
                pairs = flat(array, lead)
                keyed = seen(pairs)
                values = keyed if self.val_pos_emb else pairs
                total_sum = jnp.sum(keyed * values * keep, axis=(-2, -1), keepdims=True)
                return factor * keyed * total_sum

            ones = jnp.ones((), dtype)
            plain = product(kernel.nngp, 2, ones)
            tangent = kernel.ntk
            if tangent is not None:
                pairs = flat(kernel.nngp, 2)
                keyed = seen(pairs)
                values = keyed if self.val_pos_emb else pairs
                inner = flat(tangent, 2) if tangent.ndim else jnp.zeros_like(pairs)
                moved = inner * seen_share + trained.reshape((1, 1) + trained.shape)
                moved_values = moved if self.val_pos_emb else inner

                def total_of(x, y):
                    return jnp.sum(x * y, axis=(-2, -1), keepdims=True)

                tangent = (
                    4 * plain
                    + bias
                    + factor
                    * (
                        moved * total_of(keyed, values)
                        + keyed * total_of(moved, values)
                        + keyed * total_of(keyed, moved_values)
                    )
                )
            new1 = product(kernel.cov1, outer, ones)
            new2 = None if kernel.cov2 is None else product(kernel.cov2, outer, ones)
        out = kernel.replace(
            nngp=back(plain + bias, 2),
            ntk=None if tangent is None else back(tangent, 2),
            cov1=back(new1 + bias, outer),
            cov2=None if new2 is None else back(new2 + bias, outer),
            residual=None,
            is_gaussian=True,
            is_input=False,
            shared=(),
            shape1=self.output_shape(kernel.shape1),
            shape2=self.output_shape(kernel.shape2),
        )
        if kernel.mask1 is None and kernel.mask2 is None:
            return out
        return out.mask(kernel.mask1, kernel.mask2)


def GlobalSelfAttention(
    n_chan_out: int,
    n_chan_key: int,
    n_chan_val: int,
    n_heads: int,
    linear_scaling: bool = True,
    W_key_std: Any = 1.0,
    W_value_std: Any = 1.0,
    W_query_std: Any = 1.0,
    W_out_std: Any = 1.0,
    b_std: Any = None,
    attention_mechanism: Any = "SOFTMAX",
    pos_emb_type: Any = "NONE",
    pos_emb_p_norm: float = 2,
    pos_emb_decay_fn: Callable[[Any], Any] | None = None,
    n_chan_pos_emb: int | None = None,
    W_pos_emb_std: Any = 1.0,
    val_pos_emb: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Network:
    """Self-attention over all positions, in the limit of many heads and key channels.

    Args:
      n_chan_out: output channels.
      n_chan_key: channels of queries and keys.
      n_chan_val: channels of values.
      n_heads: number of heads.
      linear_scaling: products of queries and keys are divided by n_chan_key and the two share
        their weights; otherwise by its root, with weights of their own, where only
        attention_mechanism="IDENTITY" has a kernel.
      W_key_std, W_value_std, W_query_std, W_out_std: standard deviations.
      b_std: of the bias; None for none.
      attention_mechanism: "SOFTMAX", "IDENTITY", "ABS" or "RELU".
      pos_emb_type: "NONE", "SUM" or "CONCAT".
      pos_emb_p_norm: distances of positions are sums of differences to this power.
      pos_emb_decay_fn: covariance of embeddings as a function of the distance; None for
        independent ones.
      n_chan_pos_emb: channels of the embeddings; None for those of the inputs.
      W_pos_emb_std: standard deviation of the embeddings.
      val_pos_emb: whether values see the embeddings as well.
      batch_axis: of the inputs.
      channel_axis: of the inputs.
    """
    mechanism = _member(AttentionMechanism, attention_mechanism, "attention_mechanism")
    embedding = _member(PositionalEmbedding, pos_emb_type, "pos_emb_type")
    return as_network(
        AttentionLayer(
            n_chan_out,
            n_chan_key,
            n_chan_val,
            n_heads,
            linear_scaling,
            W_key_std,
            W_value_std,
            W_query_std,
            W_out_std,
            b_std,
            mechanism,
            embedding,
            pos_emb_p_norm,
            pos_emb_decay_fn,
            n_chan_pos_emb,
            W_pos_emb_std,
            val_pos_emb,
            batch_axis,
            channel_axis,
        )
    )


def _member(kind: Any, value: Any, argument: str) -> Any:
    name = str(getattr(value, "value", value)).upper()
    if name not in kind.__members__:
        raise ValueError(
            f"GlobalSelfAttention: {argument} must be one of {list(kind.__members__)}, got "
            f"{value!r}."
        )
    return kind[name]
