"""BackPACK extensions that give the GGN's factor V and its Gram matrix."""

from lightning_vivit.backpack.vivit import ViViTGGNExact, ViViTGGNMC

__all__ = ["ViViTGGNExact", "ViViTGGNMC"]
