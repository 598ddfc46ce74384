"""A monitor that fails says so once and stops, and the training goes on."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vivit.callbacks.measurement import Measurement
from lightning_vivit.errors import ViViTError
from lightning_vivit.samples.batch import describe


def stop(monitor: Measurement, error: Exception, told: bool) -> None:
    """Stop a monitor, with one message for all that stop for the same error.

    Args:
        monitor: The monitor in whose turn it was raised.
        error: What was raised.
        told: Whether the user has heard of it.

    Raises:
        ViViTError: With on_error="raise".
    """
    state, data = monitor.run_state, monitor.source.data
    state.failure = cause_of(error)
    where = "no batch" if state.looked_at is None else describe(state.looked_at)
    name = type(monitor).__name__
    message = f"{name} failed at step {state.step} (data={data!r}: {where}). {state.failure}"
    if monitor.settings.on_error == "raise":
        if isinstance(error, ViViTError):
            raise error
        raise ViViTError(message) from error
    if not told:
        warn(
            f"{message}\nThis monitor, and those that share its evaluation, stop here; the "
            "training goes on. Use on_error='raise' to end the run instead."
        )


def tell(monitor: Measurement, message: str, error: Exception) -> None:
    """Say what a monitor has to do without; it goes on.

    Raises:
        ViViTError: With on_error="raise".
    """
    text = f"{type(monitor).__name__}: {message} {cause_of(error)}"
    if monitor.settings.on_error == "raise":
        raise ViViTError(text) from error
    warn(text)


def stop_messages(monitors: Iterable[Measurement]) -> list[str]:
    """A line for each step and cause, naming all monitors that stopped there."""
    together: dict[tuple[int, str], list[str]] = {}
    for monitor in monitors:
        state = monitor.run_state
        if state.failure is not None:
            together.setdefault((state.step, state.failure), []).append(type(monitor).__name__)
    return [
        f"{', '.join(names)} stopped at step {step}. {cause}"
        for (step, cause), names in together.items()
    ]


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn on rank 0; where the user's filters make errors of warnings, log the message."""
    try:
        rank_zero_warn(message, category=category)
    except Warning:
        rank_zero_info(message)


def cause_of(error: Exception) -> str:
    """The message of an error; with its class, unless the package itself wrote it."""
    return str(error) if isinstance(error, ViViTError) else f"{type(error).__name__}: {error}"
