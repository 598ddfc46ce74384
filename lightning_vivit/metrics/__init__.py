"""Statistics of spectra, directions and kernels: metric classes, and pure functions below them.

Each class is a torchmetrics.Metric that works alone, without a Trainer. Calling a metric returns
the values of that call; the `functional` module holds the same computations without state.
"""

from lightning_vivit.metrics import functional
from lightning_vivit.metrics.directions import DirectionStatistics
from lightning_vivit.metrics.gradients import GradientStatistics
from lightning_vivit.metrics.kernel import KernelDrift, KernelStatistics
from lightning_vivit.metrics.spectrum import SpectrumStatistics, SubspaceOverlap

__all__ = [
    "DirectionStatistics",
    "GradientStatistics",
    "KernelDrift",
    "KernelStatistics",
    "SpectrumStatistics",
    "SubspaceOverlap",
    "functional",
]
