"""A run writes the keys of the table of statistics and no others; docs/keys.md says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from digits_run import fit, monitors, read

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.statistics import SECTIONS, find_key
from lightning_vivit.statistics.key import Kind

ROOT = Path(__file__).parents[2]


def declared(*kinds: Kind) -> set[str]:
    """Names in the table, with their sections."""
    return {
        f"{section.name}/{statistic.name}"
        for section in SECTIONS.values()
        for statistic in section.statistics
        if statistic.kind in kinds
    }


def found(keys: Iterable[str], *kinds: Kind) -> set[str]:
    """Names in the table of keys that a run wrote."""
    known = {key: find_key(key, *kinds) for key in keys}
    strangers = [key for key, logged in known.items() if logged is None]
    assert not strangers
    return {f"{each.section.name}/{each.statistic.name}" for each in known.values() if each}


def test_a_run_writes_every_key_of_the_table_and_no_other(tmp_path: Path) -> None:
    options = {"k": 2, "max_samples": 8, "on_error": "raise", "figures_every": 1}
    fisher = {"matrix": "empirical_fisher"}
    layers = {"param_groups": {"first": ["net.0.*"], "last": ["net.10.*"]}, **options}
    others = [
        GGNSpectrumMonitor(steps=[0], prefix="p/", overlap=False, **layers),
        NTKMonitor(steps=[0], prefix="q/", mode="projected", **options),
        GGNSpectrumMonitor(steps=[0], prefix="q/", method="matrix_free", **options),
        GGNSpectrumMonitor(every_n_steps=1, matrix="hessian", **options),
        GGNSpectrumMonitor(steps=[0], prefix="p/", matrix="hessian", **layers),
        GGNSpectrumMonitor(every_n_steps=1, **fisher, **options),
        GGNSpectrumMonitor(steps=[0], prefix="p/", **fisher, **layers),
        GGNSpectrumMonitor(steps=[0], prefix="q/", method="matrix_free", **fisher, **options),
        DirectionalDerivativesMonitor(every_n_steps=1, gradients=True, **fisher, **options),
    ]
    everything = [*monitors(every_n_steps=1), *others]
    tags = read(fit(tmp_path, *everything)).Tags()
    scalars = set(tags["scalars"]) - {"train/loss", "epoch", "hp_metric"}
    assert found(scalars, "scalar") == declared("scalar")
    assert found(tags["histograms"], "histogram") == declared("histogram")
    assert found(tags["images"], "figure", "overview") == declared("figure", "overview")
    arrays = {key for monitor in everything for key in monitor.results[-1].arrays}
    assert found(arrays, "array") == declared("array")
    for monitor in everything:
        for key in monitor.results[-1].scalars:
            logged = find_key(key, "scalar")
            assert logged is not None and logged.section.monitor == type(monitor).__name__


def test_docs_keys_is_written_from_the_table() -> None:
    command = [sys.executable, "docs/hooks/keys.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_docs_keys_has_a_place_for_every_key() -> None:
    page = (ROOT / "docs" / "keys.md").read_text()
    lines = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert len(lines) == len(set(lines)) + 1  # `ntk/kernel` is a figure and an array
    assert set(lines) == declared("scalar", "histogram", "figure", "overview", "array")
