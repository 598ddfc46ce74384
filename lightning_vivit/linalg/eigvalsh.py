"""The import path that ViViT users know."""

from lightning_vivit.computations import EigvalshComputation

__all__ = ["EigvalshComputation"]
