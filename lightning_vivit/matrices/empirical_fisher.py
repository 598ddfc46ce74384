"""The second moment of the per-sample gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lightning_vivit.losses import SampleLoss
from lightning_vivit.matrices.rows import RowMatrix


class EmpiricalFisher(RowMatrix):
    """scale * sum_n g_n g_n^T with g_n = J_n^T r_n the gradient of l_n: 1/N of the sum for a mean.

    It is the covariance of the per-sample gradients plus the outer product of their mean, so its
    leading eigenvectors are the directions in which single samples pull hardest. It is neither the
    Fisher information, whose labels are drawn from the model, nor a curvature: it vanishes where
    every sample is fitted, whatever the GGN is there, and its size goes with the square of the
    residuals (Kunstner, Balles, Hennig 2019, arXiv:1905.12558, sections 3 and 4). The two agree
    where the model's distribution is that of the labels and the samples are many.

    A sample's curvature along an eigenvector is the square of its slope. One column for each
    sample, r_n: its Gram matrix costs one backward pass, whatever the number of outputs.
    """

    name = "empirical_fisher"
    title = "empirical Fisher"
    directions = "empirical_fisher_directions"
    source = "[Kunstner, Balles, Hennig 2019](https://arxiv.org/abs/1905.12558)"
    readings: ClassVar = {
        "eigenvalue_i": "mean squared slope of the samples along direction i, their sum for a sum; "
        "far above the others: all samples pull along one line",
        "trace": "mean squared norm of the samples' gradients; falls to 0 where all are fitted",
        "effective_rank": "in how many directions the samples' gradients spread",
        "subspace_overlap": "near 1: the directions in which the samples pull hardest stay",
        "spectrum": "a cliff: the samples' gradients share few directions",
        "gradient_share": "near 1: the gradient lies where single samples pull hardest",
        "lambda_mean_i": "mean squared slope along direction i; μᵢ for a mean loss",
        "lambda_snr_i": "small: a few samples have all the slope",
    }
    is_curvature = False
    own_columns = True
    root_is_gradient = True

    def columns(self, depth: int) -> int:
        """One for each sample."""
        return 1

    def root(self, loss: SampleLoss) -> Tensor:
        """Gradients r_n in the outputs, [N, D, 1]."""
        return loss.gradient().unsqueeze(2)

    def basis(self, loss: SampleLoss) -> Tensor | None:
        """What the loss sees of the outputs."""
        return loss.basis()

    def product(self, loss: SampleLoss, vectors: Tensor, overwrite: bool = False) -> Tensor:
        """r_n (r_n . v), [N, D, K]."""
        root = self.root(loss)
        return root * (root * vectors).sum(1, keepdim=True)

    def root_product(self, loss: SampleLoss, vectors: Tensor, transpose: bool = False) -> Tensor:
        """r_n times numbers [N, 1, K], or r_n . v [N, 1, K] of vectors [N, D, K]."""
        product = self.root(loss) * vectors
        return product.sum(1, keepdim=True) if transpose else product

    def curvatures(self, loss: SampleLoss, pushed: Tensor) -> Tensor:
        """Squared slopes (g_n . v)^2 from J_n v, [N, K] in float64."""
        return (self.root(loss) * pushed).sum(1, dtype=torch.float64).square()
