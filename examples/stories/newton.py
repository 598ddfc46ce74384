"""Story: a damped Newton step against SGD along the leading directions.

At step 20 of SGD on digits, both steps are taken in the span of the k leading eigenvectors of the
GGN of 128 digits. SGD goes `lr * curvature` of the way to the minimum along each direction: far
along the first, hardly at all along the later ones.
"""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as L
import matplotlib.pyplot as plt
import torch
from digits_runs import Classifier, digits, loader, mlp, save, train
from torch import Tensor, nn

from lightning_vivit import DirectionalDerivativesMonitor, newton_step

LR, STEP, K, DAMPING, TOO_SMALL = 0.2, 20, 50, 0.05, 0.005
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 600)


class Keep(L.Callback):
    """A copy of the network as the monitors see it, before a step."""

    def on_train_batch_start(
        self, trainer: L.Trainer, module: Classifier, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == STEP:
            self.net = copy.deepcopy(module.net)


def run() -> dict[str, Any]:
    L.seed_everything(0)
    images, labels = digits()
    probe, loss = (images[:128], labels[:128]), nn.CrossEntropyLoss()
    options = {"k": K, "damping": DAMPING, "steps": [STEP]}
    monitor = DirectionalDerivativesMonitor(**options, probe=probe, max_samples=None)
    batches, keep = loader(images, labels, batch_size=16), Keep()
    values = train(Classifier(mlp(), LR), batches, STEP + 1, monitor, keep).values[STEP]
    names = [str(i) for i in range(1, K + 1)]
    sgd = [LR * values[f"directions/gamma_mean_{i}"] for i in names]
    newton = [-values[f"directions/newton_step_{i}"] for i in names]

    def loss_after(k: int, damping: Any) -> float:
        step = newton_step(keep.net, loss, *probe, k=k, damping=damping)
        moved = {name: p.detach() + step[name] for name, p in keep.net.named_parameters()}
        return loss(torch.func.functional_call(keep.net, moved, (probe[0],)), probe[1]).item()

    def as_sgd(eigenvalues: Tensor, gammas: Tensor, lambdas: Tensor) -> Tensor:
        return 1 / LR - eigenvalues  # slope / (curvature + this) is LR * slope

    return {
        "share of the way": [a / b for a, b in zip(sgd, newton)],
        "curvature": [values[f"directions/lambda_mean_{i}"] for i in names],
        "before": loss(keep.net(probe[0]), probe[1]).item(),
        "sgd": [loss_after(k, as_sgd) for k in SIZES],
        "newton": [loss_after(k, DAMPING) for k in SIZES],
        "hardly damped": [loss_after(k, TOO_SMALL) for k in SIZES],
    }


def main() -> None:
    found = run()
    figure, (shares, losses) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    shares.bar(range(1, K + 1), found["share of the way"])
    shares.set(xlabel="direction i", title="SGD step / damped Newton step")
    losses.axhline(found["before"], color="black", linewidth=0.8, linestyle="--")
    losses.plot(SIZES, found["sgd"], ".-", label=f"SGD, lr {LR}")
    losses.plot(SIZES, found["newton"], ".-", label=f"Newton, damping {DAMPING}")
    losses.plot(SIZES, found["hardly damped"], ".-", label=f"Newton, damping {TOO_SMALL}")
    losses.set(xscale="log", xlabel="directions k", title="loss after one step in their span")
    losses.legend(fontsize="small")
    save(figure, "newton")


if __name__ == "__main__":
    main()
