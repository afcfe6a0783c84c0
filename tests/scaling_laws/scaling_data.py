"""The real curves and points, where a checkout carries them beside it."""

from pathlib import Path

import numpy as np
import pytest

from experiments import law_choice
from experiments.law_choice import TEST as TEST
from experiments.law_choice import TRAIN as TRAIN

ROOT = Path(__file__).parents[2].parent / "shared" / "data" / "scaling_laws"


def load(size, names):
    folder = ROOT / "mpl_curves" / size
    if not folder.exists():
        pytest.skip(f"needs the real loss curves at {folder}, which are not in this repository")
    return law_choice.load(folder, names)


def chinchilla():
    path = ROOT / "chinchilla_245.csv"
    if not path.exists():
        pytest.skip(f"needs the 245 points at {path}, whose licence is not stated")
    table = np.genfromtxt(path, delimiter=",", names=True)
    return {name: table[name] for name in ("params", "flops", "loss")}
