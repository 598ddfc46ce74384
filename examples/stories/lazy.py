"""Story: lazy against feature learning, for two widths and two parametrisations.

One hidden layer with outputs scaled by 1/sqrt(width) (NTK parametrisation, Jacot et al. 2018) or
by 1/width (mean field, with learning rates proportional to the width). `ntk/distance_first` and
`ntk/alignment` tell which network changes its kernel; all are compared at the same loss.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import matplotlib.pyplot as plt
import torch
from digits_runs import Classifier, digits, loader, save, train
from torch import Tensor, nn

from lightning_vivit import NTKMonitor

WIDTHS, LOSS, EVERY, STEPS = (32, 512), 0.5, 10, 201


class TwoLayers(nn.Module):
    """outer(tanh(inner(x) / 8)) * scale, with weights drawn from N(0, 1)."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.inner = nn.Linear(64, width, bias=False)
        self.outer = nn.Linear(width, 10, bias=False)
        self.scale = scale
        for weight in self.parameters():
            nn.init.normal_(weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(images.flatten(1)) / 8)) * self.scale


def descend(width: int, kind: str) -> dict[str, Any]:
    L.seed_everything(0)
    scale, lr = (width**-0.5, 2.0) if kind == "ntk" else (1 / width, 1.0 * width)
    monitor = NTKMonitor(k=1, mode="trace", every_n_steps=EVERY, data="train", max_samples=64)
    history = train(Classifier(TwoLayers(width, scale), lr), loader(*digits(256)), STEPS, monitor)
    at = next(step for step in range(0, STEPS, EVERY) if history.losses[step] < LOSS)
    alignment = history.column("ntk/alignment")
    return {
        "loss": history.losses[::EVERY],
        "distances": history.column("ntk/distance_first")[::EVERY],
        "alignments": alignment[::EVERY],
        "step": at,
        "drift": history.values[at]["ntk/distance_first"],
        "gain": alignment[at] - alignment[0],
    }


def run() -> dict[str, Any]:
    return {
        (kind, width): descend(width, kind) for kind in ("ntk", "mean field") for width in WIDTHS
    }


def main() -> None:
    figure, (drift, alignment) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for (kind, width), found in run().items():
        style = {"color": "C0" if kind == "ntk" else "C1"}
        style["linestyle"] = "-" if width == WIDTHS[0] else "--"
        steps = range(0, STEPS, EVERY)
        drift.semilogy(steps[1:], found["distances"][1:], label=f"{kind}, width {width}", **style)
        alignment.plot(steps, found["alignments"], **style)
        i = found["step"] // EVERY
        drift.plot(found["step"], found["distances"][i], "o", color=style["color"])
        alignment.plot(found["step"], found["alignments"][i], "o", color=style["color"])
    drift.set(xlabel="step", title="ntk/distance_first")
    alignment.set(xlabel="step", title="ntk/alignment")
    drift.legend(fontsize="small")
    save(figure, "lazy")


if __name__ == "__main__":
    main()
