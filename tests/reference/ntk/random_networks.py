"""Random networks for the reference set: every layer, in combinations that nobody chose.

`build(stax, np, seed)` gives the same network with the old library and with ours. A network is
grown layer by layer from a random state; the grower keeps track of shapes, of what is Gaussian, and
of the number of convolutions, because the old library resizes wrongly after an odd number of them.
"""

import dataclasses
from typing import Any

import numpy

#: Seeds in the reference set.
SEEDS = range(80)
KINDS = ("vector", "image", "image", "image", "nchw", "row", "masked", "masked_row")
SPATIAL = {"vector": (), "image": (5, 4), "nchw": (5, 4), "row": (6,), "masked": (5, 4),
           "masked_row": (6,)}  # fmt: skip


def nonlinearities(stax, r):
    """Every nonlinearity, with arguments that are not the defaults."""
    a, b, c = (float(v) for v in numpy.round(r.uniform(0.3, 1.4, 3), 2))
    return [
        stax.Relu(), stax.LeakyRelu(0.1 + a / 4), stax.ABRelu(-a, b), stax.Abs(), stax.Sign(),
        stax.Erf(a, b, c - 0.7), stax.Sigmoid_like(), stax.Gelu(), stax.Sin(a, b, c),
        stax.Cos(a, b, c), stax.Rbf(a), stax.Gaussian(a, -b), stax.Exp(a, b / 3),
        stax.ExpNormalized(a, -b), stax.Gabor(), stax.Monomial(int(r.randint(1, 4))),
        stax.Polynomial([c, -a, b / 2]), stax.RectifiedMonomial(int(r.randint(0, 3))),
        stax.ElementwiseNumerical(lambda x: numpy_tanh(x, a), 9),
        stax.Elementwise(lambda x: a * x**2, lambda k, v, w: a**2 * (v * w + 2 * k**2)),
    ]  # fmt: skip


def numpy_tanh(x, scale):
    """tanh of scaled arrays of either JAX version."""
    import jax.numpy as jnp

    return jnp.tanh(scale * x)


def pool_sizes(sizes, window, strides, padding):
    """Sizes after a window slid over them."""
    if padding == "VALID":
        return tuple((n - k) // s + 1 for n, k, s in zip(sizes, window, strides))
    return tuple(-(-n // s) for n, s in zip(sizes, strides))


@dataclasses.dataclass
class Grower:
    """A growing network: its layers and what is known of its outputs."""

    stax: Any
    random: numpy.random.RandomState
    sizes: tuple
    first: bool  # channels before positions
    masked: bool
    gaussian: bool = False
    turned: bool = False  # an odd number of convolutions
    patterns: Any = None

    def pick(self, *options):
        return options[self.random.randint(len(options))]

    def number(self, low, high):
        return float(numpy.round(self.random.uniform(low, high), 2))

    @property
    def channel(self):
        return 1 if self.first else -1

    @property
    def axes(self):
        return {"batch_axis": 0, "channel_axis": self.channel}

    def scales(self):
        more = {"W_std": self.number(0.7, 1.4)}
        if self.random.rand() < 0.7:
            more["b_std"] = self.number(0.1, 0.5)
        if self.random.rand() < 0.25:
            more["parameterization"] = "standard"
            more["s"] = (int(self.random.randint(1, 3)), int(self.random.randint(1, 3)))
        return more

    def dense(self):
        self.gaussian = True
        return self.stax.Dense(4, **self.scales(), **self.axes)

    def window(self):
        window = tuple(int(self.random.randint(1, min(n, 3) + 1)) for n in self.sizes)
        strides = tuple(int(self.random.randint(1, min(n, 2) + 1)) for n in self.sizes)
        strides = strides if self.random.rand() < 0.4 else (1,) * len(self.sizes)
        return window, strides, self.pick("SAME", "VALID", "CIRCULAR")

    def conv(self):
        window, strides, padding = self.window()
        kind = self.pick("Conv", "Conv", "Conv", "ConvLocal", "ConvTranspose")
        if kind == "ConvTranspose" and (max(self.sizes) > 6 or self.masked):
            kind = "Conv"
        letters = "HW"[: len(self.sizes)]
        spec = None
        if self.first:
            spec = ("NC" + letters, "OI" + letters, "NC" + letters)
        layer = getattr(self.stax, kind)(
            4, window, strides, padding, dimension_numbers=spec, **self.scales()
        )
        if kind != "ConvTranspose":
            self.sizes = pool_sizes(self.sizes, window, strides, padding)
        elif padding == "VALID":
            self.sizes = tuple(
                n * s + max(k - s, 0) for n, k, s in zip(self.sizes, window, strides)
            )
        else:
            self.sizes = tuple(n * s for n, s in zip(self.sizes, strides))
        self.gaussian = True
        self.turned = not self.turned
        return layer

    def attention(self):
        more = {k: self.number(0.7, 1.3)
                for k in ("W_key_std", "W_value_std", "W_query_std", "W_out_std")}  # fmt: skip
        if self.random.rand() < 0.5:
            more["b_std"] = self.number(0.1, 0.5)
        if self.random.rand() < 0.3 and not self.masked:
            more |= {"linear_scaling": False, "attention_mechanism": "IDENTITY"}
        else:
            more["attention_mechanism"] = self.pick("SOFTMAX", "RELU", "ABS", "IDENTITY")
        kind = self.pick("NONE", "SUM", "CONCAT")
        if kind != "NONE":
            more |= {"pos_emb_type": kind, "W_pos_emb_std": self.number(0.5, 1.2),
                     "val_pos_emb": bool(self.random.rand() < 0.5)}  # fmt: skip
            if self.random.rand() < 0.5:
                more |= {"pos_emb_p_norm": int(self.random.randint(1, 3)),
                         "pos_emb_decay_fn": lambda d: 1 / (1 + d**2)}  # fmt: skip
            if kind == "CONCAT":
                more["n_chan_pos_emb"] = int(self.random.randint(1, 5))
        self.gaussian = True
        return self.stax.GlobalSelfAttention(4, 4, 4, 2, **more, **self.axes)

    def affine(self):
        if not self.sizes:
            return self.dense()
        # Attention on few positions only: its kernel holds all of their pairs.
        return self.pick(self.dense, self.conv, self.conv, self.conv, self.attention)()

    def nonlinearity(self):
        self.gaussian = False
        return self.pick(*nonlinearities(self.stax, self.random))

    def pool(self):
        window, strides, padding = self.window()
        self.sizes = pool_sizes(self.sizes, window, strides, padding)
        if self.random.rand() < 0.3:
            return self.stax.SumPool(window, strides, padding, **self.axes)
        edges = bool(self.random.rand() < 0.5)
        return self.stax.AvgPool(window, strides, padding, normalize_edges=edges, **self.axes)

    def dropout(self):
        mode = self.pick("train", "train", "test")
        return self.stax.Dropout(self.number(0.4, 0.95), mode)

    def norm(self):
        ndim = len(self.sizes) + 2
        others = [a for a in range(ndim) if a != self.channel % ndim]
        if self.masked:
            others = others[1:]
        axis = tuple(a for a in others if self.random.rand() < 0.4) + (self.channel % ndim,)
        return self.stax.LayerNorm(axis, eps=self.pick(1e-12, 1e-2), **self.axes)

    def resize(self):
        if self.turned and len(self.sizes) > 1:
            return self.stax.Identity()
        self.sizes = tuple(int(self.random.randint(2, 6)) for _ in self.sizes)
        shape = (-1, -1, *self.sizes) if self.first else (-1, *self.sizes, -1)
        return self.stax.ImageResize(
            shape, self.pick("linear", "nearest", "bilinear"), self.pick(True, False), **self.axes
        )

    def index(self):
        parts, sizes = [], []
        for n in self.sizes:
            part = self.pick(slice(None), slice(None, None, 2), slice(1, None), slice(None, -1),
                             slice(None, None, -1), 0, -1)  # fmt: skip
            if isinstance(part, int):
                if len(sizes) + len(self.sizes) - len(parts) <= 1:
                    part = slice(None)
            elif len(range(*part.indices(n))) < 2:
                part = slice(None)
            parts.append(part)
            if not isinstance(part, int):
                sizes.append(len(range(*part.indices(n))))
        self.sizes = tuple(sizes)
        whole = (slice(None),) * (2 if self.first else 1)
        return self.stax.Index((*whole, *parts), **self.axes)

    def dot(self):
        if self.random.rand() < 0.2:
            return self.stax.DotGeneral(**{self.pick("lhs", "rhs"): self.number(0.5, 1.5)})
        # The first positions are replaced by sums, or multiplied entry by entry.
        place = 2 if self.first else 1
        if self.random.rand() < 0.3:
            # The axis comes to the front, where it would stand for the batch.
            matrix = self.random.randn(self.sizes[0])
            if len(self.sizes) == 1:
                return self.stax.Identity()
            self.sizes = self.sizes[1:]
            dims = (((place,), (0,)), ((), ()))
            return self.stax.DotGeneral(rhs=matrix, dimension_numbers=dims, **self.axes)
        if self.first:
            matrix = self.random.randn(self.sizes[-1], 3)
            dims = (((1 + len(self.sizes),), (0,)), ((), ()))
            self.sizes = (*self.sizes[:-1], 3)
            return self.stax.DotGeneral(rhs=matrix, dimension_numbers=dims, **self.axes)
        return self.stax.Identity()

    def aggregate(self):
        if self.patterns is not None or self.masked or (self.turned and len(self.sizes) > 1):
            return self.stax.Identity()
        ndim = len(self.sizes) + 2
        places = [a for a in range(1, ndim) if a != self.channel % ndim]
        kept = [p for p in places if self.random.rand() < 0.6] or places[:1]
        sizes = [self.sizes[places.index(p)] for p in kept]
        shape = (*sizes, *sizes)
        self.patterns = tuple(
            self.random.rand(n, *shape) * (self.random.rand(n, *shape) < 0.5) for n in (4, 3)
        )
        return self.stax.Aggregate(tuple(kept), **self.axes)

    def branch(self, depth):
        """A serial of a few layers that ends Gaussian and leaves the positions alone."""
        before = dataclasses.replace(self)
        layers = []
        for _ in range(depth):
            self.sizes, self.turned = before.sizes, before.turned
            if self.gaussian and self.random.rand() < 0.7:
                layers.append(self.nonlinearity())
            layers.append(self.keeping())
        self.gaussian = True
        return self.stax.serial(*layers)

    def keeping(self):
        """An affine layer that keeps the positions."""
        if not self.sizes or self.random.rand() < 0.4:
            return self.dense()
        letters = "HW"[: len(self.sizes)]
        spec = ("NC" + letters, "OI" + letters, "NC" + letters) if self.first else None
        window = tuple(int(self.random.randint(1, 4)) for _ in self.sizes)
        window = tuple(min(k, n) for k, n in zip(window, self.sizes))
        return self.stax.Conv(4, window, None, self.pick("SAME", "CIRCULAR"),
                              dimension_numbers=spec, **self.scales())  # fmt: skip

    def branches(self):
        """FanOut, parallel and one way of joining."""
        stax, gaussian = self.stax, self.gaussian
        sizes = self.sizes
        count = int(self.random.randint(2, 4))
        parts = []
        for i in range(count):
            self.gaussian, self.sizes = gaussian, sizes
            if i == 0 and gaussian and self.random.rand() < 0.5:
                parts.append(stax.Identity())
            else:
                parts.append(self.branch(int(self.random.randint(1, 3))))
        self.sizes = sizes
        kind = self.pick("sum", "sum", "prod", "channels", "positions")
        if kind == "positions" and (not sizes or self.masked):
            kind = "sum"
        self.gaussian = kind in ("sum", "positions")
        if kind == "positions":
            place = 2 if self.first else 1
            self.sizes = (sizes[0] * count, *sizes[1:])
            join = stax.FanInConcat(place)
        elif kind == "channels":
            join = stax.FanInConcat(self.channel)
        else:
            join = {"sum": stax.FanInSum, "prod": stax.FanInProd}[kind]()
        return stax.serial(stax.FanOut(count), stax.parallel(*parts), join)

    def repeated(self):
        """A block applied several times."""
        block = [self.keeping_square(), self.nonlinearity_of_order_one(), self.keeping_square()]
        self.gaussian = True
        return self.stax.repeat(self.stax.serial(*block), int(self.random.randint(2, 8)))

    def keeping_square(self):
        """A Dense layer with as many outputs as inputs."""
        return self.stax.Dense(4, self.number(0.8, 1.2), self.number(0.1, 0.3), **self.axes)

    def nonlinearity_of_order_one(self):
        """A nonlinearity that neither explodes nor vanishes when repeated."""
        return self.pick(self.stax.Relu(), self.stax.Erf(), self.stax.Gelu(), self.stax.Sin(),
                         self.stax.LeakyRelu(0.2), self.stax.ABRelu(-0.5, 1.1))  # fmt: skip

    def step(self):
        """The next layer."""
        if not self.gaussian:
            options = [self.affine, self.affine, self.affine, self.branches]
        else:
            options = [self.nonlinearity] * 4 + [self.norm, self.affine, self.branches,
                                                 self.repeated]  # fmt: skip
        if self.sizes:
            options += [self.pool, self.resize, self.index, self.dot, self.aggregate]
        if not self.masked:
            options.append(self.dropout)
        return self.pick(*options)()


def build(stax, seed):
    """A random network.

    Args:
      stax: the old library's or ours.
      seed: of its layers.
    Returns:
      Kind of inputs, layers below and above a cut, keyword arguments of kernel_fn.
    """
    r = numpy.random.RandomState(1000 + seed)
    kind = KINDS[seed % len(KINDS)]
    masked = kind.startswith("masked")
    grower = Grower(stax, r, SPATIAL[kind], kind == "nchw", masked)
    layers = [grower.affine(), *(grower.step() for _ in range(r.randint(3, 8)))]
    if grower.sizes:
        last = grower.pick("GlobalAvgPool", "GlobalSumPool", "Flatten", "Flatten")
        axes = {"batch_axis": 0} if last == "Flatten" else grower.axes
        layers.append(getattr(stax, last)(**axes))
    layers.append(stax.Dense(1, grower.number(0.8, 1.3), grower.number(0.1, 0.4)))
    options = {"mask_constant": 100.0} if masked else {}
    if grower.patterns is not None:
        options["pattern"] = grower.patterns
    if r.rand() < 0.3:
        options["diagonal_batch"] = False
    cut = int(r.randint(1, len(layers)))
    return kind, layers, cut, options
