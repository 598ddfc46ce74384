"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import lightning.pytorch as L
import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_block(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    L.seed_everything(0)
    exec(compile(blocks("python")[number], f"README block {number}", "exec"), {})


def test_yaml_blocks_name_real_classes() -> None:
    import lightning_vivit

    for block in blocks("yaml"):
        for entry in yaml.safe_load(block)["trainer"]["callbacks"]:
            module, _, name = entry["class_path"].rpartition(".")
            assert module == "lightning_vivit"
            getattr(lightning_vivit, name)(**entry["init_args"])


def test_the_two_commands_are_one_line_each() -> None:
    for marker in ("run", "test"):
        found = re.search(rf"<!-- {marker} -->\n```bash\n(.*?)```", README, flags=re.DOTALL)
        assert found is not None
        assert found.group(1).count("\n") == 1


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import train_digits

    trainer = train_digits.main(max_epochs=1)
    assert "ggn/eigenvalue_1" in trainer.callback_metrics
