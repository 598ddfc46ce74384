"""Convolutions in image networks, on signals, volumes and graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import C, N, Net, maps, network, parameter


@network("convolution")
def separable_with_squeeze_and_excitation():
    def run(s: Net, x: Tensor) -> Tensor:
        x = F.hardswish(s.norm(s.depthwise(x)))
        x = x * torch.sigmoid(s.expand(torch.relu(s.squeeze(x.mean((2, 3), keepdim=True)))))
        return s.head(s.pointwise(x).mean((2, 3)))

    model = Net(
        run,
        depthwise=nn.Conv2d(2, 4, 3, groups=2, bias=False),
        norm=nn.BatchNorm2d(4),
        squeeze=nn.Conv2d(4, 2, 1),
        expand=nn.Conv2d(2, 4, 1),
        pointwise=nn.Conv2d(4, 5, 1),
        head=nn.Linear(5, C),
    )
    model(torch.randn(16, 2, 6, 6))
    return model.eval(), maps()


@network("convolution", "maps")
def unet():
    def run(s: Net, x: Tensor) -> Tensor:
        first = torch.relu(s.down(x))
        low = torch.relu(s.low(F.max_pool2d(first, 2)))
        return s.out(torch.cat([first, s.up(low)], dim=1))

    return Net(
        run,
        down=nn.Conv2d(1, 2, 3, padding=1),
        low=nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        up=nn.ConvTranspose2d(3, 2, 2, stride=2),
        out=nn.Conv2d(4, C, 1),
    ), maps(1, 4)


@network("convolution", "maps")
def upsampling_and_pixel_shuffle():
    def run(s: Net, x: Tensor) -> Tensor:
        y = F.interpolate(s.a(x), scale_factor=2, mode="bilinear").tanh()
        return F.pixel_shuffle(s.b(y), 2)[:, :, ::2, ::2]

    return Net(run, a=nn.Conv2d(1, 2, 1), b=nn.Conv2d(2, 4 * C, 3, stride=2, padding=1)), maps(1, 2)


@network("convolution")
def dense_connections():
    def run(s: Net, x: Tensor) -> Tensor:
        for layer in s.layers:
            x = torch.cat([x, F.elu(layer(x))], dim=1)
        return s.head(x.amax((2, 3)))

    layers = nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)])
    return Net(run, layers=layers, head=nn.Linear(6, C)), maps(2, 4)


@network("convolution", "derived")
def weight_standardisation():
    def run(s: Net, x: Tensor) -> Tensor:
        weight = s.weight - s.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-3) * s.gain
        return s.head(F.conv2d(x, weight, s.bias, stride=2).relu().flatten(1))

    return Net(
        run,
        weight=parameter(3, 2, 3, 3),
        gain=parameter(3, 1, 1, 1),
        bias=parameter(3),
        head=nn.Linear(12, C),
    ), maps()


@network("convolution", "square")
def channels_as_many_as_samples():
    return nn.Sequential(
        nn.Conv2d(N, N, 2), nn.Tanh(), nn.GroupNorm(1, N), nn.Flatten(), nn.Linear(4 * N, C)
    ), torch.randn(N, N, 3, 3)


@network("convolution")
def signals_grouped_transposed_and_dilated():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, dilation=2, groups=2, padding="same"),
        nn.Tanh(),
        nn.ConvTranspose1d(4, 4, 3, stride=2, output_padding=1, groups=2, dilation=2),
        nn.InstanceNorm1d(4, affine=True),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(8, C),
    ), torch.randn(N, 2, 5)


@network("convolution")
def volumes_grouped_and_transposed():
    return nn.Sequential(
        nn.Conv3d(2, 4, 2, groups=2, padding=1, dilation=(1, 2, 1)),
        nn.Tanh(),
        nn.ConvTranspose3d(4, 2, (1, 2, 2), stride=(1, 2, 1), groups=2, output_padding=(0, 1, 0)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(2, C),
    ), torch.randn(N, 2, 2, 3, 2)


@network("convolution")
def samples_and_patches_in_one_axis():
    def run(s: Net, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, stride=3).transpose(1, 2).reshape(-1, 2, 3, 3)
        features = torch.tanh(s.conv(patches)).flatten(1)  # [N*T, ...]
        return s.head(features.reshape(len(x), -1))

    return Net(run, conv=nn.Conv2d(2, 3, 2), head=nn.Linear(48, C)), maps()


@network("convolution")
def patches_and_samples_in_one_axis():
    def run(s: Net, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, stride=3).permute(2, 0, 1).reshape(-1, 2, 3, 3)
        features = torch.tanh(s.conv(patches)).flatten(1)  # [T*N, ...]
        return s.head(features.reshape(4, len(x), -1).sum(0))

    return Net(run, conv=nn.Conv2d(2, 3, 2), head=nn.Linear(12, C)), maps()


@network("convolution")
def graph_convolution():
    def run(s: Net, x: Tensor, links: Tensor) -> Tensor:
        x = torch.relu(links @ s.first(x))
        return (links @ x @ s.second + s.bias).mean(1)

    links = torch.rand(N, 3, 3).softmax(-1)
    return Net(run, first=nn.Linear(4, 5), second=parameter(5, C), bias=parameter(C)), (
        torch.randn(N, 3, 4),
        links,
    )
