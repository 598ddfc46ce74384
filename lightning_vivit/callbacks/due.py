"""Whether a monitor computes at a step: its schedule, and its share of the time."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vivit.callbacks.measurement import Measurement
from lightning_vivit.callbacks.session import Session
from lightning_vivit.loggers import x_axis_step


def is_due(monitor: Measurement, session: Session, trainer: Trainer, batch_idx: int) -> bool:
    """Whether to compute now; asks the schedule once a step, whatever the number of its batches."""
    step = x_axis_step(trainer)
    if step == monitor.run_state.step:  # a further batch of an accumulated step
        return False
    monitor.run_state.step = step
    due = _scheduled(monitor, trainer, step, batch_idx)
    if monitor.schedule.function is not None:
        due = bool(session.ranks.first(due))  # it may say something else on each rank
    return due and _affordable(monitor, session)


def may_be_due(monitor: Measurement, trainer: Trainer, batch_idx: int) -> bool:
    """Whether it can't be ruled out that a monitor computes at the current step."""
    if monitor.run_state.failure is not None or monitor.schedule.function is not None:
        return monitor.run_state.failure is None
    return _scheduled(monitor, trainer, x_axis_step(trainer), batch_idx)


def _scheduled(monitor: Measurement, trainer: Trainer, step: int, batch_idx: int) -> bool:
    epoch = 0 if monitor.schedule.every_n_epochs is None else trainer.current_epoch
    return monitor.schedule.due(step, epoch, batch_idx == 0)


def _affordable(monitor: Measurement, session: Session) -> bool:
    """Whether a due step keeps the monitors below their share of the time; None always does."""
    share, state, pacer = monitor.settings.max_overhead, monitor.run_state, session.pacer
    if share is None or session.ranks.first(pacer.affords(share)):
        return True
    if not state.stretched:
        state.stretched = True
        rank_zero_info(
            f"{type(monitor).__name__}: a monitored step takes {pacer.last:.2g} s, so scheduled "
            f"steps are left out from step {state.step} on to keep the monitors under {share:.0%} "
            "of the time (max_overhead)."
        )
    return False
