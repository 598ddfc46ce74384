"""Parameters that reach the data in unusual ways: computed, indexed, masked, shared, in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from zoo.base import C, Net, network, parameter, vectors


@network("derived")
def low_rank_adapter():
    model = Net(
        lambda s, x: s.head(torch.tanh(s.base(x) + x @ s.down @ s.up * 2.0)),
        base=nn.Linear(4, 6).requires_grad_(False),
        down=parameter(4, 2),
        up=parameter(2, 6),
        head=nn.Linear(6, C),
    )
    return model, vectors()


@network("derived")
def low_rank_weight_merged():
    def run(s: Net, x: Tensor) -> Tensor:
        return s.head(torch.tanh(F.linear(x, s.base + s.up @ s.down)))

    base = parameter(6, 4).requires_grad_(False)
    return Net(
        run, base=base, up=parameter(6, 2), down=parameter(2, 4), head=nn.Linear(6, C)
    ), vectors()


@network("derived")
def hypernetwork():
    def run(s: Net, x: Tensor) -> Tensor:
        weight = s.generate(s.code).reshape(C, 4)
        return F.linear(torch.tanh(s.first(x)), weight)

    return Net(
        run, code=parameter(2), generate=nn.Linear(2, 4 * C), first=nn.Linear(4, 4)
    ), vectors()


@network("derived")
def weights_made_for_each_sample():
    def run(s: Net, x: Tensor) -> Tensor:
        weight = s.generate(x).tanh().reshape(-1, C, 4)
        return torch.bmm(weight, s.first(x).unsqueeze(2)).squeeze(2)

    return Net(run, generate=nn.Linear(4, 4 * C), first=nn.Linear(4, 4)), vectors()


@network("derived")
def pruned_weights():
    first, second = nn.Linear(4, 6), nn.Linear(6, C)
    prune.random_unstructured(first, "weight", amount=0.4)
    prune.ln_structured(second, "weight", amount=0.3, n=2, dim=1)
    return nn.Sequential(first, nn.Tanh(), second), vectors()


@network("derived")
def weight_filled_by_assignment():
    def run(s: Net, x: Tensor) -> Tensor:
        weight = x.new_zeros(C, 4)
        weight[torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 3, 2])] = s.values
        return F.linear(torch.tanh(s.first(x)), weight)

    return Net(run, values=parameter(4), first=nn.Linear(4, 4)), vectors()


@network("derived")
def weight_by_inverse_and_exponential():
    def run(s: Net, x: Tensor) -> Tensor:
        rotation = torch.matrix_exp(s.skew - s.skew.T)
        inverse = torch.linalg.inv(torch.eye(4) * 3 + s.mix)
        return s.head(torch.tanh(x @ rotation) @ inverse)

    return Net(run, skew=parameter(4, 4), mix=parameter(4, 4), head=nn.Linear(4, C)), vectors()


@network("derived")
def parameters_in_a_list():
    def run(s: Net, x: Tensor) -> Tensor:
        for weight in s.list:
            x = torch.tanh(x @ weight)
        return x @ torch.cat(list(s.parts), dim=1) + s.table["shift"]

    return Net(
        run,
        list=nn.ParameterList([parameter(4, 4), parameter(4, 4)]),
        parts=nn.ParameterList([parameter(4, 1), parameter(4, 2)]),
        table=nn.ParameterDict({"shift": parameter(C)}),
    ), vectors()


@network("derived")
def rows_of_one_parameter():
    def run(s: Net, x: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x, s.table[:5, :4], s.table[:5, 4]))
        return F.linear(hidden, s.table[5:], None)

    return Net(run, table=parameter(5 + C, 5)), vectors()


@network("shared")
def weight_of_two_layers():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, C)), vectors()


@network("shared")
def quadratic_form():
    def run(s: Net, x: Tensor) -> Tensor:
        return s.head(
            (x @ s.weight @ s.weight.T * x).tanh() + torch.einsum("ni,ij->nj", x, s.weight)
        )

    return Net(run, weight=parameter(4, 4), head=nn.Linear(4, C)), vectors()


@network("broadcast")
def radial_basis():
    def run(s: Net, x: Tensor) -> Tensor:
        return s.head(torch.exp(-torch.cdist(x, s.centres).square() * s.width.exp()))

    return Net(run, centres=parameter(6, 4), width=parameter(6), head=nn.Linear(6, C)), vectors()


@network("broadcast", "in_place")
def in_place_scales():
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        y *= s.scale
        y.add_(s.shift, alpha=2.0)
        y = torch.tanh(y).mul(2.0).sub_(s.shift).div_(s.scale.exp())
        return s.head(y)

    return Net(
        run, a=nn.Linear(4, 5), scale=parameter(5), shift=parameter(5), head=nn.Linear(5, C)
    ), vectors()


@network("shared")
def unrolled_iterations():
    def run(s: Net, x: Tensor) -> Tensor:
        state = torch.zeros_like(x)
        for _ in range(4):
            state = torch.tanh(s.inside(state) + s.outside(x)) * s.step
        return s.head(state)

    return Net(
        run,
        inside=nn.Linear(4, 4),
        outside=nn.Linear(4, 4),
        step=parameter(1),
        head=nn.Linear(4, C),
    ), vectors()


@network("broadcast")
def where_lerp_addcmul():
    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.where(x > 0, x * s.up, s.down)
        y = torch.lerp(y, x, torch.sigmoid(s.mix))
        y = torch.addcmul(y, x, s.up, value=0.5)
        return torch.addmm(s.bias, y, s.out, beta=0.5, alpha=2.0)

    return Net(
        run,
        up=parameter(4),
        down=parameter(4),
        mix=parameter(1),
        bias=parameter(C),
        out=parameter(4, C),
    ), vectors()


@network("derived")
def weight_norm_of_a_convolution():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(1, 3, 2)),
        nn.Tanh(),
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(9, C)),
    ), vectors().unsqueeze(1)


@network("broadcast", "as_built")
def layer_scale_of_a_millionth():
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        y = y + s.gamma * s.b(y).tanh()
        return s.head(y)

    return Net(
        run,
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 4),
        gamma=nn.Parameter(torch.full((4,), 1e-6)),
        head=nn.Linear(4, C),
    ), vectors()


@network("opaque")
def scripted_submodule():
    inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    return nn.Sequential(
        nn.Linear(4, 4), torch.jit.script(inner), nn.Tanh(), nn.Linear(4, C)
    ), vectors()


@network("opaque")
def traced_submodule():
    inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    traced = torch.jit.trace(inner, torch.randn(2, 4))
    return nn.Sequential(nn.Linear(4, 4), traced, nn.Tanh(), nn.Linear(4, C)), vectors()


@network("opaque")
def checkpointed_blocks():
    def run(s: Net, x: Tensor) -> Tensor:
        return s.head(
            checkpoint(
                s.block, checkpoint(s.block, x, use_reentrant=False).tanh(), use_reentrant=False
            )
        )

    block = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4))
    return Net(run, block=block, head=nn.Linear(4, C)), vectors()


@network("opaque")
def called_through_torch_func():
    def run(s: Net, x: Tensor) -> Tensor:
        inner = dict(s.inner.named_parameters())
        return s.head(torch.func.functional_call(s.inner, inner, (x,)).tanh())

    return Net(run, inner=nn.Linear(4, 5), head=nn.Linear(5, C)), vectors()


@network("opaque")
def ensemble_by_vmap():
    def run(s: Net, x: Tensor) -> Tensor:
        def member(weight: Tensor, bias: Tensor) -> Tensor:
            return torch.tanh(x @ weight + bias)

        return s.head(torch.vmap(member)(s.weights, s.biases).mean(0))

    return Net(
        run, weights=parameter(2, 4, 5), biases=parameter(2, 5), head=nn.Linear(5, C)
    ), vectors()
