"""A short run on digits with all monitors, and what its event files hold."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.callbacks import Monitor
from lightning_vivit.demo import DigitsClassifier, DigitsDataModule
from lightning_vivit.statistics import SECTIONS


def monitors(**options) -> list[Monitor]:
    options = {"k": 3, "max_samples": 8, "data": "train", "on_error": "raise", **options}
    return [
        GGNSpectrumMonitor(**options),
        DirectionalDerivativesMonitor(gradients=True, **options),
        NTKMonitor(**options),
    ]


def fit(
    root: Path, *callbacks: pl.Callback, steps: int = 3, prefix: str = "", epochs: int | None = None
) -> Path:
    """Train on digits; returns the log directory."""
    torch.manual_seed(0)
    logger = TensorBoardLogger(root, name="run", version="0", prefix=prefix)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=epochs,
        limit_val_batches=0,
        logger=logger,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        for kind in (UserWarning, DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        trainer.fit(DigitsClassifier(width=2), DigitsDataModule(batch_size=16))
    return root / "run" / "0"


def read(folder: Path) -> EventAccumulator:
    sizes = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    found = EventAccumulator(str(folder), size_guidance=sizes)
    found.Reload()
    return found


def ours(tags: list[str]) -> set[str]:
    return {tag for tag in tags if re.search(rf"({'|'.join(SECTIONS)})/", tag)}
