"""Story: fine-tuning with frozen layers, and which layer carries the curvature.

A CNN that knows the digits 0 to 4 is fine-tuned on 5 to 9. With `param_groups="layer"` the monitor
shows the diagonal block of each layer; a layer that carries little curvature can be frozen.
"""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as L
import matplotlib.pyplot as plt
from digits_runs import Classifier, digits, loader, save, train
from torch import nn

from lightning_vivit import GGNSpectrumMonitor

LR, STEPS = 0.1, 100
FROZEN = {"nothing": (), "first layer": ("0",), "both convolutions": ("0", "3")}
LAYERS = {"net.0": "first convolution", "net.3": "second convolution", "net.7": "head"}


def cnn() -> nn.Sequential:
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(128, 10))


def fine_tune(pretrained: Classifier, frozen: tuple[str, ...]) -> dict[str, Any]:
    L.seed_everything(0)
    module = copy.deepcopy(pretrained)
    for name, parameter in module.net.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in frozen)
    options: dict[str, Any] = {"k": 1, "every_n_steps": 10, "data": "train", "overlap": False}
    whole = GGNSpectrumMonitor(**options)
    layers = GGNSpectrumMonitor(**options, param_groups="layer", prefix="layers/")
    images, labels = digits()
    new = labels >= 5
    batches = loader(images[new], labels[new], batch_size=64)
    history = train(module, batches, STEPS + 1, whole, layers)
    first = history.values[0]
    traces = {name: first.get(f"layers/ggn/{name}/trace", 0.0) for name in LAYERS}
    if len(frozen) == 2:  # one group is left, and its keys need no name
        traces["net.7"] = first["layers/ggn/trace"]
    return {
        "loss": history.losses,
        "eigenvalue": first["ggn/eigenvalue_1"],
        "limit": LR / first["ggn/sharpness_lr"],  # the learning rate at which step 0 is unstable
        "trace": first["ggn/trace"],
        "traces": traces,
        "final": sum(history.losses[-20:]) / 20,
    }


def run() -> dict[str, Any]:
    L.seed_everything(0)
    images, labels = digits()
    old = labels < 5
    pretrained = Classifier(cnn(), LR)
    train(pretrained, loader(images[old], labels[old], batch_size=64), 200)
    return {name: fine_tune(pretrained, frozen) for name, frozen in FROZEN.items()}


def main() -> None:
    runs = run()
    figure, (blocks, losses) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for place, (name, found) in enumerate(runs.items()):
        bottom = 0.0
        for color, layer in enumerate(LAYERS):
            height = found["traces"][layer]
            label = LAYERS[layer] if place == 0 else None
            blocks.bar(place, height, bottom=bottom, color=f"C{color}", label=label)
            bottom += height
        losses.semilogy(found["loss"], label=f"frozen: {name}")
    blocks.set_xticks(range(len(runs)), [f"frozen:\n{name}" for name in runs])
    blocks.set(title="ggn/<layer>/trace at step 0", ylim=(0, 330))
    losses.set(xlabel="step", title="training loss")
    blocks.legend(fontsize="small")
    losses.legend(fontsize="small")
    save(figure, "fine_tuning")


if __name__ == "__main__":
    main()
