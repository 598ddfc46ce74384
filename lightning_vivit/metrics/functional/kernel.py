"""Statistics of a neural tangent kernel of one batch with itself.

A full kernel is [N, N, C, C] with the entry (n, m, c, d); its trace kernel is [N, N], the sum over
c = d. Scalars and spectra are returned in float64, rearranged kernels keep their dtype. All is
computed in float64 but for the spectra of large kernels in float32, which are known no better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vivit.eigen.symmetric import in_single_precision, symmetric_eigenvalues
from lightning_vivit.machine.numbers import double
from lightning_vivit.metrics.functional.checks import floats, refusal
from lightning_vivit.metrics.functional.spectrum import condition_number, effective_rank

_FULL = "[N, N, C, C]"
_ANY = "[N, N] (trace) or [N, N, C, C] (full)"
_ASYMMETRY = 1e-2  # of the largest entry; kernels computed in reduced precision stay below
_PIECE = 1 << 16  # entries that are converted at once; they stay in a cache
_ROUNDING = 1e-13  # of the norm of a kernel in float64; what is smaller after centring is zero


def trace_kernel(kernel: Tensor) -> Tensor:
    """Sum over the outputs, the kernel that compares samples only.

    Args:
        kernel: [N, M, C, C]; or a diagonal kernel [N, M, C], or a trace kernel [N, M], which is
            returned as it is.

    Returns:
        [N, M] in the dtype of the kernel.
    """
    floats("kernel", kernel, "[N, M, C, C], [N, M, C] or [N, M]", (2, 3, 4))
    if kernel.ndim == 2:
        return kernel
    if kernel.ndim == 3:
        return kernel.sum(dim=-1)
    if kernel.shape[2] != kernel.shape[3]:
        raise refusal(f"a kernel of shape {list(kernel.shape)}", _FULL, "pass the full kernel")
    return kernel.diagonal(dim1=2, dim2=3).sum(dim=-1)


def flatten_kernel(kernel: Tensor) -> Tensor:
    """The kernel as a matrix with one row for each output of each sample.

    Args:
        kernel: [N, M, C, D]; a trace kernel [N, M] is returned as it is.

    Returns:
        [N*C, M*D] in the dtype of the kernel, with row index n * C + c.
    """
    return _matrix(floats("kernel", kernel, "[N, M, C, D] or [N, M]", (2, 4)))


def kernel_eigenvalues(kernel: Tensor) -> Tensor:
    """Eigenvalues of the kernel of one batch with itself.

    Args:
        kernel: Symmetric [N, N] or [N, N, C, C]. The symmetric part is taken, so that rounding in
            either half does not matter.

    Returns:
        [N] or [N*C], ascending as torch.linalg.eigvalsh returns them, in float64. Of a kernel in
        float32 with 512 rows or more they are computed in float32: each is accurate to about 1e-6
        of the largest one.
    """
    matrix = flatten_kernel(kernel)
    if not in_single_precision(matrix.shape[0], matrix.dtype):
        matrix = double(matrix)
    if matrix.shape[0] != matrix.shape[1]:
        raise refusal(
            f"a kernel of shape {list(kernel.shape)}",
            _ANY,
            "compute the kernel of a batch with itself",
        )
    asymmetry = float((matrix - matrix.T).abs().max())
    largest = float(matrix.abs().max())
    tolerance = max(_ASYMMETRY, 10 * torch.finfo(kernel.dtype).eps)
    if asymmetry > tolerance * largest:
        raise refusal(
            f"a kernel {asymmetry:g} away from its transpose (largest entry {largest:g})",
            "a symmetric kernel",
            "compute the kernel of a batch with itself",
        )
    half = matrix * 0.5
    return double(symmetric_eigenvalues(half + half.T, kernel.dtype))


def kernel_alignment(
    kernel: Tensor,
    targets: Tensor,
    num_classes: int | None = None,
    centered: bool = True,
    ignore_index: int = -100,
) -> Tensor:
    """Alignment of the trace kernel with the label kernel Y Y^T (Cortes et al., 2012).

    The cosine <K, L> / (||K|| ||L||) of the two kernels, both centred to mean zero in feature space
    unless told otherwise. It is 1 if K is a multiple of the label kernel and near 0 if the kernel
    knows nothing of the labels.

    Args:
        kernel: [N, N] or [N, N, C, C], of which the trace kernel is taken.
        targets: Class indices of an integer dtype, [N] or [N, T, ...]: Y is their one-hot encoding,
            positions side by side. Or values of a floating-point or boolean dtype, [N] or [N, ...]:
            Y is their flattening.
        num_classes: Number of classes, to check class indices against. The value does not depend
            on it.
        centered: Whether to centre both kernels.
        ignore_index: Class index of positions without a label. Samples with no label at all are
            left out.

    Returns:
        A scalar in [-1, 1] up to rounding, or NaN if either (centred) kernel is zero, as it is when
        all samples have the same label or none has one.
    """
    samples = double(trace_kernel(kernel))
    count = samples.shape[0]
    if samples.shape[1] != count:
        raise refusal(f"a kernel of shape {list(kernel.shape)}", _ANY, "pass a square kernel")
    if not isinstance(targets, Tensor) or targets.ndim == 0 or targets.shape[0] != count:
        shape = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise refusal(
            f"targets {shape} for a kernel of {count} samples",
            "a tensor [N] or [N, ...] with the samples of the kernel on its first axis",
            "pass the targets of the batch that the kernel was computed on",
        )
    if targets.is_complex() or targets.numel() == 0:
        raise refusal(
            f"targets of dtype {targets.dtype} and shape {list(targets.shape)}",
            "real targets [N] or [N, ...] with at least one entry",
            "pass class indices or floating-point values",
        )
    targets = targets.to(samples.device)
    if targets.is_floating_point() or targets.dtype == torch.bool:
        values = targets.to(torch.float64).reshape(count, -1)  # [N, features]
        floats("targets", values, "[N, ...]", (2,))
        labels = values @ values.T
    else:
        classes = targets.to(torch.int64).reshape(count, -1)  # [N, T]
        _check_classes(classes, num_classes, ignore_index)
        labelled = classes != ignore_index
        keep = labelled.any(dim=1)
        if not bool(keep.any()):
            return torch.full_like(samples[0, 0], torch.nan)
        samples, classes, labelled = samples[keep][:, keep], classes[keep], labelled[keep]
        labels = _same_class(classes, labelled)
    if centered:
        samples, labels = _centered(samples), _centered(labels)
    return _cosine(samples, labels)


def kernel_distance(kernel: Tensor, reference: Tensor) -> Tensor:
    """Distance of two kernels up to scale: 1 - <K, K'> / (||K|| ||K'||) (Fort et al., 2020).

    Args:
        kernel: [N, N] or [N, N, C, C].
        reference: The kernel to compare with, of the same shape and on the same samples.

    Returns:
        A scalar: 0 for a multiple of the reference, not above 1 for two positive semi-definite
        kernels, NaN if one of them is zero.
    """
    return kernel_distances(kernel, [reference])[0]


def kernel_distances(kernel: Tensor, references: Sequence[Tensor]) -> Tensor:
    """`kernel_distance` to each of several references, [R], which reads the kernel once."""
    floats("kernel", kernel, _ANY, (2, 4), finite=False)
    for reference in references:
        floats("reference kernel", reference, _ANY, (2, 4), finite=False)
        if kernel.shape != reference.shape:
            raise refusal(
                f"kernels of shapes {list(kernel.shape)} and {list(reference.shape)}",
                "two kernels of the same shape",
                "compute both on the same probe batch, both full or both trace kernels",
            )
    own, cross, others = _inner_products(kernel, [each.to(kernel.device) for each in references])
    if not bool(torch.isfinite(own + others).all()):  # an entry is not finite, or very large
        floats("kernel", kernel, _ANY, (2, 4))
        for reference in references:
            floats("reference kernel", reference, _ANY, (2, 4))
    return (1.0 - cross / (own.sqrt() * others.sqrt())).clamp_min(0.0)  # 0 / 0 is NaN


def kernel_statistics(
    kernel: Tensor,
    targets: Tensor | None = None,
    k: int = 10,
    num_classes: int | None = None,
    centered: bool = True,
    ignore_index: int = -100,
) -> dict[str, Tensor]:
    """The statistics of `KernelStatistics`.

    Args:
        kernel: [N, N] or [N, N, C, C].
        targets: The targets of the batch, class indices or values, [N] or [N, ...].
        k: Number of leading eigenvalues that are returned.
        num_classes: Number of classes, to check class indices against.
        centered: Whether kernels are centred for the alignment.
        ignore_index: Class index of positions without a label.

    Returns:
        Name -> scalar: `trace`, `condition_number`, `effective_rank`, and `alignment` if targets
        were given; `top_eigenvalues` is [k], ascending, or shorter if the kernel has fewer.
    """
    eigenvalues = kernel_eigenvalues(kernel)
    floor = min(eigenvalues.numel() * torch.finfo(kernel.dtype).eps, 0.5)
    values = {
        "trace": eigenvalues.sum(),
        "top_eigenvalues": eigenvalues[-k:],
        "condition_number": condition_number(eigenvalues, floor),
        "effective_rank": effective_rank(eigenvalues),
    }
    if targets is not None:
        values["alignment"] = kernel_alignment(kernel, targets, num_classes, centered, ignore_index)
    return values


def _matrix(kernel: Tensor) -> Tensor:
    """`flatten_kernel` of a kernel that was checked."""
    if kernel.ndim == 2:
        return kernel
    rows, columns, outputs, others = kernel.shape
    return kernel.permute(0, 2, 1, 3).reshape(rows * outputs, columns * others)


def _check_classes(classes: Tensor, num_classes: int | None, ignore_index: int) -> None:
    """Refuse indices outside of 0 .. num_classes - 1 other than `ignore_index`."""
    used = classes[classes != ignore_index]
    if used.numel() == 0:
        return
    lowest, highest = int(used.min()), int(used.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        top = "num_classes - 1" if num_classes is None else str(num_classes - 1)
        raise refusal(
            f"class indices from {lowest} to {highest}",
            f"0 to {top}, and ignore_index = {ignore_index}",
            "check num_classes and ignore_index, or pass other targets as floating-point values",
        )


def _same_class(classes: Tensor, labelled: Tensor) -> Tensor:
    """Y Y^T of the one-hot encoding without forming it.

    Args:
        classes: [N, T] class indices.
        labelled: [N, T] where they count.

    Returns:
        [N, N]: in how many positions two samples have the same label.
    """
    count, positions = classes.shape
    if positions <= count:  # one position after the other
        total = classes.new_zeros(count, count)
        for label, known in zip(classes.T, labelled.T, strict=True):  # each [N]
            total += (label == label[:, None]) & known & known[:, None]
        return double(total)
    rows = [
        ((classes == classes[n]) & labelled & labelled[n]).sum(dim=1) for n in range(count)
    ]  # each [N]
    return double(torch.stack(rows))


def _centered(kernel: Tensor) -> Tensor:
    """H K H with H = 1 - 11^T / N, exactly zero where only rounding is left of K."""
    over_rows = kernel.mean(dim=0, keepdim=True)
    over_columns = kernel.mean(dim=1, keepdim=True)
    centered = kernel - over_rows - over_columns + kernel.mean()
    rounding = _ROUNDING * torch.linalg.vector_norm(kernel)
    return torch.where(torch.linalg.vector_norm(centered) > rounding, centered, 0.0)


def _inner_products(kernel: Tensor, references: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """<A, A> as a scalar, and <A, B> and <B, B> of R references [R]; no whole copies in float64."""
    matrices = [_matrix(each) for each in (kernel, *references)]  # views of kernels as computed
    pieces = zip(*(matrix.reshape(-1).split(_PIECE) for matrix in matrices), strict=True)
    found = []
    for piece in pieces:
        a, *others = [double(each) for each in piece]
        found.append(
            torch.stack([a.dot(a), *(a.dot(b) for b in others), *(b.dot(b) for b in others)])
        )
    total = torch.stack(found).sum(dim=0)
    count = len(references)
    return total[0], total[1 : 1 + count], total[1 + count :]


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """<A, B> / (||A|| ||B||), NaN if one of them is zero."""
    sizes = torch.linalg.vector_norm(first), torch.linalg.vector_norm(second)
    if float(sizes[0]) == 0.0 or float(sizes[1]) == 0.0:
        return torch.full_like(sizes[0], torch.nan)
    return (first / sizes[0]).mul_(second).sum() / sizes[1]
