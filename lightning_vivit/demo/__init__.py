"""A small real problem to look at: classify scikit-learn's handwritten digits."""

from lightning_vivit.demo.data import DigitsDataModule
from lightning_vivit.demo.model import DigitsClassifier

__all__ = ["DigitsClassifier", "DigitsDataModule"]
