"""A browser looks at a real TensorBoard: our charts, histograms and pictures are there, with data.

Run with `python -m pytest -m browser`. With PICTURES=folder the pages are kept as PNG files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from browser import Page, browser, tensorboard

pytestmark = [pytest.mark.browser, pytest.mark.long]

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
}
HISTOGRAMS = {
    "ggn/eigenvalues_log10",
    "ntk/eigenvalues_log10",
    "directions/sample_gradient_norms",
    *(f"directions/{name}_{i}" for name in ("gamma", "lambda") for i in range(1, 6)),
}
IMAGES = {"ggn/spectrum", "directions/samples", "ntk/kernel", "ntk/spectrum"}

# What a card of the older pages says, and what is drawn in it.
CARDS = """
const inside = (card, name) => {
  const found = [];
  const walk = node => { for (const c of node.children) {
    if (c.matches(name)) found.push(c);
    if (c.shadowRoot) walk(c.shadowRoot);
    walk(c);
  } };
  if (card.shadowRoot) walk(card.shadowRoot);
  walk(card);
  return found;
};
const words = node => [...node.querySelectorAll('*')].concat(
  node.shadowRoot ? [...node.shadowRoot.querySelectorAll('*')] : []
).map(e => e.shadowRoot ? e.shadowRoot.textContent : e.textContent).join(' ');
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's digits run, shortened, with gradient statistics."""
    folder = tmp_path_factory.mktemp("logs")
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    trainer = config["trainer"]
    trainer |= {"max_epochs": 6, "accelerator": "cpu", "enable_progress_bar": False}
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


def keep(page: Page, name: str) -> None:
    if "PICTURES" in os.environ:
        page.screenshot(Path(os.environ["PICTURES"]) / f"{name}.png")


def test_custom_scalars(page: Page, address: str) -> None:
    page.open(f"{address}/#custom_scalars", height=1500)
    page.wait("a chart", lambda: "Leading eigenvalues of the GGN" in page.text())
    page.run(  # open the categories that are closed
        "for (const e of elements) if (e.tagName === 'IRON-COLLAPSE' && !e.opened"
        " && e.parentNode.querySelector('.heading')) e.parentNode.querySelector('.heading').click();"
    )

    def charts() -> dict[str, int]:
        found = page.run(
            CARDS
            + "const cards = elements.filter(e =>"
            " e.tagName === 'TF-CUSTOM-SCALAR-MULTI-LINE-CHART-CARD');"
            "return Object.fromEntries(cards.map(card => {"
            "  const heading = inside(card, 'tf-card-heading')[0];"
            "  const lines = inside(card, 'vz-line-chart2 g.plot path, .plot path, path.line');"
            "  return [card._titleDisplayString || card.title || heading.displayName,"
            "    (words(card).match(/Matches \\\\((\\\\d+)\\\\)/) || [0, 0])[1]"
            "      * (lines.filter(p => (p.getAttribute('d') || '').length > 20).length > 0)];"
            "}));"
        )
        return {title: int(count) for title, count in found.items()}

    page.wait("data in all charts", lambda: CHARTS.items() <= charts().items())
    for category in ("Curvature", "Directions", "Kernel", "Gradients", "Cost"):
        assert category in page.text().splitlines()
    keep(page, "custom_scalars")
