"""Checks of a loss against autograd through torch's own functional losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.losses import LossCall, SampleLoss, make_loss
from lightning_vivit.samples.layout import SampleLayout


def mse_loss(
    outputs: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """`F.mse_loss`, also with the weight that older versions of torch lack."""
    if weight is None:
        return F.mse_loss(outputs, target, reduction=reduction)
    if "weight" in inspect.signature(F.mse_loss).parameters:
        return F.mse_loss(outputs, target, weight=weight, reduction=reduction)
    terms = weight * (outputs - target) ** 2
    return {"none": terms, "sum": terms.sum(), "mean": terms.sum() / weight.sum()}[reduction]


FUNCTIONALS: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "nll_loss": lambda outputs, *args, **kwargs: F.nll_loss(
        F.log_softmax(outputs, 1), *args, **kwargs
    ),
    "mse_loss": mse_loss,
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "custom": lambda outputs, target, function, reduction: function(outputs, target),
}


def torch_loss(call: LossCall, outputs: Tensor) -> Tensor:
    """The loss that the user reduces: multiplier times the call, summed."""
    options = {key: value for key, value in call.options.items() if key != "traced"}
    return (FUNCTIONALS[call.name](outputs, call.target, **options) * call.multiplier).sum()


def rows_of_samples(layout: SampleLayout, rows: int) -> list[list[int]]:
    """Row numbers of each sample, written without the layout's own methods."""
    positions = rows // layout.num_samples
    if layout.minor:
        return [
            [t * layout.num_samples + n for t in range(positions)]
            for n in range(layout.num_samples)
        ]
    return [[n * positions + t for t in range(positions)] for n in range(layout.num_samples)]


def entry_numbers(layout: SampleLayout, shape: torch.Size) -> Tensor:
    """[N, D]: the entry of the flattened outputs that is output d of sample n."""
    numbers = torch.arange(shape.numel()).reshape(shape)
    rows = rows_of_samples(layout, shape[0])
    return torch.stack([torch.cat([numbers[row].flatten() for row in own]) for own in rows])


def check(
    call: LossCall, layout: SampleLayout, expected_scale: float, **tolerance: Any
) -> SampleLoss:
    """Compare value, gradient and Hessian root with autograd of the actual loss."""
    loss = make_loss(call, layout)
    outputs = call.outputs.detach()
    numbers = entry_numbers(layout, outputs.shape)
    assert loss.scale == expected_scale

    torch.testing.assert_close(
        loss.scale * loss.value().sum(), torch_loss(call, outputs), **tolerance
    )
    assert loss.value().shape == (layout.num_samples,)

    leaf = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch_loss(call, leaf) / loss.scale, leaf)
    torch.testing.assert_close(loss.gradient(), gradient.flatten()[numbers], **tolerance)

    hessian = torch.autograd.functional.hessian(lambda x: torch_loss(call, x) / loss.scale, outputs)
    hessian = hessian.reshape(outputs.numel(), outputs.numel())
    actual = torch.zeros_like(hessian)  # also the blocks between samples must be zero
    for own, root in zip(numbers, loss.hessian_root(), strict=True):
        assert root.shape[0] == len(own)
        actual[own[:, None], own[None, :]] = root @ root.T
    torch.testing.assert_close(actual, hessian, **tolerance)
    return loss


def check_monte_carlo(loss: SampleLoss, mc_samples: int = 40_000, deviations: float = 6.0) -> None:
    """The sampled roots are unbiased, up to `deviations` standard errors, and repeatable."""
    root = loss.hessian_root()
    hessian = root @ root.mT
    samples = loss.sampled_root(mc_samples, torch.Generator().manual_seed(3))
    n, d = hessian.shape[:2]
    assert samples.shape == (n, d, mc_samples)
    again = loss.sampled_root(mc_samples, torch.Generator().manual_seed(3))
    assert torch.equal(samples, again)

    columns = samples * mc_samples**0.5
    products = torch.einsum("ncm,ndm->ncd", samples, samples)
    second = torch.einsum("ncm,ndm->ncd", columns**2, columns**2) / mc_samples
    error = ((second - products**2).clamp(min=0) / mc_samples).sqrt()
    floor = 1e-5 * hessian.abs().amax()  # entries without variance
    assert ((products - hessian).abs() <= deviations * error + floor).all()
    mean_error = (hessian.diagonal(dim1=1, dim2=2) / mc_samples).sqrt()
    assert (columns.mean(-1).abs() <= deviations * mean_error + 1e-9).all()
