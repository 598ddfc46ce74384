"""Programs that the tests start: `python parallel_runs.py NAME RANKS FOLDER`.

Every rank writes what it saw to FOLDER; the tests compare it with one process on all samples. The
ranks are forked, so nothing may be differentiated here before.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from parallel_modules import (
    Divided,
    Experts,
    Net,
    Streaming,
    Weighted,
    Words,
    custom_problem,
    explicit_problem,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import lightning_vivit.parallel.kernels
from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor, Problem
from lightning_vivit.callbacks.base import Monitor
from lightning_vivit.evaluation.derivatives import Damping
from lightning_vivit.evaluation.exact import Evaluation
from lightning_vivit.loggers import Findings

K = 4


def separated(eigenvalues: Tensor, k: int) -> Tensor:
    """Which of the k leading directions are determined to single precision, [k].

    Rounding changes the GGN by E of size 1e-7 of its largest eigenvalue, in another way for every
    processor and number of ranks. It turns an eigenvector by |E| / (gap to the next eigenvalue)
    (Davis and Kahan 1970): by 3e-6 with the gaps accepted here, and by any angle where two
    eigenvalues nearly agree. Of layer net.9 the 4th and 5th differ by 3e-6 of the largest.
    """
    top = eigenvalues[-k - 1 :]
    gaps = (top[1:] - top[:-1]) / top[-1]
    return (gaps > 0.03) & torch.cat([gaps[1:] > 0.03, gaps.new_ones(1) > 0])


def determined_damping(eigenvalues: Tensor) -> Damping:
    """Damping for a Newton step along the directions that `separated` names, and no other."""

    def damping(values: Tensor, gammas: Tensor, lambdas: Tensor) -> Tensor:
        apart = separated(eigenvalues, len(values))
        return torch.where(apart, 0.1, torch.inf).to(values)

    return damping


class Keep(Monitor):
    """Keeps everything that an evaluation tells, and the batches it was made of."""

    section = "keep"

    def __init__(
        self, kernel: bool = True, mc_samples: int = 0, matrix: str = "ggn", **options: Any
    ) -> None:
        self.needs_kernel = kernel
        super().__init__(k=K, **options)
        self.mc_samples, self.matrix = mc_samples, matrix
        self.found: list[dict[str, Any]] = []
        self.now: dict[str, Any] = {}

    def state(self, trainer: Any, module: Any) -> dict[str, Any]:
        return {name: value.clone() for name, value in module.state_dict().items()}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, idx: int) -> None:
        state = self.state(trainer, pl_module)
        self.now = {"state": state, "batch": [tensor.clone() for tensor in batch]}
        super().on_train_batch_start(trainer, pl_module, batch, idx)

    def measure(self, evaluation: Evaluation, group: str) -> Findings:
        k = min(K, evaluation.rank(group))
        found = evaluation.directions(group, k)
        kept = {
            "group": group,
            "step": self.step,
            "probe": self.source.probe,
            "num_samples": evaluation.num_samples,
            "outputs": evaluation.outputs,
            "targets": evaluation.sample_targets(),
            "eigenvalues": evaluation.eigenvalues(group),
            "gammas": found.gammas,
            "lambdas": found.lambdas,
            "ntk": evaluation.ntk(group) if self.needs_kernel else None,
            "vectors": evaluation.eigenvectors(group, k),
            "step_vector": evaluation.newton_step(
                group, k, determined_damping(evaluation.eigenvalues(group))
            ),
            "loss": evaluation.loss,
            "norms": evaluation.gradient_norms(group),
        }
        self.found.append({**self.now, **kept})
        return Findings({"largest": kept["eigenvalues"][-1]})


class Counted(Keep):
    """Counts the multiplications of each monitored step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, idx: int) -> None:
        with FlopCounterMode(display=False) as counter:
            super().on_train_batch_start(trainer, pl_module, batch, idx)
        self.found[-1]["count"] = counter.get_total_flops()


class Broken(Keep):
    """Fails on one rank only."""

    def __init__(self, where: str, rank: int, **options: Any) -> None:
        super().__init__(**options)
        self.where, self.rank = where, rank
        self.folder = Path(sys.argv[3])

    def _strike(self, where: str) -> None:
        if where == self.where and torch.distributed.get_rank() == self.rank:
            if self.settings.on_error == "raise":
                self.folder.joinpath("struck.txt").write_text(str(time.time()))
            raise ValueError(f"struck in {where}")

    def measure(self, evaluation: Evaluation, group: str) -> Findings:
        self._strike("measure")
        found = super().measure(evaluation, group)
        self._strike("end")
        return found


def broken_problem(module: Any, batch: Any) -> Problem:
    if torch.distributed.get_rank() == 1:
        raise ValueError("struck in problem")
    return Problem(module.net, nn.CrossEntropyLoss(), batch[0], batch[1])


def broken_round(module: Any, batch: Any) -> Problem:
    """Rank 1 cannot read what the others send."""

    def read(self: Any, message: Any, device: Any) -> Any:
        raise ValueError("struck in round")

    if torch.distributed.get_rank() == 1:
        lightning_vivit.parallel.kernels.Form.read = read
    return explicit_problem(module, batch)


class FailingLogger(CSVLogger):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(name.startswith("keep/") for name in metrics) and step == 1:
            raise OSError("disk full")
        super().log_metrics(metrics, step)


class Witness(pl.Callback):
    """Writes what is left after the fit, on every rank."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def training(self, trainer: Any, module: Any) -> dict[str, Any]:
        return {
            "weights": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict()["state"],
            "grads": [p.grad for p in module.parameters()],
        }

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        keepers = [c for c in trainer.callbacks if isinstance(c, Keep)]
        monitors = [c for c in trainer.callbacks if isinstance(c, Monitor)]
        checkpoint = trainer.checkpoint_callback
        torch.save(
            {
                **self.training(trainer, pl_module),
                "rng": torch.get_rng_state(),
                "found": [keeper.found for keeper in keepers],
                "stopped": [monitor.run_state.failure is not None for monitor in monitors],
                "metrics": dict(trainer.callback_metrics),
                "best": None if checkpoint is None else checkpoint.best_model_path,
            },
            self.folder / f"{self.name}-{trainer.global_rank}.pt",
        )


def fit(
    folder: Path, name: str, ranks: int, module: pl.LightningModule, *monitors: Any, **options: Any
) -> None:
    """One run; its warnings go to NAME-RANK.txt."""
    strategy = options.pop("strategy", {})
    if isinstance(strategy, dict):
        strategy = DDPStrategy(**{"start_method": "fork", **strategy})
    witness = options.pop("witness", Witness)(folder, name)
    checkpoint = options.pop("checkpoint", None)
    pl.seed_everything(0, verbose=False)
    settings: dict[str, Any] = {
        "max_epochs": 1,
        "limit_train_batches": 3,
        "limit_val_batches": 2,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        **options,
    }
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        callbacks=[*monitors, witness],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
    )
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest: _note(folder / f"{name}.txt", message)
        trainer.fit(module, ckpt_path=checkpoint)


def _note(file: Path, message: object) -> None:
    with file.open("a") as stream:
        stream.write(f"{message}\n")


VALUES: dict[str, tuple[type[pl.LightningModule], dict[str, Any]]] = {
    "batch": (Net, {}),
    "ggn": (Net, {"kernel": False}),
    "probe": (Net, {"data": "train", "max_samples": 7}),
    "val": (Net, {"data": "val", "max_samples": 5}),
    "one": (Net, {"data": "train", "max_samples": 1, "seed": 3}),
    "few": (Net, {"data": "train", "max_samples": 3, "seed": 3}),
    "layers": (Net, {"param_groups": "layer", "max_samples": 3}),
    "mc": (Net, {"mc_samples": 2, "kernel": False}),
    "fisher": (Net, {"matrix": "empirical_fisher", "kernel": False}),
    "fisher_kernel": (Weighted, {"matrix": "empirical_fisher"}),
    "explicit": (Net, {"problem": explicit_problem}),
    "custom": (Net, {"problem": custom_problem}),
    "backpack": (Net, {"backend": "backpack"}),
    "weighted": (Weighted, {}),
    "divided": (Divided, {}),
    "divided_probe": (Divided, {"data": "train", "max_samples": 9}),
    "uneven": (Streaming, {}),
    "experts": (Experts, {}),
    "words": (Words, {"kernel": False, "max_samples": 3}),
    "words_kernel": (Words, {"data": "train", "max_samples": 5}),
}


def keepers(kind: type[pl.LightningModule]) -> dict[str, Keep]:
    return {
        name: Keep(prefix=f"{name}/", every_n_steps=1, **options)
        for name, (module, options) in VALUES.items()
        if module is kind
    }


def values(folder: Path, ranks: int) -> None:
    """All monitors at once, on every module."""
    for kind in (Net, Weighted, Divided, Streaming, Experts, Words):
        monitors = keepers(kind)
        options: dict[str, Any] = {"use_distributed_sampler": not issubclass(kind, Streaming)}
        if kind is Experts:
            options["strategy"] = {"find_unused_parameters": True}
        fit(folder, f"values_{kind.__name__}", ranks, kind(), *monitors.values(), **options)


def work(folder: Path, ranks: int) -> None:
    """How much of one probe each rank does."""
    fit(folder, "work", ranks, Net(), Counted(every_n_steps=1, data="train", max_samples=24))


def memory(folder: Path, ranks: int) -> None:
    """A budget that forces passes over layers and pairs of column blocks."""
    usual = lightning_vivit.parallel.kernels.default_budget
    lightning_vivit.parallel.kernels.default_budget = lambda device: 45_000
    fit(folder, "memory", ranks, Net(), Keep(every_n_steps=1, max_samples=3))
    lightning_vivit.parallel.kernels.default_budget = usual


def identity(folder: Path, ranks: int) -> None:
    """The same runs with and without monitors."""
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "unused": {"strategy": {"find_unused_parameters": True}},
        "static": {"strategy": {"static_graph": True}, "max_epochs": 2},
        "accumulate": {"accumulate_grad_batches": 2, "limit_train_batches": 5},
        "view": {"strategy": {"gradient_as_bucket_view": True}, "gradient_clip_val": 0.5},
    }
    for name, options in variants.items():
        for watched in (False, True):
            monitors: list[Any] = []
            if watched:
                monitors = [
                    GGNSpectrumMonitor(k=3, every_n_steps=1),
                    DirectionalDerivativesMonitor(k=3, every_n_steps=1),
                    NTKMonitor(k=3, every_n_steps=1, max_samples=6),
                ]
            module = Net(unused=name == "unused")
            fit(folder, f"{name}_{watched}", ranks, module, *monitors, **dict(options))


def logs(folder: Path, ranks: int) -> None:
    """Loggers, ModelCheckpoint and a schedule that differs between the ranks."""

    def odd(step: int) -> bool:
        return step == 1 or torch.distributed.get_rank() == 1

    monitors = [
        GGNSpectrumMonitor(k=2, every_n_steps=1),
        Keep(every_n_steps=1),
        GGNSpectrumMonitor(k=2, schedule=odd, prefix="odd/"),
        ModelCheckpoint(monitor="ggn/eigenvalue_1", mode="max", dirpath=folder / "best"),
    ]
    logger = CSVLogger(folder, name="csv", version="0")
    fit(folder, "logs", ranks, Net(), *monitors, logger=logger, enable_checkpointing=True)


def faults(folder: Path, ranks: int) -> None:
    """One rank fails; each time the others have to go on."""
    fit(folder, "sound", ranks, Net())
    options: dict[str, Any] = {"every_n_steps": 1}
    for rank in range(2):
        for where in ("measure", "end"):
            name = f"{where}{rank}"
            other = Keep(every_n_steps=1, prefix="other/")
            fit(folder, name, ranks, Net(), Broken(where, rank, **options), other)
    for name, broken in (("problem1", broken_problem), ("round1", broken_round)):
        pair = [Keep(problem=broken, prefix=prefix, **options) for prefix in ("a/", "b/")]
        fit(folder, name, ranks, Net(), *pair)
    logger = FailingLogger(folder, name="failing", version="0")
    other = Keep(every_n_steps=1, prefix="other/")
    fit(folder, "logger0", ranks, Net(), Keep(**options), other, logger=logger)


def everything(folder: Path, ranks: int) -> None:
    """All of these in one process, whose start takes longer than they do."""
    for program in (values, work, memory, identity, logs, faults, ended):
        program(folder, ranks)


def ended(folder: Path, ranks: int) -> None:
    """on_error='raise': what comes out of the fit."""
    try:
        fit(folder, "ended", ranks, Net(), Broken("measure", 1, on_error="raise", steps=[1]))
    except Exception as error:
        (folder / "ended.txt").write_text(f"{time.time()} {error}")


def crash(folder: Path, ranks: int) -> None:
    """on_error='raise' in a run of Lightning's own subprocess launcher."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Broken("measure", 1, on_error="raise", steps=[1])],
    )
    trainer.fit(Net())


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[3]), int(sys.argv[2]))
