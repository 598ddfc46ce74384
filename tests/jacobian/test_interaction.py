"""Samples that influence each other are refused by name."""

from __future__ import annotations

import pytest
import torch
from oracle.networks import Net
from torch import nn

from lightning_vivit import InteractionError, empirical_ntk, ggn_eigenvalues


class Named(nn.Module):
    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3)
        self.bn1 = nn.BatchNorm2d(3, affine=affine)
        self.fc = nn.Linear(3 * 16, 3)

    def forward(self, x):
        return self.fc(self.bn1(self.conv1(x)).relu().flatten(1))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalisation_in_training_mode(affine: bool) -> None:
    model, x = Named(affine).double(), torch.randn(5, 2, 6, 6).double()
    with pytest.raises(InteractionError, match="bn1"):
        empirical_ntk(model, x)
    with pytest.raises(InteractionError, match="bn1"):
        ggn_eigenvalues(model, nn.CrossEntropyLoss(), x, torch.tensor([0, 1, 2, 0, 1]))
    assert empirical_ntk(model.eval(), x).shape == (5, 5, 3, 3)


def test_without_running_statistics_also_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(InteractionError, match="'1'"):
        empirical_ntk(model, torch.randn(5, 4))


def test_normalisation_by_hand() -> None:
    def run(s, x):
        y = s.first(x)
        return s.second(y - y.mean(0))

    model = Net(run, first=nn.Linear(4, 3), second=nn.Linear(3, 2))
    with pytest.raises(InteractionError, match="first"):
        empirical_ntk(model, torch.randn(5, 4))


def test_softmax_over_the_batch_at_the_end() -> None:
    model = Net(lambda s, x: s.last(x).softmax(0), last=nn.Linear(4, 3))
    with pytest.raises(InteractionError, match="last"):
        empirical_ntk(model, torch.randn(5, 4))
