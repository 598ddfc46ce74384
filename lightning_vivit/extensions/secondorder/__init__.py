"""Second-order BackPACK extensions."""

from lightning_vivit.backpack.vivit import ViViTGGNExact, ViViTGGNMC

__all__ = ["ViViTGGNExact", "ViViTGGNMC"]
