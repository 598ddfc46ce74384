from __future__ import annotations

import pytest
import torch

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses import LossCall, make_loss
from lightning_vivit.samples.layout import SampleLayout

from .oracle import check, check_monte_carlo

N = 4
MSE, BCE = "mse_loss", "binary_cross_entropy_with_logits"
CASES = {
    "scalar": ((N,), SampleLayout(N)),
    "vector": ((N, 3), SampleLayout(N)),
    "rows": ((N * 2, 3), SampleLayout(N)),
    "rows minor": ((N * 2, 3), SampleLayout(N, minor=True)),
    "scalar rows minor": ((N * 2,), SampleLayout(N, minor=True)),
    "spatial": ((N, 2, 2, 2), SampleLayout(N)),
}


def draw(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scale_of(reduction):
    return 1 / N if reduction == "mean" else 1.0


@pytest.mark.parametrize("name", [MSE, BCE])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", CASES)
def test_reductions(case, reduction, name):
    shape, layout = CASES[case]
    call = LossCall(name, draw(shape), draw(shape, 1).sigmoid(), {"reduction": reduction}, 0.3)
    check(call, layout, scale_of(reduction))


@pytest.mark.parametrize("name", [MSE, BCE])
@pytest.mark.parametrize("case", CASES)
def test_unreduced_with_weights(case, name):
    shape, layout = CASES[case]
    multiplier = draw(shape, 2).abs()
    options = {"reduction": "none"}
    call = LossCall(name, draw(shape), draw(shape, 1).sigmoid(), options, multiplier)
    check(call, layout, 1 / N)


@pytest.mark.parametrize("name", [MSE, BCE])
@pytest.mark.parametrize("case", CASES)
def test_monte_carlo(case, name):
    shape, layout = CASES[case]
    call = LossCall(name, draw(shape), draw(shape, 1).sigmoid())
    check_monte_carlo(make_loss(call, layout))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "shapes", [((N, 3), (3,)), ((N, 3), (N, 1)), ((N,), (N, 1)), ((N, 1), (N,))]
)
def test_mse_broadcasts(shapes, reduction):
    outputs, target = draw(shapes[0]), draw(shapes[1], 1)
    call = LossCall(MSE, outputs, target, {"reduction": reduction})
    check(call, SampleLayout(N), scale_of(reduction))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mse_weight(reduction):
    options = {"reduction": reduction, "weight": draw((N, 3), 2).abs()}
    check(
        LossCall(MSE, draw((N, 3)), draw((N, 3), 1), options), SampleLayout(N), scale_of(reduction)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight_shape", [None, (3,), (N, 1), (N, 3)])
@pytest.mark.parametrize("pos_weight_shape", [None, (), (3,), (N, 3)])
def test_bce_weights(pos_weight_shape, weight_shape, reduction):
    options = {"reduction": reduction}
    if weight_shape is not None:
        options["weight"] = draw(weight_shape, 2).abs()
    if pos_weight_shape is not None:
        options["pos_weight"] = draw(pos_weight_shape, 3).abs()
    target = draw((N, 3), 1).sigmoid()
    loss = check(LossCall(BCE, draw((N, 3)), target, options), SampleLayout(N), scale_of(reduction))
    if pos_weight_shape == (3,) and weight_shape == (3,):
        check_monte_carlo(loss)


def test_integer_targets():
    labels = torch.tensor([0, 1, 1, 0])
    for name in (MSE, BCE):
        loss = make_loss(LossCall(name, draw((N,)), labels), SampleLayout(N))
        same = make_loss(LossCall(name, draw((N,)), labels.double()), SampleLayout(N))
        assert torch.equal(loss.gradient(), same.gradient())


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("label", [0.0, 1.0, 0.25])
def test_bce_saturated_float32(label, sign):
    outputs = sign * torch.tensor([5.0, 18.0, 30.0, 60.0])
    target = torch.full((N,), label)
    single = make_loss(LossCall(BCE, outputs, target), SampleLayout(N))
    double = make_loss(LossCall(BCE, outputs.double(), target.double()), SampleLayout(N))
    root = (outputs.double().sigmoid() * (-outputs.double()).sigmoid()).sqrt()
    torch.testing.assert_close(double.hessian_root()[:, 0, 0], root)
    torch.testing.assert_close(single.hessian_root(), double.hessian_root().float())
    torch.testing.assert_close(single.gradient(), double.gradient().float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(single.value(), double.value().float(), rtol=1e-5, atol=0)


def test_half_precision_outputs():
    for name in (MSE, BCE):
        outputs = draw((N, 3)).bfloat16()
        loss = make_loss(LossCall(name, outputs, draw((N, 3), 1).sigmoid()), SampleLayout(N))
        assert loss.gradient().dtype == loss.sampled_root(1).dtype == torch.bfloat16
        assert loss.value().dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "target", "options", "match"),
    [
        (MSE, torch.zeros(N, 2), {}, r"target of shape \(4, 2\)"),
        (MSE, torch.zeros(N, 3), {"weight": torch.ones(3)}, "weight of shape"),
        (MSE, torch.zeros(N, 3), {"weight": -torch.ones(N, 3)}, "negative"),
        (MSE, torch.zeros(N, 3), {"weight": torch.zeros(N, 3)}, "sum of weights that is 0"),
        (MSE, torch.full((N, 3), float("nan")), {}, "value nan"),
        (MSE, 0.0, {}, "float; it must be a tensor"),
        (BCE, torch.zeros(N), {}, r"target of shape \(4,\)"),
        (BCE, torch.zeros(N, 3), {"pos_weight": torch.ones(2)}, "pos_weight of shape"),
        (BCE, torch.zeros(N, 3), {"pos_weight": -torch.ones(3)}, "pos_weight with negative"),
        (BCE, torch.zeros(N, 3), {"weight": -torch.ones(3)}, "weight with negative"),
        (BCE, torch.full((N, 3), 2.0), {"pos_weight": torch.tensor(0.1)}, "targets outside 0..1"),
        (BCE, torch.zeros(N, 3), {"label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_wrong_arguments(name, target, options, match):
    with pytest.raises(ProblemError, match=match):
        make_loss(LossCall(name, draw((N, 3)), target, options), SampleLayout(N))


@pytest.mark.parametrize("name", [MSE, BCE])
def test_wrong_outputs(name):
    with pytest.raises(ProblemError, match="no derivatives"):
        make_loss(LossCall(name, torch.zeros(N).long(), torch.zeros(N)), SampleLayout(N))
    with pytest.raises(ProblemError, match="empty"):
        make_loss(LossCall(name, torch.zeros(0, 2), torch.zeros(0, 2)), SampleLayout(N))
    with pytest.raises(ProblemError, match="cannot be divided among 3 samples"):
        make_loss(LossCall(name, torch.zeros(N), torch.zeros(N)), SampleLayout(3))
