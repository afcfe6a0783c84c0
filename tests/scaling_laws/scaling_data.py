"""The real curves and points, where a checkout carries them beside it."""

from pathlib import Path

import numpy as np
import pytest

from scaling_laws import curves

ROOT = Path(__file__).parents[2].parent / "shared" / "data" / "scaling_laws"
TRAIN = ("cosine_24000", "constant_24000", "wsdcon_9")
TEST = (
    "constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3",
    "wsdcon_18",
)  # fmt: skip


def schedule(name):
    """Function from the number of steps to the rates, as the data's description gives them."""
    kind, *numbers = name.split("_")
    common = {"peak": 3e-4, "warmup": 2160}
    if kind == "cosine":
        return lambda _: curves.cosine(int(numbers[0]), end=3e-5, **common)
    if kind == "constant":
        return lambda _: curves.constant(int(numbers[0]), **common)
    if kind == "wsdcon":
        return lambda _: curves.two_stage(16000, switch=8000, end=int(numbers[0]) * 1e-5, **common)
    shape = "exponential" if kind == "wsd" else "linear"
    return lambda _: curves.wsd(24000, decay_start=20000, end=3e-5, shape=shape, **common)


def load(size, names):
    folder = ROOT / "mpl_curves" / size
    if not folder.exists():
        pytest.skip(f"needs the real loss curves at {folder}, which are not in this repository")
    return [curves.read(folder / f"{name}.csv", schedule=schedule(name)) for name in names]


def chinchilla():
    path = ROOT / "chinchilla_245.csv"
    if not path.exists():
        pytest.skip(f"needs the 245 points at {path}, whose licence is not stated")
    table = np.genfromtxt(path, delimiter=",", names=True)
    return {name: table[name] for name in ("params", "flops", "loss")}
