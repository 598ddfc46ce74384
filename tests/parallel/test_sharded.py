"""FSDP and FSDP2 on two processes: the values of one process, and a run that trains as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import parallel_runs
import pytest
import torch
from parallel_comparison import compare
from parallel_launch import read, run
from sharded_modules import Buffered, Late, Nested, Tied
from sharded_runs import MIXED, USUAL, VALUES, VARIANTS, WORDS
from test_guest import same
from torch.utils._pytree import tree_flatten

OTHERS = [name for name in VARIANTS if name not in USUAL]
PROGRAM = Path(__file__).with_name("sharded_runs.py")


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks wrote."""
    return run("values", 4, tmp_path_factory.mktemp("four"), PROGRAM)


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a single rank wrote."""
    return run("values", 1, tmp_path_factory.mktemp("one"), PROGRAM)


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote with the rarer options of FSDP."""
    return run("others", 2, tmp_path_factory.mktemp("others"), PROGRAM)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote."""
    return run("everything", 2, tmp_path_factory.mktemp("sharded"), PROGRAM)


def built(kind: type[pl.LightningModule]) -> Callable[[], pl.LightningModule]:
    """Makes the module of one process, with all layers."""

    def build() -> pl.LightningModule:
        module = kind()
        module.configure_model()
        return module

    return build


def check(
    name: str,
    place: int,
    kind: type[pl.LightningModule],
    options: dict[str, Any],
    found: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lightning gives the whole state to rank 0 only."""
    for each in found[1:]:
        for mine, first in zip(each["found"][place], found[0]["found"][place], strict=True):
            mine["state"] = first["state"]
    monkeypatch.setitem(parallel_runs.VALUES, name, (built(kind), options))
    assert compare(name, found, place) >= 3


def check_variant(variant: str, folder: Path, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(folder, f"values_{variant}", ranks)
    for place, (name, options) in enumerate(VALUES.items()):
        if "problem" in options:
            options = {"problem": parallel_runs.explicit_problem}
        check(name, place, VARIANTS[variant][0], options, found, monkeypatch)


@pytest.mark.parametrize("variant", USUAL)
def test_values_are_those_of_one_process(
    variant: str, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_variant(variant, sharded, 2, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("variant", OTHERS)
def test_values_with_rarer_options(
    variant: str, others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_variant(variant, others, 2, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("variant", USUAL)
def test_values_of_four_ranks(variant: str, four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_variant(variant, four, 4, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("variant", USUAL)
def test_values_of_a_single_rank(variant: str, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_variant(variant, one, 1, monkeypatch)


@pytest.mark.parametrize("variant", ["fsdp1", "fsdp2"])
def test_tied_weights_stay_tied(
    variant: str, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(sharded, f"words_{variant}", 2)
    check("words", 0, Tied, WORDS["words"], found, monkeypatch)


def test_mixed_precision_is_evaluated_in_float32(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check("mixed", 0, Buffered, MIXED["mixed"], read(sharded, "mixed", 2), monkeypatch)


def test_rounded_weights_of_a_validation_step_are_not_taken(sharded: Path) -> None:
    """At step 0 both runs have the same weights."""
    rounded, exact = (read(sharded, kind, 2)[0]["metrics"] for kind in ("Rounded", "Exact"))
    keys = ("ggn/eigenvalue_1", "ggn/eigenvalue_2", "ggn/trace")
    assert all(float(rounded[key]) == pytest.approx(float(exact[key]), rel=1e-5) for key in keys)


def check_identity(variant: str, folder: Path) -> None:
    plain, watched = (read(folder, f"{variant}_{flag}", 2) for flag in (False, True))
    assert all(same(*pair) for pair in zip(plain, watched, strict=True))
    assert all(each["stopped"] == [False] * 4 for each in watched)
    for prefix in ("ntk/", "directions/", "ggn/eigenvalue", "ggn/subspace_overlap", "free/ggn/"):
        assert all(any(key.startswith(prefix) for key in each["metrics"]) for each in watched)


@pytest.mark.long
def test_a_resumed_run_logs_the_same(tmp_path: Path) -> None:
    run("resumed", 2, tmp_path, PROGRAM)
    for name in ("fsdp1", "fsdp2"):
        straight, resumed = (
            read(tmp_path, f"{name}_{part}", 2)[0]["metrics"] for part in ("straight", "resumed")
        )
        for key in ("ggn/eigenvalue_1", "ggn/subspace_overlap", "ntk/trace", "ntk/distance_first"):
            assert float(resumed[key]) == pytest.approx(float(straight[key]), rel=1e-5)


@pytest.mark.parametrize("variant", USUAL)
def test_training_is_bit_identical(variant: str, sharded: Path) -> None:
    check_identity(variant, sharded)


@pytest.mark.long
@pytest.mark.parametrize("variant", OTHERS)
def test_training_is_bit_identical_with_rarer_options(variant: str, others: Path) -> None:
    check_identity(variant, others)


@pytest.mark.parametrize("variant", ["fsdp1", "fsdp2"])
def test_each_rank_holds_a_part_before_and_after(variant: str, sharded: Path) -> None:
    entries = [
        sum(tensor.numel() for tensor in tree_flatten(each["weights"])[0])
        for each in read(sharded, f"{variant}_True", 2)
    ]
    buffers = sum(buffer.numel() for buffer in Nested().buffers())
    total = sum(parameter.numel() for parameter in Nested().parameters())
    assert sum(entries) == total + 2 * buffers
    assert max(entries) < 0.7 * total


@pytest.mark.parametrize("variant", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("measure1", "ValueError: struck in measure"),
        ("copy1", "Nested cannot be copied (struck in copy)"),
        ("full1", "MemoryError: struck at"),
    ],
)
def test_a_failing_rank_stops_the_monitor_on_all(
    fault: str, cause: str, variant: str, sharded: Path
) -> None:
    found, sound = (read(sharded, f"{variant}_{kind}", 2) for kind in (fault, "sound"))
    assert all(same(*pair) for pair in zip(found, sound, strict=True))
    assert [each["stopped"] for each in found] == [[True]] * 2
    lines = (sharded / f"{variant}_{fault}.txt").read_text().splitlines()
    warned = [line for line in lines if "failed at step 0" in line]
    assert len(warned) == 1 and f"Rank 1 failed: {cause}" in warned[0]


def refusals(folder: Path, name: str) -> list[tuple[str, str, str]]:
    """Of each rank: how far the run came, the class of the error, its message."""
    texts = [(folder / f"{name}-{rank}.refused").read_text() for rank in range(2)]
    return [tuple(text.split(" ", 3)[1:]) for text in texts]  # type: ignore[misc]


@pytest.mark.parametrize(("name", "place"), [("fsdp1", "setup"), ("fsdp2", "setup")])
def test_a_copy_beyond_the_budget_is_refused_in_setup(name: str, place: str, sharded: Path) -> None:
    entries = [parameter.numel() for parameter in Nested().parameters()]
    copied, vectors = 4 * sum(entries), 4 * 4 * sum(entries)  # now and before, k = 2
    for found in refusals(sharded, name):
        assert found[:2] == (place, "OptionError")
        assert f"needs {copied + vectors} bytes on each rank" in found[2]
        assert f"({copied} for the copy, {vectors} more" in found[2]
        assert "the budget is 4000 bytes (max_memory)" in found[2]
        assert f"max_memory={copied + vectors}" in found[2] and "strategy='ddp'" in found[2]


@pytest.mark.parametrize(("name", "gathering"), [("late1", "all"), ("late2", "largest")])
def test_layers_of_configure_model_are_counted_before_training(
    name: str, gathering: str, sharded: Path
) -> None:
    module = Late()
    module.configure_model()
    entries = [parameter.numel() for parameter in module.parameters()]
    more = 4 * (sum(entries) if gathering == "all" else max(entries))
    for found in refusals(sharded, name):
        assert found[:2] == ("fit_start", "OptionError")
        assert f"({4 * sum(entries)} for the copy, {more} more" in found[2]


def test_tensor_parallel_is_refused_in_setup(sharded: Path) -> None:
    for found in refusals(sharded, "tensor"):
        assert found[:2] == ("setup", "OptionError")
        assert "tensor_parallel_size=1" in found[2]


def test_what_the_copy_takes_is_missing_for_the_evaluation(sharded: Path) -> None:
    for found in refusals(sharded, "samples"):
        assert found[0] == "train_start"
        assert "samples" in found[2] and "max_samples" in found[2]


def test_raise_ends_all_ranks_with_the_cause(sharded: Path) -> None:
    struck = float((sharded / "struck.txt").read_text())
    for rank, found in enumerate(refusals(sharded, "raised")):
        ended = float((sharded / f"raised-{rank}.refused").read_text().split()[0])
        assert ended - struck < 30
        assert "ValueError: struck in measure" in found[2]


def test_the_comparison_sees_a_difference(sharded: Path) -> None:
    (plain, _), (other, _) = read(sharded, "fsdp1_True", 2), read(sharded, "fsdp2_True", 2)
    assert not same(plain, other)
    assert torch.equal(plain["rng"], other["rng"])
