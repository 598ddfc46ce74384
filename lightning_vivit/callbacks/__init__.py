"""Lightning callbacks that show curvature and kernel while a network trains."""

from lightning_vivit.callbacks.base import Monitor
from lightning_vivit.callbacks.directional_derivatives import DirectionalDerivativesMonitor
from lightning_vivit.callbacks.ggn_spectrum import GGNSpectrumMonitor
from lightning_vivit.callbacks.ntk import NTKMonitor
from lightning_vivit.callbacks.options import MonitorOptions
from lightning_vivit.callbacks.raw import MonitorResult
from lightning_vivit.callbacks.schedule import Schedule

__all__ = [
    "DirectionalDerivativesMonitor",
    "GGNSpectrumMonitor",
    "Monitor",
    "MonitorOptions",
    "MonitorResult",
    "NTKMonitor",
    "Schedule",
]
