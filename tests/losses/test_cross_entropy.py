from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.losses import LossCall, make_loss
from lightning_vivit.samples.layout import SampleLayout

from .oracle import check, check_monte_carlo, torch_loss

N, C = 4, 3
# outputs' shape, and the layout that goes with it
CASES = {
    "vector": ((N, C), SampleLayout(N)),
    "rows": ((N * 2, C), SampleLayout(N)),
    "rows minor": ((N * 2, C), SampleLayout(N, minor=True)),
    "spatial": ((N, C, 2, 2), SampleLayout(N)),
    "rows and spatial": ((N * 2, C, 2), SampleLayout(N)),
    "rows and spatial minor": ((N * 2, C, 2), SampleLayout(N, minor=True)),
}
WEIGHT = torch.tensor([0.5, 2.0, 1.3], dtype=torch.float64)
OPTIONS = {
    "plain": {},
    "weight": {"weight": WEIGHT},
    "ignore": {"ignore_index": 1},
    "smoothing": {"label_smoothing": 0.2},
    "everything": {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.2},
}


def logits_and_labels(shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, dtype=torch.float64, generator=draw)
    labels = torch.randint(0, C, (shape[0], *shape[2:]), generator=draw)
    labels.view(-1)[:3] = torch.tensor([0, 1, 2])
    return logits, labels


def soft(logits, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(logits.shape, dtype=torch.float64, generator=draw).softmax(1)


def scale_of(reduction):
    return 1 / N if reduction == "mean" else 1.0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("case", CASES)
def test_class_indices(case, options, reduction):
    shape, layout = CASES[case]
    logits, labels = logits_and_labels(shape)
    call = LossCall("cross_entropy", logits, labels, {**options, "reduction": reduction}, 0.7)
    check(call, layout, scale_of(reduction))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", ["plain", "weight", "smoothing", "both"])
@pytest.mark.parametrize("case", CASES)
def test_class_probabilities(case, options, reduction):
    shape, layout = CASES[case]
    logits, _ = logits_and_labels(shape)
    kwargs = {"reduction": reduction}
    if options in ("weight", "both"):
        kwargs["weight"] = WEIGHT
    if options in ("smoothing", "both"):
        kwargs["label_smoothing"] = 0.3
    target = soft(logits) * 0.8  # need not add up to one
    check(LossCall("cross_entropy", logits, target, kwargs), layout, scale_of(reduction))


@pytest.mark.parametrize("case", CASES)
def test_unreduced_with_weights(case):
    shape, layout = CASES[case]
    logits, labels = logits_and_labels(shape)
    multiplier = torch.rand(labels.shape, dtype=torch.float64)
    options = {"reduction": "none", **OPTIONS["everything"]}
    call = LossCall("cross_entropy", logits, labels, options, multiplier)
    check(call, layout, 1 / N)


def test_unreduced_mean_is_the_mean():
    logits, labels = logits_and_labels((N * 2, C))
    weights = torch.full((N * 2,), 1 / (N * 2), dtype=torch.float64)
    layout = SampleLayout(N)
    by_hand = make_loss(
        LossCall("cross_entropy", logits, labels, {"reduction": "none"}, weights), layout
    )
    mean = make_loss(LossCall("cross_entropy", logits, labels), layout)
    assert by_hand.scale == mean.scale
    torch.testing.assert_close(by_hand.value(), mean.value())
    torch.testing.assert_close(by_hand.gradient(), mean.gradient())
    torch.testing.assert_close(by_hand.hessian_root(), mean.hessian_root())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", CASES)
def test_nll_loss(case, reduction):
    shape, layout = CASES[case]
    logits, labels = logits_and_labels(shape)
    options = {"weight": WEIGHT, "ignore_index": 2, "reduction": reduction}
    traced = LossCall("nll_loss", logits, labels, {**options, "traced": True})
    check(traced, layout, scale_of(reduction))
    check(LossCall("nll_loss", logits.log_softmax(1), labels, options), layout, scale_of(reduction))


def test_nll_loss_of_raw_scores_is_refused():
    logits, labels = logits_and_labels((N, C))
    with pytest.raises(ProblemError, match=r"not log-probabilities.*log_softmax"):
        make_loss(LossCall("nll_loss", logits, labels, {"traced": False}), SampleLayout(N))


def test_nll_loss_refuses_probabilities_as_target():
    logits, _ = logits_and_labels((N, C))
    with pytest.raises(ProblemError, match="integer class indices"):
        make_loss(LossCall("nll_loss", logits, soft(logits), {"traced": True}), SampleLayout(N))


@pytest.mark.parametrize("case", CASES)
def test_monte_carlo(case):
    shape, layout = CASES[case]
    logits, labels = logits_and_labels(shape)
    call = LossCall("cross_entropy", logits, labels, OPTIONS["everything"])
    check_monte_carlo(make_loss(call, layout))


def test_monte_carlo_without_generator_follows_the_global_seed():
    logits, labels = logits_and_labels((N, C))
    loss = make_loss(LossCall("cross_entropy", logits, labels), SampleLayout(N))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = loss.sampled_root(2)
        torch.manual_seed(5)
        assert torch.equal(first, loss.sampled_root(2))


@pytest.mark.parametrize("mc_samples", [0, -1, 1.5, True])
def test_monte_carlo_needs_a_count(mc_samples):
    logits, labels = logits_and_labels((N, C))
    loss = make_loss(LossCall("cross_entropy", logits, labels), SampleLayout(N))
    with pytest.raises(OptionError, match="positive integer"):
        loss.sampled_root(mc_samples)


@pytest.mark.parametrize("gap", [10.0, 17.0, 30.0, 80.0])
@pytest.mark.parametrize("right", [True, False])
def test_saturated_float32(gap, right):
    """Every entry keeps its relative accuracy where 1 - p is far below float32's resolution."""
    logits = torch.tensor([[gap, 0.0, -1.0], [0.5, gap, 0.25]])
    labels = torch.tensor([0, 1]) if right else torch.tensor([1, 2])
    single = make_loss(LossCall("cross_entropy", logits, labels), SampleLayout(2))
    double = make_loss(LossCall("cross_entropy", logits.double(), labels), SampleLayout(2))
    # float64 closed forms, from the tail sums
    p = logits.double().softmax(1)
    for n in range(2):
        for c in range(3):
            others = sum(p[n, d] for d in range(3) if d != c)
            root = p[n, c].sqrt() * others
            torch.testing.assert_close(double.hessian_root()[n, c, c], root, rtol=1e-12, atol=0)
    torch.testing.assert_close(single.gradient(), double.gradient().float(), rtol=2e-6, atol=0)
    root = double.hessian_root().float()
    torch.testing.assert_close(single.hessian_root(), root, rtol=2e-6, atol=1e-37)
    if gap == 80.0:
        assert single.hessian_root().abs().max() > 0


def test_saturated_hessian_float32():
    logits = torch.tensor([[18.0, 0.0, -1.0, 1.0]])
    loss = make_loss(LossCall("cross_entropy", logits, torch.tensor([0])), SampleLayout(1))
    root = loss.hessian_root().double()[0]
    p = logits.double().softmax(1)[0]
    hessian = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(root @ root.T, hessian, rtol=1e-5, atol=1e-15)


def test_masked_logits():
    logits, _ = logits_and_labels((N, C))
    logits[:, 2] = -float("inf")
    labels = torch.tensor([0, 1, 0, 1])
    loss = make_loss(LossCall("cross_entropy", logits, labels), SampleLayout(N))
    torch.testing.assert_close(loss.value().mean(), F.cross_entropy(logits, labels))
    assert (loss.hessian_root()[:, 2] == 0).all()
    assert (loss.hessian_root()[:, :, 2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs(dtype):
    logits, labels = logits_and_labels((N, C))
    call = LossCall("cross_entropy", logits.to(dtype), labels)
    loss = make_loss(call, SampleLayout(N))
    assert loss.value().dtype == torch.float32
    expected = torch_loss(LossCall("cross_entropy", logits, labels), logits.to(dtype).double())
    torch.testing.assert_close(loss.value().mean().double(), expected, rtol=1e-6, atol=0)
    assert loss.gradient().dtype == loss.hessian_root().dtype == dtype
    assert loss.sampled_root(2).dtype == dtype


def test_outputs_with_a_graph():
    logits, labels = logits_and_labels((N, C))
    outputs = logits.clone().requires_grad_() * 2
    loss = make_loss(LossCall("cross_entropy", outputs, labels), SampleLayout(N))
    results = (loss.value(), loss.gradient(), loss.hessian_root(), loss.sampled_root(1))
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize(
    ("target", "options", "match"),
    [
        (torch.tensor([0, 1, 2, 3]), {}, "target class 3.*3 classes"),
        (torch.tensor([0, 1, 2, -1]), {}, "target class -1"),
        (torch.full((N,), -100), {}, "All targets.*ignored"),
        (torch.tensor([0, 0, 0, 0]), {"weight": torch.tensor([0.0, 1.0, 1.0])}, "All targets"),
        (torch.tensor([0, 1, 2, 0]), {"weight": torch.tensor([-1.0, 1.0, 1.0])}, "negative"),
        (torch.tensor([0, 1, 2, 0]), {"weight": torch.ones(2)}, "weight of shape"),
        (torch.tensor([0, 1, 2, 0]), {"label_smoothing": 1.5}, "label_smoothing 1.5"),
        (torch.tensor([0, 1, 2, 0]), {"reduction": "median"}, "'median'"),
        (torch.tensor([0, 1, 2, 0]), {"temperature": 2.0}, "temperature"),
        (torch.tensor([0, 1, 2]), {}, r"shape \(3,\)"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), {}, "float32"),
        (torch.zeros(N, C, dtype=torch.int64), {}, "int64"),
        (-torch.ones(N, C), {}, "below zero"),
        (torch.ones(N, C), {"ignore_index": 1}, "ignore_index 1"),
        ([0, 1, 2, 0], {}, "list"),
    ],
)
def test_wrong_arguments(target, options, match):
    logits, _ = logits_and_labels((N, C))
    with pytest.raises(ProblemError, match=match):
        make_loss(LossCall("cross_entropy", logits, target, options), SampleLayout(N))


@pytest.mark.parametrize(
    ("outputs", "target", "match"),
    [
        (torch.zeros(C), torch.tensor(1), "without a batch axis"),
        (torch.zeros(N, C, dtype=torch.int64), torch.zeros(N).long(), "int64.*no derivatives"),
        (torch.zeros(0, C), torch.zeros(0).long(), "empty"),
        (torch.full((N, C), float("nan")), torch.zeros(N).long(), "value nan"),
        (torch.tensor([[0.0, -float("inf")]] * N), torch.ones(N).long(), "value inf"),
    ],
)
def test_wrong_outputs(outputs, target, match):
    num_samples = 1 if outputs.ndim == 1 else N
    layout = SampleLayout(C if outputs.ndim == 1 else num_samples)
    with pytest.raises(ProblemError, match=match):
        make_loss(LossCall("cross_entropy", outputs, target), layout)


@pytest.mark.parametrize(
    ("reduction", "multiplier", "match"),
    [
        ("mean", -1.0, "negative"),
        ("mean", float("inf"), "non-finite"),
        ("mean", torch.ones(N), "returns a scalar"),
        ("none", torch.ones(N + 1), "unreduced loss has shape"),
        ("none", -torch.ones(N), "negative"),
    ],
)
def test_wrong_multiplier(reduction, multiplier, match):
    logits, labels = logits_and_labels((N, C))
    call = LossCall("cross_entropy", logits, labels, {"reduction": reduction}, multiplier)
    with pytest.raises(ProblemError, match=match):
        make_loss(call, SampleLayout(N))
