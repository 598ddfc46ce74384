"""The stories' claims, asserted on the numbers that the scripts produce."""

from __future__ import annotations

import functools
import importlib
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "stories"
STORIES = ("learning_rate", "noise", "lazy", "fine_tuning", "newton")


@functools.cache
def story(name: str) -> ModuleType:
    matplotlib.use("Agg")
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


@functools.cache
def numbers(name: str) -> dict[Any, Any]:
    return story(name).run()


def falls(values: list[float]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(values))


def test_learning_rate_is_found_from_the_first_value() -> None:
    runs = numbers("learning_rate")
    large, limit, half = runs["too large"], runs["at the limit"], runs["half"]
    assert large["ratio"][0] > 3
    assert max(large["loss"]) > 10 * large["loss"][0]  # it climbs
    assert limit["ratio"][0] == pytest.approx(1, rel=1e-3)
    assert max(limit["ratio"]) > 1.5  # sharpens beyond the limit ...
    assert not falls(limit["loss"])  # ... and the loss rises on the way ...
    assert limit["loss"][-1] < 0.1 * limit["loss"][0]  # ... but training recovers
    assert max(half["ratio"]) < 1
    assert falls(half["loss"])
    assert half["loss"][-1] < 0.1


def test_noise_dominates_small_batches_and_the_ratio_predicts_it() -> None:
    found, sizes = numbers("noise"), story("noise").SIZES
    early = [values[i] for values in found["logged"].values() for i in range(len(values))]
    below = sum(value < 1 / 16 for value in early) / len(early)
    assert below > 0.8  # in most directions and steps a batch of 16 is mostly noise
    small, large = sizes.index(16), sizes.index(1024)
    assert found["right"][large][4] < 0.8  # no signal, not even with 1024
    for direction in range(4):
        assert found["right"][large][direction] > 0.95
        assert found["right"][small][direction] < 0.85
    for index, size in enumerate(sizes):
        if size >= 64:  # where the mean of a batch is nearly Gaussian
            assert found["right"][index] == pytest.approx(found["predicted"][index], abs=0.08)


def test_width_makes_the_ntk_parametrisation_lazy_but_not_the_mean_field() -> None:
    found = numbers("lazy")
    narrow, wide = story("lazy").WIDTHS
    drift = {key: values["drift"] for key, values in found.items()}
    gain = {key: values["gain"] for key, values in found.items()}
    assert drift["ntk", wide] < 0.1 * drift["ntk", narrow]
    assert drift["mean field", wide] > 0.5 * drift["mean field", narrow]
    assert drift["mean field", wide] > 20 * drift["ntk", wide]
    assert gain["ntk", wide] < 0.01
    assert gain["mean field", wide] > 5 * gain["ntk", wide]
    for values in found.values():  # compared at the same loss
        at = values["step"] // story("lazy").EVERY
        assert values["loss"][at] == pytest.approx(story("lazy").LOSS, abs=0.06)


def test_the_layer_with_little_curvature_can_be_frozen() -> None:
    found = numbers("fine_tuning")
    nothing, first, both = (found[name] for name in story("fine_tuning").FROZEN)
    assert sum(nothing["traces"].values()) == pytest.approx(nothing["trace"], rel=1e-4)
    assert nothing["traces"]["net.0"] < 0.1 * nothing["trace"]
    assert nothing["traces"]["net.7"] > 0.4 * nothing["trace"]
    assert first["limit"] == pytest.approx(nothing["limit"], rel=0.1)
    assert both["limit"] > 1.5 * nothing["limit"]
    assert first["final"] < 1.5 * nothing["final"]
    assert both["final"] > 1.5 * nothing["final"]


def test_newton_goes_further_where_sgd_hardly_moves() -> None:
    found, module = numbers("newton"), story("newton")
    ratio, curvature = found["share of the way"], found["curvature"]
    expected = [module.LR * (each + module.DAMPING) for each in curvature]
    assert ratio == pytest.approx(expected, rel=1e-3)
    assert ratio[0] > 0.3
    assert ratio[-1] < 0.05
    at = {size: i for i, size in enumerate(module.SIZES)}
    before = found["before"]

    def gain(kind: str, k: int) -> float:
        return before - found[kind][at[k]]

    assert gain("newton", 1) == pytest.approx(gain("sgd", 1), rel=0.5)
    assert gain("newton", 50) > 4 * gain("sgd", 50)
    assert gain("sgd", 600) < 1.2 * gain("sgd", 50)
    # more directions need damping: the quadratic model ends where the steps are long
    assert gain("hardly damped", 600) < gain("hardly damped", 200)
    assert gain("newton", 600) > gain("hardly damped", 600)


@pytest.mark.parametrize("name", STORIES)
def test_figure_is_drawn_and_the_script_is_short(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, found = story(name), numbers(name)
    monkeypatch.setattr(sys.modules["digits_runs"], "FIGURES", tmp_path)
    monkeypatch.setattr(module, "run", lambda: found)
    module.main()
    drawn = (tmp_path / f"{name}.svg").read_text()
    kept = (ROOT / "docs" / "stories" / "figures" / f"{name}.svg").read_text()
    axes = re.compile(r'<g id="axes_\d+">')
    assert len(axes.findall(drawn)) == len(axes.findall(kept)) == 2
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 100
