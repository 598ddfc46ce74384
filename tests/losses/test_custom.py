from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses import SUPPORTED, LossCall, make_loss
from lightning_vivit.samples.layout import SampleLayout

from .oracle import check, check_monte_carlo

N, C = 4, 3


def draw(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def custom(function, outputs, target, reduction="mean", multiplier=1.0):
    options = {"function": function, "reduction": reduction}
    return LossCall("custom", outputs, target, options, multiplier)


def cosh_mean(outputs, target):
    return torch.log(torch.cosh(outputs - target)).sum() / N


def mixed(outputs, target):
    return ((outputs - target).sum(-1) ** 4).sum() + outputs.logsumexp(-1).sum()


@pytest.mark.parametrize("multiplier", [1.0, 0.4])
@pytest.mark.parametrize(("function", "reduction"), [(cosh_mean, "mean"), (mixed, "sum")])
@pytest.mark.parametrize(
    ("shape", "minor"),
    [((N, C), False), ((N * 2, C), False), ((N * 2, C), True), ((N, 2, C), False)],
)
def test_against_autograd(shape, minor, function, reduction, multiplier):
    call = custom(function, draw(shape), draw(shape, 1), reduction, multiplier)
    loss = check(call, SampleLayout(N, minor), 1 / N if reduction == "mean" else 1.0)
    check_monte_carlo(loss)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_same_as_the_closed_form(reduction):
    outputs, labels = draw((N * 2, C)), torch.tensor([0, 1, 2, 0, 1, 2, 1, 1])
    layout = SampleLayout(N, minor=True)

    def function(values, target):
        return F.cross_entropy(values, target, reduction=reduction)

    loss = make_loss(custom(function, outputs, labels, reduction), layout)
    closed = make_loss(LossCall("cross_entropy", outputs, labels, {"reduction": reduction}), layout)
    torch.testing.assert_close(loss.value(), closed.value())
    torch.testing.assert_close(loss.gradient(), closed.gradient())
    root, closed_root = loss.hessian_root(), closed.hessian_root()
    torch.testing.assert_close(root @ root.mT, closed_root @ closed_root.mT)


def test_value_that_cannot_be_told_apart_is_shared():
    outputs, labels = draw((N, C)), torch.tensor([0, 1, -100, 2])
    loss = make_loss(custom(F.cross_entropy, outputs, labels), SampleLayout(N))
    total = F.cross_entropy(outputs, labels)
    torch.testing.assert_close(loss.value(), total.expand(N))
    assert (loss.gradient()[2] == 0).all()


def test_target_of_any_kind():
    target = {"center": draw((N, C), 1)}

    def function(outputs, given):
        return F.mse_loss(outputs, given["center"])

    check(custom(function, draw((N, C)), target), SampleLayout(N), 1 / N)


def test_linear_loss_has_no_curvature():
    loss = check(
        custom(lambda f, y: (f * y).sum(), draw((N, C)), draw((N, C), 1), "sum"),
        SampleLayout(N),
        1.0,
    )
    assert (loss.hessian_root() == 0).all()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    target = draw((N, C), 1)
    with context():
        outputs = draw((N, C)) * 1.0
        loss = make_loss(custom(cosh_mean, outputs, target), SampleLayout(N))
        assert loss.value().shape == (N,)
        assert not loss.gradient().requires_grad


def test_saturated_float32_is_not_called_non_convex():
    outputs, labels = torch.tensor([[30.0, 0.0, 1.0], [0.0, 20.0, 1.0]]), torch.tensor([0, 1])
    loss = make_loss(custom(F.cross_entropy, outputs, labels), SampleLayout(2))
    assert loss.hessian_root().abs().max() < 1e-3


def test_global_random_state_is_untouched():
    state = torch.get_rng_state()
    make_loss(custom(cosh_mean, draw((N, C)), draw((N, C), 1)), SampleLayout(N))
    assert torch.equal(state, torch.get_rng_state())


def pairwise_square(outputs, target):
    return (outputs.mean(0) ** 2).sum() + (outputs**2).mean()


def pairwise_hinge(outputs, target):
    return (outputs[:, None] - outputs[None]).abs().mean()


def normalised(outputs, target):
    return (outputs / outputs.abs().amax(0)).pow(2).mean()


@pytest.mark.parametrize("function", [pairwise_square, pairwise_hinge, normalised])
def test_interacting_samples(function):
    with pytest.raises(ProblemError, match="samples interact"):
        make_loss(custom(function, draw((N, C)), None), SampleLayout(N))


def test_interaction_inside_a_sample_is_fine():
    def neighbours(outputs, target):
        return (outputs.reshape(N, 2, C).diff(dim=1) ** 2).sum() / N

    check(custom(neighbours, draw((N * 2, C)), None), SampleLayout(N), 1 / N)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda f, y: (f - y) ** 2, r"returned \(4, 3\) instead of a scalar"),
        (lambda f, y: 1.0, "returned float"),
        (lambda f, y: (f.detach() - y).sum(), "does not depend differentiably"),
        (lambda f, y: -((f - y) ** 2).mean(), "not convex.*eigenvalue -"),
        (lambda f, y: (f - y).sin().mean(), "not convex"),
        (lambda f, y: (f - y).sum() / 0.0, "value (nan|-?inf)"),
        (lambda f, y: (f - f).abs().pow(1.5).sum(), "not finite"),
        (None, "callable"),
    ],
)
def test_wrong_functions(function, match):
    with pytest.raises(ProblemError, match=match):
        make_loss(custom(function, draw((N, C)), draw((N, C), 1)), SampleLayout(N))


def test_wrong_reduction():
    with pytest.raises(ProblemError, match="'mean' and 'sum'"):
        make_loss(custom(cosh_mean, draw((N, C)), draw((N, C), 1), "none"), SampleLayout(N))


def test_unknown_loss():
    with pytest.raises(
        ProblemError, match=r"'huber_loss' is not known.*explicit Problem"
    ) as caught:
        make_loss(LossCall("huber_loss", draw((N, C)), draw((N, C), 1)), SampleLayout(N))
    assert all(name in str(caught.value) for name in SUPPORTED)
