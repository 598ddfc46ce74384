"""What every loss offers to the stages after it, and the checks that all losses share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.losses.call import LossCall
from lightning_vivit.machine.numbers import all_finite
from lightning_vivit.samples.layout import SampleLayout


class SampleLoss(ABC):
    """Per-sample value, gradient and Hessian root of a loss in the outputs f_n.

    The per-sample losses are defined by loss = scale * sum_n l_n(f_n). Columns are ordered as
    `SampleLayout.flatten` orders the outputs.

    Attributes:
        scale: 1/N for a mean over the batch, 1 for a sum.
        normalizer: What reduction "mean" divides by: a number of entries, or a sum of weights.
            Needed for microbatches only.
    """

    scale: float
    normalizer: float = float("nan")

    @abstractmethod
    def value(self) -> Tensor:
        """Losses l_n, [N]."""

    @abstractmethod
    def gradient(self) -> Tensor:
        """Gradients r_n of l_n with respect to f_n, [N, D]."""

    @abstractmethod
    def hessian_root(self) -> Tensor:
        """Roots S_n with S_n S_n^T the Hessian of l_n with respect to f_n, [N, D, M]."""

    def hessian_product(self, vectors: Tensor, overwrite: bool = False) -> Tensor:
        """Hessians H_n of l_n times vectors; losses with many outputs do it without a root.

        Args:
            vectors: [N, D, K].
            overwrite: Whether the memory of the vectors may be taken for the result.

        Returns:
            [N, D, K]. Costs a few passes over the vectors; memory for the result and K numbers
            for each position. By default the root is formed.
        """
        root = self.hessian_root()
        return root @ (root.transpose(1, 2) @ vectors)

    def root_product(self, vectors: Tensor, transpose: bool = False) -> Tensor | None:
        """Roots S_n times vectors without forming them, for a root with M = D columns.

        Args:
            vectors: [N, D, K].
            transpose: Multiply with S_n^T instead.

        Returns:
            [N, D, K]; None from a loss that can only form its roots.
        """
        return None

    def basis(self) -> Tensor | None:
        """Orthonormal columns that span all gradients r_n and all roots S_n, if fewer than D do.

        Returns:
            [D, D'] with D' < D, the same for all samples; None if all D directions matter.
        """
        return None

    @abstractmethod
    def sampled_root(self, mc_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Random roots whose product S_n S_n^T is the Hessian on average.

        Args:
            mc_samples: Number of columns M.
            generator: Source of the random numbers, on any device; the device's default if None.

        Returns:
            [N, D, M].
        """


def compute_dtype(outputs: Tensor) -> torch.dtype:
    """Dtype to calculate in: that of the outputs, but float32 for half precision."""
    return torch.promote_types(outputs.dtype, torch.float32)


def read_outputs(call: LossCall, layout: SampleLayout) -> Tensor:
    """The outputs without their graph, after the checks that hold for every loss."""
    outputs = call.outputs
    if not isinstance(outputs, Tensor):
        raise ProblemError(
            f"{call.name} got outputs of type {type(outputs).__name__}; they must be a tensor."
        )
    if not outputs.is_floating_point():
        raise ProblemError(
            f"{call.name} got outputs of dtype {outputs.dtype}, which have no derivatives. "
            "Pass the floating-point outputs of the model (logits, not predicted classes)."
        )
    if outputs.numel() == 0:
        raise ProblemError(
            f"{call.name} got outputs of shape {tuple(outputs.shape)}: the batch is empty. "
            "Pass at least one sample."
        )
    layout.split(outputs)  # raises where the outputs do not belong to N samples
    return outputs.detach()


def read_target(call: LossCall) -> Tensor:
    """The target as a tensor on the device of the outputs."""
    if not isinstance(call.target, Tensor):
        raise ProblemError(
            f"{call.name} got a target of type {type(call.target).__name__}; it must be a tensor."
        )
    return call.target.detach().to(call.outputs.device)


def read_options(call: LossCall, allowed: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their defaults; one that is not known must not change the numbers silently."""
    given = {key: value for key, value in call.options.items() if value is not None}
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise ProblemError(
            f"{call.name} got the option(s) {', '.join(unknown)}, which are not supported. "
            f"Supported are {', '.join(allowed)}. Express the loss as an explicit Problem with "
            "a custom loss function instead."
        )
    return {**allowed, **given}


def read_weight(call: LossCall, key: str, weight: Tensor | None, dtype: torch.dtype) -> Any:
    """A weight tensor after the check that it keeps the loss convex, or None."""
    if weight is None:
        return None
    weight = torch.as_tensor(weight).detach().to(call.outputs.device, dtype)
    if not bool((weight >= 0).all()):
        raise ProblemError(
            f"{call.name} got a {key} with negative or NaN entries. The curvature has a root only "
            "for weights that are zero or positive."
        )
    return weight


def check_finite(call: LossCall, value: Tensor, gradient: Tensor) -> None:
    """Refuse a loss that is not a number.

    Args:
        call: The call, for the message.
        value: Terms of the loss, any shape.
        gradient: Terms of its gradient, any shape.
    """
    if all_finite(value) and all_finite(gradient):
        return
    total = float(value.sum())
    what = f"value {total}" if not all_finite(value) else "a gradient that is not finite"
    raise ProblemError(
        f"{call.name} has {what} on this batch, so it has no curvature. "
        "Look for NaN or infinite inputs, targets or parameters (a run that diverged)."
    )


def check_mc_samples(mc_samples: int) -> None:
    """Refuse a number of Monte-Carlo columns that is not a positive integer."""
    if isinstance(mc_samples, bool) or not isinstance(mc_samples, int) or mc_samples < 1:
        raise OptionError(f"mc_samples is {mc_samples!r}; it must be a positive integer.")


def random_device(generator: torch.Generator | None, like: Tensor) -> torch.device:
    """Where to draw: a generator only works on its own device."""
    return like.device if generator is None else generator.device
