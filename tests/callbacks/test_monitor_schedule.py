"""The schedule as a value: which steps are due, which options contradict each other."""

from __future__ import annotations

import pytest

from lightning_vivit.callbacks.schedule import DEFAULT_EVERY_N_STEPS, Schedule
from lightning_vivit.errors import OptionError


def due(schedule: Schedule, steps: int) -> list[int]:
    return [step for step in range(steps) if schedule.due(step)]


def test_every_n_steps_starts_at_zero() -> None:
    assert due(Schedule(every_n_steps=3), 10) == [0, 3, 6, 9]


def test_default_is_every_hundred_steps() -> None:
    assert DEFAULT_EVERY_N_STEPS == 100
    assert due(Schedule(), 250) == [0, 100, 200]


def test_explicit_steps_decide_alone() -> None:
    assert due(Schedule(steps=[7, 2, 2]), 10) == [2, 7]


def test_logarithmic_spacing() -> None:
    assert due(Schedule(steps_per_decade=3), 1001) == [0, 1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    assert due(Schedule(steps_per_decade=1), 2000) == [0, 1, 10, 100, 1000]


def test_many_points_in_a_decade_give_every_small_step() -> None:
    assert due(Schedule(steps_per_decade=100), 11) == list(range(11))


def test_epochs_are_due_at_their_first_step() -> None:
    schedule = Schedule(every_n_epochs=2)
    seen = [
        (epoch, batch)
        for epoch in range(5)
        for batch in range(4)
        if schedule.due(4 * epoch + batch, epoch, batch == 0)
    ]
    assert seen == [(0, 0), (2, 0), (4, 0)]


def test_callable_is_asked_for_each_step() -> None:
    asked: list[int] = []

    def odd(step: int) -> bool:
        asked.append(step)
        return step % 2 == 1

    assert due(Schedule(function=odd), 6) == [1, 3, 5]
    assert asked == list(range(6))


def test_contradicting_options_are_named() -> None:
    with pytest.raises(OptionError, match=r"every_n_steps=5 and steps=\[1\], which contradict"):
        Schedule(every_n_steps=5, steps=[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps has to be a positive integer, got 0"),
        ({"every_n_steps": True}, "every_n_steps has to be a positive integer, got True"),
        ({"every_n_epochs": -1}, "every_n_epochs has to be a positive integer, got -1"),
        ({"steps_per_decade": 1.5}, "steps_per_decade has to be a positive integer, got 1.5"),
        ({"steps": []}, "steps has to be a non-empty list"),
        ({"steps": [-1]}, "steps has to be a non-empty list of integers >= 0"),
        ({"steps": "12"}, "steps has to be a list of integers"),
        ({"function": 3}, "schedule has to be a callable"),
    ],
)
def test_impossible_values_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Schedule(**options)  # type: ignore[arg-type]


def test_description_holds_plain_values() -> None:
    assert Schedule(steps=[3, 1]).describe() == {"steps": (1, 3)}
    assert Schedule(function=bool).describe() == {"schedule": "bool"}
