"""A monitored step shows itself in the Trainer's progress bar while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar


@contextmanager
def shown_in_progress_bar(trainer: Trainer, name: str) -> Iterator[None]:
    """Put a name behind the description of the training bar, and take it away afterwards.

    Nothing happens without a bar, with a disabled one (as on ranks other than 0), and with bars
    that are neither TQDM's nor Rich's. A bar that does not take the text is no reason to stop.

    Args:
        trainer: The Trainer that runs.
        name: What runs.
    """
    describe: Callable[[str | None], None] | None = None
    if trainer.is_global_zero:
        with suppress(Exception):
            describe = _describer(trainer.progress_bar_callback)
    if describe is None:
        yield
        return
    with suppress(Exception):
        describe(name)
    try:
        yield
    finally:
        with suppress(Exception):
            describe(None)


def _describer(bar: ProgressBar | None) -> Callable[[str | None], None] | None:
    """Shows a text behind the description of a bar, or with None the description as it was."""
    if isinstance(bar, TQDMProgressBar):
        return _tqdm(bar)
    if isinstance(bar, RichProgressBar):
        return _rich(bar)
    return None


def _tqdm(callback: TQDMProgressBar) -> Callable[[str | None], None] | None:
    if callback.is_disabled or callback.train_progress_bar.disable:
        return None
    bar = callback.train_progress_bar
    before = bar.desc or ""

    def describe(name: str | None) -> None:
        bar.desc = before if name is None else f"{_behind(before.removesuffix(': '), name)}: "
        bar.refresh()

    return describe


def _rich(callback: RichProgressBar) -> Callable[[str | None], None] | None:
    progress, task_id = callback.progress, callback.train_progress_bar_id
    if callback.is_disabled or progress is None or task_id is None:
        return None
    task = next(task for task in progress.tasks if task.id == task_id)
    before = task.description

    def describe(name: str | None) -> None:
        task.description = before if name is None else _behind(before.rstrip(), name)
        progress.refresh()

    return describe


def _behind(description: str, name: str) -> str:
    return f"{description} ({name})".lstrip()
