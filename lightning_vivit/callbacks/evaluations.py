"""One evaluation for all monitors of a Trainer that look at the same data at the same step.

Shared is what would give the same result: same samples (equal `data`, `seed` and `max_samples`, or
the same given probe), same parameter groups, same columns (exact, or the same number of Monte Carlo
samples), same dtype, same `problem` callable, same method, matrix and tolerance. Monitors that
differ in one of these pay for an evaluation each; in particular monitors with different parameter
groups do not share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_vivit.callbacks.due import may_be_due
from lightning_vivit.callbacks.measurement import Measurement
from lightning_vivit.callbacks.over_ranks import evaluate_over_ranks
from lightning_vivit.callbacks.session import Session
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.evaluation.request import Request
from lightning_vivit.samples.batch import clone


def evaluation_for(
    monitor: Measurement,
    session: Session,
    trainer: Trainer,
    module: LightningModule,
    batch: Any,
    batch_idx: int,
) -> Result:
    """The evaluation that a monitor wants, made once a step for all that want the same.

    Args:
        monitor: The monitor whose turn it is.
        session: What it shares with the others of the Trainer.
        trainer: The Trainer that runs.
        module: Its module.
        batch: The batch of the monitor's source.
        batch_idx: Of the current training batch.

    Raises:
        Exception: What the evaluation raised, the same object for everybody who asks for it.
    """
    key, ranks, replica = monitor.key, session.ranks, session.replica
    found = session.results.get(key)
    if found is None:
        sharers = [other for other in session.monitors if other.key == key]
        kernel = any(m.needs_kernel and may_be_due(m, trainer, batch_idx) for m in sharers)
        try:
            data = clone(batch)
            if replica is not None:
                module = replica.gathered(module, ranks)
            wanted = _wanted_now(monitor, sharers, session, kernel, module.device)
            index = batch_idx if monitor.source.data == "batch" else 0
            found = evaluate_over_ranks(monitor, wanted, module, data, index, ranks)
            ranks.exchange()  # all have it, or nobody
        except Exception as error:
            found = error
        session.results[key] = found
    if isinstance(found, Exception):
        raise found
    return found


def _wanted_now(
    monitor: Measurement,
    sharers: Sequence[Measurement],
    session: Session,
    kernel: bool,
    device: torch.device,
) -> Request:
    """What all monitors that share an evaluation want of it."""
    wanted, replica = monitor.request(), session.replica
    method, memory, generator = wanted.method, wanted.max_memory, None
    gram = session.ranks.size > 1 or any(each.needs_kernel for each in sharers)
    if gram and method == "auto":  # at all steps, as at those that need the kernel
        method = "gram"
    if memory is not None and replica is not None:
        memory = max(1, memory - replica.size)
    if wanted.sampled:
        seed = monitor.settings.seed + monitor.step
        generator = torch.Generator(device=device).manual_seed(seed)
    return replace(
        wanted,
        k=max(each.k for each in sharers),
        method=method,
        max_memory=memory,
        generator=generator,
        kernel=kernel,
        start=session.starts.get(monitor.key),
    )
