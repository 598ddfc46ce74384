"""When a monitor computes: a small value object that answers `due(step, epoch, first_in_epoch)`.

What a step is: the number that Lightning's own monitors use as their x axis, the number of batches
after which the optimizers stepped. It rises by one for each batch; with `accumulate_grad_batches=n`
by one for each n batches (the monitor then computes on the first of them, at the parameters before
the step). LBFGS, which calls `training_step` several times for one batch, and manual optimization,
where one batch may step several optimizers, count one for each batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_vivit.errors import OptionError

DEFAULT_EVERY_N_STEPS = 100


@dataclass(frozen=True)
class Schedule:
    """The steps at which a monitor computes.

    Give at most one of the options. Step 0 is always due, except with explicit `steps` or a
    callable, which decide alone.

    Args:
        every_n_steps: Steps 0, n, 2n, ... If no option is given, every 100 steps.
        every_n_epochs: The first step of epochs 0, n, 2n, ...
        steps: Exactly these steps.
        steps_per_decade: Logarithmic spacing: step 0 and the rounded powers of ten
            10^(i / steps_per_decade), so 3 gives 0, 1, 2, 5, 10, 22, 46, 100, ...
        function: Called with each step, once, returns whether it is due.

    Raises:
        OptionError: If more than one option is given or one has an impossible value.
    """

    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    steps: Sequence[int] | None = None
    steps_per_decade: int | None = None
    function: Callable[[int], bool] | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            listed = " and ".join(f"{_option(name)}={value!r}" for name, value in given.items())
            raise OptionError(
                f"The schedule got {listed}, which contradict each other. "
                f"Give one of {', '.join(map(_option, vars(self)))}."
            )
        for name in ("every_n_steps", "every_n_epochs", "steps_per_decade"):
            value = getattr(self, name)
            if value is not None and (not _is_int(value) or value < 1):
                raise OptionError(f"{name} has to be a positive integer, got {value!r}.")
        if self.steps is not None:
            if isinstance(self.steps, str) or not isinstance(self.steps, Sequence):
                raise OptionError(f"steps has to be a list of integers, got {self.steps!r}.")
            if not self.steps or not all(_is_int(step) and step >= 0 for step in self.steps):
                raise OptionError(
                    f"steps has to be a non-empty list of integers >= 0, got {list(self.steps)!r}."
                )
            object.__setattr__(self, "steps", tuple(sorted(set(self.steps))))
        if self.function is not None and not callable(self.function):
            raise OptionError(
                f"schedule has to be a callable of the step that returns a bool, "
                f"got {self.function!r}."
            )
        if not given:
            object.__setattr__(self, "every_n_steps", DEFAULT_EVERY_N_STEPS)

    def due(self, step: int, epoch: int = 0, first_in_epoch: bool = False) -> bool:
        """Whether to compute at this step.

        Args:
            step: The number on the x axis of the loggers.
            epoch: The current epoch.
            first_in_epoch: Whether this is the first batch of the epoch.
        """
        if self.every_n_steps is not None:
            return step % self.every_n_steps == 0
        if self.every_n_epochs is not None:
            return first_in_epoch and epoch % self.every_n_epochs == 0
        if self.steps is not None:
            return step in self.steps
        if self.steps_per_decade is not None:
            return is_log_spaced(step, self.steps_per_decade)
        assert self.function is not None
        return bool(self.function(step))

    def meets(self, other: Schedule) -> bool:
        """Whether a step is known at which both are due; with a callable none is known."""
        if self.function is not None or other.function is not None:
            return False
        steps = {0, *(self.steps or ()), *(other.steps or ())}
        return any(all(each.due(step, 0, step == 0) for each in (self, other)) for step in steps)

    def describe(self) -> dict[str, object]:
        """The option in force, as plain values (for the key of the callback's state)."""
        return {
            _option(name): getattr(value, "__qualname__", type(value).__qualname__)
            if name == "function"
            else value
            for name, value in vars(self).items()
            if value is not None
        }


def is_log_spaced(step: int, per_decade: int) -> bool:
    """Whether `step` is 0 or a rounded power 10^(i / per_decade), i = 0, 1, ..."""
    if step < 2:
        return step >= 0
    nearest = round(per_decade * math.log10(step))
    return any(round(10 ** (i / per_decade)) == step for i in (nearest - 1, nearest, nearest + 1))


def _option(name: str) -> str:
    """The name under which the monitors offer a field."""
    return "schedule" if name == "function" else name


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
