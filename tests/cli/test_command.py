"""The `lightning-vivit` command, run as a user runs it."""

import subprocess
import sys
from inspect import signature
from pathlib import Path

import lightning.pytorch as L
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_vivit
from lightning_vivit.cli import announce

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "digits.yaml"


def run(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "lightning_vivit.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expected_keys() -> set[str]:
    options = {
        entry["class_path"].rpartition(".")[2]: entry["init_args"]["k"]
        for entry in yaml.safe_load(CONFIG.read_text())["trainer"]["callbacks"]
    }
    keys = {"ggn/trace", "ggn/effective_rank", "ggn/sharpness_lr", "ggn/subspace_overlap"}
    keys |= {f"ggn/eigenvalue_{i}" for i in range(1, options["GGNSpectrumMonitor"] + 1)}
    keys |= {"directions/gradient_share"}
    for i in range(1, options["DirectionalDerivativesMonitor"] + 1):
        for name in ("gamma_mean", "gamma_snr", "lambda_mean", "lambda_snr", "newton_step"):
            keys.add(f"directions/{name}_{i}")
    keys |= {f"ntk/eigenvalue_{i}" for i in range(1, options["NTKMonitor"] + 1)}
    for name in ("trace", "condition_number", "effective_rank", "alignment"):
        keys.add(f"ntk/{name}")
    return keys | {"ntk/distance_first", "ntk/distance_previous"}


def test_main_job_writes_every_key_and_says_where_to_look(tmp_path: Path) -> None:
    out = run("fit", f"--config={CONFIG}", "--trainer.max_epochs=2", cwd=tmp_path)
    directory = tmp_path / "logs" / "digits" / "version_0"
    assert f"Logs: {directory}" in out
    assert f"tensorboard --logdir {directory}" in out
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()
    assert expected_keys() <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("ggn/eigenvalue_1")] == [0, 10, 20]
    histograms = {"ggn/eigenvalues_log10", "directions/gamma_1", "directions/lambda_1"}
    assert histograms | {"ntk/eigenvalues_log10"} <= set(tags["histograms"])


def announced(loggers: list[Logger], capsys: pytest.CaptureFixture[str]) -> list[str]:
    announce(L.Trainer(logger=loggers, accelerator="cpu", enable_progress_bar=False))
    return [line for line in capsys.readouterr().out.splitlines() if ": " in line]


def test_the_printed_command_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    binaries, folder = tmp_path / "bin", tmp_path / "two words"
    binaries.mkdir()
    for name in ("python", "tensorboard"):
        (binaries / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    loggers = [CSVLogger(folder, version=0), TensorBoardLogger(folder, name="board", version=0)]
    csv, board = folder / "lightning_logs" / "version_0", folder / "board" / "version_0"

    monkeypatch.setenv("PATH", "")
    *_, first, second, last = announced(loggers, capsys)
    assert [first, second] == [f"Logs: {csv}", f"Logs: {board}"]
    assert last == f"Look at them: {binaries}/tensorboard --logdir '{board}'"

    monkeypatch.setenv("PATH", str(binaries))
    assert announced(loggers, capsys)[-1] == f"Look at them: tensorboard --logdir '{board}'"


def test_no_tensorboard_command_without_event_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = announced([CSVLogger(tmp_path, version=0)], capsys)
    assert lines[-1] == f"Logs: {tmp_path / 'lightning_logs' / 'version_0'}"
    assert "--logdir" not in "".join(lines)
    assert announced([], capsys)[-1].startswith("Nothing was written")


def test_short_name_and_options(tmp_path: Path) -> None:
    out = run(
        "fit",
        f"--config={CONFIG}",
        "--trainer.callbacks+=GGNSpectrumMonitor",
        "--trainer.callbacks.k=3",
        "--trainer.callbacks.prefix=again/",
        "--print_config",
        cwd=tmp_path,
    )
    callbacks = yaml.safe_load(out)["trainer"]["callbacks"]
    assert callbacks[-1]["class_path"].endswith("GGNSpectrumMonitor")
    assert callbacks[-1]["init_args"]["k"] == 3
    assert callbacks[-1]["init_args"]["prefix"] == "again/"


@pytest.mark.parametrize(
    "name", ["GGNSpectrumMonitor", "DirectionalDerivativesMonitor", "NTKMonitor"]
)
def test_help_shows_every_option_with_its_text(name: str, tmp_path: Path) -> None:
    out = run("fit", f"--trainer.callbacks.help={name}", cwd=tmp_path)
    flat = " ".join(out.split())
    for option in signature(getattr(lightning_vivit, name)).parameters:
        assert f"--trainer.callbacks.{option} " in flat
    assert "slopes and curvatures" in flat or "eigenvalues" in flat
    assert "Upper limit of samples" in flat
    assert "(type: int | null, default: 64)" in flat
    assert f"default: {'train' if name == 'NTKMonitor' else 'batch'})" in flat


def test_every_option_in_a_config_arrives(tmp_path: Path) -> None:
    given = {
        "k": 3,
        "steps": [0, 4],
        "data": "val",
        "seed": 5,
        "max_samples": None,
        "param_groups": {"first": ["conv.weight"], "rest": ["head.weight", "head.bias"]},
        "dtype": "float32",
        "on_error": "raise",
        "prefix": "again/",
        "backend": "autograd",
        "figures": False,
        "figures_every": 2,
        "schedule": None,
        "replay_dtype": "float64",
        "max_overhead": 0.5,
        "max_memory": 10**9,
        "history": 0,
        "dump": "npz",
        "save_state": False,
    }
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"]["callbacks"] = [
        {"class_path": f"lightning_vivit.{name}", "init_args": given}
        for name in ("GGNSpectrumMonitor", "DirectionalDerivativesMonitor", "NTKMonitor")
    ]
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump(config))
    found = yaml.safe_load(run("fit", f"--config={path}", "--print_config", cwd=tmp_path))
    assert len(found["trainer"]["callbacks"]) == 3
    for callback in found["trainer"]["callbacks"]:
        assert callback["init_args"].items() >= given.items()


def test_an_unknown_option_in_a_config_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(CONFIG.read_text().replace("every_n_steps", "every_n_step"))
    command = [sys.executable, "-m", "lightning_vivit.cli", "fit", f"--config={path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    words = " ".join(done.stderr.split())
    assert "unknown option 'every_n_step'; did you mean 'every_n_steps'?" in words


def test_another_project_uses_the_class_path(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "from lightning.pytorch.cli import LightningCLI\n"
        "from lightning.pytorch.demos.boring_classes import DemoModel, BoringDataModule\n"
        "LightningCLI(DemoModel, BoringDataModule)\n"
    )
    command = [sys.executable, "train.py", "fit", "--print_config"]
    command.append("--trainer.callbacks+=lightning_vivit.GGNSpectrumMonitor")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "GGNSpectrumMonitor" in done.stdout


def test_backpack_config_logs_the_same_eigenvalues(tmp_path: Path) -> None:
    found = {}
    for name in ("digits", "backpack"):
        config = ROOT / "configs" / f"{name}.yaml"
        run("fit", f"--config={config}", "--trainer.max_epochs=1", cwd=tmp_path)
        directory = tmp_path / "logs" / name / "version_0"
        events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("ggn/eigenvalue")]
        found[name] = {tag: [event.value for event in events.Scalars(tag)] for tag in tags}
    assert len(found["digits"]) == 10
    for tag, values in found["digits"].items():
        assert found["backpack"][tag] == pytest.approx(values, rel=1e-4)
