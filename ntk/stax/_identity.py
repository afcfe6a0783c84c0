"""The layer that does nothing."""

import dataclasses
from typing import Any

from ntk._kernel import Kernel
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Network


@dataclasses.dataclass(frozen=True)
class IdentityLayer(Layer):
    """Description of `Identity`."""

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The inputs."""
        del params, kwargs
        return inputs

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The kernel of the inputs."""
        del kwargs
        return kernel


def Identity() -> Network:
    """The layer that returns its inputs."""
    return as_network(IdentityLayer())
