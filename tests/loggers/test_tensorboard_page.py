"""A browser looks at a real TensorBoard: our charts, histograms and pictures are there, with data.

Run with `python -m pytest -m browser`. With PICTURES=folder the pages are kept as PNG files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from browser import Page, browser, tensorboard
from matplotlib.image import imread

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
CHARTS = {
    "Learning rate x sharpness / limit, stable below 1": 2,  # the value and its limit
    "Leading eigenvalues of the GGN": 10,
    "Trace of the GGN": 1,
    "Effective rank of the GGN": 1,
    "Overlap with the previous top subspace": 1,
    "Signal to noise of the slopes, per sample": 5,
    "Signal to noise of the curvatures, per sample": 5,
    "Share of the gradient in the top directions": 1,
    "Mean slope": 5,
    "Mean curvature": 5,
    "Newton step": 5,
    "Alignment with the labels": 1,
    "Distance to the first and the previous kernel": 2,
    "Condition number of the NTK": 1,
    "Effective rank of the NTK": 1,
    "Leading eigenvalues of the NTK": 10,
    "Trace of the NTK": 1,
    "Gradient norm": 2,
    "Gradient norm of each layer": 5,
    "Variance of the per-sample gradients": 1,
    "Time of a monitored step, in seconds": 1,
    "Share of the run's time spent in the monitors": 1,
}
HISTOGRAMS = {
    "ggn/eigenvalues_log10",
    "ntk/eigenvalues_log10",
    "directions/sample_gradient_norms",
    *(f"directions/{name}_{i}" for name in ("gamma", "lambda") for i in range(1, 6)),
}
LATE = {  # filled where there is something to say
    "Gradient noise scale, in samples",
}
IMAGES = {"ggn/spectrum", "directions/samples", "ntk/kernel", "ntk/spectrum"}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's digits run, shortened, with gradient statistics."""
    folder = tmp_path_factory.mktemp("run") / "logs"
    folder.mkdir()
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    trainer = config["trainer"]
    trainer |= {"max_epochs": 8, "accelerator": "cpu", "enable_progress_bar": False}
    trainer["logger"]["init_args"]["save_dir"] = str(folder)
    for callback in trainer["callbacks"]:
        callback["init_args"]["figures_every"] = 2
        if callback["class_path"].endswith("DirectionalDerivativesMonitor"):
            callback["init_args"]["gradients"] = True
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "lightning_vivit.cli", "fit", "--config", str(path)]
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return folder


@pytest.fixture(scope="module")
def address(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorboard(logs, tmp_path_factory.mktemp("tensorboard")) as found:
        yield found


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path) as found:
        yield found
        assert found.errors == []


def coloured(picture: bytes) -> int:
    """Number of pixels that are no shade of grey: lines, not axes."""
    pixels = imread(BytesIO(picture))[..., :3]
    return int((pixels.max(axis=2) - pixels.min(axis=2) > 0.1).sum())


def keep(page: Page, name: str) -> None:
    if "PICTURES" in os.environ:
        (Path(os.environ["PICTURES"]) / f"{name}.png").write_bytes(page.picture())


def open_all(page: Page, card: str) -> int:
    """Open the categories that are closed; returns the number of cards."""
    page.run(
        "below(document, 'tf-category-paginated-view').filter(view => !view.opened)"
        "  .forEach(view => below(view, 'button.heading')[0].click());"
    )
    return page.run(f"return below(document, '{card}').length;")


def test_custom_scalars(page: Page, address: str) -> None:
    page.open(f"{address}/#custom_scalars", height=1360)

    def categories() -> dict[str, bool]:
        return page.run(
            "return Object.fromEntries(below(document, 'tf-category-paginated-view').map("
            "  view => [words(view)[0], view.opened]));"
        )

    def lines() -> dict[str, int]:
        """Title of each chart -> number of its lines that are more than a point."""
        return page.run(
            "const cards = below(document, 'tf-custom-scalar-multi-line-chart-card');"
            "return Object.fromEntries(cards.map(card => [words(card)[0],"
            "  below(card, 'path.line')"
            "  .filter(p => (p.getAttribute('d') || '').length > 40).length]));"
        )

    page.wait("the categories", lambda: len(categories()) == 5)
    assert list(categories()) == ["Curvature", "Directions", "Kernel", "Gradients", "Cost"]
    assert all(categories().values())
    page.run(  # a first step far off the others is an outlier; its lines have to be seen too
        "const boxes = below(document, '#ignore-outliers, paper-checkbox');"
        "const box = boxes.find(b => words(b).join(' ').includes('Ignore outliers'));"
        "if (box.checked) box.click(); return box.checked;"
    )
    # each series has two lines, as measured and smoothed
    page.wait(
        "data in the charts",
        lambda: all(lines().get(title, 0) >= 2 * count for title, count in CHARTS.items()),
    )
    assert not {title for title in lines() if title not in CHARTS} - LATE
    keep(page, "custom_scalars")


def test_histograms(page: Page, address: str) -> None:
    page.open(f"{address}/#histograms", height=3000)

    def drawn() -> set[str]:
        found = page.run(
            "return below(document, 'tf-histogram-loader').filter(card => below(card, 'path')"
            "  .some(p => (p.getAttribute('d') || '').length > 200)).map(card => words(card)[0]);"
        )
        return set(found)

    page.wait("the cards", lambda: open_all(page, "tf-histogram-loader") >= len(HISTOGRAMS))
    page.wait("all histograms", lambda: drawn() >= HISTOGRAMS)
    page.open(f"{address}/#histograms&tagFilter=ggn%7Cntk%7C_1%7Cnorms", height=1000)
    page.wait("the chosen histograms", lambda: "ntk/eigenvalues_log10" in drawn())
    keep(page, "histograms")


def test_images(page: Page, address: str) -> None:
    page.open(f"{address}/#images", height=1640)

    def loaded() -> dict[str, list[int]]:
        return page.run(
            "return Object.fromEntries(below(document, 'tf-image-loader').map(card => ["
            "  words(card)[0], below(card, 'img').map(i => i.complete ? i.naturalWidth : 0)]));"
        )

    page.wait("the cards", lambda: open_all(page, "tf-image-loader") >= len(IMAGES))
    page.wait("the pictures", lambda: all(sum(loaded().get(name, [])) > 400 for name in IMAGES))
    assert set(loaded()) == IMAGES
    keep(page, "images")


def test_time_series(page: Page, address: str) -> None:
    chosen = ["ggn/sharpness_lr", "ggn/eigenvalue_1", "ntk/alignment", "ntk/kernel", "train/loss"]
    query = "%7C".join(f"^{name}$" for name in chosen)
    page.open(f"{address}/?tagFilter={query}#timeseries", height=2600)

    def cards() -> dict[str, str]:
        """Tag of each card -> everything that it says."""
        return page.run(
            "return Object.fromEntries(below(document, 'card-view').map(card => words(card))"
            "  .filter(said => said.length).map(said => [said[0] + said[1], said.join(' ')]));"
        )

    page.wait("the cards", lambda: set(cards()) == set(chosen))
    pictures = "return below(document, 'image-card img').map(i => i.naturalWidth);"
    page.wait("the picture", lambda: page.run(pictures) and page.run(pictures)[0] > 400)
    canvases = "return below(document, 'scalar-card canvas').length;"
    page.wait("the charts", lambda: page.run(canvases) == 4)
    runs = page.wait("the runs", lambda: "digits/version_0/limits" in cards()["ggn/sharpness_lr"])
    assert runs
    for tag in chosen:
        assert "digits/version_0" in cards()[tag], tag
        assert re.search(r"\d", cards()[tag]), tag
    page.open(f"{address}/?tagFilter={query}#timeseries", height=1100)
    place = (  # of the second chart, that of the sharpness
        "const card = below(document, 'scalar-card')[1];"
        "const canvas = card && below(card, 'canvas')[0];"
        "if (!canvas) return null;"
        "const box = canvas.getBoundingClientRect();"
        "return {x: box.x, y: box.y, width: box.width, height: box.height, scale: 1};"
    )
    page.wait("the second chart", lambda: page.run(place))
    page.wait("its lines", lambda: coloured(page.picture(page.run(place))) > 200)
    keep(page, "time_series")
