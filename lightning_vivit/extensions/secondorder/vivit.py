"""Extensions under the path that ViViT gives them."""

from lightning_vivit.backpack.vivit import ViViTGGNExact, ViViTGGNMC

__all__ = ["ViViTGGNExact", "ViViTGGNMC"]
