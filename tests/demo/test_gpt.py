"""The character-level GPT: its text, and a short run of the example and of the config."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

from lightning_vivit.cli import main
from lightning_vivit.demo import CharacterGPT, ManualTextDataModule
from lightning_vivit.demo.text import encode

ROOT = Path(__file__).parents[2]


def test_text_is_cut_into_windows_that_are_one_character_apart():
    data = ManualTextDataModule(batch_size=4, window=16)
    data.setup()
    assert data.train_set.text.numel() > 300_000
    index, following = next(iter(data.train_dataloader()))
    assert index.shape == following.shape == (4, 16)
    assert torch.equal(index[:, 1:], following[:, :-1])
    assert int(data.train_set.text.max()) < data.vocabulary
    last = data.val_set[len(data.val_set) - 1]
    assert last[0].shape == last[1].shape == (16,)


def test_encoding():
    assert encode("\n ~A\u00e9").tolist() == [1, 2, 96, 35, 0]


def test_the_model_is_causal_and_tied():
    model = CharacterGPT(width=16, depth=1, heads=2, context=8)
    index = torch.randint(0, 97, (2, 8))
    changed = index.clone()
    changed[:, 5:] = 3
    assert torch.allclose(model(index)[:, :5], model(changed)[:, :5], atol=1e-5)
    assert sum(p.numel() for p in CharacterGPT().parameters()) > 900_000
    assert model(index).shape == (2, 8, 97)


def test_example(tmp_path):
    example = runpy.run_path(str(ROOT / "examples" / "train_gpt.py"))
    arguments = "--max_steps 3 --every 2 --width 16 --depth 1 --window 16 --log_dir"
    trainer = example["main"]([*arguments.split(), str(tmp_path)])
    found = trainer.callback_metrics
    for key in ("ggn/eigenvalue_5", "ggn/trace_error", "directions/gamma_snr_1", "ntk/trace"):
        assert key in found


def test_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "--trainer.max_steps 2 --trainer.limit_val_batches 1 --data.window 16 --model.width 16"
    config = ["fit", "--config", str(ROOT / "configs" / "gpt.yaml")]
    main([*config, *small.split(), "--model.depth", "1"])
    assert list(tmp_path.glob("logs/gpt/*/events*"))
