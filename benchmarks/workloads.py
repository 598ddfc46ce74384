"""The networks and batches that are timed: scikit-learn's digits, enlarged."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


@dataclass
class Workload:
    """A network in eval mode with a batch of 10 classes."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    split: int | None = None  # for kernels of two batches: samples on the left side

    def to(self, device: torch.device) -> Workload:
        parts = (self.model.to(device), self.inputs.to(device), self.targets.to(device))
        return Workload(self.name, *parts, self.split)


def tutorial_cnn() -> nn.Module:
    """The network of torch.func's tangent kernel tutorial."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.Flatten(),
        nn.Linear(21632, 10),
    )


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for first, second in itertools.pairwise(widths):
        layers += [nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def net_3c3d() -> nn.Module:
    """DeepOBS' 3c3d for CIFAR-10."""

    def pool() -> list[nn.Module]:
        return [nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)]

    return nn.Sequential(
        *(nn.Conv2d(3, 64, 5), nn.ReLU(), *pool()),
        *(nn.Conv2d(64, 96, 3), nn.ReLU(), *pool()),
        *(nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), *pool()),
        *(nn.Flatten(), nn.Linear(1152, 512), nn.ReLU()),
        *(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet(widths: list[int], depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)]
    layers += [nn.BatchNorm2d(widths[0]), nn.ReLU()]
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(depth):
            layers.append(Block(before, width, 2 if block == 0 and stage > 0 else 1))
            before = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)]
    return nn.Sequential(*layers)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


BUILD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int | None]] = {
    "tutorial CNN, 20 x 5": (tutorial_cnn, (25, 3, 32, 32), 20),
    "MLP 784-512-512-10, N 128": (lambda: mlp(784, 512, 512, 10), (128, 784), None),
    "MLP 784-4096-4096-10, N 256": (lambda: mlp(784, 4096, 4096, 10), (256, 784), None),
    "3c3d, N 64": (net_3c3d, (64, 3, 32, 32), None),
    "ResNet-20, N 32": (lambda: resnet([16, 32, 64], 3), (32, 3, 32, 32), None),
    "ResNet-18, N 16": (lambda: resnet([64, 128, 256, 512], 2), (16, 3, 32, 32), None),
    "transformer d 128, T 64, N 32": (Transformer, (32, 64, 128), None),
}
SHORT = dict(zip(("cnn", "mlp", "wide", "3c3d", "resnet20", "resnet18", "gpt"), BUILD, strict=True))
SHORT["transformer"] = SHORT.pop("gpt")


def build(short: str) -> Workload:
    """Make a workload from its short name, always the same."""
    name = SHORT[short]
    torch.manual_seed(0)
    make, shape, split = BUILD[name]
    model = make().eval()
    images, targets = digits(shape[0])
    if len(shape) == 4:
        inputs = F.interpolate(images, shape[2:], mode="bilinear").expand(shape).contiguous()
    elif len(shape) == 3:  # one token for each pixel, embedded with its position at random
        pixels = images.flatten(1).unsqueeze(2)
        inputs = pixels * torch.randn(shape[2]) + torch.randn(shape[1], shape[2])
    else:
        inputs = F.interpolate(images, (28, 28), mode="bilinear").flatten(1)
    return Workload(name, model, inputs, targets, split)


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Standardised images [count, 1, 8, 8] of scikit-learn's digits, and their labels."""
    images, labels = load_digits(return_X_y=True)
    data = torch.as_tensor(images[:count]).float().reshape(-1, 1, 8, 8)
    return (data - data.mean()) / data.std(), torch.as_tensor(labels[:count]).long()


def training_step(work: Workload) -> Callable[[], None]:
    """Forward, backward and an SGD step on the same batch, in training mode."""
    optimizer = torch.optim.SGD(work.model.parameters(), lr=0.0)

    def step() -> None:
        work.model.train()
        buffers = [buffer.clone() for buffer in work.model.buffers()]
        optimizer.zero_grad()
        F.cross_entropy(work.model(work.inputs), work.targets).backward()
        optimizer.step()
        with torch.no_grad():
            for buffer, kept in zip(work.model.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        work.model.eval()

    return step
