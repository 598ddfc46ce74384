"""The overhead budget: the share of wall-clock stays below it, and without one nothing moves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from monitor_toys import Classifier, RecordingLogger, loader, trainer

from lightning_vivit import GGNSpectrumMonitor, NTKMonitor, OptionError
from lightning_vivit.callbacks import pacing
from lightning_vivit.callbacks.pacing import Pacer


class Clock:
    """A clock that tests turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(pacing.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def spend(pacer: Pacer, clock: Clock, seconds: float) -> Any:
    with pacer.timed():
        clock.now += seconds
    return pacer.end_step()


def test_the_share_stays_below_the_budget(clock: Clock) -> None:
    pacer, done = Pacer(), 0
    for _ in range(10_000):
        if pacer.affords(0.05):
            done += 1
            seconds, share = spend(pacer, clock, 0.5)
            assert seconds == pytest.approx(0.5)
            assert done == 1 or share <= 0.05 + 1e-9
        clock.now += 0.01
    assert pacer.spent / (clock.now - 100.0) == pytest.approx(0.05, rel=0.1)


def test_all_monitors_of_a_step_get_the_same_answer(clock: Clock) -> None:
    pacer = Pacer()
    spend(pacer, clock, 1.0)
    clock.now += 40.0
    assert pacer.affords(0.05)
    with pacer.timed():
        clock.now += 3.0  # the first monitor evaluates for all
    assert pacer.affords(0.05)
    assert pacer.end_step() == (pytest.approx(3.0), pytest.approx(4.0 / 44.0))
    assert not pacer.affords(0.05)


def test_steps_without_a_monitored_one_cost_nothing() -> None:
    assert Pacer().end_step() is None


class Slow(pl.Callback):
    """Pretends that a training step takes a while."""

    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(0.002)


def fit(root: Path, steps: int, **options: Any) -> tuple[RecordingLogger, float]:
    log = RecordingLogger()
    kinds = (GGNSpectrumMonitor, NTKMonitor)
    monitors = [
        kind(k=2, every_n_steps=5, data="train", on_error="raise", **options) for kind in kinds
    ]
    run = trainer(root, *monitors, Slow(), logger=log, max_steps=steps, max_epochs=-1)
    run.fit(Classifier(), loader())
    return log, float(run.callback_metrics["cost/overhead"])


def test_without_a_budget_every_step_is_kept_and_the_cost_is_logged(tmp_path: Path) -> None:
    log, share = fit(tmp_path, 40)
    assert list(log.values("ggn/trace")) == list(range(0, 40, 5))
    assert list(log.values("cost/seconds")) == list(range(0, 40, 5))
    assert 0 < share < 1
    assert all(0 < value < 1 for value in log.values("cost/overhead").values())


def test_with_a_budget_scheduled_steps_are_left_out_for_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        log, _ = fit(tmp_path, 400, max_overhead=0.05)
    steps = list(log.values("ggn/trace"))
    assert steps == list(log.values("ntk/trace"))
    assert steps[0] == 0 and len(steps) < 80 and all(step % 5 == 0 for step in steps)
    words = [record.message for record in caplog.records if "max_overhead" in record.message]
    assert len(words) == 2 and words[0].startswith("GGNSpectrumMonitor: a monitored step takes")


@pytest.mark.parametrize("value", [0, -0.1, 2, "5%", True])
def test_impossible_budgets_are_refused(value: Any) -> None:
    with pytest.raises(OptionError, match="max_overhead has to be a share"):
        GGNSpectrumMonitor(max_overhead=value)


@pytest.mark.long
@pytest.mark.parametrize("budget", [0.05, 0.2])
def test_measured_share_of_a_run(tmp_path: Path, budget: float) -> None:
    """Wall-clock of the monitors' hooks, measured from outside, on the digits CNN."""
    from lightning_vivit.demo import DigitsClassifier, DigitsDataModule

    class Stopwatch(pl.Callback):
        began, inside, total = 0.0, 0.0, 0.0

        def on_train_start(self, *args: Any) -> None:
            self.began = time.perf_counter()

        def on_train_end(self, *args: Any) -> None:
            self.total = time.perf_counter() - self.began

    watch = Stopwatch()
    monitors: list[Any] = [
        kind(k=5, every_n_steps=5, data="train", max_overhead=budget)
        for kind in (GGNSpectrumMonitor, NTKMonitor)
    ]
    for monitor in monitors:
        hook = monitor.on_train_batch_start

        def timed(*args: Any, hook: Any = hook) -> None:
            start = time.perf_counter()
            hook(*args)
            watch.inside += time.perf_counter() - start

        monitor.on_train_batch_start = timed
    run = trainer(tmp_path, watch, *monitors, max_epochs=-1, max_time={"seconds": 60})
    run.fit(DigitsClassifier(), DigitsDataModule())
    assert watch.inside / watch.total < budget + 0.01
