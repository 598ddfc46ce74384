"""Each sample's rows are its own, whatever the order, number or origin of the rows in a layer."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from oracle.linearised import Linearised, explicit_jacobian
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from zoo.base import Net

from lightning_vivit import InteractionError, Problem, ProblemError, empirical_ntk, evaluate

N, C = 5, 3
Y = torch.tensor([0, 2, 1, 2, 0])


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def check(model: nn.Module, inputs: tuple, loss=F.cross_entropy, jacobian=None) -> None:
    rows = explicit_jacobian(model, inputs) if jacobian is None else jacobian
    kernel = torch.einsum("ncp,mdp->nmcd", rows, rows)
    result = evaluate(Problem(model, loss, inputs, Y[: rows.shape[0]]))
    assert result.num_samples == rows.shape[0]
    torch.testing.assert_close(result.ntk(), kernel, rtol=1e-9, atol=1e-9)
    expected = Linearised(model(*inputs), rows, loss, Y[: rows.shape[0]])
    values = result.eigenvalues()[-6:]
    torch.testing.assert_close(values, expected.values[-6:], rtol=1e-9, atol=1e-9)


def jacobian_of_batch(model: nn.Module, inputs: tuple) -> Tensor:
    """[N, D, P] from the whole batch at once."""
    parameters = list(model.parameters())
    return torch.stack(
        [
            torch.stack(
                [
                    torch.cat(
                        [
                            g.flatten()
                            for g in torch.autograd.grad(
                                value, parameters, retain_graph=True, materialize_grads=True
                            )
                        ]
                    )
                    for value in row
                ]
            )
            for row in model(*inputs)
        ]
    )


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


# ---- 1. samples in the middle -------------------------------------------------------------


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, C)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0][-1])


@pytest.mark.parametrize("lengths", [[5, 2, 4, 3, 1], [5, 3, 3, 4, 2]])
def test_packed_sequences_reordered_in_the_middle(lengths: list[int]) -> None:
    check(Packed(), (torch.randn(N, 5, 4), torch.tensor(lengths)))


def test_ragged_graphs_in_one_axis() -> None:
    """Nodes of all graphs in one axis, as graph libraries batch them; ends smaller than average."""
    sizes = torch.tensor([1, 3, 2, 3, 1])  # 10 nodes, N = 5

    def run(s: Net, x: Tensor) -> Tensor:
        here = sizes if len(x) == 10 else torch.tensor([len(x)])
        owner = torch.arange(len(here)).repeat_interleave(here)
        hidden = torch.tanh(s.a(x))
        return s.head(torch.zeros(len(here), 4).index_add(0, owner, hidden))

    model, nodes = Net(run, a=nn.Linear(4, 4), head=nn.Linear(4, C)), torch.randn(10, 4)
    rows = torch.cat([explicit_one(model, part) for part in nodes.split(sizes.tolist())])
    result = evaluate(Problem(model, F.cross_entropy, (nodes,), Y))
    kernel = torch.einsum("ncp,mdp->nmcd", rows, rows)
    torch.testing.assert_close(result.ntk(), kernel, rtol=1e-9, atol=1e-9)


def explicit_one(model: nn.Module, nodes: Tensor) -> Tensor:
    return jacobian_of_batch(model, (nodes,))


def test_as_many_routed_tokens_as_samples() -> None:
    """An expert gets five tokens of five samples, but not one of each."""
    x = torch.randn(N, 2, 4)
    x[..., 0] = -x[..., 0].abs()
    for sample, token in [(0, 0), (1, 0), (1, 1), (2, 0), (4, 1)]:
        x[sample, token, 0] *= -1

    def run(s: Net, x: Tensor) -> Tensor:
        chosen = x[..., 0] > 0
        y = torch.zeros_like(x).index_put((chosen,), s.expert(x[chosen]).tanh())
        return s.head(y.sum(1) + x.mean(1))

    check(Net(run, expert=nn.Linear(4, 4), head=nn.Linear(4, C)), (x,))


def test_middle_samples_swapped_between_layers() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        order = torch.tensor([0, 2, 1, 3, 4] if len(x) == N else [0])
        return s.c(s.b(s.a(x).tanh()[order]).tanh()[order])

    check(Net(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, C)), (torch.randn(N, 4),))


def test_middle_samples_that_interact() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.a(x).tanh()
        return s.b(torch.cat([y[:1], y[1:4] - y[1:4].mean(0), y[4:]]))

    model = Net(run, a=nn.Linear(4, 4), b=nn.Linear(4, C))
    with pytest.raises(InteractionError):
        empirical_ntk(model, torch.randn(N, 4))


# ---- 2. the remembered proof --------------------------------------------------------------


def test_packed_sequences_of_the_next_batch() -> None:
    model, x = Packed(), torch.randn(N, 5, 4)
    check(model, (x, torch.tensor([5, 4, 3, 2, 1])))
    check(model, (x, torch.tensor([1, 4, 2, 3, 5])))


def test_eval_mode_first_then_mixing_by_hand_in_training_mode() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.b(y - y.mean(0) if s.training else y)

    model, x = Net(run, a=nn.Linear(4, 4), b=nn.Linear(4, C)), torch.randn(N, 4)
    empirical_ntk(model.eval(), x)
    with pytest.raises(InteractionError):
        empirical_ntk(model.train(), x)


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [1, 0, 2, 3, 4]])
def test_loss_that_reorders_after_one_that_does_not(order: list[int]) -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)), torch.randn(N, 4)
    plain = evaluate(Problem(model, F.cross_entropy, x, Y)).eigenvalues()
    again = evaluate(Problem(model, lambda f, y: F.cross_entropy(f[order], y[order]), x, Y))
    torch.testing.assert_close(again.eigenvalues(), plain, rtol=1e-9, atol=1e-9)


def test_loss_that_mixes_after_one_that_does_not() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)), torch.randn(N, 4)
    evaluate(Problem(model, F.cross_entropy, x, Y))
    with pytest.raises((InteractionError, ProblemError)):
        evaluate(Problem(model, lambda f, y: F.cross_entropy(f - f.mean(0), y), x, Y))


# ---- 3. the number of samples -------------------------------------------------------------


def run_tokens(s: Net, index: Tensor, position: Tensor, mask: Tensor) -> Tensor:
    return s.head((s.tokens(index) + s.positions(position) + mask.sum()).tanh().mean(1))


def token_model() -> Net:
    return Net(
        run_tokens, tokens=nn.Embedding(6, 4), positions=nn.Embedding(4, 4), head=nn.Linear(4, C)
    )


def test_inputs_shared_by_all_samples_with_leading_one() -> None:
    """[1, T] positions and a [1, 1, T, T] mask outnumber the [N, T] tokens."""
    inputs = torch.randint(0, 6, (N, 4)), torch.arange(4)[None], torch.ones(1, 1, 4, 4)
    result = evaluate(Problem(token_model(), F.cross_entropy, inputs, Y))
    assert result.num_samples == N
    assert empirical_ntk(token_model(), inputs).shape == (N, N, C, C)


def test_inputs_shared_by_all_samples_with_a_divisor_of_n() -> None:
    inputs = torch.randint(0, 6, (4, 2)), torch.arange(2), torch.ones(2, 2)
    assert empirical_ntk(token_model(), inputs).shape == (4, 4, C, C)


# ---- 4. crashes ---------------------------------------------------------------------------


def test_parameter_without_axes() -> None:
    model = Net(lambda s, x: s.a(x) * s.log.exp(), a=nn.Linear(4, C), log=p())
    check(model, (torch.randn(N, 4),))


def test_weight_norm_over_all_axes() -> None:
    check(
        nn.Sequential(parametrizations.weight_norm(nn.Linear(4, C), dim=None)),
        (torch.randn(N, 4),),
    )


def test_expert_that_no_sample_chose() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        none = x[x[:, 0] > 1e6]
        return s.head(x) + s.expert(none).sum(0)

    check(Net(run, head=nn.Linear(4, C), expert=nn.Linear(4, C)), (torch.randn(N, 4),))


def test_chunks_of_the_batch() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        return torch.cat([s.head(torch.tanh(s.a(part))) for part in x.split(2)])

    check(Net(run, a=nn.Linear(4, 5), head=nn.Linear(5, C)), (torch.randn(N, 4),))


def test_filter_in_the_frequency_domain() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=-1) * torch.view_as_complex(s.filter)
        return s.head(torch.fft.irfft(spectrum, n=x.shape[-1], dim=-1).tanh())

    check(Net(run, filter=p(4, 2), head=nn.Linear(6, C)), (torch.randn(N, 6),))


# ---- 5. losses ----------------------------------------------------------------------------


class Module(L.LightningModule):
    def __init__(self, step) -> None:
        super().__init__()
        self.net, self.step = nn.Linear(4, C), step

    def training_step(self, batch, batch_idx):
        return self.step(self.net, *batch)


def test_mse_with_the_target_first() -> None:
    """F.mse_loss(target, outputs) is the same number: evaluate it, or say what to swap."""
    batch = [torch.randn(N, 4), torch.randn(N, C)]
    module = Module(lambda net, x, y: F.mse_loss(y, net(x)))
    try:
        found = evaluate(Problem.from_training_step(module, batch)).eigenvalues()
    except ProblemError as error:
        assert "target" in str(error)
        return
    module.step = lambda net, x, y: F.mse_loss(net(x), y)
    expected = evaluate(Problem.from_training_step(module, batch)).eigenvalues()
    torch.testing.assert_close(found, expected)


def test_target_that_depends_on_the_parameters() -> None:
    module = Module(lambda net, x, y: F.mse_loss(net(x), net(2 * x)))
    with pytest.raises(ProblemError):
        evaluate(Problem.from_training_step(module, [torch.randn(N, 4), torch.randn(N, C)]))


@pytest.mark.parametrize("inner", [F.softplus, torch.exp])
def test_explicit_loss_that_bends_the_outputs(inner) -> None:
    """l_n(f_n) is all that follows the model's outputs: the GGN is split there, as the NTK."""
    model, x = nn.Linear(4, C), torch.randn(N, 4)
    targets = -torch.rand(N, C)

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(inner(f), y)

    expected = Linearised(model(x), explicit_jacobian(model, (x,)), loss, targets).values
    found = evaluate(Problem(model, loss, x, targets)).eigenvalues()
    torch.testing.assert_close(found, expected[-len(found) :], rtol=1e-9, atol=1e-9)
