"""The import path that ViViT users know."""

from lightning_vivit.backpack.computations import DirectionalDampedNewtonComputation

__all__ = ["DirectionalDampedNewtonComputation"]
