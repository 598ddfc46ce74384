"""Columns that arrive at an operation, and the factors that they become.

An operation is reduced as its columns arrive where rows are smaller: a scale, a shift, or a weight
with fewer inputs than positions keeps its rows instead of its columns. Where a column has few
outputs for its many inputs, some columns are gathered first, because products of few rows are slow;
columns that all samples share (after the last nonlinearity) come at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_vivit.factors import Dense, Factor, Lookup, OuterProduct, Shift
from lightning_vivit.problem.forms.convolution import CONVOLUTIONS
from lightning_vivit.problem.tape.recorder import Call
from lightning_vivit.rules import Use, dense_rule, find_rule
from lightning_vivit.samples.axis import SampleAxis

_ROWS = 64  # of a product that reaches the processor's speed
_INPUTS = 4.5  # for each row, up to which a product of few rows is as fast as the copies it spares
_PATCH_ENTRIES = 1 << 22  # of patches, or of columns, at once (16 MB in float32): for a cache
_GATHERED_ENTRIES = 1 << 23  # of the columns that are gathered at one operation (32 MB in float32)


def gathered_columns(num_columns: int, outputs: int, inputs: int, entries: int) -> int:
    """How many columns are gathered at an operation before rows are formed of them.

    All that fit, if the rows of one are too few: patches are then taken for some samples at a time.

    Args:
        num_columns: D.
        outputs: A, the rows of a weight's gradient that one column gives.
        inputs: B, the length of these rows.
        entries: Of one column at the operation's output.

    Returns:
        1 if nothing is gathered.
    """
    if outputs >= _ROWS or inputs <= _INPUTS * outputs:
        return 1
    wanted = min(num_columns, max(1, _GATHERED_ENTRIES // max(1, entries)))
    return -(-num_columns // -(-num_columns // wanted))  # groups of nearly equal size


class Collector:
    """Takes the columns that arrive at one operation's outputs.

    Attributes:
        call: The operation.
        axes: For each output, where the samples are; None where no gradient arrives.
    """

    def __init__(
        self,
        call: Call,
        axes: Sequence[SampleAxis | None],
        sources: frozenset[int],
        num_columns: int,
        gathers: bool = False,
    ) -> None:
        """Prepare for columns.

        Args:
            call: The operation.
            axes: For each output, where the samples are; None where no gradient arrives.
            sources: ids of the tensors for which factors are wanted.
            num_columns: D.
            gathers: Whether there is memory to gather columns before rows are formed.
        """
        self.call = call
        self.axes = list(axes)
        self._sources = sources
        self._depth = num_columns
        self._rule = find_rule(call.function) if len(self.axes) == 1 else None
        self._cache: dict[str, Tensor] = {}
        self._buffers: list[Tensor | None] = [None] * len(self.axes)
        self._rows: dict[int, tuple[Tensor, Dense]] | None = None  # id -> tensor, its rows
        self._gathers = gathers
        self._group = 1  # columns of which rows are formed together
        self._some: int | None = None  # samples that fit into a cache; None for all
        self._waiting: list[Tensor] = []  # columns [N, *shape] of the next rows

    def add(self, place: int, parts: Sequence[Tensor | None]) -> None:
        """Take one column.

        Args:
            place: Index of the column.
            parts: For each output, its gradient [*shape].
        """
        split = [
            None if part is None or axis is None else axis.split(part)
            for part, axis in zip(parts, self.axes, strict=True)
        ]
        if place == 0:
            self._rows = self._start_rows(split[0])
        if self._rows is not None and split[0] is not None:
            self._add_rows(place, split[0])
            return
        for index, part in enumerate(split):
            if part is None:
                continue
            buffer = self._buffers[index]
            if buffer is None:
                buffer = part.new_empty(part.shape[0], self._depth, *part.shape[1:])
                self._buffers[index] = buffer
            buffer[:, place] = part

    def add_shared(self, parts: Sequence[Tensor]) -> bool:
        """Take all columns of the only output if they are the same for all samples.

        Args:
            parts: D gradients [*shape]; views of one sample's, if they are the same for all.

        Returns:
            Whether rows were formed of them: otherwise they have to come one at a time.
        """
        axis = self.axes[0]
        if axis is None or not self._gathers:
            return False
        split = [axis.split(part) for part in parts]
        count = split[0].shape[0]
        if not self._divides(count) or any(part.stride(0) != 0 for part in split):
            return False
        self._rows = self._start_rows(split[0])
        if self._rows is None:
            return False
        columns = torch.stack([part[0] for part in split])
        columns = columns.expand(count, *columns.shape)  # [N, D, *shape]
        entries = max(rows.values[0].numel() for _, rows in self._rows.values())
        step = max(1, min(self._some or count, _GATHERED_ENTRIES // max(1, entries)))
        for start in range(0, count, step):
            some = slice(start, min(count, start + step))
            found = self._apply(columns[some], some)
            assert found is not None
            for tensor, factor in found:
                factor.write_rows(self._rows[id(tensor)][1].values[some])
        self._cache.clear()
        return True

    def add_all(self, parts: Sequence[Tensor | None]) -> None:
        """Take all columns.

        Args:
            parts: For each output, its gradients [D, *shape].
        """
        self._buffers = [
            None if part is None or axis is None else axis.split(part, leading=1)
            for part, axis in zip(parts, self.axes, strict=True)
        ]

    def finish(self) -> list[tuple[Tensor, Factor]]:
        """The factors of the operation's parameters."""
        if self._rows is not None:
            return list(self._rows.values())
        if all(buffer is None for buffer in self._buffers):
            return []
        found = None if self._buffers[0] is None else self._apply(self._buffers[0])
        if found is None:
            found = dense_rule(self.call, self._buffers, self.axes, self._sources)
        self._buffers = []
        return found

    def _apply(
        self, columns: Tensor, some: slice | None = None
    ) -> list[tuple[Tensor, Factor]] | None:
        axis, call, cache = self.axes[0], self.call, self._cache
        if self._rule is None or axis is None:
            return None
        if some is not None:  # a convolution of some samples
            axis = SampleAxis(0, columns.shape[0])
            call, cache = replace(call, args=(call.args[0][some], *call.args[1:])), {}
        found = self._rule(Use(call, axis, columns, self._sources, cache))
        if found is None or {id(tensor) for tensor, _ in found} != self._sources:
            return None
        return found

    def _start_rows(self, part: Tensor | None) -> dict[int, tuple[Tensor, Dense]] | None:
        """Memory for rows, if keeping them is better than keeping the columns."""
        if part is None:
            return None
        one = slice(0, 1) if self._divides(part.shape[0]) else None  # the others' are no different
        found = self._apply(part[one or slice(None)].unsqueeze(1), one)
        if found is None or not all(_prefers_rows(factor) for _, factor in found):
            return None
        weights = [f for _, f in found if isinstance(f, OuterProduct)]
        if weights and self._gathers:
            outputs = min(weight.columns.shape[2:4].numel() for weight in weights)
            inputs = max(weight.inputs.shape[1:3].numel() for weight in weights)
            self._group = gathered_columns(self._depth, outputs, inputs, part.numel())
            if self._group > 1:
                self._cache.clear()
                if one is not None:
                    entries = max(weight.inputs[0].numel() for weight in weights)
                    entries = max(1, entries, part[0].numel() * self._group)
                    self._some = max(1, min(part.shape[0], _PATCH_ENTRIES // entries))
        n, d = part.shape[0], self._depth
        rows = {}
        for tensor, factor in found:
            values = part.new_empty(n, d, factor.shape.numel())
            rows[id(tensor)] = tensor, Dense(values, tensor.shape, factor.taps)
        return rows

    def _add_rows(self, place: int, part: Tensor) -> None:
        """Form the rows of one column, or of some as soon as they are there."""
        self._waiting.append(part)
        if len(self._waiting) == self._group or place + 1 == self._depth:
            self._form_rows(self._waiting, place + 1 - len(self._waiting))
            self._waiting = []

    def _form_rows(self, parts: Sequence[Tensor], first: int) -> None:
        """Form the rows of columns, of so many samples at a time that all stays in a cache.

        Args:
            parts: The columns [N, *shape].
            first: Index of the first of them.
        """
        assert self._rows is not None
        count, stop = parts[0].shape[0], first + len(parts)
        step = self._some or count
        memory = None
        if len(parts) > 1:
            memory = _memory_for_columns(parts[0][:step], len(parts))
        for start in range(0, count, step):
            some = slice(start, min(count, start + step))
            columns = parts[0][some].unsqueeze(1)
            if memory is not None:
                columns = memory[: columns.shape[0]]
                for place, part in enumerate(parts):
                    columns[:, place] = part[some]
            found = self._apply(columns, None if step == count else some)
            assert found is not None
            for tensor, factor in found:
                factor.write_rows(self._rows[id(tensor)][1].values[some, first:stop])
        if len(parts) > 1:
            self._cache.clear()  # made again for the next columns, in memory that was used before

    def _divides(self, num_samples: int) -> bool:
        """Whether it is a convolution that can be applied to some of the samples."""
        axis, inputs = self.axes[0], self.call.args[:1]
        if self.call.function not in CONVOLUTIONS or not inputs or axis is None:
            return False
        return axis.dim == 0 and not axis.minor and inputs[0].shape[0] == num_samples


def _memory_for_columns(part: Tensor, count: int) -> Tensor:
    """Memory for columns like one that arrived, in an order in which it is copied fast.

    Args:
        part: [N, *shape].
        count: G, the number of columns.

    Returns:
        [N, G, *shape]. With shape = (1, C, H, W) and the channels last in the memory of `part`,
        columns and channels are last: [N, 1, H, W, G, C], which is a matrix for each sample, too.
    """
    if part.ndim == 5 and part.stride(2) == 1 and not part.is_contiguous():
        n, t, channels, *places = part.shape
        return part.new_empty(n, t, *places, count, channels).permute(0, 4, 1, 5, 2, 3)
    return part.new_empty(part.shape[0], count, *part.shape[1:])


def _prefers_rows(factor: Factor) -> bool:
    if isinstance(factor, OuterProduct):
        return factor.inputs.shape[2] < factor.columns.shape[4]
    if isinstance(factor, Shift):
        return factor.columns.shape[3] > 1
    if isinstance(factor, Lookup):
        return factor.shape[0] < factor.tokens.shape[1]
    return True
