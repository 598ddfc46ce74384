"""Samples or tokens that take different ways, silent samples, several inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import C, N, Net, network, parameter, sequences, vectors


@network("routing")
def soft_mixture_of_experts():
    def run(s: Net, x: Tensor) -> Tensor:
        gates = s.gate(x).softmax(1)
        found = torch.stack([expert(x) for expert in s.experts], dim=1).tanh()
        return s.head((gates.unsqueeze(2) * found).sum(1))

    experts = nn.ModuleList([nn.Linear(4, 5) for _ in range(3)])
    return Net(run, gate=nn.Linear(4, 3), experts=experts, head=nn.Linear(5, C)), vectors()


@network("routing")
def hard_mixture_of_experts_on_tokens():
    def run(s: Net, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        y = torch.zeros_like(tokens)
        for sign, expert in zip((-1, 1), s.experts, strict=True):
            chosen = torch.sign(tokens[:, 0]) == sign
            y[chosen] = expert(tokens[chosen]).tanh()
        return s.head(y.reshape(x.shape).mean(1))

    experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
    return Net(run, experts=experts, head=nn.Linear(4, C)), sequences(4)


@network("routing")
def all_samples_reordered():
    def run(s: Net, x: Tensor) -> Tensor:
        order = torch.tensor([3, 0, 4, 2, 1] if len(x) == N else [0])
        return s.c(s.b(s.a(x).tanh()[order]).tanh()[order.argsort()])

    return Net(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, C)), vectors()


@network("routing")
def silent_first_and_last_sample():
    """The gate lets nothing of the first and the last sample through."""

    def run(s: Net, x: Tensor) -> Tensor:
        open_ = (x[:, :1] > 0).to(x)
        return s.head(x) + open_ * s.b(torch.relu(s.a(x)))

    x = vectors()
    x[:, 0] = torch.tensor([-1.0, 1.0, 2.0, 1.0, -1.0])
    return Net(run, a=nn.Linear(4, 6), b=nn.Linear(6, C), head=nn.Linear(4, C)), x


@network("routing")
def one_sample_at_a_time():
    def run(s: Net, x: Tensor) -> Tensor:
        return torch.stack([s.head(torch.tanh(s.a(sample))) for sample in x])

    return Net(run, a=nn.Linear(4, 5), head=nn.Linear(5, C)), vectors()


@network("routing")
def conditioned_by_a_second_input():
    def run(s: Net, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = s.film(s.classes(condition)).chunk(2, dim=1)
        return s.head(torch.tanh(s.a(x) * (1 + scale) + shift))

    return Net(
        run,
        a=nn.Linear(4, 5),
        classes=nn.Embedding(3, 2),
        film=nn.Linear(2, 10),
        head=nn.Linear(5, C),
    ), (vectors(), torch.randint(0, 3, (N,)))


@network("routing")
def siamese_branches():
    def run(s: Net, x: Tensor, y: Tensor) -> Tensor:
        pair = s.trunk(torch.cat([x, y])).tanh()  # samples of both in one axis
        first, second = pair.chunk(2)
        return s.head(torch.cat([first * second, (first - second).abs()], dim=1))

    return Net(run, trunk=nn.Linear(4, 5), head=nn.Linear(10, C)), (vectors(), vectors())


@network("routing")
def parameter_indexed_by_data():
    def run(s: Net, x: Tensor, index: Tensor) -> Tensor:
        picked = s.table[index] * s.rates.index_select(0, index).unsqueeze(1)
        return s.head(torch.tanh(F.linear(x, s.weight) + picked))

    return Net(
        run,
        table=parameter(3, 5),
        rates=parameter(3),
        weight=parameter(5, 4),
        head=nn.Linear(5, C),
    ), (vectors(), torch.randint(0, 3, (N,)))


@network("routing")
def constant_row_for_every_sample():
    """A token that passes through layers before it meets the data."""

    def run(s: Net, x: Tensor) -> Tensor:
        token = s.project(s.token).tanh().expand(len(x), 1, 4)
        return s.head(torch.cat([token, s.project(x)], dim=1).flatten(1))

    return Net(
        run, token=parameter(1, 1, 4), project=nn.Linear(4, 4), head=nn.Linear(16, C)
    ), sequences()
