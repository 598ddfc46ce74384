"""The learning rate finder of Lightning finds with monitors what it finds alone."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.tuner import Tuner
from monitor_toys import Classifier, loader

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor


class Tunable(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.lr = 1e-3

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def tuned(tmp_path, monitors):
    pl.seed_everything(0)
    module = Tunable()
    trainer = pl.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        callbacks=monitors,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    found = Tuner(trainer).lr_find(
        module, train_dataloaders=loader(), num_training=20, min_lr=1e-4, max_lr=10
    )
    assert found is not None
    trainer.fit(module, loader())
    return found.results["loss"], module, trainer.callback_metrics


@pytest.mark.filterwarnings("ignore:.*no logger")
def test_learning_rate_finder(tmp_path):
    options = {"k": 2, "every_n_steps": 2, "on_error": "raise"}
    monitors = [
        kind(**options) for kind in (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)
    ]
    losses, module, metrics = tuned(tmp_path, monitors)
    alone, plain, _ = tuned(tmp_path, [])
    assert losses == alone and module.lr == plain.lr != 1e-3
    for one, two in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, two)
    assert {"ggn/eigenvalue_1", "ntk/eigenvalue_1"} <= set(metrics)
