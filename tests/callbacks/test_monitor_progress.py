"""A monitored step in the Trainer's progress bar: there while it runs, gone afterwards."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from monitor_toys import Classifier, loader, trainer

from lightning_vivit import GGNSpectrumMonitor
from lightning_vivit.callbacks.progress import shown_in_progress_bar
from lightning_vivit.loggers import Findings

TEXT = "Epoch 0 (Watching)"


class Watching(GGNSpectrumMonitor):
    """Notes the description during each monitored step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"k": 1, "every_n_steps": 4, "on_error": "raise", **options})
        self.during: list[str] = []

    def prepare(self, trainer: pl.Trainer, module: Any, evaluation: Any) -> None:
        super().prepare(trainer, module, evaluation)
        self.during.append(description(trainer.progress_bar_callback))


class Failing(Watching):
    def measure(self, evaluation: Any, group: str) -> Findings:
        raise RuntimeError("broken")


class After(pl.Callback):
    """Notes the description once the monitors are through."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(description(trainer.progress_bar_callback))


def description(bar: Any) -> str:
    if isinstance(bar, TQDMProgressBar):
        return bar.train_progress_bar.desc
    return bar.train_progress_bar.description if isinstance(bar, RichProgressBar) else ""


def run(root: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    fit = trainer(root, *callbacks, enable_progress_bar=True, **options)
    fit.fit(Classifier(), loader())
    return fit


def test_tqdm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor, after = Watching(), After()
    run(tmp_path, TQDMProgressBar(), monitor, after)
    shown = capsys.readouterr().out
    assert monitor.during == [f"{TEXT}: "] * 2
    assert after.seen == ["Epoch 0: "] * 6
    assert shown.count(f"{TEXT}: ") == 2
    last = shown.replace("\n", "\r").rstrip("\r").split("\r")[-1]
    assert "Watching" not in last and "6/6" in last


def test_rich(tmp_path: Path) -> None:
    file = io.StringIO()
    bar = RichProgressBar(console_kwargs={"file": file, "force_terminal": True, "width": 120})
    monitor, after = Watching(), After()
    run(tmp_path, bar, monitor, after)
    assert [text.rstrip() for text in monitor.during] == [TEXT.replace("0", "0/0")] * 2
    assert [text.rstrip() for text in after.seen] == ["Epoch 0/0"] * 6
    shown = file.getvalue()
    assert "(Watching)" in shown
    last = shown[shown.rindex("Epoch") :]
    assert "Watching" not in last and "6/6" in last


@pytest.mark.parametrize("kind", ["tqdm", "rich"])
def test_the_bar_ends_as_it_would_without_a_monitor(tmp_path: Path, kind: str) -> None:
    ends = []
    for monitors in ([], [Watching()]):
        bar: Any = TQDMProgressBar() if kind == "tqdm" else RichProgressBar()
        run(tmp_path, bar, *monitors, max_epochs=2)
        if kind == "tqdm":
            inner = bar.train_progress_bar
            ends.append(
                (inner.desc, inner.n, inner.total, sorted(bar.get_metrics(bar.trainer, None)))
            )
        else:
            task = bar.train_progress_bar
            ends.append((task.description, task.completed, task.total, sorted(task.fields)))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_a_failure_takes_the_text_away(tmp_path: Path, kind: type[ProgressBar]) -> None:
    monitor, after = Failing(on_error="warn"), After()
    with pytest.warns(RuntimeWarning, match="broken"):
        run(tmp_path, kind(), monitor, after)
    assert "(Failing)" in monitor.during[0]
    assert len(after.seen) == 6 and not any("Failing" in text for text in after.seen)


class Own(ProgressBar):
    def disable(self) -> None:
        self.off = True

    def enable(self) -> None:
        self.off = False


class Odd(TQDMProgressBar):
    """A bar whose training bar cannot be described."""

    class Silent:
        disable = False
        total = 6

        def __getattr__(self, name: str) -> Any:
            if name in ("desc", "refresh"):
                raise RuntimeError("no description")
            return lambda *_, **__: None

    def init_train_tqdm(self) -> Any:
        return self.Silent()

    def on_train_batch_end(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    "bar", [Own(), Odd(), TQDMProgressBar(refresh_rate=0), RichProgressBar(refresh_rate=0), None]
)
def test_bars_that_show_no_text(tmp_path: Path, bar: ProgressBar | None) -> None:
    seen: list[int] = []
    monitor = GGNSpectrumMonitor(
        k=1, every_n_steps=4, on_error="raise", on_result=lambda result: seen.append(result.step)
    )
    if bar is None:
        trainer(tmp_path, monitor).fit(Classifier(), loader())
    else:
        run(tmp_path, bar, monitor)
    assert seen == [0, 4]


@pytest.mark.parametrize("is_global_zero", [True, False])
def test_only_rank_0_shows_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_global_zero: bool
) -> None:
    class Within(pl.Callback):
        seen = ""

        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(type(trainer), "is_global_zero", is_global_zero)
                with shown_in_progress_bar(trainer, "Mine"):
                    self.seen = description(trainer.progress_bar_callback)

    within = Within()
    run(tmp_path, TQDMProgressBar(), within)
    assert within.seen == ("Epoch 0 (Mine): " if is_global_zero else "Epoch 0: ")
