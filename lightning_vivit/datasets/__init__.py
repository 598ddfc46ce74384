"""Tangent kernels of whole data sets, block by block."""

from lightning_vivit.datasets.blocks import ntk_between

__all__ = ["ntk_between"]
