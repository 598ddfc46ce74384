"""Activation checkpointing: what runs again in the backward pass is not run in other forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_vivit import Problem, evaluate
from lightning_vivit.problem.forms import recomputation

INPUTS, TARGETS = torch.linspace(-1, 1, 6 * 3 * 64).reshape(6, 3, 8, 8).sin(), torch.arange(6) % 4


class Checkpointed(nn.Module):
    """Operations that are run in other forms, inside and outside of what is run again."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.linear = nn.Linear(32, 4)
        self.again = again
        self.seen: list[bool] = []
        self.eval()

    def middle(self, x: Tensor) -> Tensor:
        self.seen.append(recomputation.is_recomputed())
        x = F.pad(F.relu(self.bn2(self.conv2(F.pad(x, (0, 1, 1, 0))))), (0, 1, 0, 1))
        return F.max_pool2d(x, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        assert not recomputation.is_recomputed()
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = checkpoint(self.middle, x, use_reentrant=False) if self.again else self.middle(x)
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("asks", [True, False], ids=["torch tells", "older torch"])
@pytest.mark.parametrize("method", ["gram", "matrix_free"])
def test_it_changes_nothing(method: str, asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not asks:
        monkeypatch.setattr(recomputation, "_top_hooks", None)
    elif recomputation._top_hooks is None:
        pytest.skip("torch 2.8 tells")
    found = []
    for again in (False, True):
        model = Checkpointed(again)
        problem = Problem(model, F.cross_entropy, INPUTS, TARGETS)
        found.append(evaluate(problem, method=method, k=3).eigenvalues(k=3))
        assert model.seen and model.seen[0] is again
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_offloading_counts_too() -> None:
    if recomputation._top_hooks is None:
        pytest.skip("torch 2.8 tells")
    with torch.autograd.graph.save_on_cpu():
        assert recomputation.is_recomputed()
    assert not recomputation.is_recomputed()
