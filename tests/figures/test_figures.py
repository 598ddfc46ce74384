"""The pictures: what they show, and that nothing of matplotlib's state changes."""

from __future__ import annotations

import sys
import threading

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lightning_vivit.figures import (
    History,
    draw_directions,
    draw_kernel,
    draw_layers,
    draw_spectra,
    to_pixels,
)


def shown(figure: Figure) -> np.ndarray:
    """Values of the heatmap."""
    return np.ma.filled(figure.axes[0].images[0].get_array(), -9.0)


def words(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    return [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]


FIGURES = {
    "kernel": lambda: draw_kernel(torch.eye(4), torch.tensor([0, 1, 0, 1])),
    "spectrum": lambda: draw_spectra([(0, torch.tensor([1.0, 0.1])), (5, torch.tensor([2.0]))]),
    "directions": lambda: draw_directions(torch.randn(6, 2), torch.rand(6, 2)),
    "layers": lambda: draw_layers(["a", "b"], [0, 10], np.array([[1.0, 2.0], [np.nan, 0.0]])),
    "one sample": lambda: draw_directions(torch.ones(1, 1), torch.ones(1, 1)),
    "flat samples": lambda: draw_directions(torch.zeros(4, 2), torch.zeros(4, 2)),
    "no spectrum": lambda: draw_spectra([(0, torch.zeros(3))]),
    "one number": lambda: draw_kernel(torch.ones(1, 1)),
    "zero kernel": lambda: draw_kernel(torch.zeros(3, 3)),
    "nothing known": lambda: draw_layers(["a"], [0], np.array([[np.nan]])),
}


@pytest.mark.parametrize("name", FIGURES)
def test_pixels_are_a_picture_and_the_figure_is_closed(name):
    figure = FIGURES[name]()
    pixels = to_pixels(figure)
    height, width, colours = pixels.shape
    assert pixels.dtype == np.uint8
    assert colours == 3
    assert 300 < width < 900
    assert 200 < height < 900
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    assert figure.axes == []


def test_backend_styles_and_pyplot_stay_as_they_are():
    settings, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    loaded = "matplotlib.pyplot" in sys.modules
    found = []
    thread = threading.Thread(target=lambda: found.extend(to_pixels(f()) for f in FIGURES.values()))
    thread.start()
    thread.join()
    assert len(found) == len(FIGURES)
    assert dict(matplotlib.rcParams) == settings
    assert matplotlib.get_backend() == backend
    assert ("matplotlib.pyplot" in sys.modules) == loaded
    if loaded:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_a_figure_of_the_user_has_pixels_too():
    figure = Figure(figsize=(2, 1), dpi=100)
    assert to_pixels(figure).shape == (100, 200, 3)


def test_kernel_is_sorted_by_class_with_boundaries():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0], [5.0, 0.0]])
    figure = draw_kernel(features @ features.T, torch.tensor([7, 2, 7, 2, 7]), "Title")
    expected = np.kron(np.eye(2), np.ones((3, 3)))[1:, 1:]  # two of class 2, then three of 7
    np.testing.assert_allclose(shown(figure), expected)
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["2", "7"]
    assert list(axes.get_yticks()) == [0.5, 3.0]
    for lines in axes.collections:  # wide white ones below thin dark ones
        level, upright = (segment.tolist() for segment in lines.get_segments())
        assert level == [[-0.5, 1.5], [4.5, 1.5]]
        assert upright == [[1.5, -0.5], [1.5, 4.5]]
    assert len(axes.collections) == 2
    assert axes.get_xlim() == (-0.5, 4.5)
    assert axes.get_ylim() == (4.5, -0.5)
    assert words(figure)[:2] == ["Title", "sample, sorted by class"]


def test_kernel_with_other_targets():
    kernel = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    kernel[0, 2] = kernel[2, 0] = -1.0
    probabilities = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert "class" in words(draw_kernel(kernel, probabilities.argmax(1)))[1]
    same = shown(draw_kernel(kernel, probabilities))
    np.testing.assert_array_equal(same, shown(draw_kernel(kernel, torch.tensor([1, 0, 1]))))
    values = draw_kernel(kernel, torch.tensor([0.5, -1.0, 0.0]))
    assert "sorted by target" in words(values)[1]
    assert shown(values)[1, 2] == pytest.approx(-1 / 3**0.5)
    assert values.axes[0].images[0].get_clim() == (-1.0, 1.0)
    for targets in (None, torch.zeros(3, 4, dtype=torch.int64), torch.tensor(1)):
        assert "order of the batch" in words(draw_kernel(kernel, targets))[1]


def test_spectra_are_curves_in_descending_order():
    entries = [(0, torch.tensor([0.0, 1.0, 3.0])), (20, torch.tensor([4.0, -1.0]))]
    figure = draw_spectra(entries, "Eigenvalues")
    first, last = figure.axes[0].lines
    assert list(first.get_ydata()) == [3.0, 1.0]
    assert list(first.get_xdata()) == [1, 2]
    assert list(last.get_ydata()) == [4.0]
    assert last.get_linewidth() > first.get_linewidth()
    assert sum(first.get_color()[:3]) > sum(last.get_color()[:3])  # earlier is lighter
    assert words(figure) == ["Eigenvalues at step 20", "index", "eigenvalue"]
    assert figure.axes[0].get_yscale() == figure.axes[0].get_xscale() == "log"


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(3.0, 4.0, {"2", "5"}), (3.0, 40.0, {"2", "5", "10", "20", "50"}), (1e-4, 40.0, {"0.01"})],
)
def test_any_range_of_a_log_axis_has_numbers(low, high, shown):
    values = torch.tensor([[low], [high]])
    figure = draw_directions(values, values)
    figure.draw_without_rendering()
    axis = figure.axes[1].yaxis
    bounds = axis.get_view_interval()
    ticks = axis.get_major_ticks()
    texts = {tick.label1.get_text() for tick in ticks if bounds[0] <= tick.get_loc() <= bounds[1]}
    assert texts >= shown
    assert len(texts) <= 9
    assert axis.get_minor_ticks() == []


def test_directions_show_each_sample_its_mean_and_error():
    gammas = torch.tensor([[1.0, -2.0], [3.0, 6.0]])
    figure = draw_directions(gammas, gammas.square())
    above, below = figure.axes
    points = above.lines[0].get_ydata()
    assert sorted(points) == [-2.0, 1.0, 3.0, 6.0]
    means, _, bars = above.containers[0].lines
    assert list(means.get_ydata()) == [2.0, 2.0]
    error = 2 * float(gammas[:, 0].std()) / 2**0.5
    assert bars[0].get_segments()[0][:, 1].tolist() == pytest.approx(
        [2 - error, 2 + error], abs=1e-6
    )
    assert below.get_yscale() == "log"


def test_layers_show_the_logarithm():
    values = np.array([[1.0, 100.0], [np.nan, 0.01]])
    figure = draw_layers(["encoder." * 6 + "weight", "b"], [0, 50], values)
    np.testing.assert_allclose(shown(figure), [[0, 2], [-9, -2]])
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels[0].startswith("…")
    assert labels[0].endswith("encoder.weight")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "50"]


def test_history_is_bounded_and_spans_the_run():
    history = History(limit=8)
    for step in range(1000):
        history.add(step, torch.tensor([float(step)]))
        entries = history.entries()
        steps = [found for found, _ in entries]
        assert len(entries) <= 8
        assert steps[0] == 0
        assert steps[-1] == step
        assert steps == sorted(set(steps))
    gaps = np.diff([found for found, _ in history.entries()][:-1])
    assert len(set(gaps)) == 1
    assert [float(values) for _, values in history.entries()] == steps


def test_history_keeps_a_copy():
    history, values = History(), torch.ones(2)
    history.add(0, values)
    values.zero_()
    assert history.entries()[0][1].tolist() == [1.0, 1.0]
