"""Small real problems to look at: handwritten digits, and the text of Python's manual."""

from lightning_vivit.demo.data import DigitsDataModule
from lightning_vivit.demo.gpt import CharacterGPT
from lightning_vivit.demo.model import DigitsClassifier
from lightning_vivit.demo.text import ManualTextDataModule

__all__ = ["CharacterGPT", "DigitsClassifier", "DigitsDataModule", "ManualTextDataModule"]
