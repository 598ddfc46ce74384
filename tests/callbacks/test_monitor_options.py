"""Options of the monitors, for people and for tools that read signatures and types.

mypy checks this file too, and there an ignored error that does not occur is one: so a wrong option
is seen before anything runs.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.callbacks import Monitor
from lightning_vivit.callbacks.options import MonitorOptions, Options
from lightning_vivit.errors import OptionError, UnknownOptionError
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.loggers import Findings

KINDS: tuple[type[Monitor], ...] = (
    GGNSpectrumMonitor,
    DirectionalDerivativesMonitor,
    NTKMonitor,
)


def test_the_nearest_option_is_named() -> None:
    with pytest.raises(UnknownOptionError) as caught:
        GGNSpectrumMonitor(every_n_step=5)  # type: ignore[call-arg]
    assert str(caught.value) == (
        "GGNSpectrumMonitor: unknown option 'every_n_step'; did you mean 'every_n_steps'?"
    )
    with pytest.raises(OptionError, match="unknown option 'overlp'; did you mean 'overlap'"):
        GGNSpectrumMonitor(overlp=False)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unknown option 'overlap'; known are k, mode, data"):
        NTKMonitor(overlap=False)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match=r"DirectionalDerivativesMonitor: .*'max_samples'"):
        DirectionalDerivativesMonitor(max_sample=5)  # type: ignore[call-arg]


def test_a_value_of_a_wrong_type_is_seen_by_mypy() -> None:
    with pytest.raises(OptionError, match="every_n_steps has to be a positive integer"):
        GGNSpectrumMonitor(every_n_steps="often")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="on_error has to be one of"):
        NTKMonitor(on_error="stop")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="data has to be one of"):
        NTKMonitor(data="test")  # type: ignore[arg-type]


def test_the_typed_keywords_are_those_of_the_dataclass() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(MonitorOptions)}
    typed = {name: kind.__forward_arg__ for name, kind in Options.__annotations__.items()}
    assert fields.pop("k") == "int"
    assert typed == fields


@pytest.mark.parametrize("kind", KINDS)
def test_the_signature_lists_all_options_with_their_defaults(kind: type[Monitor]) -> None:
    listed = inspect.signature(kind).parameters
    for field in dataclasses.fields(MonitorOptions):
        found = listed[field.name]
        special = kind is NTKMonitor and field.name == "data"
        assert found.default == ("train" if special else field.default)
        assert (
            found.annotation
            == inspect.signature(MonitorOptions, eval_str=True).parameters[field.name].annotation
        )
    assert all(each.kind is not each.VAR_KEYWORD for each in listed.values())


def test_a_monitor_of_ones_own_takes_them_too() -> None:
    class Own(Monitor):
        section = "own"

        def measure(self, evaluation: Result, group: str) -> Findings:
            return Findings({"k": float(self.k)})

    assert Own(4, every_n_steps=3).schedule.every_n_steps == 3
    assert Own(k=4).k == 4
    with pytest.raises(UnknownOptionError, match="Own: unknown option 'steps_per_decades'"):
        Own(steps_per_decades=3)  # type: ignore[call-arg]
