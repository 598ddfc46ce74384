"""The results of 2 and 4 processes are those of one process on all samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parallel_comparison import assert_close, compare, stated
from parallel_launch import read
from parallel_runs import VALUES, K, Net, keepers
from torch.utils.flop_counter import FlopCounterMode

from lightning_vivit.evaluation.evaluate import evaluate


def check(name: str, folder: Path, ranks: int) -> None:
    kind = VALUES[name][0]
    found = read(folder, f"values_{kind.__name__}", ranks)
    assert compare(name, found, list(keepers(kind)).index(name)) >= 3


@pytest.mark.parametrize("name", VALUES)
def test_two_ranks(name: str, two: Path) -> None:
    check(name, two, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", VALUES)
def test_four_ranks(name: str, four: Path) -> None:
    check(name, four, 4)


def test_all_ranks_hold_the_same_values(two: Path) -> None:
    first, second = (each["metrics"] for each in read(two, "values_Net", 2))
    watched = [key for key in first if "keep/" in key]
    assert len(watched) >= 10
    assert all(torch.equal(first[key], second[key]) for key in watched)


def test_number_of_samples_grows_with_the_ranks(two: Path) -> None:
    found = read(two, "values_Net", 2)[1]["found"]
    places = list(keepers(Net))
    sizes = {name: found[places.index(name)][0]["num_samples"] for name in places}
    assert sizes["batch"] == 2 * 4
    assert sizes["layers"] == 2 * 3  # max_samples limits each rank's own batch
    assert sizes["probe"] == 7 and sizes["few"] == 3 and sizes["one"] == 1  # a probe, divided


def check_work(folder: Path, ranks: int) -> None:
    """Each rank does its share of what one process does, and little more."""
    kept = [each["found"][0] for each in read(folder, "work", ranks)]
    problem = stated("probe", [found[-1] for found in kept], None)
    for _ in range(2):  # the first time the structure is proved
        with FlopCounterMode(display=False) as counter:
            expected = evaluate(problem)
            expected.eigenvectors(k=K)
            expected.newton_step(k=K, damping=0.1)
    assert_close(kept[0][-1]["ntk"], expected.ntk(), "ntk")
    share = max(found[-1]["count"] for found in kept) / counter.get_total_flops()
    assert share < 1.25 / ranks
    assert share > 0.5 / ranks  # below 1 / ranks: the exchange uses the symmetry of small kernels


def test_the_work_is_shared(two: Path) -> None:
    check_work(two, 2)


@pytest.mark.long
def test_the_work_is_shared_by_four(four: Path) -> None:
    check_work(four, 4)


def check_passes(folder: Path, ranks: int) -> None:
    VALUES["memory"] = (Net, {"max_samples": 3})
    try:
        assert compare("memory", read(folder, "memory", ranks), 0) == 3
    finally:
        del VALUES["memory"]


def test_passes_inside_a_memory_budget(two: Path) -> None:
    check_passes(two, 2)


@pytest.mark.long
def test_passes_inside_a_memory_budget_on_four_ranks(four: Path) -> None:
    check_passes(four, 4)
