"""The documentation text of Python's own reference manual as a LightningDataModule.

Every CPython has it: `pydoc_data.topics` holds the pages that ``help("if")`` shows, about 700 KB
of English and code. Nothing is downloaded.
"""

from __future__ import annotations

from pydoc_data.topics import topics

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a text, and the same windows one character later.

    Args:
        text: Character numbers, [length].
        window: Characters in a window.
        stride: Distance of the starts of two windows.
    """

    def __init__(self, text: Tensor, window: int, stride: int) -> None:
        self.text, self.window, self.stride = text, window, stride

    def __len__(self) -> int:
        """Number of windows."""
        return (self.text.numel() - self.window - 1) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Characters [window] and the characters that follow them [window]."""
        start = index * self.stride
        piece = self.text[start : start + self.window + 1]
        return piece[:-1], piece[1:]


class ManualTextDataModule(LightningDataModule):
    """Python's reference manual, one token per character (96 of them, all others are one).

    Args:
        batch_size: Windows in a batch.
        window: Characters in a window.
        val_fraction: Share of the text, its end, that is kept for validation.
        num_workers: Worker processes of each loader.
    """

    vocabulary = 97  # printable ASCII, the line break, and one for all others

    def __init__(
        self,
        batch_size: int = 16,
        window: int = 64,
        val_fraction: float = 0.05,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.window = window
        self.val_fraction = val_fraction
        self.num_workers = num_workers

    def setup(self, stage: str | None = None) -> None:
        """Read the text and cut it into windows."""
        encoded = encode("\n".join(topics[name] for name in sorted(topics)))
        cut = int(encoded.numel() * (1 - self.val_fraction))
        self.train_set = Windows(encoded[:cut], self.window, self.window // 2)
        self.val_set = Windows(encoded[cut:], self.window, self.window)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled training batches."""
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Validation batches."""
        return DataLoader(
            self.val_set,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def encode(text: str) -> Tensor:
    """Character numbers of a text: 0 others, 1 the line break, 2.. printable ASCII.

    Args:
        text: The text.

    Returns:
        [length], int64, below `ManualTextDataModule.vocabulary`.
    """
    codes = torch.frombuffer(bytearray(text, "utf-32-le"), dtype=torch.int32).long()
    numbers = torch.where((codes >= 32) & (codes < 127), codes - 30, torch.zeros_like(codes))
    return torch.where(codes == 10, torch.ones_like(codes), numbers)
