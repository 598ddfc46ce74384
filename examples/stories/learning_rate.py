"""Story: a learning rate beyond the edge of stability, found from one chart.

Gradient descent with learning rate 4 on 32 digits. `ggn/sharpness_lr` says at step 0 by which
factor that is too much; half of what it allows trains.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import matplotlib.pyplot as plt
from digits_runs import Classifier, digits, loader, mlp, save, train

from lightning_vivit import GGNSpectrumMonitor

TOO_LARGE = 4.0


def descend(lr: float, steps: int = 40) -> dict[str, Any]:
    L.seed_everything(0)
    monitor = GGNSpectrumMonitor(k=1, every_n_steps=1, data="batch", overlap=False)
    history = train(Classifier(mlp(), lr), loader(*digits(32)), steps, monitor)
    return {"lr": lr, "loss": history.losses, "ratio": history.column("ggn/sharpness_lr")}


def run() -> dict[str, Any]:
    too_large = descend(TOO_LARGE)
    allowed = TOO_LARGE / too_large["ratio"][0]  # at which the first ratio would be 1
    return {"too large": too_large, "at the limit": descend(allowed), "half": descend(allowed / 2)}


def main() -> None:
    runs = run()
    figure, (losses, ratios) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, found in runs.items():
        label = f"{name}: lr {found['lr']:.2f}"
        losses.semilogy(found["loss"], label=label)
        ratios.semilogy(found["ratio"], label=label)
    ratios.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    losses.set(xlabel="step", title="training loss")
    ratios.set(xlabel="step", title="ggn/sharpness_lr", ylim=(0.05, 100))
    losses.legend()
    save(figure, "learning_rate")


if __name__ == "__main__":
    main()
