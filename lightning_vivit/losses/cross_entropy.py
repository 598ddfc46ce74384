"""Cross-entropy from logits, with class indices or class probabilities; also nll_loss.

With p = softmax(logits), class weights t of a position (smoothing, class weights, ignored positions
included) and w = sum_c t_c, a term -sum_c t_c log p_c has the gradient w p - t and the Hessian
w (diag(p) - p p^T), whatever t is. All expressions avoid the difference 1 - p_c, which loses every
digit where the softmax is saturated.
"""

from __future__ import annotations

from functools import cached_property
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
    read_target,
    read_weight,
)
from lightning_vivit.losses.scaling import (
    average_draws,
    class_index_weights,
    class_probability_weights,
    scale_terms,
)
from lightning_vivit.samples.layout import SampleLayout

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class CrossEntropy(SampleLoss):
    """`F.cross_entropy` and `F.nll_loss` on outputs [N*T, C] or [N*T, C, d1, ...]."""

    def __init__(self, call: LossCall, layout: SampleLayout) -> None:
        """Read the call.

        Args:
            call: A call of `cross_entropy` or `nll_loss`.
            layout: Which rows of the outputs belong to which sample.
        """
        outputs, target = read_outputs(call, layout), read_target(call)
        if outputs.ndim < 2:
            raise ProblemError(
                f"{call.name} got outputs of shape {tuple(outputs.shape)}: one sample without a "
                "batch axis. Supported are [N, C] and [N, C, d1, ...]; add the batch axis."
            )
        defaults: dict[str, Any] = {"reduction": "mean", "weight": None, "ignore_index": -100}
        is_nll = call.name == "nll_loss"
        defaults |= {"traced": False} if is_nll else {"label_smoothing": 0.0}
        options = {"label_smoothing": 0.0, **read_options(call, defaults)}
        if not 0.0 <= options["label_smoothing"] <= 1.0:
            raise ProblemError(
                f"{call.name} got label_smoothing {options['label_smoothing']}; it must lie "
                "between 0 and 1."
            )
        dtype, num_classes = compute_dtype(outputs), outputs.shape[1]
        options["weight"] = read_weight(call, "weight", options["weight"], dtype)
        if options["weight"] is not None and options["weight"].shape != (num_classes,):
            raise ProblemError(
                f"{call.name} got a weight of shape {tuple(options['weight'].shape)} for "
                f"{num_classes} classes; it must be [{num_classes}]."
            )
        logits = outputs.to(dtype).movedim(1, -1)  # [N*T, d1, ..., C]
        positions = logits.shape[:-1]
        weights, normalizer = _class_weights(call, outputs, target, options, dtype)
        if is_nll and not options["traced"]:
            _check_log_probabilities(logits, weights, outputs.dtype)
        scaling = scale_terms(
            call, layout.num_samples, positions, normalizer, options["reduction"], dtype
        )
        coefficient = scaling.coefficient
        if isinstance(coefficient, Tensor):
            coefficient = coefficient.unsqueeze(-1)
        self.scale, self.normalizer = scaling.scale, normalizer
        self._layout, self._dtype = layout, outputs.dtype
        rows = outputs.shape[0]
        self._targets = (weights * coefficient).reshape(rows, -1, num_classes)  # t, [N*T, L, C]
        self._logits = logits.reshape(rows, -1, num_classes)  # [N*T, L, C]
        self._total = self._targets.sum(-1, keepdim=True)  # w, [N*T, L, 1]
        self._probabilities = self._logits.softmax(-1)  # p
        check_finite(call, self._terms(), self._position_gradients())

    @property
    def _complements(self) -> Tensor:
        """1 - p with full relative accuracy, made anew: it is as large as the outputs."""
        p = self._probabilities
        top = p.argmax(-1, keepdim=True)
        rest = p.scatter(-1, top, 0.0).sum(-1, keepdim=True)
        return (1.0 - p).scatter_(-1, top, rest)

    @cached_property
    def _most_likely(self) -> Tensor:
        """The most likely class of every position, [N, T, 1, L, 1]."""
        top = self._probabilities.argmax(-1, keepdim=True).transpose(1, 2)
        return self._layout.split(top).unsqueeze(-1)

    @cached_property
    def _roots(self) -> tuple[Tensor, Tensor]:
        """The probabilities p and sqrt(w p), [N, T, C, L, 1], for `root_product`."""
        total = self._layout.split(self._total.transpose(1, 2)).unsqueeze(-1)
        p = self._layout.split(self._probabilities.transpose(1, 2)).unsqueeze(-1)
        return p, total.sqrt() * p.sqrt()

    def _terms(self) -> Tensor:
        """Weighted terms of the positions, [N*T, L]."""
        logs = self._logits.log_softmax(-1)
        # A class of weight zero may have probability zero: its logarithm does not count.
        return -torch.where(self._targets == 0, 0.0, self._targets * logs).sum(-1)

    def _position_gradients(self) -> Tensor:
        """W p - t of every position as p_c (w - t_c) - t_c (1 - p_c), [N*T, L, C]."""
        others = self._total - self._targets
        return self._probabilities * others - self._targets * self._complements

    def value(self) -> Tensor:
        """Losses l_n, [N]."""
        return self._layout.flatten(self._terms()).sum(1)

    def gradient(self) -> Tensor:
        """Gradients r_n, [N, D]."""
        return self._flatten(self._position_gradients().unsqueeze(-1)).squeeze(-1)

    def hessian_root(self) -> Tensor:
        """Roots S_n, [N, D, D]: block diagonal, one block per position.

        The block is sqrt(w) (diag(sqrt p) - p sqrt(p)^T), whose column d is
        sqrt(w p_d) (e_d - p).
        """
        root_p = self._probabilities.sqrt()
        blocks = -self._probabilities.unsqueeze(-1) * root_p.unsqueeze(-2)  # [N*T, L, C, C]
        blocks.diagonal(dim1=-2, dim2=-1).copy_(self._complements * root_p)
        blocks = blocks * self._total.sqrt().unsqueeze(-1)
        blocks = self._layout.split(blocks)  # [N, T, L, C, C]
        n, t, length, c, _ = blocks.shape
        root = blocks.new_zeros(n, t, c, length, t, c, length)
        same_position = root.diagonal(dim1=1, dim2=4).diagonal(dim1=2, dim2=4)  # [N, C, C, T, L]
        same_position.copy_(blocks.permute(0, 3, 4, 1, 2))
        return root.reshape(n, t * c * length, t * c * length).to(self._dtype)

    def hessian_product(self, vectors: Tensor, overwrite: bool = False) -> Tensor:
        """Products w p (v - p.v) of every position, [N, D, K].

        The vectors are first shifted to be zero at the most likely class, which changes nothing
        and avoids the cancellation of a saturated softmax.
        """
        rows, length, c = self._logits.shape
        n, count = vectors.shape[0], vectors.shape[2]
        parts = vectors.reshape(n, rows // n, c, length, count)  # [N, T, C, L, K]
        p = self._layout.split(self._probabilities.transpose(1, 2)).unsqueeze(-1)
        total = self._layout.split(self._total.transpose(1, 2)).unsqueeze(-1)  # [N, T, 1, L, 1]
        top = self._most_likely.expand(-1, -1, -1, -1, count)
        shift = parts.gather(2, top)
        product = (parts.sub_(shift) if overwrite else parts - shift).mul_(p)  # p v
        mean = product.sum(2, keepdim=True)  # p.v
        product.addcmul_(p, mean, value=-1.0).mul_(total)
        return product.reshape(vectors.shape).to(self._dtype)

    def root_product(self, vectors: Tensor, transpose: bool = False) -> Tensor:
        """Products with sqrt(w) (diag(sqrt p) - p sqrt(p)^T) or its transpose, [N, D, K]."""
        rows, length, c = self._logits.shape
        n, count = vectors.shape[0], vectors.shape[2]
        parts = vectors.reshape(n, rows // n, c, length, count)  # [N, T, C, L, K]
        p, root = self._roots
        if transpose:
            top = self._most_likely.expand(-1, -1, -1, -1, count)
            parts = parts - parts.gather(2, top)  # changes nothing, as in `hessian_product`
            product = parts.sub_((p * parts).sum(2, keepdim=True)).mul_(root)
        else:
            product = root * parts
            product = product.addcmul_(p, product.sum(2, keepdim=True), value=-1.0)
        return product.reshape(vectors.shape).to(self._dtype)

    def basis(self) -> Tensor | None:
        """Logits may be shifted without an effect: C - 1 directions for each position matter."""
        rows, length, c = self._logits.shape
        if c == 1:
            return None
        t = rows // self._layout.num_samples
        like = self._logits
        centred = torch.eye(c, dtype=torch.float64) - 1 / c
        block = torch.linalg.eigh(centred).eigenvectors[:, 1:].to(like)  # [C, C-1]
        basis = like.new_zeros(t, c, length, t, c - 1, length)
        same_position = basis.diagonal(dim1=0, dim2=3).diagonal(dim1=1, dim2=3)  # [C, C-1, T, L]
        same_position.copy_(block[:, :, None, None].expand_as(same_position))
        return basis.reshape(t * c * length, t * (c - 1) * length).to(self._dtype)

    def sampled_root(self, mc_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Columns sqrt(w) (p - onehot(y)) / sqrt(M) with y drawn from p at each position."""
        check_mc_samples(mc_samples)
        p = self._probabilities
        # One draw from each of M copies: unlike M draws at once, it has a deterministic kernel.
        copies = p.reshape(-1, 1, p.shape[-1]).expand(-1, mc_samples, -1)
        copies = copies.reshape(-1, p.shape[-1]).to(random_device(generator, p))
        draws = torch.multinomial(copies, 1, replacement=True, generator=generator)
        labels = draws.to(p.device).reshape(*p.shape[:-1], 1, mc_samples)
        columns = p.unsqueeze(-1).repeat(1, 1, 1, mc_samples)  # [N*T, L, C, M]
        columns.scatter_(2, labels, -self._complements.gather(-1, labels.squeeze(2)).unsqueeze(2))
        return self._flatten(average_draws(columns * self._total.sqrt().unsqueeze(-1)))

    def _flatten(self, columns: Tensor) -> Tensor:
        """[N*T, L, C, M] to [N, D, M] in the order of the outputs, where classes come first."""
        ordered = self._layout.split(columns.transpose(1, 2))  # [N, T, C, L, M]
        return ordered.reshape(self._layout.num_samples, -1, columns.shape[-1]).to(self._dtype)


def _class_weights(
    call: LossCall, outputs: Tensor, target: Tensor, options: dict[str, Any], dtype: torch.dtype
) -> tuple[Tensor, float]:
    """Weight of each class at each position, and what a mean divides by."""
    num_classes, is_nll = outputs.shape[1], call.name == "nll_loss"
    positions = (outputs.shape[0], *outputs.shape[2:])
    if target.shape == positions and target.dtype in _INTEGERS:
        return class_index_weights(call, target.long(), num_classes, options, dtype)
    if target.shape == outputs.shape and target.is_floating_point() and not is_nll:
        if options["ignore_index"] >= 0:
            raise ProblemError(
                f"{call.name} got ignore_index {options['ignore_index']} together with class "
                "probabilities; torch supports it for class indices only."
            )
        return class_probability_weights(call, target.movedim(1, -1), options, dtype)
    raise ProblemError(
        f"{call.name} got a target of shape {tuple(target.shape)} and dtype "
        f"{target.dtype} for outputs of shape {tuple(outputs.shape)}. Supported are "
        f"integer class indices of shape {tuple(positions)}"
        + ("." if is_nll else " and class probabilities of the shape of the outputs.")
    )


def _check_log_probabilities(logits: Tensor, weights: Tensor, dtype: torch.dtype) -> None:
    """Refuse nll_loss of values that are not log-probabilities: it is then not cross-entropy."""
    counted = weights.sum(-1) > 0
    sums = logits.logsumexp(-1)[counted]
    if bool(sums.abs().gt(torch.finfo(dtype).eps ** 0.5).any()):
        worst = float(sums[sums.abs().argmax()])
        raise ProblemError(
            "nll_loss got inputs that are not log-probabilities: the logarithm of the sum of "
            f"their exponentials is {worst:.3g} instead of 0, so nll_loss is not cross-entropy "
            "here. Apply F.log_softmax over the class axis (axis 1) before nll_loss, or use "
            "F.cross_entropy."
        )
