"""Calls that neural-tangents 0.6.5 and `ntk` must answer alike, float64, on the same inputs.

`CASES` maps a name to a function of the library; its result is a pytree of arrays. Inputs are drawn
by NumPy, whose generator gives the same numbers under every version.
"""

import collections
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CASES: dict[str, Any] = {}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def spd(seed, n):
    a = normal(seed, n, n + 3)
    return a @ a.T / (n + 3)


# Functions ---------------------------------------------------------------------------------------


def mlp(params, x):
    for k, (w, b) in enumerate(params):
        x = jnp.dot(x, w) / np.sqrt(w.shape[0]) + 0.1 * b
        if k < len(params) - 1:
            x = jnp.tanh(x)
    return x


MLP = [
    (normal(1, 5, 7), normal(2, 1, 7)),
    (normal(3, 7, 6), normal(4, 1, 6)),
    (normal(5, 6, 3), normal(6, 1, 3)),
]
X1, X2 = normal(7, 4, 5), normal(8, 3, 5)


def cnn(params, x):
    """Outputs [batch, height, width, channels]."""
    for k, w in enumerate(params):
        x = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        if k < len(params) - 1:
            x = jnp.sin(x)
    return x


CNN = [normal(11, 3, 3, 2, 4), normal(12, 3, 2, 4, 2)]
Z1, Z2 = normal(13, 2, 3, 4, 2), normal(14, 2, 3, 4, 2)


def tree_function(params, x):
    a = jnp.tanh(jnp.dot(x["a"], params["w"]) + jnp.dot(x["b"], params["v"]))
    return {"first": jnp.dot(a, params["u"]), "second": (a[:, :2] ** 2, a)}


TREE = {"w": normal(21, 3, 4), "v": normal(22, 2, 4), "u": normal(23, 4, 2)}
T1 = {"a": normal(24, 3, 3), "b": normal(25, 3, 2)}
T2 = {"a": normal(26, 2, 3), "b": normal(27, 2, 2)}


def with_mask(params, x, mask=None, power=2):
    return jnp.dot(jnp.tanh(x) * mask, params) ** power


# Empirical kernels -------------------------------------------------------------------------------

OPTIONS = {
    "full": {"trace_axes": (), "diagonal_axes": ()},
    "default": {},
    "diagonal": {"trace_axes": (), "diagonal_axes": (-1,)},
    "batch_diagonal": {"trace_axes": (), "diagonal_axes": (0,)},
    "batch_diagonal_traced": {"trace_axes": -1, "diagonal_axes": 0},
    "all_traced": {"trace_axes": (0, 1), "diagonal_axes": ()},
    "batch_traced": {"trace_axes": (0,), "diagonal_axes": (1,)},
}


def _empirical(options, implementation, vmap_axes, x2):
    def run(nt):
        kernel_fn = nt.empirical_ntk_fn(
            mlp, vmap_axes=vmap_axes, implementation=implementation, **options
        )
        return kernel_fn(X1, x2, MLP)

    return run


for name, options in OPTIONS.items():
    batch = "batch" in name or "all" in name
    for implementation, vmap_axes in itertools.product((1, 2), (None, 0)):
        for label, x2 in (("none", None), ("other", X1[::-1] if batch else X2)):
            CASES[f"ntk/mlp/{name}/{implementation}/{vmap_axes}/{label}"] = _empirical(
                options, implementation, vmap_axes, x2
            )
    CASES[f"nngp/mlp/{name}"] = lambda nt, o=options, b=batch: nt.empirical_nngp_fn(mlp, **o)(
        X1, X1[::-1] if b else X2, MLP
    )

for trace_axes, diagonal_axes in [
    ((), ()),
    ((-1,), ()),
    ((1, 2), ()),
    ((-1,), (1,)),
    ((2,), (-1,)),
    ((), (1, 2)),
    ((-1, -2), (0,)),
    ((0,), (1, 3)),
    (3, 0),
]:
    key = f"{trace_axes}/{diagonal_axes}"
    CASES[f"ntk/cnn/{key}"] = lambda nt, t=trace_axes, d=diagonal_axes: nt.empirical_ntk_fn(
        cnn, trace_axes=t, diagonal_axes=d
    )(Z1, Z2, CNN)
    CASES[f"ntk/cnn_vmap/{key}"] = lambda nt, t=trace_axes, d=diagonal_axes: nt.empirical_ntk_fn(
        cnn, trace_axes=t, diagonal_axes=d, vmap_axes=0, implementation=2
    )(Z1, None, CNN)
    CASES[f"nngp/cnn/{key}"] = lambda nt, t=trace_axes, d=diagonal_axes: nt.empirical_nngp_fn(
        cnn, trace_axes=t, diagonal_axes=d
    )(Z1, Z2, CNN)

for get in ("nngp", "ntk", ("nngp", "ntk"), ("ntk",), None):
    CASES[f"kernel/get/{get}"] = lambda nt, get=get: nt.empirical_kernel_fn(mlp)(X1, X2, get, MLP)
for axes in (None, 0, (0, 0, {}), ({"a": 0, "b": 0}, {"first": 0, "second": (0, 0)}, {})):
    CASES[f"kernel/tree/{axes}"] = lambda nt, axes=axes: nt.empirical_kernel_fn(
        tree_function, vmap_axes=axes
    )(T1, T2, None, TREE)
W = normal(31, 5, 3)
M1, M2 = normal(32, 4, 5), normal(33, 3, 5)
CASES["kwargs/pair"] = lambda nt: nt.empirical_ntk_fn(with_mask)(X1, X2, W, mask=(M1, M2))
CASES["kwargs/pair_vmap"] = lambda nt: nt.empirical_ntk_fn(
    with_mask, vmap_axes=(0, 0, {"mask": 0})
)(X1, X2, W, mask=(M1, M2), power=3)
CASES["kwargs/shared"] = lambda nt: nt.empirical_kernel_fn(with_mask)(X1, None, None, W, mask=M1)
CASES["vp/mlp"] = lambda nt: nt.empirical_ntk_vp_fn(mlp, X1, X2, MLP)(normal(34, 3, 3))
CASES["vp/none"] = lambda nt: nt.empirical_ntk_vp_fn(mlp, X1, None, MLP)(normal(35, 4, 3))
CASES["vp/tree"] = lambda nt: nt.empirical_ntk_vp_fn(tree_function, T1, T2, TREE)(
    tree_function(jax.tree_util.tree_map(lambda a: a + 1, TREE), T2)
)
MOVED = jax.tree_util.tree_map(lambda a: a + 0.3 * np.cos(a), MLP)
CASES["linearize"] = lambda nt: nt.linearize(mlp, MLP)(MOVED, X1)
for degree in range(5):
    CASES[f"taylor/{degree}"] = lambda nt, d=degree: nt.taylor_expand(mlp, MLP, d)(MOVED, X1)

# Prediction --------------------------------------------------------------------------------------

N, M, O = 6, 4, 3
K_ALL = spd(41, N + M)
K_DD, K_TD, K_TT = K_ALL[:N, :N], K_ALL[N:, :N], K_ALL[N:, N:]
G_ALL = spd(42, N + M) + 0.3 * K_ALL
G_DD, G_TD, G_TT = G_ALL[:N, :N], G_ALL[N:, :N], G_ALL[N:, N:]
Y, F0, F1 = normal(43, N, O), normal(44, N, O), normal(45, M, O)


def zipped(seed, n, m, o):
    full = spd(seed, (n + m) * o).reshape(n + m, o, n + m, o).transpose(0, 2, 1, 3)
    return full[:n, :n], full[n:, :n], full[n:, n:]


FULL_DD, FULL_TD, FULL_TT = zipped(46, N, M, O)
TIMES = {
    "none": None,
    "zero": 0.0,
    "one": 1.3,
    "int": 2,
    "inf": np.inf,
    "vector": np.array([0.0, 0.5, 10.0, 1e5]),
    "matrix": np.array([[0.1, 1.0], [3.0, np.inf]]),
}
STARTS = {
    "zero": (0.0, None, None),
    "train": (F0, None, None),
    "both": (F0, F1, "td"),
    "scalars": (0.5, 0.25, "td"),
    "test_only": (None, F1, "td"),
    "on_train": (F0, F0, "dd"),
}
REGS = {
    "plain": {},
    "relative": {"diag_reg": 0.1},
    "absolute": {"diag_reg": 0.2, "diag_reg_absolute_scale": True, "learning_rate": 0.7},
}


def _mse(kernels, reg, t, start):
    def run(nt):
        dd, td = kernels
        axes = (-1,) if dd.ndim == 2 else ()
        predict_fn = nt.predict.gradient_descent_mse(dd, Y, trace_axes=axes, **reg)
        k = {None: None, "td": td, "dd": dd}[start[2]]
        return predict_fn(t, start[0], start[1], k)

    return run


for reg, t, start in itertools.product(REGS, TIMES, STARTS):
    CASES[f"mse/{reg}/{t}/{start}"] = _mse((K_DD, K_TD), REGS[reg], TIMES[t], STARTS[start])
for t, start in itertools.product(("none", "vector"), STARTS):
    CASES[f"mse/full/{t}/{start}"] = _mse(
        (FULL_DD, FULL_TD), REGS["relative"], TIMES[t], STARTS[start]
    )
Y3 = normal(47, 2, 3, 2)
K3 = spd(48, 6).reshape(2, 3, 2, 3).transpose(0, 2, 1, 3)
K3_BATCH = spd(49, 2)
K3_MIDDLE = spd(50, 4).reshape(2, 2, 2, 2).transpose(0, 2, 1, 3)
for key, kernel, axes in (
    ("last", K3, (-1,)),
    ("two", K3_BATCH, (1, 2)),
    ("middle", K3_MIDDLE, (1,)),
):
    for t in ("none", "one", "vector"):
        CASES[f"mse/axes/{key}/{t}"] = lambda nt, k=kernel, a=axes, t=TIMES[t]: (
            nt.predict.gradient_descent_mse(k, Y3, trace_axes=a)(t, 0.1 * Y3, 0.2 * Y3, k)
        )

Gaussians = collections.namedtuple("Gaussians", ["nngp", "ntk"])
BOTH = {
    "dd": Gaussians(G_DD, K_DD),
    "td": Gaussians(G_TD, K_TD),
    "tt": Gaussians(G_TT, K_TT),
}


def _gp(reg, get, td, tt):
    def run(nt):
        predict_fn = nt.predict.gp_inference(BOTH["dd"], Y, **reg)
        return predict_fn(get, td and BOTH[td], BOTH.get(tt, tt))

    return run


GETS = {
    "nngp": "nngp",
    "ntk": "ntk",
    "ntkgp": "ntkgp",
    "both": ("nngp", "ntk"),
    "all": ("ntkgp", "nngp", "ntk"),
    "one": ("ntk",),
    "none": None,
}
REGS_GP = {k: {a: b for a, b in v.items() if a != "learning_rate"} for k, v in REGS.items()}
for reg, get in itertools.product(REGS_GP, GETS):
    for td, tt in ((None, None), (None, True), ("td", None), ("td", "tt"), ("dd", "dd")):
        CASES[f"gp/{reg}/{get}/{td}/{tt}"] = _gp(REGS_GP[reg], GETS[get], td, tt)
CASES["gp/array"] = lambda nt: nt.predict.gp_inference(G_DD, Y)("nngp", G_TD, G_TT)
CASES["gp/array_mean"] = lambda nt: nt.predict.gp_inference(G_DD, Y)("nngp", G_TD)
CASES["gp/array_ntk"] = lambda nt: nt.predict.gp_inference(G_DD, Y)("ntk", G_TD)
CASES["gp/full"] = lambda nt: nt.predict.gp_inference(FULL_DD, Y, trace_axes=())(
    "nngp", FULL_TD, FULL_TT
)
CASES["gp/full_ntk"] = lambda nt: nt.predict.gp_inference(
    Gaussians(FULL_DD, 2 * FULL_DD), Y, diag_reg=1e-2, trace_axes=()
)(("ntk", "ntkgp"), Gaussians(FULL_TD, 2 * FULL_TD), Gaussians(FULL_TT, 2 * FULL_TT))

XTRAIN, XTEST = normal(51, N, 2), normal(52, M, 2)


def kernel_fn(x1, x2, get, scale=1.0):
    """Two smooth kernels; a string gives an array, a tuple a namedtuple."""
    x2 = x1 if x2 is None else x2
    square = jnp.sum((x1[:, None, :] - x2[None, :, :]) ** 2, -1)
    dot = jnp.sum(x1[:, None, :] * x2[None, :, :], -1)
    kernels = {"nngp": jnp.exp(-square) + 0.1 * dot, "ntk": scale * jnp.exp(-square / 2) + dot**2}
    if isinstance(get, str):
        return kernels[get]
    names = ("nngp", "ntk") if get is None else get
    return collections.namedtuple("Pair", names)(**{k: kernels[k] for k in names})


def _ensemble(reg, t, x_test, get, compute_cov, kwargs):
    def run(nt):
        predict_fn = nt.predict.gradient_descent_mse_ensemble(kernel_fn, XTRAIN, Y, **reg, **kwargs)
        return predict_fn(t=t, x_test=x_test, get=get, compute_cov=compute_cov)

    return run


for reg, t, get, cov in itertools.product(
    ("plain", "relative"),
    ("none", "zero", "one", "inf", "vector", "matrix"),
    ("nngp", "ntk", "both", "one", "none"),
    (False, True),
):
    for label, x_test in (("test", XTEST), ("train", XTRAIN), ("none", None)):
        CASES[f"ensemble/{reg}/{t}/{get}/{cov}/{label}"] = _ensemble(
            REGS[reg], TIMES[t], x_test, GETS[get], cov, {}
        )
CASES["ensemble/kwargs"] = _ensemble({}, 2.0, XTEST, "ntk", True, {"scale": 2.0})

for momentum in (0.0, 0.9):
    for size in (None, N * O, 100):
        CASES[f"max_learning_rate/{momentum}/{size}"] = lambda nt, m=momentum, s=size: (
            nt.predict.max_learning_rate(K_DD, s, m)
        )
    CASES[f"max_learning_rate/full/{momentum}"] = lambda nt, m=momentum: (
        nt.predict.max_learning_rate(FULL_DD, None, m)
    )


def mse_loss(fx, y):
    return 0.5 * jnp.mean((fx - y) ** 2)


def cross_entropy(fx, y):
    return -jnp.mean(jax.nn.log_softmax(fx) * y)


ONE_HOT = np.eye(O)[[0, 1, 2, 0, 1, 2]]
LOSSES = {"mse": (mse_loss, Y), "cross_entropy": (cross_entropy, ONE_HOT)}
ODE_STARTS = {k: STARTS[k] for k in ("zero", "train", "both", "scalars", "test_only")}
ODE_TIMES = {
    "zero": 0.0,
    "one": 1.3,
    "int": 3,
    "vector": np.array([0.0, 0.5, 10.0]),
    "late": np.array([2.0, 4.0]),
    "matrix": np.array([[0.1, 1.0], [3.0, 20.0]]),
}


def _descent(loss, momentum, t, start, kernels):
    def run(nt):
        function, y = LOSSES[loss]
        dd, td = kernels
        axes = (-1,) if dd.ndim == 2 else ()
        predict_fn = nt.predict.gradient_descent(
            function, dd, y, learning_rate=0.5, momentum=momentum, trace_axes=axes
        )
        return predict_fn(t, start[0], start[1], None if start[2] is None else td)

    return run


for loss, momentum, t, start in itertools.product(LOSSES, (None, 0.9), ODE_TIMES, ODE_STARTS):
    CASES[f"ode/{loss}/{momentum}/{t}/{start}"] = _descent(
        loss, momentum, ODE_TIMES[t], ODE_STARTS[start], (K_DD, K_TD)
    )
CASES["ode/full"] = _descent(
    "cross_entropy", 0.9, ODE_TIMES["vector"], STARTS["both"], (FULL_DD, FULL_TD)
)


def _resumed(momentum, test):
    def run(nt):
        predict_fn = nt.predict.gradient_descent(
            mse_loss, K_DD, Y, learning_rate=0.5, momentum=momentum
        )
        start = nt.predict.ODEState(F0, F1 if test else None)
        k = K_TD if test else None
        middle = predict_fn(2.0, start, None, k)
        last = predict_fn(3.0, middle, None, k)
        return [[s.fx_train, s.fx_test, s.qx_train, s.qx_test] for s in (middle, last)]

    return run


for momentum, test in itertools.product((None, 0.9), (False, True)):
    CASES[f"ode/state/{momentum}/{test}"] = _resumed(momentum, test)


# Runner ------------------------------------------------------------------------------------------


def flatten(result: Any) -> dict[str, np.ndarray]:
    """Leaves by path; None is kept, as an empty array of strings."""
    found = {}

    def visit(path, node):
        if node is None:
            found[path] = np.array("None")
        elif isinstance(node, dict):
            for k in sorted(node):
                visit(f"{path}.{k}", node[k])
        elif isinstance(node, list | tuple):
            names = getattr(node, "_fields", range(len(node)))
            for k, item in zip(names, node):
                visit(f"{path}.{k}", item)
        else:
            found[path] = np.asarray(node)

    visit("", result)
    return found


def answer(run: Any, nt: Any) -> dict[str, np.ndarray]:
    """The flat result of one case; an error is recorded by the name of its class."""
    try:
        return flatten(run(nt))
    except Exception as error:  # what the other library refuses is part of its answer
        return {"": np.array(f"raises {type(error).__name__}")}
