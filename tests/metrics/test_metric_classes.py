"""The metric classes: their values, state, checkpoints, synchronisation and plots."""

from __future__ import annotations

import doctest
import importlib
import io
import math

import matplotlib
import pytest
import torch
from torchmetrics import Metric, MetricCollection

from lightning_vivit import metrics
from lightning_vivit.errors import OptionError
from lightning_vivit.metrics import functional as F

matplotlib.use("Agg")

EIGENVALUES = torch.tensor([0.0, 0.5, 1.0, 4.0])
GAMMAS = torch.tensor([[-1.0, 2.0], [-3.0, 1.0], [-5.0, 3.0]])
LAMBDAS = torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 9.0]])
KERNEL = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 2.0]])
TARGETS = torch.tensor([0, 1, 1])
AXES = torch.eye(4)

UPDATES = {
    metrics.SpectrumStatistics: [(EIGENVALUES, 0.1, 0.9), (3 * EIGENVALUES, 0.2)],
    metrics.SubspaceOverlap: [(AXES[:2],), (AXES[1:3],)],
    metrics.DirectionStatistics: [(GAMMAS, LAMBDAS, 1 / 3, 20.0), (LAMBDAS, GAMMAS**2, 1.0, 900.0)],
    metrics.KernelStatistics: [(KERNEL, TARGETS), (KERNEL @ KERNEL, TARGETS)],
    metrics.KernelDrift: [(KERNEL,), (KERNEL @ KERNEL,)],
    metrics.GradientStatistics: [(LAMBDAS[:, 1], 30.0), (LAMBDAS[:, 0], 4.5)],
}
CLASSES = list(UPDATES)
MEANS = [
    metrics.SpectrumStatistics,
    metrics.DirectionStatistics,
    metrics.KernelStatistics,
    metrics.GradientStatistics,
]
MEMORIES = [metrics.SubspaceOverlap, metrics.KernelDrift]


def updated(cls: type[Metric], **options) -> Metric:
    """A metric after its two updates."""
    metric = cls(**options)
    for arguments in UPDATES[cls]:
        metric.update(*arguments)
    return metric


def assert_same(first, second):
    """Equal values, NaN equal to NaN."""
    if not isinstance(first, dict):
        first, second = {"value": first}, {"value": second}
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


def saved_and_loaded(metric: Metric) -> dict:
    """The state dictionary after a trip through a file."""
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_spectrum_values_are_those_of_the_functions():
    found = metrics.SpectrumStatistics()(EIGENVALUES, learning_rate=0.1, momentum=0.9)
    assert found["trace"].item() == 5.5
    assert found["top_eigenvalue"].item() == 4.0
    assert torch.equal(found["effective_rank"], F.effective_rank(EIGENVALUES))
    assert torch.equal(found["stability_ratio"], F.stability_ratio(4.0, 0.1, 0.9))
    assert "stability_ratio" not in metrics.SpectrumStatistics()(EIGENVALUES)


def test_spectrum_means_count_each_statistic_for_itself():
    metric = metrics.SpectrumStatistics()
    metric.update(EIGENVALUES, learning_rate=0.1)
    metric.update(3 * EIGENVALUES)
    assert metric.compute()["trace"].item() == 11.0
    assert metric.compute()["stability_ratio"].item() == pytest.approx(0.2)


def test_direction_values_are_those_of_the_functions():
    found = metrics.DirectionStatistics()(GAMMAS, LAMBDAS, 1 / 3, 20.0, damping=0.5)
    steps = F.newton_steps(GAMMAS, LAMBDAS, 1 / 3, 0.5)
    assert torch.equal(found["gradient_share"], F.gradient_share(GAMMAS, 1 / 3, 20.0))
    assert found["gamma_mean"].tolist() == [3.0, 2.0]  # uphill
    assert found["lambda_mean"].tolist() == [2.0, 6.0]
    assert torch.equal(found["gamma_snr"], F.signal_to_noise(GAMMAS))
    assert torch.equal(found["lambda_snr"], F.signal_to_noise(LAMBDAS))
    assert torch.equal(found["newton_step"], -steps.abs())


def test_direction_values_do_not_depend_on_signs():
    first = metrics.DirectionStatistics()(GAMMAS, LAMBDAS, 1 / 3, 20.0)
    second = metrics.DirectionStatistics()(GAMMAS * torch.tensor([-1, 1]), LAMBDAS, 1 / 3, 20.0)
    assert_same(first, second)


def test_slopes_of_other_samples_need_their_scale():
    metric = metrics.DirectionStatistics()
    found = metric(GAMMAS[:2], LAMBDAS, 1 / 3, 20.0, gradient_scale=1 / 2)
    expected = F.newton_steps(GAMMAS[:2], LAMBDAS, 1 / 3, gradient_scale=1 / 2)
    assert torch.equal(found["newton_step"], -expected.abs())
    assert torch.equal(found["gradient_share"], F.gradient_share(GAMMAS[:2], 1 / 2, 20.0))
    with pytest.raises(OptionError, match="gradient_scale"):
        metric(GAMMAS[:2], LAMBDAS, 1 / 3, 20.0)


def test_gradient_values_are_those_of_the_functions():
    norms = LAMBDAS[:, 1]
    found = metrics.GradientStatistics()(norms, 30.0)
    assert found["sample_norm"].item() == 6.0
    assert torch.equal(found["noise"], F.gradient_noise(norms, 30.0))
    assert torch.equal(found["signal"], F.gradient_signal(norms, 30.0))
    assert torch.equal(found["noise_scale"], F.gradient_noise_scale(norms, 30.0))


def test_kernel_values_are_those_of_the_functions():
    found = metrics.KernelStatistics(k=2)(KERNEL, TARGETS)
    spectrum = F.kernel_eigenvalues(KERNEL)
    assert torch.allclose(found["trace"], KERNEL.trace().double())
    assert torch.equal(found["top_eigenvalues"], spectrum[-2:])
    assert torch.equal(found["condition_number"], spectrum[-1] / spectrum[0])
    assert torch.equal(found["effective_rank"], F.effective_rank(spectrum))
    assert torch.equal(found["alignment"], F.kernel_alignment(KERNEL, TARGETS))
    assert "alignment" not in metrics.KernelStatistics()(KERNEL)
    uncentered = metrics.KernelStatistics(centered=False)(KERNEL, TARGETS)["alignment"]
    assert torch.equal(uncentered, F.kernel_alignment(KERNEL, TARGETS, centered=False))


def test_condition_number_uses_the_precision_of_the_kernel():
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    kernel = rows @ rows.T  # rank 3, the other eigenvalues are float32 rounding
    found = metrics.KernelStatistics()(kernel)["condition_number"]
    exact = torch.linalg.svdvals(rows.double()).square()
    assert torch.allclose(found, exact[0] / exact[-1], rtol=1e-4)


@pytest.mark.parametrize(
    ("cls", "function"),
    [
        (metrics.SpectrumStatistics, F.spectrum_statistics),
        (metrics.DirectionStatistics, F.direction_statistics),
        (metrics.KernelStatistics, F.kernel_statistics),
        (metrics.GradientStatistics, F.gradient_statistics),
    ],
)
def test_the_functions_give_what_a_first_call_gives(cls, function):
    for arguments in UPDATES[cls]:
        assert_same(cls()(*arguments), function(*arguments))


def test_overlap_follows_the_previous_directions():
    metric = metrics.SubspaceOverlap()
    parts = [{"w": axes.reshape(2, 2, 2)} for axes in (AXES[:2], AXES[1:3], AXES[2:])]
    assert math.isnan(metric(parts[0]).item())
    assert metric(parts[1]).item() == 0.5
    assert metric(parts[2]).item() == 0.5
    assert metric.compute().item() == 0.5
    metric.reset()
    assert math.isnan(metric(parts[0]).item())


def test_overlap_of_large_and_small_parameters_is_that_of_the_whole_vectors():
    shapes = {"b": (3,), "w": (130, 140), "scale": (), "a": (7, 5), "v": (2, 9000), "empty": (0,)}
    size = sum(math.prod(shape) for shape in shapes.values())
    draw = torch.Generator().manual_seed(0)
    rows = [torch.linalg.qr(torch.randn(size, 3, generator=draw)).Q.T for _ in range(3)]
    counts = [math.prod(shapes[name]) for name in sorted(shapes)]
    metric = metrics.SubspaceOverlap()
    for i, matrix in enumerate(rows):
        split = dict(zip(sorted(shapes), matrix.split(counts, dim=1), strict=True))
        parts = {name: split[name].reshape(3, *shapes[name]) for name in shapes}
        found = metric(parts)
        assert torch.equal(metric.previous, matrix)  # in alphabetical order
        if i > 0:
            expected = (matrix.double() @ rows[i - 1].double().T).square().sum() / 3
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    parts["w"] = parts["w"].clone()
    parts["w"][0, 0, 0] = math.nan
    with pytest.raises(OptionError, match="entries infinite or NaN"):
        metric.update(parts)
    parts["w"][0] = 1.0
    with pytest.raises(OptionError, match="norms from"):
        metric.update(parts)
    assert torch.equal(metric.previous, rows[2])


def test_memory_does_not_change_with_the_input():
    metric, rows = metrics.SubspaceOverlap(), AXES[:2].clone()
    metric.update(rows)
    rows.zero_()
    assert metric(AXES[:2]).item() == 1.0
    drift, kernel = metrics.KernelDrift(), KERNEL.clone()
    drift.update(kernel)
    kernel.zero_()
    assert drift(KERNEL)["distance_from_first"].item() == pytest.approx(0.0, abs=1e-12)


def test_drift_from_the_first_and_the_previous_kernel():
    metric = metrics.KernelDrift()
    second, third = KERNEL @ KERNEL, torch.eye(3)
    found = metric(KERNEL)
    assert found["distance_from_first"].item() == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(found["distance_from_previous"].item())
    metric.update(second)
    found = metric(third)
    assert torch.equal(found["distance_from_first"], F.kernel_distance(third, KERNEL))
    assert torch.equal(found["distance_from_previous"], F.kernel_distance(third, second))
    assert_same(metric.compute(), found)


@pytest.mark.parametrize("cls", MEANS)
def test_a_call_gives_its_own_values_and_compute_their_mean(cls):
    metric, parts = cls(), []
    for arguments in UPDATES[cls]:
        parts.append(metric(*arguments))
        assert_same(parts[-1], cls()(*arguments))
    expected = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    if "noise_scale" in expected:  # of the means, as its definition says
        expected["noise_scale"] = expected["noise"] / expected["signal"]
    assert_same(metric.compute(), expected)
    assert_same(updated(cls).compute(), expected)
    assert all(value.dtype == torch.float64 for value in expected.values())


@pytest.mark.parametrize("cls", CLASSES)
def test_reset_forgets(cls):
    metric = updated(cls)
    metric.reset()
    for arguments in UPDATES[cls]:
        metric.update(*arguments)
    assert_same(metric.compute(), updated(cls).compute())
    assert metric.update_count == 2


@pytest.mark.parametrize("cls", CLASSES)
def test_state_survives_a_file(cls):
    metric, fresh = updated(cls), cls()
    metric.persistent(True)
    fresh.load_state_dict(saved_and_loaded(metric))
    again = UPDATES[cls][0]
    assert_same(fresh(*again), metric(*again))
    assert_same(fresh.compute(), metric.compute())


@pytest.mark.parametrize("cls", MEMORIES)
def test_memory_is_part_of_the_state_by_default(cls):
    metric, fresh = updated(cls), cls()
    state = saved_and_loaded(metric)
    assert state["previous"].numel() > 0
    fresh.load_state_dict(state)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert_same(fresh.compute(), metric.compute())
    assert_same(fresh(*UPDATES[cls][0]), metric(*UPDATES[cls][0]))


@pytest.mark.parametrize("cls", MEMORIES)
def test_an_empty_state_loads(cls):
    metric = updated(cls)
    metric.load_state_dict(saved_and_loaded(cls()))
    assert metric.previous.numel() == 0


@pytest.mark.parametrize("cls", CLASSES)
def test_clones_are_independent(cls):
    metric = updated(cls)
    expected = metric.compute()
    copy = metric.clone()
    copy.update(*UPDATES[cls][0])
    assert_same(metric.compute(), expected)


@pytest.mark.parametrize("cls", CLASSES)
def test_inputs_that_require_gradients(cls):
    metric = cls()
    for arguments in UPDATES[cls]:
        tracked = [
            a.clone().requires_grad_()
            if isinstance(a, torch.Tensor) and a.is_floating_point()
            else a
            for a in arguments
        ]
        metric.update(*tracked)
    assert_same(metric.compute(), updated(cls).compute())
    assert not any(state.requires_grad for state in metric.metric_state.values())


@pytest.mark.parametrize("cls", CLASSES)
def test_processes_are_averaged_and_memories_stay_at_home(cls):
    sent = []

    def gather(tensor, group):
        sent.append(tensor)
        return [tensor, 3 * tensor]

    metric = updated(cls, distributed_available_fn=lambda: True, dist_sync_fn=gather)
    alone = updated(cls).compute()
    found = metric.compute()
    if cls in MEANS:  # totals and counts are both four times as large
        assert_same(found, alone)
    else:  # the mean of the result and its threefold
        if isinstance(alone, dict):
            assert_same(found, {name: 2 * value for name, value in alone.items()})
        else:
            assert_same(found, 2 * alone)
        assert all(tensor.ndim == 0 for tensor in sent)
        assert metric.previous.numel() > 0
    assert not metric._is_synced
    metric.update(*UPDATES[cls][0])


@pytest.mark.parametrize("cls", MEANS)
def test_metrics_of_two_processes_merge(cls):
    first, second = cls(), cls()
    first.update(*UPDATES[cls][0])
    second.update(*UPDATES[cls][1])
    first.merge_state(second)
    assert_same(first.compute(), updated(cls).compute())


@pytest.mark.parametrize("cls", CLASSES)
def test_a_refused_update_leaves_the_metric_as_it_was(cls):
    metric = updated(cls)
    expected = metric.compute()
    broken = [a * math.nan if isinstance(a, torch.Tensor) else a for a in UPDATES[cls][0]]
    with pytest.raises(OptionError, match="infinite or NaN"):
        metric.update(*broken)
    with pytest.raises(OptionError, match="infinite or NaN"):
        metric(*broken)
    assert_same(metric.compute(), expected)


def test_sizes_may_not_change_between_resets():
    metric = updated(metrics.DirectionStatistics)
    with pytest.raises(OptionError, match="1 values of gamma_mean after updates with 2"):
        metric.update(GAMMAS[:, :1], LAMBDAS[:, :1], 1 / 3, 20.0)
    metric.reset()
    metric.update(GAMMAS[:, :1], LAMBDAS[:, :1], 1 / 3, 20.0)
    drift = updated(metrics.KernelDrift)
    with pytest.raises(OptionError, match=r"\[2, 2\] and \[3, 3\]"):
        drift.update(KERNEL[:2, :2])
    overlap = updated(metrics.SubspaceOverlap)
    with pytest.raises(OptionError, match="5 and 4 entries"):
        overlap.update(torch.eye(5)[:2])
    with pytest.raises(OptionError, match="k = 0"):
        metrics.KernelStatistics(k=0)


@pytest.mark.parametrize("cls", CLASSES)
def test_plots_of_one_result_of_several_and_into_axes(cls):
    import matplotlib.pyplot as plt

    metric = cls()
    results = [metric(*arguments) for arguments in UPDATES[cls]]
    for value in (None, results):
        figure, axes = metric.plot(value)
        assert isinstance(figure, plt.Figure)
        if cls is not metrics.SubspaceOverlap:
            assert [panel.get_title() for panel in axes] == list(results[0])
            assert all(panel.lines for panel in axes)
        figure.canvas.draw()
        plt.close(figure)
    own, ax = plt.subplots()
    assert metric.plot(ax=ax)[1] is ax
    plt.close(own)
    assert plt.get_fignums() == []


def test_metrics_work_in_a_collection():
    collection = MetricCollection({"a": metrics.KernelStatistics(k=1), "b": metrics.KernelDrift()})
    kernels = [KERNEL, KERNEL @ KERNEL]
    for kernel in kernels:
        collection.update(kernel)
    found = collection.compute()
    top = torch.stack([F.kernel_eigenvalues(kernel)[-1] for kernel in kernels])
    assert torch.allclose(found["distance_from_first"], F.kernel_distance(kernels[1], KERNEL))
    assert torch.allclose(found["top_eigenvalues"], top.mean())


@pytest.mark.parametrize("module", ["spectrum", "directions", "kernel", "gradients"])
def test_examples_in_the_documentation(module):
    found = doctest.testmod(importlib.import_module(f"lightning_vivit.metrics.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
