"""Pictures of spectra, kernels and directions, drawn without pyplot.

They are figures of matplotlib with a canvas of their own, so the user's backend and open figures
stay as they are, and drawing in a thread is safe.
"""

from lightning_vivit.figures.canvas import draw_pixels, to_pixels
from lightning_vivit.figures.history import History
from lightning_vivit.figures.kernel_heatmap import draw_kernel
from lightning_vivit.figures.layer_heatmap import draw_layers
from lightning_vivit.figures.sample_strips import draw_directions
from lightning_vivit.figures.spectrum_curves import draw_spectra

__all__ = [
    "History",
    "draw_directions",
    "draw_kernel",
    "draw_layers",
    "draw_pixels",
    "draw_spectra",
    "to_pixels",
]
