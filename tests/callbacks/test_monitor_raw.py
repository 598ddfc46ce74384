"""Raw results: the callable, the history and the files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from monitor_toys import Classifier, RecordingLogger, csv, loader, tensorboard, trainer

import lightning_vivit.callbacks.raw as raw
from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.callbacks import MonitorResult
from lightning_vivit.errors import OptionError, ViViTError
from lightning_vivit.loggers import LogEntry
from lightning_vivit.version import __version__


def test_callable_and_history_get_what_is_logged(tmp_path: Path) -> None:
    seen: list[MonitorResult] = []
    log = RecordingLogger()
    monitor = NTKMonitor(k=2, every_n_steps=2, max_samples=6, history=3, on_result=seen.append)
    trainer(tmp_path, monitor, logger=log, max_epochs=2).fit(Classifier(), loader())
    assert [result.step for result in seen] == [0, 2, 4, 6, 8, 10]
    assert [result.epoch for result in seen] == [0, 0, 0, 1, 1, 1]
    assert monitor.results == tuple(seen[-3:])
    for result in seen:
        assert result.monitor == "ntk"
        logged = {key: log.values(key)[result.step] for key in result.scalars}
        assert result.scalars == logged and "ntk/trace" in logged
        kernel, eigenvalues = result.arrays["ntk/kernel"], result.arrays["ntk/eigenvalues"]
        assert kernel.shape == (6, 6, 3, 3) and not kernel.requires_grad
        matrix = kernel.permute(0, 2, 1, 3).reshape(18, 18).double()
        expected = torch.linalg.eigvalsh(matrix)
        torch.testing.assert_close(eigenvalues.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_new_run_starts_an_empty_history(tmp_path: Path) -> None:
    monitor = GGNSpectrumMonitor(k=1, every_n_steps=2)
    for _ in range(2):
        trainer(tmp_path, monitor).fit(Classifier(), loader())
        assert [result.step for result in monitor.results] == [0, 2, 4]
    none = GGNSpectrumMonitor(k=1, every_n_steps=2, history=0)
    trainer(tmp_path, none).fit(Classifier(), loader())
    assert none.results == ()


def test_changing_a_result_changes_nothing_else(tmp_path: Path) -> None:
    def spoil(result: MonitorResult) -> None:
        torch.rand(1)
        result.scalars.clear()
        for array in result.arrays.values():
            array.zero_()

    found = []
    for on_result in (None, spoil):
        log = RecordingLogger()
        first = GGNSpectrumMonitor(k=2, every_n_steps=1, on_result=on_result)
        second = DirectionalDerivativesMonitor(k=2, every_n_steps=1, on_result=on_result)
        module = Classifier()
        module.load_state_dict(torch.load(tmp_path / "m") if found else module.state_dict())
        torch.save(module.state_dict(), tmp_path / "m") if not found else None
        torch.manual_seed(0)
        fit = trainer(tmp_path, first, second, logger=log)
        fit.fit(module, loader(shuffle=True))
        rows = [row for row in log.rows if "cost/seconds" not in row[1]]
        found.append((rows, [p.tolist() for p in module.parameters()]))
    assert found[0] == found[1]


def test_history_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MAX_HISTORY_BYTES", 1000)
    keeper = raw.RawResults(history=10)
    fit = trainer(tmp_path)
    for step in range(5):
        arrays = {"ggn/a": torch.zeros(100)}  # 400 bytes
        keeper.take(fit, LogEntry(step, {"ggn/b": 1.0}, arrays=arrays, monitor="ggn"), "X", {})
    assert [result.step for result in keeper.results] == [3, 4]
    big = LogEntry(5, {"ggn/b": 2.0}, arrays={"ggn/a": torch.zeros(1000)}, monitor="ggn")
    with pytest.warns(UserWarning, match="has the scalars only"):
        keeper.take(fit, big, "X", {})
    last = keeper.results[-1]
    assert last.scalars == {"ggn/b": 2.0} and last.arrays == {}


@pytest.mark.parametrize("kind", ["tensorboard", "csv", "none", "unversioned"])
def test_npz_files_lie_in_the_directory_of_the_run(tmp_path: Path, kind: str) -> None:
    class Elsewhere(RecordingLogger):
        save_dir = str(tmp_path / "shared")

    logger: Any = {"tensorboard": tensorboard, "csv": csv}.get(kind, lambda _: False)(tmp_path)
    logger = Elsewhere() if kind == "unversioned" else logger
    monitor = GGNSpectrumMonitor(k=2, steps=[0, 3], dump="npz", prefix="a b/", seed=5)
    fit = trainer(tmp_path, monitor, logger=logger)
    fit.fit(Classifier(), loader())
    place = {
        "tensorboard": "run/0",
        "csv": "csv/0",
        "none": ".",
        "unversioned": "shared/recording/version_0",
    }
    folder = tmp_path / place[kind] / "raw" / "a_b_ggn"
    assert sorted(p.name for p in folder.iterdir()) == ["step_00000000.npz", "step_00000003.npz"]
    last = monitor.results[-1]
    with np.load(folder / "step_00000003.npz") as found:
        assert set(found) == {*last.scalars, *last.arrays, "__metadata__"}
        for key, value in last.scalars.items():
            assert key.startswith("a b/ggn/") and found[key] == value
        assert np.array_equal(found["a b/ggn/eigenvalues"], last.arrays["a b/ggn/eigenvalues"])
        meta = json.loads(str(found["__metadata__"]))
    assert {name: meta[name] for name in ("monitor", "kind", "step", "epoch", "version")} == {
        "monitor": "a b/ggn",
        "kind": "GGNSpectrumMonitor",
        "step": 3,
        "epoch": 0,
        "version": __version__,
    }
    assert meta["options"]["k"] == 2 and meta["options"]["steps"] == [0, 3]


def test_safetensors_files(tmp_path: Path) -> None:
    from safetensors import safe_open

    monitor = NTKMonitor(k=2, steps=[1], dump="safetensors", max_samples=5)
    trainer(tmp_path, monitor, logger=CSVLogger(tmp_path, version=0)).fit(Classifier(), loader())
    path = tmp_path / "lightning_logs/version_0/raw/ntk/step_00000001.safetensors"
    (result,) = monitor.results
    with safe_open(path, "pt") as found:
        assert set(found.keys()) == {*result.scalars, *result.arrays}
        for key, value in result.scalars.items():
            assert found.get_tensor(key).item() == value
        assert torch.equal(found.get_tensor("ntk/kernel"), result.arrays["ntk/kernel"])
        meta = {key: json.loads(text) for key, text in found.metadata().items()}
    assert (meta["step"], meta["epoch"], meta["kind"]) == (1, 0, "NTKMonitor")
    assert meta["options"]["k"] == 2


def test_bfloat16_arrays_become_float32_in_npz(tmp_path: Path) -> None:
    keeper = raw.RawResults(dump="npz")
    arrays = {"ggn/a": torch.tensor([1.5], dtype=torch.bfloat16)}
    keeper.take(trainer(tmp_path), LogEntry(0, arrays=arrays, monitor="ggn"), "X", {})
    with np.load(tmp_path / "raw/ggn/step_00000000.npz") as found:
        assert found["ggn/a"].dtype == np.float32 and found["ggn/a"] == [1.5]


def test_an_error_in_the_callable_follows_on_error(tmp_path: Path) -> None:
    def broken(result: MonitorResult) -> None:
        raise KeyError("mine")

    quiet, other = GGNSpectrumMonitor(k=1, on_result=broken, every_n_steps=1), NTKMonitor(k=1)
    log = RecordingLogger()
    fit = trainer(tmp_path, quiet, other, logger=log)
    with pytest.warns(RuntimeWarning, match=r"on_result=.*broken raised KeyError: 'mine'"):
        fit.fit(Classifier(), loader())
    assert fit.global_step == 6
    assert list(log.values("ggn/trace")) == [0] and list(log.values("ntk/trace")) == [0]
    loud = GGNSpectrumMonitor(k=1, on_result=broken, on_error="raise")
    with pytest.raises(ViViTError, match="broken raised KeyError") as caught:
        trainer(tmp_path, loud).fit(Classifier(), loader())
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_file_that_cannot_be_written_follows_on_error(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("in the way")
    fit = trainer(tmp_path, GGNSpectrumMonitor(k=1, dump="npz"))
    with pytest.warns(RuntimeWarning, match=r"GGNSpectrumMonitor failed at step 0.*raw"):
        fit.fit(Classifier(), loader())
    assert fit.global_step == 6


def test_other_ranks_write_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = trainer(tmp_path)
    monkeypatch.setattr(type(fit), "is_global_zero", False)
    seen: list[MonitorResult] = []
    keeper = raw.RawResults(on_result=seen.append, dump="npz")
    keeper.take(fit, LogEntry(0, {"ggn/a": 1.0}, monitor="ggn"), "X", {})
    assert len(seen) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_result": 3}, "on_result has to be a callable"),
        ({"history": -1}, "history has to be an integer >= 0"),
        ({"dump": "pickle"}, "'npz' or 'safetensors'"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GGNSpectrumMonitor(**options)


def test_missing_safetensors_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="pip install safetensors"):
        GGNSpectrumMonitor(dump="safetensors")
