"""The import path that ViViT users know."""

from lightning_vivit.computations import EighComputation

__all__ = ["EighComputation"]
