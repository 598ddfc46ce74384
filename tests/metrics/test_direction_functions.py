"""Statistics along directions against hand computations and a quadratic loss."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_vivit.errors import OptionError
from lightning_vivit.metrics.functional import gradient_share, newton_steps, signal_to_noise


def test_gradient_share_by_hand():
    gammas = torch.tensor([[3.0, 0.0], [1.0, 2.0]])  # gradient along the directions: (2, 1)
    assert gradient_share(gammas, 0.5, 20.0).item() == pytest.approx(0.25)
    assert gradient_share(gammas, 1.0, torch.tensor(20.0)).item() == pytest.approx(1.0)
    assert math.isnan(gradient_share(0 * gammas, 0.5, 0.0).item())


def test_gradient_share_of_a_complete_basis_is_one():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(7, 5, generator=generator, dtype=torch.float64)  # [N, P]
    basis = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    norm = gradients.mean(0).square().sum()
    assert gradient_share(gradients @ basis, 1 / 7, norm).item() == pytest.approx(1.0)
    part = gradient_share(gradients @ basis[:, :2], 1 / 7, norm)
    assert 0.0 < part.item() < 1.0
    flipped = gradient_share(gradients @ -basis[:, :2], 1 / 7, norm)
    assert torch.equal(part, flipped)


def test_signal_to_noise_by_hand():
    values = torch.tensor([[1.0, 5.0, 0.0, -1.0], [3.0, 5.0, 0.0, 1.0]])
    ratio = signal_to_noise(values)  # column 0: mean 2, unbiased variance 2
    assert ratio[0].item() == 2.0
    assert ratio[1].item() == math.inf
    assert math.isnan(ratio[2].item())
    assert ratio[3].item() == 0.0


def test_signal_to_noise_of_one_sample_is_not_known():
    assert signal_to_noise(torch.ones(1, 3)).isnan().all()


def test_signal_to_noise_ignores_scale_and_sign():
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(signal_to_noise(-7 * values), signal_to_noise(values))


def test_newton_step_reaches_the_minimum_of_a_quadratic():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, generator=generator, dtype=torch.float64)
    point = torch.randn(3, generator=generator, dtype=torch.float64)
    # loss = 1/N sum_n (x_n . w - y_n)^2 / 2
    residual = inputs @ point - targets
    _, basis = torch.linalg.eigh(inputs.T @ inputs / 6)
    gammas = residual[:, None] * (inputs @ basis)
    lambdas = (inputs @ basis).square()
    reached = point + basis @ newton_steps(gammas, lambdas, 1 / 6)
    minimum = torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0]
    assert torch.allclose(reached, minimum)
    assert torch.allclose(newton_steps(gammas, lambdas, 1.0), newton_steps(gammas, lambdas, 1 / 6))


def test_newton_step_with_damping():
    gammas, lambdas = torch.tensor([[4.0, -6.0]]), torch.tensor([[1.0, 2.0]])
    assert newton_steps(gammas, lambdas, 1.0).tolist() == [-4.0, 3.0]
    assert newton_steps(gammas, lambdas, 1.0, 1.0).tolist() == [-2.0, 2.0]
    assert newton_steps(gammas, lambdas, 1.0, torch.tensor(1.0)).tolist() == [-2.0, 2.0]
    assert newton_steps(gammas, lambdas, 1.0, torch.tensor([3.0, 1.0])).tolist() == [-1.0, 2.0]
    flat = newton_steps(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), 1.0)
    assert flat[0].item() == -math.inf
    assert math.isnan(flat[1].item())


def test_newton_step_with_slopes_of_other_samples():
    gammas, lambdas = torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    step = newton_steps(gammas, lambdas, 1 / 3, gradient_scale=1 / 2)
    assert step.item() == pytest.approx(-1.5)


GAMMAS = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_share(torch.ones(3), 1.0, 1.0), r"gammas of shape \[3\]"),
        (lambda: gradient_share(GAMMAS * math.nan, 1.0, 1.0), "6 of 6 entries"),
        (lambda: gradient_share(GAMMAS, math.nan, 1.0), "scale = nan"),
        (lambda: gradient_share(GAMMAS, 1.0, -1.0), "gradient_norm_squared = -1"),
        (lambda: signal_to_noise(torch.ones(0, 2)), r"values of shape \[0, 2\]"),
        (lambda: newton_steps(GAMMAS, torch.ones(3, 3), 1.0), r"lambdas of shape \[3, 3\]"),
        (lambda: newton_steps(GAMMAS, torch.ones(4, 2), 1.0), "gradient_scale"),
        (lambda: newton_steps(GAMMAS, GAMMAS, 1.0, -1.0), "damping = -1"),
        (lambda: newton_steps(GAMMAS, GAMMAS, 1.0, torch.ones(3)), r"damping of shape \[3\]"),
        (lambda: newton_steps(GAMMAS, GAMMAS, 1.0, torch.tensor([-1.0, 1.0])), "value -1"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(OptionError, match=message):
        call()
