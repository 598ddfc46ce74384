"""The import path that ViViT users know."""

from lightning_vivit.backpack.computations import DirectionalDerivativesComputation

__all__ = ["DirectionalDerivativesComputation"]
