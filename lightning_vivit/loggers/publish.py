"""Bring an entry to every logger of a Trainer and to its `callback_metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vivit.loggers.comet import CometWriter
from lightning_vivit.loggers.csv import CSVWriter
from lightning_vivit.loggers.dashboard import Chart
from lightning_vivit.loggers.entry import LogEntry
from lightning_vivit.loggers.mlflow import MLFlowWriter
from lightning_vivit.loggers.tensorboard import TensorBoardWriter
from lightning_vivit.loggers.wandb import WandbWriter
from lightning_vivit.loggers.writer import LogWriter

# One line for each kind of logger; the libraries behind them need not be installed.
_WRITERS = (
    LogWriter,
    TensorBoardWriter,
    CSVWriter,
    WandbWriter,
    MLFlowWriter,
    CometWriter,
)
WRITERS: dict[str, type[LogWriter]] = {writer.kind: writer for writer in _WRITERS}

# Kinds of loggers of which a run was told already that they show less.
_told: WeakKeyDictionary[Trainer, set[type[Logger]]] = WeakKeyDictionary()


def x_axis_step(trainer: Trainer) -> int:
    """The step at which Lightning's own monitors write, so that points lie over the train loss.

    It is the number of batches after which the optimizers stepped. `trainer.global_step` is not
    it: in manual optimization that one counts every optimizer's steps.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def writer_for(logger: Logger) -> LogWriter:
    """The writer of a logger's kind; an unknown kind gets the scalars."""
    names = (kind.__name__ for kind in type(logger).__mro__)
    return next((WRITERS[name] for name in names if name in WRITERS), LogWriter)(logger)


def publish(trainer: Trainer, entry: LogEntry) -> None:
    """Write an entry to every logger, at its step whatever `log_every_n_steps` is.

    Args:
        trainer: The Trainer that runs.
        entry: The values of this step.
    """
    for logger in trainer.loggers:
        if trainer.is_global_zero:
            writer = writer_for(logger)
            writer.write(entry)
            _tell_missing(trainer, logger, writer.missing(entry))
        else:  # for loggers that log on every rank
            LogWriter(logger).write(entry)
    set_callback_metrics(trainer, entry.scalars)


def _tell_missing(trainer: Trainer, logger: Logger, missing: tuple[str, ...]) -> None:
    told = _told.setdefault(trainer, set())
    silent = isinstance(logger, DummyLogger)  # of fast_dev_run, which writes nothing
    if missing and not silent and type(logger) not in told:
        told.add(type(logger))
        rank_zero_info(
            f"{type(logger).__name__} gets the scalars of the monitors, but it shows no "
            f"{' and no '.join(missing)}. TensorBoardLogger, WandbLogger and CometLogger do."
        )


def lay_out(trainer: Trainer, charts: Sequence[Chart]) -> None:
    """Give the charts of all monitors to the loggers that have a page for them.

    A logger that cannot take them loses its charts, and the run goes on.

    Args:
        trainer: The Trainer that runs.
        charts: Of all its monitors, since a second layout would replace the first.
    """
    for logger in trainer.loggers:
        try:
            writer_for(logger).lay_out(charts)
        except Exception as error:
            rank_zero_warn(
                f"{type(logger).__name__} has no charts of the monitors: their layout could not be "
                f"written. {type(error).__name__}: {error}",
                category=RuntimeWarning,
            )


def set_callback_metrics(trainer: Trainer, scalars: dict[str, float]) -> None:
    """Make values visible to ModelCheckpoint and EarlyStopping; they stay until replaced."""
    device = trainer.strategy.root_device
    values = torch.tensor(list(scalars.values()), device=device).unbind()
    trainer.callback_metrics.update(zip(scalars, values, strict=True))
