"""Programs with FSDP and FSDP2, started as `python sharded_runs.py NAME RANKS FOLDER`.

Lightning's own launcher starts the other ranks with the same command. FSDP1 is refused on a CPU by
Lightning (a check of the class) and by torch (unless a CPU is named): `OnCPU` lifts both, nothing
else. FSDP2 runs on a CPU as it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from parallel_modules import explicit_problem
from parallel_runs import Broken, Keep, Witness, fit
from sharded_modules import (
    Buffered,
    Exact,
    Late,
    Nested,
    Rounded,
    Steady,
    Tied,
    Uncopyable,
)
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor, Problem
from lightning_vivit.parallel import Ranks, gathering


def plain_problem(module: Any, batch: Any) -> Problem:
    """Of a module in which nothing is left of FSDP."""
    assert not any(isinstance(m, (FSDPModule, FullyShardedDataParallel)) for m in module.modules())
    assert not any(isinstance(p, DTensor) for p in module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert module.kept[0] is module.net[3] if hasattr(module, "kept") else True
    return explicit_problem(module, batch)


VALUES: dict[str, dict[str, Any]] = {
    "batch": {},
    "probe": {"data": "train", "max_samples": 7},
    "few": {"data": "val", "max_samples": 1, "kernel": False},
    "layers": {"param_groups": "layer", "max_samples": 3},
    "mc": {"mc_samples": 2, "kernel": False},
    "explicit": {"problem": plain_problem},
}
MIXED: dict[str, dict[str, Any]] = {"mixed": {}}
WORDS: dict[str, dict[str, Any]] = {"words": {"max_samples": 3, "kernel": False}}


def ranks() -> int:
    """Number of processes."""
    return int(sys.argv[2])


class OnCPU(FSDPStrategy):
    """FSDP1 on a CPU."""

    def _setup_model(self, model: Any) -> Any:
        return FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            **self.kwargs,
        )


def first(**options: Any) -> dict[str, Any]:
    return {
        "strategy": OnCPU(auto_wrap_policy={nn.Sequential, nn.TransformerEncoderLayer}, **options)
    }


def second() -> dict[str, Any]:
    """The state dict is to be the whole one, as an oracle."""
    return {"strategy": ModelParallelStrategy(ranks(), 1, save_distributed_checkpoint=False)}


class KeepWhole(Keep):
    """Keeps the whole state as Lightning's own checkpoints gather it."""

    def state(self, trainer: Any, module: Any) -> dict[str, Any]:
        found = trainer.strategy.lightning_module_state_dict()
        return {name: value.clone() for name, value in found.items()}


class BrokenWhole(KeepWhole, Broken):
    """Fails on one rank only."""


class Shards(Witness):
    """What each rank holds."""

    def training(self, trainer: Any, module: Any) -> dict[str, Any]:
        for child in module.modules():
            if isinstance(child, FSDPModule):
                child.reshard()  # its last validation step left it whole
        state = {
            "weights": dict(module.named_parameters()) | dict(module.named_buffers()),
            "optimizer": trainer.optimizers[0].state_dict()["state"],
            "grads": [p.grad for p in module.parameters()],
        }
        return tree_map(held, state)


def held(value: Any) -> Any:
    """The part of a tensor that this rank holds, without what FSDP hangs on it."""
    value = value.to_local() if isinstance(value, DTensor) else value
    return value.detach().clone() if isinstance(value, Tensor) else value


def run(folder: Path, name: str, module: Any, *monitors: Any, **options: Any) -> None:
    fit(folder, name, ranks(), module, *monitors, witness=Shards, **options)


VARIANTS: dict[str, tuple[Any, Any]] = {
    "fsdp1": (Nested, first),
    "fsdp1_late": (Late, first),
    "fsdp1_flat": (Nested, lambda: first(use_orig_params=False)),
    "fsdp1_copies": (Nested, lambda: first(sharding_strategy="NO_SHARD")),
    "fsdp2": (Nested, second),
    "fsdp2_late": (Late, second),
}


USUAL = ("fsdp1", "fsdp1_late", "fsdp2", "fsdp2_late")


def keepers(options: dict[str, dict[str, Any]]) -> dict[str, Keep]:
    return {
        name: KeepWhole(prefix=f"{name}/", every_n_steps=1, on_error="raise", **some)
        for name, some in options.items()
    }


def values(folder: Path, names: Sequence[str] = USUAL) -> None:
    """All monitors at once, for each way of dividing a module."""
    for name in names:
        kind, strategy = VARIANTS[name]
        run(folder, f"values_{name}", kind(), *keepers(VALUES).values(), **strategy())


def special(folder: Path) -> None:
    """Tied weights, and mixed precision."""
    for name, strategy in (("fsdp1", first), ("fsdp2", second)):
        run(folder, f"words_{name}", Tied(), *keepers(WORDS).values(), **strategy())
    for kind in (Rounded, Exact):
        monitor = GGNSpectrumMonitor(k=2, steps=[0], max_samples=3, on_error="raise")
        run(folder, kind.__name__, kind(), monitor, num_sanity_val_steps=1, **second())
    mixed = {"precision": "bf16-mixed", **first()}
    run(folder, "mixed", Buffered(), *keepers(MIXED).values(), **mixed)


def identity(folder: Path, names: Sequence[str] = USUAL) -> None:
    """The same runs with and without monitors, with validation before and between the steps."""
    for name in names:
        kind, strategy = VARIANTS[name]
        for watched in (False, True):
            monitors: list[Any] = []
            if watched:
                monitors = [
                    GGNSpectrumMonitor(k=3, every_n_steps=1),
                    DirectionalDerivativesMonitor(k=3, steps=[1]),
                    NTKMonitor(k=3, every_n_steps=1, data="train", max_samples=6),
                    GGNSpectrumMonitor(k=2, steps=[1], method="matrix_free", prefix="free/"),
                ]
            options = {"max_epochs": 2, "num_sanity_val_steps": 1, **strategy()}
            if name.endswith("late"):
                options |= {"accumulate_grad_batches": 2, "limit_train_batches": 5}
            run(folder, f"{name}_{watched}", kind(), *monitors, **options)


def full(found: Ranks, size: int, device: torch.device) -> None:
    """No memory on rank 1."""
    if found.rank == 1:
        raise MemoryError(f"struck at {size} bytes")
    found.exchange()


def faults(folder: Path) -> None:
    """Rank 1 fails while it measures or copies the module, or has no memory for the copy."""
    for name in ("fsdp1", "fsdp2"):
        kind, strategy = VARIANTS[name]
        run(folder, f"{name}_sound", kind(), **strategy())
        run(
            folder,
            f"{name}_measure1",
            kind(),
            BrokenWhole("measure", 1, every_n_steps=1),
            **strategy(),
        )
        module = kind()
        module.attribute = Uncopyable()
        run(folder, f"{name}_copy1", module, KeepWhole(every_n_steps=1), **strategy())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gathering, "_ready", full)
            run(folder, f"{name}_full1", kind(), KeepWhole(every_n_steps=1), **strategy())


def refused(folder: Path) -> None:
    """What `setup` says; each rank writes it."""
    cases: dict[str, tuple[Any, Any, Any]] = {
        "fsdp1": (Nested(), first(), GGNSpectrumMonitor(k=2, max_memory=4000)),
        "fsdp2": (Nested(), second(), GGNSpectrumMonitor(k=2, max_memory=4000)),
        "late1": (Late(), first(), NTKMonitor(max_memory=4000)),
        "late2": (Late(), second(), NTKMonitor(max_memory=4000)),
        "tensor": (
            Nested(),
            {"strategy": ModelParallelStrategy(1, 2)},
            GGNSpectrumMonitor(),
        ),
        "samples": (
            Nested(),
            second(),
            GGNSpectrumMonitor(k=2, max_memory=19_000, on_error="raise"),
        ),
        "raised": (Nested(), second(), BrokenWhole("measure", 1, on_error="raise", steps=[1])),
    }
    for name, (module, options, monitor) in cases.items():
        places: list[str] = []
        watch = Places(places)
        try:
            fit(folder, name, ranks(), module, watch, monitor, **options)
        except Exception as error:
            rank = torch.distributed.get_rank()
            text = f"{time.time()} {places[-1]} {type(error).__name__} {error}"
            (folder / f"{name}-{rank}.refused").write_text(text)


class Places(pl.Callback):
    """Notes how far a run came."""

    def __init__(self, places: list[str]) -> None:
        self.places = places

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.places.append("setup")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.places.append("fit_start")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.places.append("train_start")


def resumed(folder: Path) -> None:
    """A run of two epochs, and one that stops in between."""
    for name, strategy in (
        ("fsdp1", first),
        ("fsdp2", lambda: {"strategy": ModelParallelStrategy(2, 1)}),
    ):
        for part, epochs in (("straight", 2), ("half", 1), ("resumed", 2)):
            options = {"max_epochs": epochs, "enable_checkpointing": part == "half", **strategy()}
            monitors: list[Any] = [
                GGNSpectrumMonitor(k=3, every_n_steps=1, data="train"),
                NTKMonitor(k=3, every_n_steps=1, data="train"),
            ]
            if part == "half":
                monitors.append(ModelCheckpoint(dirpath=folder / name, filename="half"))
            checkpoint = folder / name / "half.ckpt" if part == "resumed" else None
            run(folder, f"{name}_{part}", Steady(), *monitors, checkpoint=checkpoint, **options)


def everything(folder: Path) -> None:
    """The usual ways."""
    for program in (values, special, identity, faults, refused):
        program(folder)


def others(folder: Path) -> None:
    """The remaining ones."""
    names = [name for name in VARIANTS if name not in USUAL]
    values(folder, names)
    identity(folder, names)


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[3]))
    if torch.distributed.is_initialized():  # else its threads may end the process while it exits
        torch.distributed.destroy_process_group()
