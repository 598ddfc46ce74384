"""scikit-learn's digits as a LightningDataModule; nothing is downloaded."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class DigitsDataModule(LightningDataModule):
    """1797 images of 8 x 8 pixels in 10 classes, standardised, split by class.

    Args:
        batch_size: Samples in a batch.
        val_fraction: Share of the samples that is kept for validation.
        seed: Chooses the split.
        num_workers: Worker processes of each loader.
    """

    def __init__(
        self,
        batch_size: int = 128,
        val_fraction: float = 0.2,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        self.num_workers = num_workers

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data."""
        images, labels = load_digits(return_X_y=True)
        split = train_test_split(
            images.reshape(-1, 1, 8, 8),
            labels,
            test_size=self.val_fraction,
            stratify=labels,
            random_state=self.seed,
        )
        train_x, val_x, train_y, val_y = (torch.as_tensor(part) for part in split)
        mean, deviation = train_x.mean(), train_x.std()

        def dataset(inputs: Tensor, targets: Tensor) -> TensorDataset:
            return TensorDataset(((inputs - mean) / deviation).float(), targets.long())

        self.train_set = dataset(train_x, train_y)
        self.val_set = dataset(val_x, val_y)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled training batches."""
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Validation batches."""
        return DataLoader(
            self.val_set,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
