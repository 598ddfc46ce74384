"""Metrics of the neural tangent kernel: its spectrum, its fit to the labels and its drift."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_vivit.metrics.diagnostic import ComparisonWithPast, MeanOfUpdates
from lightning_vivit.metrics.functional.checks import refusal
from lightning_vivit.metrics.functional.kernel import kernel_distances, kernel_statistics


class KernelStatistics(MeanOfUpdates):
    """Summary of the kernel of a batch with itself.

    Calling the metric gives the values of that call; `compute` gives their means over the updates
    since the last reset and over all processes. Values are in float64:

    - `trace`: sum of the eigenvalues, the same for the full and the trace kernel.
    - `top_eigenvalues`: the k largest, ascending; fewer if the kernel has fewer.
    - `condition_number`: see `condition_number`, with the floor of the kernel's own dtype.
    - `effective_rank`: see `effective_rank`.
    - `alignment`: see `kernel_alignment`; only if targets were given.

    Examples:
        >>> import torch
        >>> from lightning_vivit.metrics import KernelStatistics
        >>> metric = KernelStatistics(k=2)
        >>> values = metric(torch.diag(torch.tensor([1.0, 2.0, 4.0])))
        >>> values["top_eigenvalues"].tolist(), values["condition_number"].item()
        ([2.0, 4.0], 4.0)
    """

    required = ("trace", "top_eigenvalues", "condition_number", "effective_rank")
    optional = ("alignment",)

    def __init__(
        self,
        k: int = 10,
        num_classes: int | None = None,
        centered: bool = True,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        """Choose what is kept.

        Args:
            k: Number of leading eigenvalues.
            num_classes: Number of classes, to check class indices against.
            centered: Whether kernels are centred for the alignment.
            ignore_index: Class index of positions without a label.
            **kwargs: Options of torchmetrics.Metric.
        """
        super().__init__(**kwargs)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise refusal(f"k = {k!r}", "an integer not below 1", "choose k >= 1")
        self.k = k
        self.num_classes = num_classes
        self.centered = centered
        self.ignore_index = ignore_index

    def update(self, kernel: Tensor, targets: Tensor | None = None) -> None:
        """Add one kernel.

        Args:
            kernel: [N, N] or [N, N, C, C].
            targets: The targets of the batch, class indices or values, [N] or [N, ...].
        """
        options = (self.k, self.num_classes, self.centered, self.ignore_index)
        self._record(kernel_statistics(kernel, targets, *options))


class KernelDrift(ComparisonWithPast):
    """Distance of the kernel from the first one and from the one before.

    Calling the metric and `compute` give the latest comparison, see `kernel_distance`: scalars in
    float64, averaged over processes by `compute`. All kernels must be of the same samples. The
    first and the previous kernel are part of the state dictionary; `reset` forgets them.

    - `distance_from_first`: 0 at the first update.
    - `distance_from_previous`: NaN before the second update.

    Examples:
        >>> import torch
        >>> from lightning_vivit.metrics import KernelDrift
        >>> metric = KernelDrift()
        >>> metric.update(torch.eye(4))
        >>> metric.update(torch.ones(4, 4))
        >>> {name: round(value.item(), 3) for name, value in metric(torch.eye(4)).items()}
        {'distance_from_first': 0.0, 'distance_from_previous': 0.5}
    """

    plot_lower_bound: float | None = 0.0

    first: Tensor
    previous: Tensor
    distance_from_first: Tensor
    distance_from_previous: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """Start with nothing remembered.

        Args:
            **kwargs: Options of torchmetrics.Metric.
        """
        results = ["distance_from_first", "distance_from_previous"]
        super().__init__(memories=["first", "previous"], results=results, **kwargs)

    def update(self, kernel: Tensor) -> None:
        """Compare with the first and the previous kernel and remember this one.

        Args:
            kernel: [N, N] or [N, N, C, C], of the same shape in all updates.
        """
        known = self.previous.numel() > 0
        distances = kernel_distances(kernel, [self.first, self.previous] if known else [kernel])
        device = self._settle(distances)
        self.distance_from_first = distances[0].to(device)
        if known:
            self.distance_from_previous = distances[1].to(device)
        else:
            self.first = kernel.clone()
        self.previous = kernel.clone()
        self._forward_cache = self._latest()

    def _latest(self) -> dict[str, Tensor]:
        """The latest distances of this process."""
        return {
            "distance_from_first": self.distance_from_first,
            "distance_from_previous": self.distance_from_previous,
        }

    def compute(self) -> dict[str, Tensor]:
        """Distances at the latest update.

        Returns:
            Name -> scalar.
        """
        return self._latest()
