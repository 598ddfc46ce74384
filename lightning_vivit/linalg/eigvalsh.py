"""The import path that ViViT users know."""

from lightning_vivit.backpack.computations import EigvalshComputation

__all__ = ["EigvalshComputation"]
