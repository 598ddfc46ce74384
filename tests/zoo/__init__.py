"""Networks that stress the bookkeeping of samples and parameters; more in `oracle.networks`.

Every factory returns a module and its inputs (a tensor or a tuple). `build` makes it in float64
with seeded values. Here are the networks whose sample axis, routing or use of parameters is
unusual; the common architectures are in `oracle.networks`.
"""

from zoo import attention, convolution, parameters, recurrent, routing  # noqa: F401  register
from zoo.base import ZOO, Entry, build, names_with

__all__ = ["ZOO", "Entry", "build", "names_with"]
