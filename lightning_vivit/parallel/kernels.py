"""The kernel of a batch over all ranks: each rank contracts its share of the blocks.

A rank backpropagates its own samples only. Then, layer by layer, the factors go round: after shift
s a rank holds those of the rank s places before it and contracts them with its own. Half of the
ranks suffice, because the kernel is symmetric; where two ranks face each other (an even number of
ranks, the last shift) each takes half of their block. At the end the blocks are added up.

On a CPU a layer that is cheapest by explicit Jacobian rows sends its rows, so that each row is
formed once in the whole run and not once for every rank that meets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError
from lightning_vivit.factors import Factor, OuterProduct
from lightning_vivit.factors.orders import CHUNK_ENTRIES
from lightning_vivit.factors.planning import Size, predicted_costs
from lightning_vivit.jacobian.passes import Pass
from lightning_vivit.kernel.compute import Kernels, KernelTask, kernel_bytes
from lightning_vivit.kernel.contraction import fuse_biases
from lightning_vivit.kernel.plan import Plan
from lightning_vivit.machine.memory import default_budget
from lightning_vivit.parallel.messages import Form, rows_form
from lightning_vivit.parallel.ranks import wire_device
from lightning_vivit.parallel.whole import Whole

_Named: TypeAlias = "dict[tuple[str, str], Factor]"  # (group, parameters) -> factor


def shared_kernels(task: KernelTask, whole: Whole, max_memory: int | None = None) -> Kernels:
    """Kernels of all groups over the samples of all ranks.

    Args:
        task: Of this rank's part.
        whole: All parts.
        max_memory: Bytes that may be used over the model's forward pass; None for half of what
            is free on the device. The smallest of all ranks counts.

    Returns:
        The kernels [N, D, N, D] on every rank; the factors are those of this rank's samples.

    Raises:
        OptionError: A group without a parameter that influences the outputs.
        ProblemError: The budget is too small; the message says what would fit.
        PeerError: Another rank failed.
    """
    passes, budget = _agreed_passes(task, whole, max_memory)
    plan = Plan(entries=min(CHUNK_ENTRIES, max(1, budget // (8 * task.columns.element_size()))))
    kept: dict[str, Factor] | None = {} if _at_once(passes) else None
    size, depth = whole.num_samples, task.columns.shape[0]
    totals = {group: task.columns.new_zeros(size, depth, size, depth) for group in task.groups}
    used: set[str] = set()
    for part in passes:
        for left, right, rows, columns in _column_blocks(task, whole, part, plan):
            used |= _Round(task, whole, plan, rows, columns).run(left, right, totals)
            if kept is not None:
                kept.update(left)
    for group, members in task.groups.items():
        if group not in used:
            raise OptionError(
                f"None of the parameters of group {group!r} ({', '.join(members)}) influences the "
                "outputs. Choose a parameter group with at least one used parameter."
            )
    whole.add_up(totals)
    return Kernels(totals, kept, plan)


def _agreed_passes(
    task: KernelTask, whole: Whole, max_memory: int | None
) -> tuple[list[Pass], int]:
    """The passes of the rank with the most samples, for the smallest budget."""
    own = default_budget(task.columns.device) if max_memory is None else max_memory
    budget = min(whole.ranks.exchange(own))
    depth, itemsize = task.columns.shape[0], task.columns.element_size()
    fixed = kernel_bytes(whole.num_samples, depth, "full", itemsize, len(task.groups))
    count = max(1, whole.counts[whole.ranks.rank])
    plans = whole.ranks.exchange(task.passes(count, fixed, budget))
    return plans[whole.counts.index(max(whole.counts))], budget


def _at_once(passes: Sequence[Pass]) -> bool:
    return len(passes) <= 1 and all(part.blocks == 1 for part in passes)


def _column_blocks(
    task: KernelTask, whole: Whole, part: Pass, plan: Plan
) -> Iterator[tuple[dict[str, Factor], dict[str, Factor], slice, slice]]:
    """Pairs of column blocks with this rank's factors; the same pairs on all ranks."""
    depth = task.columns.shape[0]
    step = -(-depth // part.blocks)
    blocks = [slice(start, min(depth, start + step)) for start in range(0, depth, step)]
    empty = whole.counts[whole.ranks.rank] == 0

    def factors(block: slice) -> dict[str, Factor]:
        if empty:
            return {}
        return plan.sweep(partial(task.factors, part.names, task.columns[block], part.gathers))

    for rows in blocks:
        left = factors(rows)
        for columns in blocks:
            yield left, left if columns == rows else factors(columns), rows, columns


@dataclass(frozen=True)
class _Round:
    """All contractions of one pair of column blocks.

    Attributes:
        task: Of this rank's part.
        whole: All parts.
        plan: Notes what was done.
        rows: Columns of the left factors.
        columns: Columns of the right factors.
    """

    task: KernelTask
    whole: Whole
    plan: Plan
    rows: slice
    columns: slice

    def run(
        self,
        left: Mapping[str, Factor],
        right: Mapping[str, Factor],
        totals: Mapping[str, Tensor],
    ) -> set[str]:
        """Send the right factors round and contract them with the left ones of every rank.

        Returns:
            The groups to which something was added, on any rank.
        """
        ranks, device = self.whole.ranks, self.task.columns.device
        mine, sent, forms = self._formed(left, right, fuse_biases)
        kinds = [
            {key: form.kind for key, form in each.items()}
            for each, count in zip(forms, self.whole.counts, strict=True)
            if count
        ]
        if any(each != kinds[0] for each in kinds):  # the same on all ranks, or blocks would lack
            mine, sent, forms = self._formed(left, right, None)
        keys = list(dict.fromkeys(key for each in forms for key in each))
        wire = wire_device(device) if ranks.size > 1 else device
        largest = [max((form.size for form in each.values()), default=0) for each in forms]
        outgoing = torch.empty(largest[ranks.rank], dtype=torch.uint8, device=wire)
        incoming = torch.empty(max(largest), dtype=torch.uint8, device=wire)
        ranks.exchange()  # all have their memory; from here on nobody may stop half-way
        problem: Exception | None = None
        for key in keys:
            message, first, own = outgoing[:0], None, None
            try:
                if key in sent:
                    own = forms[ranks.rank][key].prepare(sent[key])
                    first = own if right is left else forms[ranks.rank][key].prepare(mine[key])
            except Exception as error:  # the others still wait for a message of this size
                problem = problem or error
            if key in sent:
                message = outgoing[: forms[ranks.rank][key].size]
            if own is not None:
                forms[ranks.rank][key].write(own, outgoing)
            for shift in range(ranks.size // 2 + 1):
                source = (ranks.rank - shift) % ranks.size
                form = forms[source].get(key)
                reply = incoming[: 0 if form is None else form.size]
                if shift > 0:
                    ranks.rotate(message, reply, shift)
                if form is None or first is None or own is None or problem is not None:
                    continue
                try:
                    other = own if shift == 0 else form.read(reply, device)
                    self._contract(key, first, other, source, shift, totals[key[0]])
                except Exception as error:  # the others still need this rank's factors
                    problem = error
        if problem is not None:
            raise problem
        return {group for group, _ in keys}

    def _formed(
        self,
        left: Mapping[str, Factor],
        right: Mapping[str, Factor],
        fuse: Callable[[Mapping[str, Factor]], dict[str, Factor]] | None,
    ) -> tuple[_Named, _Named, list[dict[tuple[str, str], Form]]]:
        """This rank's left and right factors by group and parameters, all ranks' right forms.

        Without `fuse` every parameter keeps the factor that it has.
        """

        def named(factors: Mapping[str, Factor]) -> _Named:
            return {
                (group, names): factor
                for group, members in self.task.groups.items()
                for names, factor in (fuse or dict)(
                    {name: factors[name] for name in members if name in factors}
                ).items()
            }

        mine = named(left)
        sent = mine if right is left else named(right)
        forms = {
            key: rows_form(factor)
            if fuse and isinstance(factor, OuterProduct) and self._by_rows(factor)
            else Form.of(factor)
            for key, factor in sent.items()
        }
        return mine, sent, self.whole.ranks.exchange(forms)

    def _by_rows(self, factor: OuterProduct) -> bool:
        """Whether explicit rows are best for blocks of this size, and fit; alike on all ranks."""
        if factor.columns.device.type != "cpu":
            return False
        count, depth = max(self.whole.counts), factor.num_columns
        _, _, g, a, length = factor.columns.shape
        b = factor.inputs.shape[2]
        costs = predicted_costs(Size(count, count, depth, depth, g, a, b, length, False, "full"))
        entries = count * depth * (factor.shape.numel() + g * a)
        return min(costs, key=lambda name: costs[name]) == "rows" and entries <= self.plan.entries

    def _contract(
        self,
        key: tuple[str, str],
        first: Factor,
        second: Factor,
        source: int,
        shift: int,
        total: Tensor,
    ) -> None:
        """Add the block of this rank's rows and another rank's columns, and its mirror image."""
        rank, size = self.whole.ranks.rank, self.whole.ranks.size
        here, there = self.whole.place(rank), self.whole.place(source)
        if shift == 0:
            if self.columns.start > self.rows.start:
                return  # the mirror image of a pair that was done
            block = self.plan.run(key[1], first, second, "full")
            total[here, self.rows, here, self.columns] += block
            if self.columns != self.rows:
                total[here, self.columns, here, self.rows] += block.permute(2, 3, 0, 1)
            return
        if 2 * shift == size:  # the two ranks share this block: the higher one's samples are split
            if rank < source:
                there = slice(there.start, there.start + self.whole.counts[source] // 2)
                second = second.narrow(0, self.whole.counts[source] // 2)
            else:
                half = self.whole.counts[rank] // 2
                here = slice(here.start + half, here.stop)
                first = first.narrow(half, self.whole.counts[rank])
        if here.start == here.stop or there.start == there.stop:
            return
        block = self.plan.run(key[1], first, second, "full")
        total[here, self.rows, there, self.columns] += block
        total[there, self.columns, here, self.rows] += block.permute(2, 3, 0, 1)
