"""Writes neural_tangents_0_6_5.npz: kernels of `networks.py` by neural-tangents 0.6.5, float64.

Run with a Python that has neural-tangents==0.6.5, jax==0.4.30, jaxlib==0.4.30, numpy<2, scipy<1.13
(`benchmarks.peers.peer_python` makes one):  python tests/reference/ntk/make_neural_tangents.py
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from neural_tangents import stax

HERE = pathlib.Path(__file__).parent


def main():
    """Computes nngp and ntk of x1 with x2 and of x1 with itself, and cov1."""
    jax.config.update("jax_enable_x64", True)
    sys.path.insert(0, str(HERE))
    from networks import NETWORKS, inputs, patterns

    arrays = {}
    for name, (kind, make, options) in NETWORKS.items():
        x1, x2 = inputs(kind)
        options = dict(options)
        graphs = options.pop("pattern", None)
        for tag, other in (("cross", x2), ("own", None)):
            if graphs is not None:
                options["pattern"] = patterns(x1, x1 if other is None else other, graphs)
                if other is None:
                    options["pattern"] = (options["pattern"][0],) * 2
            try:
                kernel_fn = make(stax, jnp)[2]
                kernel = kernel_fn(x1, other, ("nngp", "ntk", "cov1"), **options)
            except Exception as error:
                print(f"{name} {tag}: {type(error).__name__}: {str(error)[:200]}", flush=True)
                continue
            for field, value in kernel._asdict().items():
                if field != "cov1" or tag == "cross":
                    arrays[f"{name}/{tag}/{field}"] = np.asarray(value)
    np.savez_compressed(HERE / "neural_tangents_0_6_5.npz", **arrays)


if __name__ == "__main__":
    main()
