"""Signal and noise of gradients: closed forms, and the estimators' means over all draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lightning_vivit.errors import OptionError
from lightning_vivit.metrics import functional as F


def moments(gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms of the rows, and the squared norm of their mean."""
    return gradients.norm(dim=1), gradients.mean(dim=0).square().sum()


def test_by_hand():
    found = moments(torch.tensor([[3.0, 1.0], [3.0, -1.0]], dtype=torch.float64))
    assert F.gradient_noise(*found).item() == pytest.approx(2.0)
    assert F.gradient_signal(*found).item() == pytest.approx(8.0)
    assert F.gradient_noise_scale(*found).item() == pytest.approx(0.25)


def test_noise_is_the_trace_of_the_covariance():
    gradients = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = torch.cov(gradients.T)
    assert torch.allclose(F.gradient_noise(*moments(gradients)), covariance.trace())


def test_equal_gradients_have_no_noise_and_opposite_ones_no_signal():
    equal = moments(torch.ones(5, 3))
    assert F.gradient_noise(*equal).item() == 0.0
    assert F.gradient_signal(*equal).item() == pytest.approx(3.0)
    assert F.gradient_noise_scale(*equal).item() == 0.0
    opposite = moments(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
    assert F.gradient_signal(*opposite).item() == pytest.approx(-5.0)
    assert F.gradient_noise_scale(*opposite).item() == math.inf


def test_one_sample_and_no_gradients_say_nothing():
    for call in (F.gradient_noise, F.gradient_signal, F.gradient_noise_scale):
        assert math.isnan(call(torch.ones(1), 1.0).item())
    assert math.isnan(F.gradient_noise_scale(torch.zeros(4), 0.0).item())


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_both_estimators_are_unbiased(samples):
    population = torch.tensor([[1.0, 0.0], [4.0, 2.0], [-2.0, 3.0]], dtype=torch.float64)
    draws = [moments(population[list(d)]) for d in itertools.product(range(3), repeat=samples)]
    noise = torch.stack([F.gradient_noise(*draw) for draw in draws]).mean()
    signal = torch.stack([F.gradient_signal(*draw) for draw in draws]).mean()
    mean = population.mean(dim=0)
    assert torch.allclose(noise, (population - mean).square().sum() / 3)
    assert torch.allclose(signal, mean.square().sum())


def test_agrees_with_the_two_batch_sizes_of_the_paper():
    gradients = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norms, big = moments(gradients + 0.5)
    small = norms.square().mean()  # batches of one sample, appendix A.1
    signal = (6 * big - 1 * small) / (6 - 1)
    noise = (small - big) / (1 / 1 - 1 / 6)
    assert torch.allclose(F.gradient_noise_scale(norms, big), noise / signal)


def test_the_scale_of_the_gradients_does_not_matter():
    norms, squared = moments(torch.tensor([[3.0, 1.0], [2.0, -1.0], [1.0, 1.0]]))
    scaled = F.gradient_noise_scale(1e-3 * norms, 1e-6 * squared)
    assert torch.allclose(scaled, F.gradient_noise_scale(norms, squared))


@pytest.mark.parametrize(
    ("norms", "squared", "message"),
    [
        (torch.ones(3, 2), 1.0, r"\[3, 2\]"),
        (torch.ones(3), -1.0, "mean_norm_squared = -1"),
        (torch.tensor([1.0, math.nan]), 1.0, "infinite or NaN"),
        ([1.0, 2.0], 1.0, "of type list"),
    ],
)
def test_wrong_input_is_refused(norms, squared, message):
    with pytest.raises(OptionError, match=message):
        F.gradient_noise_scale(norms, squared)
