"""Second-order BackPACK extensions."""

from lightning_vivit.extensions.secondorder.vivit import ViViTGGNExact, ViViTGGNMC

__all__ = ["ViViTGGNExact", "ViViTGGNMC"]
