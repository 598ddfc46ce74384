"""The import paths that ViViT users know."""

from lightning_vivit.optim.directional_damped_newton import DirectionalDampedNewtonComputation
from lightning_vivit.optim.directional_derivatives import DirectionalDerivativesComputation

__all__ = ["DirectionalDampedNewtonComputation", "DirectionalDerivativesComputation"]
