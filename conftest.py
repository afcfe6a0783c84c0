"""What every test and doctest runs under.

The environment is set before anything imports JAX: eight simulated devices, and enough threads
that their collectives cannot starve each other on a machine with two cores.
"""

import os

os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("WANDB_MODE", "offline")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
