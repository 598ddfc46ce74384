"""A run of several processes trains as without monitors, whatever happens on one rank."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_launch import launch, read
from torch.utils._pytree import tree_flatten

VARIANTS = ("plain", "unused", "static", "accumulate", "view")
BROKEN = ("measure0", "measure1", "end0", "end1", "problem1", "round1", "logger0")


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Bit by bit."""
    for key in ("weights", "optimizer", "rng", "grads"):
        left, right = tree_flatten(first[key])[0], tree_flatten(second[key])[0]
        if len(left) != len(right) or not all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
            for a, b in zip(left, right, strict=True)
        ):
            return False
    return True


def check_identity(name: str, folder: Path, ranks: int) -> None:
    plain, watched = (read(folder, f"{name}_{flag}", ranks) for flag in (False, True))
    assert all(same(*pair) for pair in zip(plain, watched, strict=True))
    assert all(each["stopped"] == [False] * 3 for each in watched)
    assert all(any(key.startswith("ntk/") for key in each["metrics"]) for each in watched)


@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_bit_identical(name: str, two: Path) -> None:
    check_identity(name, two, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_bit_identical_on_four_ranks(name: str, four: Path) -> None:
    check_identity(name, four, 4)


def test_the_comparison_sees_a_difference(two: Path) -> None:
    (plain, _), (other, _) = read(two, "plain_True", 2), read(two, "static_True", 2)
    assert not same(plain, other)


def check_fault(name: str, folder: Path, ranks: int) -> None:
    found, sound = read(folder, name, ranks), read(folder, "sound", ranks)
    assert all(same(*pair) for pair in zip(found, sound, strict=True))
    both = name in ("problem1", "round1")  # the second monitor has the same problem
    assert [each["stopped"] for each in found] == [[True, both]] * ranks
    assert all(len(each["found"][1]) == (0 if both else 3) for each in found)
    lines = (folder / f"{name}.txt").read_text().splitlines()
    warned = [line for line in lines if "failed at step" in line]
    assert len(warned) == 1
    cause = "OSError: disk full" if name == "logger0" else f"ValueError: struck in {name[:-1]}"
    assert cause in warned[0]
    assert ("Rank 1 failed" in warned[0]) == name.endswith("1")


@pytest.mark.parametrize("name", BROKEN)
def test_a_failing_rank_stops_the_monitor_on_all(name: str, two: Path) -> None:
    check_fault(name, two, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", BROKEN)
def test_a_failing_rank_stops_the_monitor_on_all_of_four(name: str, four: Path) -> None:
    check_fault(name, four, 4)


def test_raise_ends_the_fit_with_the_cause(two: Path) -> None:
    struck = float((two / "struck.txt").read_text())
    ended, cause = (two / "ended.txt").read_text().split(" ", 1)
    assert float(ended) - struck < 30
    assert "ValueError: struck in measure" in cause


@pytest.mark.long
def test_raise_ends_lightnings_subprocesses_with_the_cause(tmp_path: Path) -> None:
    done = launch("crash", 2, tmp_path, seconds=90)
    ended = time.time()
    assert done.returncode != 0
    assert "Rank 1 failed: ValueError: struck in measure" in done.stderr  # on rank 0
    assert ended - float((tmp_path / "struck.txt").read_text()) < 30


def test_only_rank_zero_logs_and_all_decide_alike(two: Path) -> None:
    with (two / "csv" / "0" / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["ggn/eigenvalue_1"]]
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    first, second = read(two, "logs", 2)
    assert first["best"] == second["best"] and Path(first["best"]).exists()
    for key in ("ggn/eigenvalue_1", "odd/ggn/eigenvalue_1"):
        assert torch.equal(first["metrics"][key], second["metrics"][key])
    assert float(first["metrics"]["ggn/eigenvalue_1"]) == pytest.approx(
        float(rows[-1]["ggn/eigenvalue_1"]), rel=1e-6
    )
    assert torch.equal(first["metrics"]["ggn/eigenvalue_1"], first["metrics"]["keep/largest"])
    odd = float(first["metrics"]["odd/ggn/eigenvalue_1"])  # rank 0's schedule: step 1 only
    assert odd == pytest.approx(float(rows[1]["ggn/eigenvalue_1"]), rel=1e-6)
