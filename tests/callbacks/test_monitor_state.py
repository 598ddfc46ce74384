"""Checkpoints: a resumed run goes on where the stopped one was; instances keep apart."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from monitor_toys import Classifier, RecordingLogger, blobs, loader, trainer
from torch.utils.data import IterableDataset

from lightning_vivit.callbacks import (
    DirectionalDerivativesMonitor,
    GGNSpectrumMonitor,
    Monitor,
    NTKMonitor,
    state,
)
from lightning_vivit.callbacks.due import is_due
from lightning_vivit.errors import ViViTError

LAST = {"ggn": "ggn/subspace_overlap", "ntk": "ntk/distance_first"}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(*blobs().tensors, strict=True)


def monitors(data: str) -> list[Monitor]:
    options: dict[str, Any] = {"k": 2, "every_n_steps": 4, "data": data, "on_error": "raise"}
    kinds = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)
    return [kind(**options) for kind in kinds]


def fit(
    root: Path, data: str, epochs: int, ckpt_path: Path | None = None, train: Any = None
) -> Any:
    pl.seed_everything(1)
    log = RecordingLogger()
    saver = ModelCheckpoint(root, filename=f"{{epoch}}-of-{epochs}", save_top_k=-1)
    run = trainer(
        root, saver, *monitors(data), logger=log, enable_checkpointing=True, max_epochs=epochs
    )
    options = {"weights_only": True} if "weights_only" in signature(run.fit).parameters else {}
    run.fit(Classifier(), loader(train), loader(train), ckpt_path=ckpt_path, **options)
    return log, run


@pytest.mark.parametrize("data", ["batch", "train", "val"])
def test_a_resumed_run_logs_what_an_unbroken_one_does(tmp_path: Path, data: str) -> None:
    whole, _ = fit(tmp_path / "whole", data, epochs=4)
    fit(tmp_path / "first", data, epochs=2)
    resumed, _ = fit(tmp_path, data, epochs=4, ckpt_path=tmp_path / "first/epoch=1-of-2.ckpt")
    for key in sorted(whole.seen()):
        if "/" in key and not key.startswith("cost/"):
            expected = {step: v for step, v in whole.values(key).items() if step >= 12}
            assert resumed.values(key) == pytest.approx(expected, abs=1e-6), key


class Resumable:
    """A loader that can go on in the middle of an epoch."""

    def __init__(self) -> None:
        self.inner = loader()
        self.dataset = self.inner.dataset
        self.position = 0

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Any:
        batches = list(self.inner)
        for index in range(self.position, len(batches)):
            self.position = index + 1
            yield batches[index]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize("data", ["batch", "val"])
def test_a_run_resumed_in_the_middle_of_an_epoch(tmp_path: Path, data: str) -> None:
    def run(folder: str, steps: int, ckpt_path: Path | None = None) -> RecordingLogger:
        pl.seed_everything(1)
        log = RecordingLogger()
        options: dict[str, Any] = {"k": 2, "every_n_steps": 3, "data": data, "on_error": "raise"}
        kinds = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=8)
        callbacks = [saver, *(kind(**options) for kind in kinds)]
        limits = {"max_steps": steps, "max_epochs": -1, "enable_checkpointing": True}
        fit = trainer(tmp_path, *callbacks, logger=log, **limits)
        fit.fit(Classifier(momentum=0.9), Resumable(), loader(), ckpt_path=ckpt_path)
        return log

    whole = run("whole", 17)
    run("first", 8)  # an epoch has six steps
    resumed = run("second", 17, tmp_path / "first" / "step=8.ckpt")
    compared = [key for key in whole.seen() if "/" in key and not key.startswith("cost/")]
    assert len(compared) > 10
    for key in compared:
        expected = {step: value for step, value in whole.values(key).items() if step >= 8}
        assert resumed.values(key) == pytest.approx(expected, abs=1e-6), key


def test_a_kept_probe_of_iterable_data_survives(tmp_path: Path) -> None:
    fit(tmp_path / "first", "train", 1, train=Stream())
    path = tmp_path / "first/epoch=0-of-1.ckpt"
    _, run = fit(tmp_path, "train", 2, path, train=Stream())
    first = next(iter(loader(Stream())))
    probe = next(c for c in run.callbacks if isinstance(c, NTKMonitor)).source.probe
    assert torch.equal(probe[0], first[0])


def test_last_values_are_back_before_the_next_due_step(tmp_path: Path) -> None:
    fit(tmp_path / "first", "train", epochs=2)
    seen: list[set[str]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            seen.append(set(trainer.callback_metrics))

    state = torch.load(tmp_path / "first/epoch=1-of-2.ckpt", weights_only=True)
    log = RecordingLogger()
    run = trainer(tmp_path, Look(), *monitors("train"), logger=log, max_steps=13, max_epochs=-1)
    for monitor in run.callbacks:
        if isinstance(monitor, Monitor):
            monitor.schedule = type(monitor.schedule)(steps=[1000])
            state["callbacks"][monitor.state_key] = state["callbacks"].pop(
                monitor.state_key.replace("'steps': (1000,)", "'every_n_steps': 4")
            )
    torch.save(state, tmp_path / "moved.ckpt")
    run.fit(Classifier(), loader(), ckpt_path=tmp_path / "moved.ckpt")
    assert {"ggn/eigenvalue_1", "directions/gradient_share", "ntk/trace"} <= seen[0]
    assert log.seen().isdisjoint({"ggn/trace"})


def test_state_holds_tensors_and_plain_values_only(tmp_path: Path) -> None:
    _, run = fit(tmp_path, "train", epochs=1)
    for monitor in run.callbacks:
        if isinstance(monitor, Monitor):
            state = monitor.state_dict()
            torch.save(state, tmp_path / "state")
            torch.load(tmp_path / "state", weights_only=True)
            assert state["step"] == 5
            assert state["values"]
            assert len(state["probe"]) == 2


def test_a_saved_step_is_not_repeated(tmp_path: Path) -> None:
    _, run = fit(tmp_path, "train", epochs=1)
    monitor = next(c for c in run.callbacks if isinstance(c, GGNSpectrumMonitor))
    again = monitors("train")[0]
    again.load_state_dict(monitor.state_dict())
    assert again.state_dict()["step"] == 5
    assert not is_due(again, again.session, run, 0) or again.step == 6


def test_large_tensors_stay_out_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "MAX_STATE_BYTES", 100)
    _, run = fit(tmp_path, "train", epochs=1)
    monitors = [c for c in run.callbacks if isinstance(c, Monitor)]
    for monitor in monitors:
        kept = monitor.state_dict()
        assert kept["references"] == {} and "probe" not in kept
    probe = sum(tensor.nbytes for tensor in monitors[0].source.probe)
    monkeypatch.setattr(state, "MAX_STATE_BYTES", probe)
    for monitor in monitors:
        kept = monitor.state_dict()
        assert kept["references"] == {} and len(kept["probe"]) == 2


def test_instances_with_other_options_keep_their_states_apart(tmp_path: Path) -> None:
    small = GGNSpectrumMonitor(k=1, every_n_steps=2, prefix="small/", max_samples=4)
    large = GGNSpectrumMonitor(k=3, every_n_steps=3, data="train")
    assert small.state_key != large.state_key
    log = RecordingLogger()
    run = trainer(tmp_path, small, large, logger=log, enable_checkpointing=True)
    run.fit(Classifier(), loader())
    assert list(log.values("small/ggn/eigenvalue_1")) == [0, 2, 4]
    assert list(log.values("ggn/eigenvalue_3")) == [0, 3]
    run.save_checkpoint(tmp_path / "both.ckpt")
    states = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert set(states[small.state_key]["values"]) == {
        key for key in log.seen() if key.startswith("small/")
    }


def test_every_option_is_in_the_state_key() -> None:
    variants = [
        GGNSpectrumMonitor(),
        GGNSpectrumMonitor(k=2),
        GGNSpectrumMonitor(every_n_epochs=1),
        GGNSpectrumMonitor(data="val"),
        GGNSpectrumMonitor(data="val", seed=1),
        GGNSpectrumMonitor(max_samples=3),
        GGNSpectrumMonitor(param_groups="layer"),
        GGNSpectrumMonitor(dtype="float32"),
        GGNSpectrumMonitor(prefix="a/"),
        GGNSpectrumMonitor(overlap=False),
        GGNSpectrumMonitor(mc_samples=1),
        NTKMonitor(),
        NTKMonitor(mode="trace"),
        DirectionalDerivativesMonitor(),
        DirectionalDerivativesMonitor(damping=0.1),
    ]
    assert len({monitor.state_key for monitor in variants}) == len(variants)


def test_the_state_key_is_made_once_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer asks for it around each hook of each step, where it cost 4% of a short step."""
    made: list[int] = []
    monitor = GGNSpectrumMonitor(steps=[1000])
    monkeypatch.setattr(monitor, "options", lambda: made.append(monitor.step) or {"k": 1})
    run = trainer(tmp_path, monitor, max_epochs=2)
    run.fit(Classifier(), loader())
    assert run.global_step > 4 and set(made) == {-1}  # before the first step
    before = monitor.state_key
    monitor.settings = replace(monitor.settings, k=3)
    monkeypatch.undo()
    assert monitor.state_key != before  # after a run the options count again


def test_a_second_fit_starts_over(tmp_path: Path) -> None:
    monitor = NTKMonitor(every_n_steps=2)
    for _ in range(2):
        log = RecordingLogger()
        trainer(tmp_path, monitor, logger=log).fit(Classifier(), loader())
        assert log.values("ntk/distance_first")[0] == pytest.approx(0, abs=1e-12)
        assert list(log.values("ntk/distance_previous")) == [2, 4]


OTHER_LAYOUTS: dict[str, Any] = {
    "of another kind": {"counts": [1, 2]},
    "without references": {"step": 5, "measured": True, "values": {}},
    "with references that are no tensors": {
        "step": 5,
        "measured": True,
        "values": {},
        "references": {"all": {"first": 3}},
    },
    "with values that are no numbers": {
        "step": 5,
        "measured": True,
        "values": {"ntk/trace": "large"},
        "references": {},
    },
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_a_state_of_another_layout_is_left_out(tmp_path: Path, layout: str) -> None:
    fit(tmp_path / "first", "train", epochs=1)
    path = tmp_path / "first/epoch=0-of-1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    key = next(key for key in checkpoint["callbacks"] if key.startswith("NTKMonitor"))
    checkpoint["callbacks"][key] = OTHER_LAYOUTS[layout]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    log = RecordingLogger()
    options: dict[str, Any] = {"k": 2, "every_n_steps": 4, "data": "train"}
    run = trainer(tmp_path, NTKMonitor(**options), logger=log, max_epochs=2)
    with pytest.warns(RuntimeWarning, match="NTKMonitor: the state in the checkpoint .*left out"):
        run.fit(Classifier(), loader(), ckpt_path=tmp_path / "other.ckpt")
    assert list(log.values("ntk/distance_first")) == [8]
    strict = trainer(tmp_path, NTKMonitor(**options, on_error="raise"), max_epochs=2)
    with pytest.raises(ViViTError, match="the state in the checkpoint"):
        strict.fit(Classifier(), loader(), ckpt_path=tmp_path / "other.ckpt")


def test_a_state_that_cannot_be_taken_leaves_the_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise MemoryError("injected")

    monkeypatch.setattr(NTKMonitor, "references", broken)
    run = trainer(tmp_path, NTKMonitor(k=2), GGNSpectrumMonitor(k=2))
    run.fit(Classifier(), loader())
    with pytest.warns(RuntimeWarning, match="NTKMonitor: a checkpoint .*MemoryError: injected"):
        run.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert [key.partition("{")[0] for key in saved["callbacks"]] == ["GGNSpectrumMonitor"]
    assert saved["state_dict"].keys() == Classifier().state_dict().keys()


def test_no_state_if_it_is_not_wanted(tmp_path: Path) -> None:
    run = trainer(tmp_path, NTKMonitor(k=2, save_state=False))
    run.fit(Classifier(), loader())
    run.save_checkpoint(tmp_path / "saved.ckpt")
    assert torch.load(tmp_path / "saved.ckpt", weights_only=True)["callbacks"] == {}
