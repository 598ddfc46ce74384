"""What is said about a monitor that stopped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_vivit.errors import ViViTError
from lightning_vivit.samples.batch import describe


def cause_of(error: Exception) -> str:
    """The message of an error; with its class, unless the package itself wrote it."""
    return str(error) if isinstance(error, ViViTError) else f"{type(error).__name__}: {error}"


def failure_message(name: str, step: int, data: str, batch: Any, cause: str) -> str:
    """Which monitor failed, when, and on what.

    Args:
        name: Of the monitor's class.
        step: The monitored step.
        data: Where its batch comes from.
        batch: The batch that it looked at; None if there was none yet.
        cause: As `cause_of` says it.
    """
    where = "no batch" if batch is None else describe(batch)
    return f"{name} failed at step {step} (data={data!r}: {where}). {cause}"


def stop_messages(stops: Iterable[tuple[str, int, str]]) -> list[str]:
    """A line for each step and cause, naming all monitors that stopped there.

    Args:
        stops: Name, step and cause of each monitor that stopped.
    """
    together: dict[tuple[int, str], list[str]] = {}
    for name, step, cause in stops:
        together.setdefault((step, cause), []).append(name)
    return [
        f"{', '.join(names)} stopped at step {step}. {cause}"
        for (step, cause), names in together.items()
    ]
