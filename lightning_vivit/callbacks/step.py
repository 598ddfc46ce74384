"""One monitored step: batch, evaluation, findings, entry, loggers, raw results."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_vivit.callbacks.evaluations import evaluation_for
from lightning_vivit.callbacks.measurement import Measurement
from lightning_vivit.callbacks.progress import shown_in_progress_bar
from lightning_vivit.callbacks.session import Session
from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.loggers import LogEntry, publish
from lightning_vivit.problem.isolation.rng import isolated_rng

FIGURE_GROUPS = 4  # with more parameter groups, only figures over all of them


def look(
    monitor: Measurement,
    session: Session,
    trainer: Trainer,
    module: LightningModule,
    batch: Any,
    batch_idx: int,
) -> None:
    """Let a monitor look at the parameters before this step, and tell what it finds.

    Args:
        monitor: The monitor whose turn it is.
        session: What it shares with the others of the Trainer.
        trainer: The Trainer that runs.
        module: Its module.
        batch: The current training batch.
        batch_idx: Its index.

    Raises:
        Exception: Whatever goes wrong on this rank or another one.
    """
    state = monitor.run_state
    with isolated_rng(), shown_in_progress_bar(trainer, type(monitor).__name__):
        if state.late is not None:
            raise state.late
        batch = session.batch(monitor.source, trainer, module, batch)
        if batch is None:
            return
        state.looked_at = batch
        evaluation = evaluation_for(monitor, session, trainer, module, batch, batch_idx)
        session.warn_of_unused(evaluation)
        monitor.prepare(trainer, module, evaluation)
        entry = _entry(monitor, session, evaluation)
        entry.scalars = session.ranks.first(entry.scalars)
        state.measured = True
        state.values = entry.scalars
        publish(trainer, entry)
        monitor.raw_results.take(trainer, entry, type(monitor).__name__, monitor.options())
        session.ranks.exchange()


def _entry(monitor: Measurement, session: Session, evaluation: Result) -> LogEntry:
    """What the monitor says about all parameter groups, under the keys of the loggers."""
    state, settings = monitor.run_state, monitor.settings
    entry = LogEntry(state.step, monitor=monitor.path)
    drawn = settings.figures and state.looks % settings.figures_every == 0
    state.looks += 1
    for group in evaluation.groups:
        path = monitor.path if len(evaluation.groups) == 1 else f"{monitor.path}/{group}"
        for key in entry.add(path, monitor.measure(evaluation, group)):
            _claim(key, monitor, session)
    if not drawn or len(evaluation.groups) > FIGURE_GROUPS:
        entry.figures.clear()
    if drawn:
        overview = monitor.overview().items()
        entry.figures.update({f"{monitor.path}/{name}": draw for name, draw in overview})
    return entry


def _claim(key: str, monitor: Measurement, session: Session) -> None:
    other = session.writers.setdefault(key, monitor)
    if other is not monitor:
        raise OptionError(
            f"Two monitors write {key!r} at step {monitor.step}: {type(monitor).__name__} and "
            f"{type(other).__name__}. Give one of them a prefix, or other steps."
        )
