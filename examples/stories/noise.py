"""Story: noise-dominated directions, and what a larger batch changes.

SGD with batches of 16 digits. `directions/gamma_snr_i` is the signal-to-noise ratio of one
sample's slope, so that of a batch of B is B times as large. It predicts how often the mean slope
of a batch has the right sign.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import matplotlib.pyplot as plt
import torch
from digits_runs import Classifier, digits, loader, mlp, save, train
from torch import nn

from lightning_vivit import DirectionalDerivativesMonitor, directional_derivatives

STEPS, EVERY, PROBE, K, DRAWS = 400, 20, 128, 5, 2000
SIZES = (4, 16, 64, 256, 1024)


def run() -> dict[str, Any]:
    L.seed_everything(0)
    images, labels = digits()
    probe = images[:PROBE], labels[:PROBE]
    monitor = DirectionalDerivativesMonitor(k=K, every_n_steps=EVERY, probe=probe, max_samples=None)
    module = Classifier(mlp(), lr=0.2)
    history = train(module, loader(images, labels, batch_size=16), STEPS + 1, monitor)
    keys = [f"directions/gamma_snr_{i}" for i in range(1, K + 1)]
    logged = {key: history.column(key)[::EVERY] for key in keys}

    # the slopes of the probe's samples after the run, and batches drawn from them
    slopes = directional_derivatives(module.net, nn.CrossEntropyLoss(), *probe, k=K).gammas.flip(1)
    snr = slopes.mean(0) ** 2 / slopes.var(0)  # [K]
    generator = torch.Generator().manual_seed(0)
    right, predicted = [], []
    for size in SIZES:
        batches = slopes[torch.randint(PROBE, (DRAWS, size), generator=generator)].mean(1)
        right.append((batches.sign() == slopes.mean(0).sign()).double().mean(0).tolist())
        predicted.append(torch.special.ndtr((size * snr).sqrt()).tolist())
    return {"logged": logged, "snr": snr.tolist(), "right": right, "predicted": predicted}


def main() -> None:
    found = run()
    figure, (chart, shares) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    steps = range(0, STEPS + 1, EVERY)
    for key, values in found["logged"].items():
        chart.semilogy(steps, values, marker=".", label=f"direction {key[-1]}")
    for size in (16, 256):
        chart.axhline(1 / size, color="black", linewidth=0.8, linestyle="--")
        chart.text(-12, 1 / size, f"1/{size}", ha="right", va="bottom")
    chart.set(xlabel="step", title="directions/gamma_snr_i", ylim=(1e-6, 1), xlim=(-75, STEPS))
    for i in range(K):
        line = shares.semilogx(SIZES, [row[i] for row in found["predicted"]], base=2)[0]
        shares.plot(SIZES, [row[i] for row in found["right"]], "o", color=line.get_color())
        line.set_label(f"direction {i + 1}")
    shares.set(
        xlabel="batch size B",
        title="right sign (line: Φ(√(B snr)))",
        ylim=(0.4, 1.02),
    )
    shares.legend(fontsize="small")
    save(figure, "noise")


if __name__ == "__main__":
    main()
