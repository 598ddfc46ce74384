"""What the metric classes share: keeping means over updates, keeping memory, panels of a plot."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_mean
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_vivit.metrics.functional.checks import refusal
from lightning_vivit.metrics.plotting import plot_panels


@cache
def state_names(name: str) -> tuple[str, str]:
    """The states of a statistic: its sum and its number of updates.

    Python interns names of attributes, and a name that dies with its metric leaves a hole in that
    table, which grows by megabytes when it is full of them. The monitors make metrics at each
    monitored step, so the names are kept.
    """
    return sys.intern(f"{name}_total"), sys.intern(f"{name}_count")


class Diagnostic(Metric):
    """A metric whose call gives the values of that call alone.

    The arguments are checked before any state changes, so a refused update leaves the metric as it
    was. States follow the device of the inputs, unless the metric was moved to an accelerator.
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = None

    _forward_cache: Any
    _memories: tuple[str, ...] = ()  # states that stay as and where they were left

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update, and return the values of this call.

        Args:
            *args: As for `update`.
            **kwargs: As for `update`.

        Returns:
            What `compute` returns if this is the only update. It is the value of this process, also
            in distributed training.
        """
        self.update(*args, **kwargs)
        return self._forward_cache

    def plot(
        self,
        val: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | Tensor | None = None,
        ax: Any = None,
    ) -> tuple[Any, Any]:
        """Plot the values, each in its panel.

        Args:
            val: A result of a call or of `compute`, or a list of them for the course over steps;
                without it, the result of `compute`.
            ax: Axes to draw everything into, instead of a figure with panels.

        Returns:
            The figure (None if `ax` is given) and the axes: an array with one for each panel if
            there are several.
        """
        return plot_panels(self._plot, self.compute() if val is None else val, ax)

    def _settle(self, value: Tensor) -> torch.device:
        """Move the states that are sent between processes to one device.

        Args:
            value: A result of the update.

        Returns:
            The device: the metric's own if it was moved to an accelerator, else that of the value.
        """
        device = self.device if self.device.type != "cpu" else value.device
        for name in self._defaults:
            if name not in self._memories:
                setattr(self, name, getattr(self, name).to(device))
        return device


class MeanOfUpdates(Diagnostic):
    """Means of named statistics over updates and over processes.

    Each statistic is a scalar or a vector of a fixed length. It has two states, which start as
    zeros without axes, because the length is not known before the first update.
    """

    full_state_update: bool | None = False
    required: Sequence[str] = ()
    optional: Sequence[str] = ()

    def __init__(self, **kwargs: Any) -> None:
        """Start with no updates.

        Args:
            **kwargs: Options of torchmetrics.Metric.
        """
        super().__init__(**kwargs)
        for name in (*self.required, *self.optional):
            zero = torch.zeros((), dtype=torch.float64)
            total, count = state_names(name)
            self.add_state(total, zero, dist_reduce_fx="sum")
            self.add_state(count, zero.clone(), dist_reduce_fx="sum")

    def compute(self) -> dict[str, Tensor]:
        """Means over the updates since the last reset, and over all processes.

        Returns:
            Name -> scalar or vector, in float64; torchmetrics takes the axis off a vector of one
            entry. Optional statistics are there if they were seen.
        """
        means = {}
        for name in (*self.required, *self.optional):
            count = getattr(self, f"{name}_count")
            if name in self.required or float(count) > 0:
                means[name] = getattr(self, f"{name}_total") / count
        return means

    def _record(self, values: dict[str, Tensor]) -> None:
        """Add one update's values and keep them as the result of the call."""
        for name, value in values.items():
            total = getattr(self, f"{name}_total")
            if total.ndim > 0 and total.shape != value.shape:
                raise refusal(
                    f"{value.numel()} values of {name} after updates with {total.numel()}",
                    "the same number of values in all updates between two resets",
                    "call reset(), or use one metric for each kind of update",
                )
        device = self._settle(next(iter(values.values())))
        for name, value in values.items():
            setattr(self, f"{name}_total", getattr(self, f"{name}_total") + value.to(device))
            setattr(self, f"{name}_count", getattr(self, f"{name}_count") + 1)
        self._forward_cache = dict(values)


class ComparisonWithPast(Diagnostic):
    """The latest comparison of an update with what earlier updates left in memory.

    Results are averaged over processes; what is remembered belongs to its own process, is never
    sent to others, and is part of the state dictionary so that a resumed run continues. An update
    depends on the state, so two such metrics cannot be merged.
    """

    full_state_update: bool | None = True

    def __init__(self, memories: Sequence[str], results: Sequence[str], **kwargs: Any) -> None:
        """Start with empty memories and results that are NaN.

        Args:
            memories: Names of the states that hold what is remembered.
            results: Names of the scalar states that hold the latest comparison.
            **kwargs: Options of torchmetrics.Metric.
        """
        super().__init__(**kwargs)
        self._memories = tuple(memories)
        for name in memories:
            self.add_state(name, torch.empty(0), dist_reduce_fx=None, persistent=True)
        for name in results:
            nan = torch.full((), torch.nan, dtype=torch.float64)
            self.add_state(name, nan, dist_reduce_fx=dim_zero_mean, persistent=True)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None
    ) -> None:
        """Exchange the results between processes and leave the memories out."""
        reductions = self._reductions
        self._reductions = {
            name: reduction for name, reduction in reductions.items() if name not in self._memories
        }
        try:
            super()._sync_dist(dist_sync_fn, process_group=process_group)
        finally:
            self._reductions = reductions
