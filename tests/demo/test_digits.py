"""The demonstration problem."""

from pathlib import Path

import lightning.pytorch as L
import torch

from lightning_vivit.demo import DigitsClassifier, DigitsDataModule


def test_split_is_stratified_standardised_and_repeatable() -> None:
    first, second = DigitsDataModule(seed=3), DigitsDataModule(seed=3)
    first.setup()
    second.setup()
    assert len(first.train_set) + len(first.val_set) == 1797
    assert torch.equal(first.train_set.tensors[0], second.train_set.tensors[0])
    images, labels = first.train_set.tensors
    assert images.shape[1:] == (1, 8, 8)
    assert abs(float(images.mean())) < 1e-5
    assert abs(float(images.std()) - 1) < 1e-5
    shares = torch.bincount(labels, minlength=10) / labels.numel()
    assert float((shares - 0.1).abs().max()) < 0.01


def test_trains(tmp_path: Path) -> None:
    L.seed_everything(0)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitsClassifier(), DigitsDataModule())
    assert float(trainer.callback_metrics["val/accuracy"]) > 0.9
