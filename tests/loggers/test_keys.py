"""docs/keys.md has a line for every key that a run writes, and for no other."""

from __future__ import annotations

import re
from pathlib import Path

from digits_run import fit, monitors, ours, read

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor

PAGE = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables' rows, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def keys(text: str) -> set[str]:
    found = [row[0].strip("`") for row in rows(text)]
    assert len(found) == len(set(found))
    return set(found)


def normalised(tags: set[str]) -> set[str]:
    found = {re.sub(r"layer_gradient_norm/.+", "layer_gradient_norm/<layer>", tag) for tag in tags}
    return {re.sub(r"_\d+$", "_i", tag) for tag in found}


def test_every_key_is_in_the_page_and_the_other_way_round(tmp_path: Path) -> None:
    layers = GGNSpectrumMonitor(
        k=2, steps=[0], prefix="p/", param_groups="layer", overlap=False, max_samples=8
    )
    estimate = NTKMonitor(k=2, steps=[0], prefix="q/", mode="projected", max_samples=8)
    free = GGNSpectrumMonitor(k=2, steps=[0], prefix="q/", method="matrix_free", max_samples=8)
    hessian = GGNSpectrumMonitor(k=2, every_n_steps=1, matrix="hessian", max_samples=8)
    fisher = {"k": 2, "every_n_steps": 1, "matrix": "empirical_fisher", "max_samples": 8}
    second = (GGNSpectrumMonitor(**fisher), DirectionalDerivativesMonitor(**fisher))
    everything = (*monitors(every_n_steps=1), layers, estimate, free, hessian, *second)
    tags = read(fit(tmp_path, *everything)).Tags()
    drawn = {tag[2:] if tag[1] == "/" else tag for tag in tags["images"]}
    written = {tag.removeprefix("q/") for tag in ours(tags["scalars"]) if tag[:2] != "p/"}
    histograms = {tag.removeprefix("q/") for tag in tags["histograms"] if tag[:2] != "p/"}
    scalars = keys(PAGE.split("## Histograms")[0])
    assert normalised(written) == scalars
    assert normalised(histograms) == keys(section("Histograms"))
    assert drawn == keys(section("Figures"))


def test_every_line_is_complete() -> None:
    for row in rows(PAGE.split("## Histograms")[0]):
        assert len(row) == 6, row
        _, definition, _, values, _, cost = row
        assert definition and values and cost, row
    for row in rows(section("Histograms") + section("Figures")):
        assert len(row) == 3, row
        assert all(row), row


def test_keys_stand_with_the_monitor_that_writes_them() -> None:
    sections = {"GGNSpectrumMonitor": "ggn/", "NTKMonitor": "ntk/"}
    sections |= {'GGNSpectrumMonitor with matrix="hessian"': "hessian/"}
    fisher = 'with matrix="empirical_fisher"'
    sections |= {f"GGNSpectrumMonitor {fisher}": "empirical_fisher/"}
    sections |= {f"DirectionalDerivativesMonitor {fisher}": "empirical_fisher_directions/"}
    sections |= {"DirectionalDerivativesMonitor": "directions/", "Every monitor": "cost/"}
    for title, start in sections.items():
        assert all(key.startswith(start) for key in keys(section(title)))
