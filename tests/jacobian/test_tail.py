"""Operations after the last nonlinearity: backpropagated once for all samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_vivit import empirical_ntk
from lightning_vivit.jacobian import collector, structured


class Mean(nn.Module):
    """Tokens [N, T, I]: a linear layer at every position, their mean, another linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x):
        return self.last(self.inner(torch.tanh(self.first(x))).mean(1))


class Around(nn.Module):
    """A way around the last layer, and one around the layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return hidden + self.last(hidden + self.inner(hidden))


class Gated(nn.Module):
    """Linear in the last activations, but with a factor that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.inner(torch.tanh(self.first(x))) * x.sum(1, keepdim=True))


class Mixed(nn.Module):
    """A matrix of the data in place of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.last((hidden.unsqueeze(1) @ (x[:, :1, None] * torch.eye(6).to(x))).squeeze(1))


class Tied(nn.Module):
    """One layer before and after the nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def cnn(outputs: int = 3) -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 3, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(27, outputs))


def pooled() -> nn.Module:
    layers = [nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 5, 3), nn.AdaptiveAvgPool1d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5, 3))


def parametrised() -> nn.Module:
    last = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), last)


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[-1].weight.requires_grad_(False)
    return model


# Name -> network, shape of a sample, operations that are shared
NETS = {
    "cnn": (cnn, (2, 6, 6), 3),
    "many outputs": (lambda: cnn(11), (2, 6, 6), 3),
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), (5,), 1),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)), (5,), 2),
    "mean": (Mean, (3, 5), 2),
    "pooled": (pooled, (2, 8), 2),
    "around": (Around, (5,), 0),
    "gated": (Gated, (5,), 1),
    "mixed": (Mixed, (5,), 1),
    "tied": (Tied, (5,), 1),
    "parametrised": (parametrised, (5,), 1),
    "frozen": (frozen, (5,), 0),
}


def explicit(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The kernel from one backward pass for each sample and output."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for sample in inputs:
        for output in model(sample[None])[0]:
            grads = torch.autograd.grad(output, parameters, allow_unused=True, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads if g is not None]))
    jacobian = torch.stack(rows).reshape(len(inputs), -1, len(rows[0]))
    return torch.einsum("ndp,mcp->nmdc", jacobian, jacobian)


@pytest.mark.parametrize("samples", [2, 3, 7])
@pytest.mark.parametrize("name", NETS)
def test_kernels_are_those_of_explicit_jacobians(name, samples, monkeypatch):
    make, shape, shared = NETS[name]
    torch.manual_seed(0)
    model, inputs = make().double(), torch.randn(samples, *shape).double()
    seen = []
    plain = structured.shared_tail

    def watched(*args):
        found = plain(*args)
        seen.append(0 if found is None else len(found.arrived))
        return found

    monkeypatch.setattr(structured, "shared_tail", watched)
    kernel = empirical_ntk(model, inputs)
    assert set(seen) == {shared}
    torch.testing.assert_close(kernel, explicit(model, inputs), rtol=1e-9, atol=1e-10)


class Hooked(nn.Module):
    """A hook makes gradients depend on the data, which the graph does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        hidden = self.inner(torch.tanh(self.first(x)))
        hidden.register_hook(lambda grad: grad * x.sum(1, keepdim=True))
        return self.last(hidden)


def test_samples_that_carry_the_same_column_are_compared():
    torch.manual_seed(0)
    model, inputs = Hooked().double(), torch.randn(7, 5).double()
    expected = explicit(model, inputs)
    torch.testing.assert_close(empirical_ntk(model, inputs), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("entries", [1, 200, 10_000])
def test_rows_of_a_convolution_by_some_samples(entries, monkeypatch):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 6, 3, groups=3)]
    model = nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(54, 5)).double()
    inputs = torch.randn(5, 2, 10, 10).double()
    monkeypatch.setattr(collector, "_PATCH_ENTRIES", entries)
    taken = []
    plain = collector.Collector._start_rows

    def noting(self, part):
        rows = plain(self, part)
        if self._some is not None:
            taken.append(self._some)
        return rows

    monkeypatch.setattr(collector.Collector, "_start_rows", noting)
    kernel = empirical_ntk(model, inputs)
    assert taken and all(count == {1: 1, 200: 1, 10_000: 5}[entries] for count in taken)
    torch.testing.assert_close(kernel, explicit(model, inputs), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("entries", [1, 200, 1 << 20])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("outputs", [3, 11])
def test_rows_of_columns_that_all_samples_share(entries, groups, outputs, monkeypatch):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, groups=groups), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(6 * 8 * 8, outputs)).double()
    inputs = torch.randn(5, 2, 12, 12).double()
    monkeypatch.setattr(collector, "_PATCH_ENTRIES", entries)
    monkeypatch.setattr(collector, "_GATHERED_ENTRIES", entries)
    taken = []
    plain = collector.Collector.add_shared

    def noting(self, parts):
        taken.append((self.call.function, plain(self, parts)))
        return taken[-1][1]

    monkeypatch.setattr(collector.Collector, "add_shared", noting)
    kernel = empirical_ntk(model, inputs)
    # the convolution's 64 positions outnumber its inputs; the linear layer keeps its columns
    assert dict(taken) == {
        nn.functional.conv2d: True,
        nn.functional.linear: False,
    }
    torch.testing.assert_close(kernel, explicit(model, inputs), rtol=1e-9, atol=1e-10)
    both = empirical_ntk(model, inputs[:2], inputs[2:])
    torch.testing.assert_close(both, kernel[:2, 2:], rtol=1e-9, atol=1e-10)
