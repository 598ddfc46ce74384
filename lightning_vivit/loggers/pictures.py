"""Histograms and figures in the forms that loggers take."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_vivit.figures.canvas import draw_pixels
from lightning_vivit.statistics import Draw


def finite(values: Tensor) -> np.ndarray:
    """The finite values as a flat float64 array, for loggers that cut bins themselves."""
    flat = values.detach().flatten().to("cpu", torch.float64)
    return flat[flat.isfinite()].numpy()


def binned(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts [bins] and edges [bins + 1] of finite values, also where these hardly differ.

    Args:
        values: At least one finite value.
        bins: How many.
    """
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or high == low:  # numpy refuses bins thinner than rounding
        margin = 1e-6 * size or 0.5
        low, high = low - margin, high + margin
    return np.histogram(values, bins=bins, range=(low, high))


def image(draw: Draw) -> Image.Image:
    """Draw a figure, close it, and return it as an RGB image."""
    return Image.fromarray(draw_pixels(draw))
