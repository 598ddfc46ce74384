"""The import path that ViViT users know."""

from lightning_vivit.backpack.computations import EighComputation

__all__ = ["EighComputation"]
