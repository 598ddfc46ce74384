"""Our kernels match those of torch.func's tutorial, by both of its methods."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from lightning_vivit import empirical_ntk


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, (3, 3))
        self.conv2 = nn.Conv2d(32, 32, (3, 3))
        self.conv3 = nn.Conv2d(32, 32, (3, 3))
        self.fc = nn.Linear(21632, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc(self.conv3(x).flatten(1))


EINSUMS = {"full": "Naf,Mbf->NMab", "trace": "Naf,Maf->NM", "diagonal": "Naf,Maf->NMa"}


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    return CNN(), torch.randn(20, 3, 32, 32), torch.randn(5, 3, 32, 32)


def jacobian_contraction(net: nn.Module, x1: Tensor, x2: Tensor, mode: str) -> Tensor:
    params = {name: p.detach() for name, p in net.named_parameters()}

    def single(params, x):
        return functional_call(net, params, (x.unsqueeze(0),)).squeeze(0)

    def rows(x):
        found = vmap(jacrev(single), (None, 0))(params, x)
        return [part.flatten(2) for part in found.values()]

    pairs = zip(rows(x1), rows(x2), strict=True)
    return sum(torch.einsum(EINSUMS[mode], left, right) for left, right in pairs)


def kernel_vector_products(net: nn.Module, x1: Tensor, x2: Tensor) -> Tensor:
    params = {name: p.detach() for name, p in net.named_parameters()}

    def single(params, x):
        return functional_call(net, params, (x.unsqueeze(0),)).squeeze(0)

    def pair(x, y):
        outputs, pull = vjp(lambda params: single(params, x), params)
        basis = torch.eye(outputs.numel(), dtype=outputs.dtype)

        def column(vector):
            return jvp(lambda params: single(params, y), (params,), pull(vector))[1]

        return vmap(column)(basis)

    return vmap(vmap(pair, (None, 0)), (0, None))(x1, x2)


@pytest.mark.parametrize("mode", EINSUMS)
def test_jacobian_contraction(problem, mode: str) -> None:
    net, train, test = problem
    ours = empirical_ntk(net, train, test, mode=mode)
    expected = jacobian_contraction(net, train, test, mode)
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=1e-5)


def test_kernel_vector_products(problem) -> None:
    net, train, test = problem
    ours = empirical_ntk(net, test, train[:4])
    assert torch.allclose(ours, kernel_vector_products(net, test, train[:4]), atol=1e-5)


def test_sides_swap(problem) -> None:
    net, train, test = problem
    there, back = empirical_ntk(net, train, test), empirical_ntk(net, test, train)
    assert torch.allclose(there, back.permute(1, 0, 3, 2), atol=1e-5)
