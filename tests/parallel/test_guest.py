"""A run of several processes trains as without monitors, whatever happens on one rank."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch, read, run
from torch.utils._pytree import tree_flatten

VARIANTS = ("plain", "unused", "static", "accumulate", "view")
BROKEN = ("measure0", "measure1", "end0", "end1", "problem1", "logger0")


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


@pytest.fixture(scope="module")
def identical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run("identity", 2, tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run("faults", 2, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_bit_identical(name: str, identical: Path) -> None:
    plain, watched = (read(identical, f"{name}_{flag}", 2) for flag in (False, True))
    assert all(same(*pair) for pair in zip(plain, watched, strict=True))
    assert watched[0]["stopped"] == [False] * 3
    assert any(key.startswith("ntk/") for key in watched[1]["metrics"])
    assert same(plain[0], {**watched[0], "weights": watched[0]["weights"]})


def test_the_comparison_sees_a_difference(identical: Path) -> None:
    (plain, _), (other, _) = read(identical, "plain_True", 2), read(identical, "static_True", 2)
    assert not same(plain, other)


@pytest.mark.parametrize("name", BROKEN)
def test_a_failing_rank_stops_the_monitor_on_all(name: str, faulty: Path) -> None:
    found, sound = read(faulty, name, 2), read(faulty, "sound", 2)
    assert all(same(*pair) for pair in zip(found, sound, strict=True))
    stopped = [each["stopped"] for each in found]
    only_first = name != "problem1"  # the second monitor there has the same problem
    assert stopped == [[True, not only_first]] * 2
    if only_first:
        assert [len(each["found"][1]) for each in found] == [3, 3]
    lines = [line for line in (faulty / f"{name}.txt").read_text().splitlines() if "Keep" in line]
    warned = [line for line in lines + broken_lines(faulty / f"{name}.txt") if "failed at" in line]
    assert len(set(warned)) == 1
    cause = {"logger0": "OSError: disk full", "problem1": "ValueError: struck in problem"}
    assert cause.get(name, f"struck in {name[:-1]}") in warned[0]
    assert ("Rank 1 failed" in warned[0]) == name.endswith("1")


def broken_lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.startswith("Broken")]


def test_raise_ends_all_ranks_with_the_cause(tmp_path: Path) -> None:
    start = time.monotonic()
    done = launch("crash", 2, tmp_path, seconds=90)
    assert done.returncode != 0
    assert "Rank 1 failed: ValueError: struck in measure" in done.stderr  # on rank 0
    assert time.monotonic() - start < 60  # start of two processes included


def test_only_rank_zero_logs_and_all_decide_alike(tmp_path: Path) -> None:
    run("logs", 2, tmp_path)
    with (tmp_path / "csv" / "0" / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["ggn/eigenvalue_1"]]
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    first, second = read(tmp_path, "logs", 2)
    assert first["best"] == second["best"] and Path(first["best"]).exists()
    for key in ("ggn/eigenvalue_1", "odd/ggn/eigenvalue_1"):
        assert torch.equal(first["metrics"][key], second["metrics"][key])
    assert float(first["metrics"]["ggn/eigenvalue_1"]) == pytest.approx(
        float(rows[-1]["ggn/eigenvalue_1"]), rel=1e-6
    )
    odd = float(first["metrics"]["odd/ggn/eigenvalue_1"])  # rank 0's schedule: step 1 only
    assert odd == pytest.approx(float(rows[1]["ggn/eigenvalue_1"]), rel=1e-6)
