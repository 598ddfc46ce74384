"""Any convex loss of the outputs, by double differentiation.

Choose it for a loss without closed formulas here. It costs D double backward passes through the
loss function (not the model), each for all samples at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses.call import LossCall
from lightning_vivit.losses.sample_loss import (
    SampleLoss,
    check_finite,
    check_mc_samples,
    compute_dtype,
    random_device,
    read_options,
    read_outputs,
)
from lightning_vivit.losses.scaling import average_draws, scale_terms
from lightning_vivit.machine.numbers import all_finite
from lightning_vivit.samples.layout import SampleLayout

_MANY_OUTPUTS = 2048


class CustomLoss(SampleLoss):
    """A callable of outputs and target that returns a scalar, a sum or mean over samples.

    The callable only defines the sum of the l_n. `value` evaluates it on each sample alone where
    the results add up to the loss, and otherwise shares the loss equally among the samples: the
    constants in l_n are then a convention, its derivatives are not affected.

    Up to 2048 outputs of a sample the Hessian is formed at once and refused if it is not convex or
    joins samples; for more outputs only when its root is asked for.
    """

    def __init__(self, call: LossCall, layout: SampleLayout) -> None:
        """Read the call and differentiate it.

        Args:
            call: A call named `custom`.
            layout: Which rows of the outputs belong to which sample.
        """
        options = read_options(call, {"function": None, "reduction": "mean"})
        if not callable(options["function"]):
            raise ProblemError(
                f"A custom loss needs the option function, a callable of outputs and target; got "
                f"{options['function']!r}."
            )
        if options["reduction"] not in ("mean", "sum"):
            raise ProblemError(
                f"A custom loss got reduction {options['reduction']!r}; supported are 'mean' and "
                "'sum', which say how its scalar depends on the number of samples."
            )
        outputs = read_outputs(call, layout)
        scaling = scale_terms(
            call, layout.num_samples, torch.Size(), 1.0, options["reduction"], outputs.dtype
        )
        self.scale = scaling.scale
        self.normalizer = float(layout.num_samples)
        self._factor = float(scaling.coefficient)  # sum_n l_n = factor * function(...)
        self._call, self._layout = call, layout
        self._function: Callable[[Tensor, Any], Tensor] = options["function"]
        self._root: Tensor | None = None
        with torch.inference_mode(False), torch.enable_grad():
            self._outputs = outputs.clone()
            self._outputs_live = self._outputs.clone().requires_grad_()
            total, self._slopes = self._evaluate(self._outputs_live)
            self._total = total.detach()
            check_finite(call, self._total, self._slopes.detach())
            self._check_gradients(self._slopes.detach())
        self._gradient = layout.flatten(self._slopes.detach())  # [N, D]
        if self._gradient.shape[1] <= _MANY_OUTPUTS:
            self.hessian_root()  # with the checks that need all second derivatives

    def value(self) -> Tensor:
        """Losses l_n, [N]."""
        n = self._layout.num_samples
        shared = (self._total / n).expand(n)
        rows = self._layout.split(self._outputs)  # [N, T, ...]
        target = self._call.target
        if not (isinstance(target, Tensor) and target.ndim and len(target) == len(self._outputs)):
            return shared
        targets = self._layout.split(target)
        weight = self._factor / n if self.scale != 1.0 else self._factor
        try:
            alone = torch.stack([self._function(rows[i], targets[i]).detach() for i in range(n)])
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            # The user's function may only accept the whole batch.
            return shared
        values = alone.reshape(-1) * weight
        if values.shape != (n,) or not torch.allclose(
            values.sum(), self._total, rtol=1e-4, atol=1e-6
        ):
            return shared
        return values

    def gradient(self) -> Tensor:
        """Gradients r_n, [N, D]."""
        return self._gradient

    def hessian_root(self) -> Tensor:
        """Roots S_n from eigenvectors, [N, D, D]; made once, by D products."""
        if self._root is None:
            self._root = self._factorise(self._blocks())
        return self._root

    def hessian_product(self, vectors: Tensor, overwrite: bool = False) -> Tensor:
        """Products by double differentiation of the loss function, [N, D, K]."""
        return torch.stack([self._product(column) for column in vectors.unbind(2)], dim=2)

    def sampled_root(self, mc_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian draws with the Hessian as covariance, [N, D, M]."""
        check_mc_samples(mc_samples)
        root = self.hessian_root()
        noise = torch.randn(
            *self._gradient.shape,
            mc_samples,
            generator=generator,
            device=random_device(generator, root),
            dtype=root.dtype,
        )
        return average_draws(root @ noise.to(root.device))

    def _evaluate(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """sum_n l_n and its gradient, with a graph; `outputs` must require a gradient."""
        loss = self._function(outputs, self._call.target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ProblemError(
                f"The custom loss returned {got} instead of a scalar tensor. Reduce it over "
                "samples and outputs with a mean or a sum, and name that reduction."
            )
        if not loss.requires_grad:
            raise ProblemError(
                "The custom loss does not depend differentiably on the outputs. Build it from "
                "differentiable torch operations, without detach, item or numpy."
            )
        loss = loss.reshape(()) * self._factor
        (slopes,) = torch.autograd.grad(loss, outputs, create_graph=True, materialize_grads=True)
        return loss, slopes

    def _product(self, vector: Tensor) -> Tensor:
        """Hessian of sum_n l_n times a vector [N, D], [N, D]."""
        if not self._slopes.requires_grad:  # linear in the outputs
            return torch.zeros_like(self._gradient)
        cotangent = self._layout.unflatten(vector, self._outputs.shape)
        (result,) = torch.autograd.grad(
            self._slopes, self._outputs_live, cotangent, retain_graph=True, materialize_grads=True
        )
        return self._layout.flatten(result).detach()

    def _blocks(self) -> Tensor:
        """The Hessians, [N, D, D], after the check that no second derivative joins two samples."""
        n, d = self._gradient.shape
        units = torch.eye(d, dtype=self._gradient.dtype, device=self._gradient.device)
        blocks = torch.stack([self._product(unit.expand(n, d)) for unit in units], dim=1)
        draw = torch.Generator().manual_seed(0)
        probe = torch.randn(n, d, generator=draw, dtype=blocks.dtype).to(blocks.device)
        if not all_finite(blocks):
            raise ProblemError(
                "The second derivatives of the custom loss are not finite on this batch. Avoid "
                "functions with an infinite curvature, such as the square root at zero."
            )
        self._check_separate(self._product(probe), torch.einsum("nc,ncd->nd", probe, blocks))
        return blocks

    def _check_separate(self, actual: Tensor, expected: Tensor) -> None:
        """Refuse cross terms between samples."""
        eps = torch.finfo(actual.dtype).eps
        error = float((actual - expected).abs().max())
        if error <= eps**0.5 * float(expected.abs().max()) + 16 * eps * self._factor:
            return
        raise ProblemError(
            "The samples interact through the custom loss (or it is random): its derivatives for "
            "one sample depend on the outputs of another. Supported are sums and means of "
            "losses of single samples; compare samples inside the loss function of another "
            "Problem only if they form one sample there."
        )

    def _check_gradients(self, slopes: Tensor) -> None:
        """Swap the outputs of some samples: the gradients of the others must stay.

        This finds interactions without second derivatives, such as a hinge on differences. For
        every two samples some bit of their numbers differs, so some swap separates them.
        """
        n, rows = self._layout.num_samples, self._layout.split(self._outputs)
        before = self._layout.flatten(slopes)
        for bit in range((n - 1).bit_length()):
            chosen = (torch.arange(n, device=rows.device) >> bit) % 2 == 1
            swapped = rows.clone()
            swapped[chosen] = rows.roll(1, 0)[chosen]
            outputs = self._layout.merge(swapped).clone().requires_grad_()
            after = self._layout.flatten(self._evaluate(outputs)[1].detach())
            if all_finite(after):  # other outputs may not suit the targets
                self._check_separate(after[~chosen], before[~chosen])

    def _factorise(self, blocks: Tensor) -> Tensor:
        """Roots of the Hessian blocks, after the check that they have no negative eigenvalues."""
        rounding = torch.finfo(blocks.dtype).eps * blocks.shape[-1]
        symmetric = (blocks + blocks.mT).to(compute_dtype(blocks)) / 2
        eigenvalues, vectors = torch.linalg.eigh(symmetric)
        # Below the second summand is the rounding of a saturated loss of unit size.
        tolerance = 100 * rounding * float(eigenvalues.abs().max()) + 4 * rounding * self._unit()
        lowest = float(eigenvalues.min())
        if lowest < -tolerance:
            raise ProblemError(
                f"The custom loss is not convex in the outputs: its Hessian has the eigenvalue "
                f"{lowest:.3g}. The generalized Gauss-Newton matrix needs a convex loss; move the "
                "non-convex part into the model."
            )
        return (vectors * eigenvalues.clamp(min=0).sqrt().unsqueeze(-2)).to(blocks.dtype)

    def _unit(self) -> float:
        """Size of l_n for a loss function of unit size."""
        return self._factor * self.scale
