"""Writes reference.npz: what neural-tangents 0.6.5 answers to the calls of cases.py.

Run it under an interpreter that has the old library (jax 0.4.30):

    python -c "from benchmarks.peers import peer_python; print(peer_python('neural-tangents',
        ['neural-tangents==0.6.5', 'jax==0.4.30', 'jaxlib==0.4.30', 'numpy<2', 'scipy<1.13']))"
    <that python> tests/reference/ntk_finite/make_reference.py
"""

import sys
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
sys.path.insert(0, str(Path(__file__).parent))

import neural_tangents
from cases import CASES, answer


def main() -> None:
    """Runs every case and stores the leaves of its result."""
    stored = {}
    for name, run in CASES.items():
        for path, value in answer(run, neural_tangents).items():
            stored[f"{name}|{path}"] = value
    np.savez_compressed(Path(__file__).parent / "reference.npz", **stored)
    refused = {k: str(v) for k, v in stored.items() if str(v).startswith("raises")}
    print(len(CASES), "cases,", len(stored), "arrays,", len(refused), "refused")
    for name, what in refused.items():
        print(name, what)


if __name__ == "__main__":
    main()
