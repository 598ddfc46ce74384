"""Networks of layers that BackPACK propagates the GGN's square root through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

N, C = 4, 3


def _image(*layers: nn.Module, channels: int = 2, size: int = 5) -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(*layers, nn.Flatten())
    inputs = torch.randn(N, channels, size, size)
    width = model(inputs).shape[1]
    model.append(nn.Linear(width, C))
    return model, inputs


def _signal(*layers: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(*layers, nn.Flatten())
    inputs = torch.randn(N, *shape)
    model.append(nn.Linear(model(inputs).shape[1], C))
    return model, inputs


def _dense(*layers: nn.Module) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(5, 6), *layers, nn.Linear(6, C)), torch.randn(N, 5)


def _eval(built: tuple[nn.Module, Tensor]) -> tuple[nn.Module, Tensor]:
    model, inputs = built
    for _ in range(3):
        model(torch.randn(8, *inputs.shape[1:]))
    return model.eval(), inputs


def _embedding() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, C))
    return model, torch.randint(0, 7, (N, 3))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Sequential(nn.Linear(5, C)), torch.randn(N, 5)),
    "relu": lambda: _dense(nn.ReLU()),
    "sigmoid": lambda: _dense(nn.Sigmoid()),
    "tanh": lambda: _dense(nn.Tanh()),
    "leaky_relu": lambda: _dense(nn.LeakyReLU(0.1)),
    "log_sigmoid": lambda: _dense(nn.LogSigmoid()),
    "elu": lambda: _dense(nn.ELU()),
    "selu": lambda: _dense(nn.SELU()),
    "identity_and_dropout_eval": lambda: _eval(_dense(nn.Identity(), nn.Dropout(0.5), nn.Tanh())),
    "linear_on_sequences": lambda: _signal(nn.Linear(4, 5), nn.Tanh(), shape=(3, 4)),
    "conv1d": lambda: _signal(nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.ReLU(), shape=(2, 8)),
    "conv2d": lambda: _image(nn.Conv2d(2, 4, 3, padding=1, dilation=1), nn.ReLU()),
    "conv2d_grouped": lambda: _image(nn.Conv2d(2, 4, 3, groups=2, stride=2), nn.Tanh()),
    "conv3d": lambda: _signal(nn.Conv3d(1, 2, 2), nn.Tanh(), shape=(1, 3, 3, 3)),
    "conv_transpose1d": lambda: _signal(
        nn.ConvTranspose1d(2, 3, 3, stride=2), nn.Tanh(), shape=(2, 4)
    ),
    "conv_transpose2d": lambda: _image(
        nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), size=3
    ),
    "conv_transpose3d": lambda: _signal(nn.ConvTranspose3d(1, 2, 2), nn.Tanh(), shape=(1, 2, 2, 2)),
    "max_pool": lambda: _image(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Tanh(), size=7),
    "avg_pool": lambda: _image(nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.Tanh(), size=7),
    "zero_pad": lambda: _image(nn.ZeroPad2d((0, 1, 1, 0)), nn.Conv2d(2, 3, 3), nn.ReLU()),
    "batch_norm_1d": lambda: _eval(_dense(nn.BatchNorm1d(6), nn.ReLU())),
    "batch_norm_2d": lambda: _eval(_image(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())),
    "embedding": _embedding,
    "no_bias": lambda: (
        nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, C, bias=False)),
        torch.randn(N, 5),
    ),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A network in float64 with parameters off their defaults, and its inputs."""
    torch.manual_seed(sum(map(ord, name)))
    model, inputs = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double(), inputs.double() if inputs.is_floating_point() else inputs
