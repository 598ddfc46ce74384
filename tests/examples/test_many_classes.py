"""The monitors on a classifier with 1000 classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from examples.test_edge_of_stability import load

MONITORED = ("ggn/eigenvalue_1", "directions/gamma_mean_1", "ntk/trace", "projected/ntk/trace")


def test_images_show_the_digits_of_their_class() -> None:
    images, labels = load("many_classes").triples(500).tensors
    assert images.shape == (500, 1, 8, 24)
    assert set(labels.tolist()) <= set(range(1000))
    _, digits = torch.stack([labels // 100, labels // 10 % 10, labels % 10], 1).unique(
        return_inverse=True
    )
    parts = images.reshape(500, 8, 3, 8).transpose(1, 2).reshape(1500, 64)
    means = torch.stack([parts[digits.flatten() == d].mean(0) for d in range(10)])
    nearest = torch.cdist(parts, means).argmin(1)
    assert float((nearest == digits.flatten()).float().mean()) > 0.8


def test_all_monitors_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer, _, _ = load("many_classes").main(max_steps=5, every=2, mc_samples=2)
    values = trainer.callback_metrics
    assert all(float(values[key]) > 0 for key in MONITORED)
    assert 0 < float(values["projected/ntk/relative_error"]) < 1


@pytest.mark.long
def test_the_cost_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, ratio, peak = load("many_classes").main(max_steps=301, every=50)
    assert ratio < 30
    assert peak < 4
