"""Writes neural_tangents_random.npz: kernels of `random_networks.py` by neural-tangents 0.6.5.

Run as make_neural_tangents.py; networks that the old library refuses are left out and printed.
"""

import pathlib
import sys
import time

import jax
import numpy as np
from neural_tangents import stax

HERE = pathlib.Path(__file__).parent


def main():
    """Computes nngp, ntk and cov1 of x1 with x2, and nngp and ntk of x1 with itself."""
    jax.config.update("jax_enable_x64", True)
    sys.path.insert(0, str(HERE))
    from networks import inputs
    from random_networks import SEEDS, build

    arrays = {}
    for seed in map(int, sys.argv[1:]) if len(sys.argv) > 1 else SEEDS:
        start = time.time()
        try:
            kind, layers, _, options = build(stax, seed)
            x1, x2 = inputs(kind)
            graphs = options.get("pattern")
            kernel_fn = stax.serial(*layers)[2]
            for tag, other in (("cross", x2), ("own", None)):
                if graphs is not None and other is None:
                    options["pattern"] = (graphs[0], graphs[0])
                kernel = kernel_fn(x1, other, ("nngp", "ntk", "cov1"), **options)
                for field, value in kernel._asdict().items():
                    if field != "cov1" or tag == "cross":
                        arrays[f"{seed}/{tag}/{field}"] = np.asarray(value)
        except Exception as error:
            message = str(error).strip().splitlines() or [""]
            print(f"{seed}: {type(error).__name__}: {message[0][:160]}", flush=True)
            continue
        print(f"{seed}: {time.time() - start:.1f} s", flush=True)
    np.savez_compressed(HERE / "neural_tangents_random.npz", **arrays)


if __name__ == "__main__":
    main()
