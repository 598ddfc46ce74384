"""The import path that ViViT users know."""

from lightning_vivit.computations import DirectionalDampedNewtonComputation

__all__ = ["DirectionalDampedNewtonComputation"]
