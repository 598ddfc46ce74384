"""Gradient descent on digits ends with a sharpness of about 2 / lr."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parents[2]


def load(name: str) -> Any:
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hessian_sharpness(module: Any, images: Tensor, targets: Tensor) -> float:
    """Largest eigenvalue of the Hessian of the loss, by power iteration in double backward."""
    parameters = list(module.parameters())
    loss = F.mse_loss(module.net(images), targets, reduction="sum") / (2 * len(images))
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(p.shape, generator=generator) for p in parameters]
    value = 0.0
    for _ in range(300):
        norm = torch.cat([part.flatten() for part in vector]).norm()
        vector = [part / norm for part in vector]
        product = torch.autograd.grad(slopes, parameters, vector, retain_graph=True)
        value = sum(float((a * b).sum()) for a, b in zip(vector, product, strict=True))
        vector = list(product)
    return value


@pytest.mark.long
def test_sharpness_rises_to_two_over_lr_and_stays(tmp_path: Path) -> None:
    lr, path = 0.125, tmp_path / "figures" / "edge.png"
    module, data, history, mean = load("edge_of_stability").main(path, lr=lr)
    start = min(history.sharpness[:200])
    assert start < 0.75 * 2 / lr  # it was far below,
    assert abs(mean - 2 / lr) < 0.2 * 2 / lr  # rose to 2 / lr,
    late = history.sharpness[-400:]
    assert max(late) < 1.2 * 2 / lr and min(late) > 0.8 * 2 / lr  # and stays there,
    assert history.losses[-1] < 0.5 * history.losses[400]  # while the loss still falls
    hessian = hessian_sharpness(module, *data.tensors)
    assert abs(hessian - 2 / lr) < 0.2 * 2 / lr
    assert abs(hessian - history.sharpness[-1]) < 0.05 * hessian
    assert path.stat().st_size > 10_000


def test_a_short_run_draws_and_returns_every_step(tmp_path: Path) -> None:
    path = tmp_path / "edge.png"
    _, _, history, mean = load("edge_of_stability").main(path, steps=12, every=4)
    assert len(history.losses) == len(history.sharpness) == 12
    assert len(set(history.sharpness)) == 3
    assert mean == pytest.approx(sum(history.sharpness[-3:]) / 3)
    assert path.exists()
