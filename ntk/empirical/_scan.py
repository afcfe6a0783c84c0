"""Where the inputs of a scan divide, which JAX 0.11 writes otherwise than JAX 0.10."""

from typing import Any


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many of the inputs of a scan equation are constants, and how many the carry."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(list(consts)), len(list(carry))
