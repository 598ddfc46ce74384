"""One evaluation for all monitors of a Trainer that look at the same data at the same step.

Shared is what would give the same result: same samples (equal `data`, `seed` and `max_samples`, or
the same given probe), same parameter groups, same columns (exact, or the same number of Monte Carlo
samples), same dtype, same `problem` callable, same method, matrix and tolerance. Monitors that
differ in one of these pay for an evaluation each; in particular monitors with different parameter
groups do not share.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vivit.callbacks.pacing import Pacer
from lightning_vivit.callbacks.probe import BatchSource
from lightning_vivit.eigen.lanczos import search_vectors
from lightning_vivit.eigen.start import Start
from lightning_vivit.evaluation.evaluate import evaluate_request
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.evaluation.request import Request
from lightning_vivit.parallel import (
    Part,
    Ranks,
    Replica,
    check_room,
    common_buffers,
    gather_batch,
    replica_bytes,
    take_part,
)
from lightning_vivit.problem.isolation.modes import eval_mode
from lightning_vivit.problem.problem import Problem
from lightning_vivit.samples.batch import checksum, clone

ProblemFactory: TypeAlias = Callable[[LightningModule, Any], Problem]


@dataclass(frozen=True)
class MonitorRequest:
    """What one monitor wants evaluated, and of what.

    Attributes:
        source: Which batch.
        wanted: What is wanted of it.
        problem: States the problem in place of the replayed training_step.
        replay_dtype: What the network is evaluated in; None for its own.
        vectors: Vectors of the size of the parameters that the monitor keeps.
    """

    source: BatchSource
    wanted: Request
    problem: ProblemFactory | None = None
    replay_dtype: torch.dtype | None = None
    vectors: int = 0

    @property
    def key(self) -> Hashable:
        """Requests with equal keys share an evaluation; k may differ, the largest is evaluated."""
        groups = repr(self.wanted.param_groups)
        same = replace(self.wanted, k=1, param_groups="all")
        return *self.source.key, groups, same, id(self.problem), self.replay_dtype


class Session:
    """The state that the monitors of one Trainer share during a fit.

    Args:
        last: The monitor that Lightning calls last; it ends the step, which frees what was shared.
        kernel_requests: Requests that need the NTK at some steps.
        requests: All requests.
        ranks: The processes of the run.
        replica: Stands in for a module whose parameters are divided among the ranks.
    """

    def __init__(
        self,
        last: object,
        kernel_requests: Iterable[MonitorRequest] = (),
        requests: Iterable[MonitorRequest] = (),
        ranks: Ranks | None = None,
        replica: Replica | None = None,
    ) -> None:
        self.last = last
        self._largest: dict[Hashable, int] = {}
        for request in requests:
            self._largest[request.key] = max(request.wanted.k, self._largest.get(request.key, 0))
        self._starts: dict[Hashable, dict[str, Start]] = {}
        self.ranks = Ranks() if ranks is None else ranks
        self.replica = replica
        self._kernel_keys = {request.key for request in kernel_requests}
        self.pacer = Pacer()
        self.laid_out = False  # whether the dashboards have their charts
        self._probes: dict[tuple[Any, ...], Any] = {}
        self._results: dict[Hashable, Result | Exception] = {}
        self._writers: dict[str, object] = {}  # key of a value -> the monitor that wrote it
        self._reported: Exception | None = None
        self._warned_of_unused = False
        self._stretched: set[int] = set()  # monitors that left a scheduled step out

    def batch(
        self, source: BatchSource, trainer: Trainer, module: LightningModule, batch: Any
    ) -> Any:
        """The batch of a source; sources with equal keys get one probe. None: not there yet."""
        if source.probe is None and source.key in self._probes:
            source.adopt(self._probes[source.key])
        found = source.fetch(trainer, module, batch)
        if source.probe is not None:
            self._probes[source.key] = source.probe
        return found if all(self.ranks.exchange(found is not None)) else None

    def evaluate(
        self,
        request: MonitorRequest,
        module: LightningModule,
        batch: Any,
        batch_idx: int,
        seed: int,
        kernel: bool = False,
    ) -> Result:
        """The evaluation of a batch, made at the first request and kept until `end_step`.

        Args:
            request: What is wanted; `batch` is the one of its source.
            module: The module that trains.
            batch: The batch to look at.
            batch_idx: Passed to `training_step`; 0 for a probe.
            seed: Seeds the draws of Monte Carlo columns.
            kernel: Whether a monitor may ask for the NTK at this step. At the other steps only
                the columns are evaluated that the loss sees.

        Raises:
            Exception: What the evaluation raised, the same object for everybody who asks for it.
        """
        key = request.key
        found = self._results.get(key)
        if found is None:
            try:
                data = clone(batch)
                if self.replica is not None:
                    module = self.replica.gathered(module, self.ranks)
                found = self._run(request, module, data, batch_idx, seed, kernel)
                self.ranks.exchange()  # all have it, or nobody
            except Exception as error:
                found = error
            self._results[key] = found
        if isinstance(found, Exception):
            raise found
        return found

    def check_room(
        self, name: str, trainer: Trainer, module: LightningModule, request: MonitorRequest
    ) -> None:
        """Refuse a monitor for which a gathered copy of the module would be too large."""
        if self.replica is not None:
            wanted = request.wanted
            vectors = request.vectors + (search_vectors(wanted.k) if wanted.matrix_free else 0)
            need = replica_bytes(trainer, module, request.replay_dtype, vectors)
            check_room(name, trainer, self.ranks, wanted.max_memory, need)

    def affords(self, monitor: object, step: int, share: float | None) -> bool:
        """Whether a due step keeps the monitors below their share of the time; None always does."""
        if share is None:
            return True
        affordable = bool(self.ranks.first(self.pacer.affords(share)))
        if not affordable and id(monitor) not in self._stretched:
            self._stretched.add(id(monitor))
            rank_zero_info(
                f"{type(monitor).__name__}: a monitored step takes {self.pacer.last:.2g} s, so "
                f"scheduled steps are left out from step {step} on to keep the monitors under "
                f"{share:.0%} of the time (max_overhead)."
            )
        return affordable

    def claim(self, key: str, monitor: object) -> object | None:
        """Note who writes a key at this step; returns another monitor that already did."""
        owner = self._writers.setdefault(key, monitor)
        return None if owner is monitor else owner

    def warn_of_unused(self, evaluation: Result) -> None:
        """Say once which parameters have no influence on the loss."""
        if evaluation.unused and not self._warned_of_unused:
            self._warned_of_unused = True
            names = ", ".join(evaluation.unused[:8]) + (", ..." if evaluation.unused[8:] else "")
            rank_zero_warn(
                f"{len(evaluation.unused)} trainable parameters do not influence the outputs of "
                f"this batch: {names}. Their curvature and kernel are zero. Freeze them with "
                "requires_grad_(False) if they are not meant to be trained.",
                category=UserWarning,
            )

    def first_report(self, error: Exception) -> bool:
        """Whether nobody has reported this very error yet."""
        first = self._reported is not error
        self._reported = error
        return first

    def end_step(self) -> None:
        """Free what was computed at this step, but for what the next search starts from."""
        for key, found in self._results.items():
            if not isinstance(found, Exception):
                self._starts[key] = found.warm_start()
        self._results.clear()
        self._writers.clear()
        self._reported = None
        if self.replica is not None:
            self.replica.release()
        self.ranks.end_step()

    def _run(
        self,
        request: MonitorRequest,
        module: LightningModule,
        batch: Any,
        batch_idx: int,
        seed: int,
        kernel: bool,
    ) -> Result:
        wanted = self._due_now(request, module.device, seed, kernel)
        several = self.ranks.size > 1
        divided = several and wanted.output_kernel is None and not wanted.matrix_free

        def state(some: Any) -> Problem:
            if request.problem is None:
                problem = Problem.from_training_step(module, some, batch_idx)
            else:
                problem = request.problem(module, some)
            problem.dtype = problem.dtype or request.replay_dtype
            problem.in_eval = True  # also where a result computes later
            return problem

        with ExitStack() as stack:
            stack.enter_context(common_buffers(module, self.ranks))
            if divided:
                batch, part = self._part(request, batch, state)
                wanted = replace(wanted, part=part)
            elif several:  # not divided: every rank computes the whole
                same = self._is_common(request, batch)
                batch = batch if same else gather_batch(batch, self.ranks)
            if request.problem is None:
                return evaluate_request(state(batch), wanted)
            stack.enter_context(eval_mode(module))
            problem = state(batch)
            stack.enter_context(eval_mode(problem.model))
            return evaluate_request(problem, wanted)

    def _due_now(
        self, request: MonitorRequest, device: torch.device, seed: int, kernel: bool
    ) -> Request:
        """What is wanted at this step, for all monitors that share the evaluation."""
        key, wanted = request.key, request.wanted
        method, memory, generator = wanted.method, wanted.max_memory, None
        gram = self.ranks.size > 1 or key in self._kernel_keys  # at all steps as at these
        if gram and method == "auto":
            method = "gram"
        if memory is not None and self.replica is not None:
            memory = max(1, memory - self.replica.size)
        if wanted.sampled:
            generator = torch.Generator(device=device).manual_seed(seed)
        return replace(
            wanted,
            k=self._largest.get(key, wanted.k),
            method=method,
            max_memory=memory,
            generator=generator,
            kernel=kernel,
            start=self._starts.get(key),
        )

    def _part(
        self, request: MonitorRequest, batch: Any, state: Callable[[Any], Problem]
    ) -> tuple[Any, Part]:
        """What this rank looks at: its part of a probe that all ranks hold, or its own batch."""
        if self._is_common(request, batch):
            mine, borrowed = take_part(batch, self.ranks)
            return mine, Part(self.ranks, borrowed, lambda: state(batch))
        own = Part(self.ranks, False, lambda: state(gather_batch(batch, self.ranks)))
        return batch, own

    def _is_common(self, request: MonitorRequest, batch: Any) -> bool:
        """Whether all ranks hold the same probe."""
        mark = None if request.source.data == "batch" else checksum(batch)
        marks = set(self.ranks.exchange(mark))
        return marks != {None} and len(marks) == 1
