"""A kernel in a file: interrupted work goes on where it was, and only with what it was begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_vivit import OptionError, ntk_between
from lightning_vivit.datasets.block_rows import RowMaker

BLOCKS = 10  # of 7 samples in blocks of 2, symmetric


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.fixture
def data() -> list[Tensor]:
    whole = torch.randn(7, 4, generator=torch.Generator().manual_seed(1)).double()
    return list(whole.split(3))


class Counter:
    """Counts the blocks that are computed, and fails at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed = 0
        self.fail_at: int | None = None
        self.error: BaseException = RuntimeError("power cut")
        plain = RowMaker.multiply

        def watched(maker: RowMaker, left: Any, right: Any) -> Any:
            if self.computed == self.fail_at:
                raise self.error
            self.computed += 1
            return plain(maker, left, right)

        monkeypatch.setattr(RowMaker, "multiply", watched)

    def restart(self) -> None:
        self.computed, self.fail_at = 0, None


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def run(model: nn.Module, data: Any, out: Path | None, **options: Any) -> Any:
    options = {"mode": "full", "block_size": 2, "progress": False, **options}
    return ntk_between(model, data, out=out, **options)


@pytest.mark.parametrize("error", [RuntimeError("power cut"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, 6, 9])
def test_only_missing_blocks_are_computed(
    model: nn.Module,
    data: list[Tensor],
    tmp_path: Path,
    counter: Counter,
    error: BaseException,
    after: int,
) -> None:
    expected = run(model, data, None)
    counter.restart()
    counter.fail_at, counter.error = after, error
    with pytest.raises(type(error)):
        run(model, data, tmp_path / "k.npy")
    assert counter.computed == after
    counter.restart()
    found = run(model, data, tmp_path / "k.npy")
    assert counter.computed == BLOCKS - after
    assert torch.equal(found, expected)
    counter.restart()
    assert torch.equal(run(model, data, tmp_path / "k.npy"), expected)
    assert counter.computed == 0


def test_between_two_loaders(
    model: nn.Module, data: list[Tensor], tmp_path: Path, counter: Counter
) -> None:
    other = [part + 1 for part in data]
    expected = run(model, data, None, loader2=other, mode="projected")
    counter.restart()
    counter.fail_at = 11
    with pytest.raises(RuntimeError, match="power cut"):
        run(model, data, tmp_path / "k.npy", loader2=other, mode="projected")
    counter.restart()
    found = run(model, data, tmp_path / "k.npy", loader2=other, mode="projected")
    assert counter.computed == 16 - 11
    assert torch.equal(found.kernel, expected.kernel)
    assert torch.equal(found.standard_error, expected.standard_error)


def test_rows_that_are_complete_are_not_evaluated(
    model: nn.Module,
    data: list[Tensor],
    tmp_path: Path,
    counter: Counter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter.fail_at = 9  # only the last diagonal block is missing
    with pytest.raises(RuntimeError, match="power cut"):
        run(model, data, tmp_path / "k.npy")
    counter.restart()
    seen = []
    plain = RowMaker.rows

    def watched(maker: RowMaker, inputs: Tensor) -> Any:
        seen.append(len(inputs))
        return plain(maker, inputs)

    monkeypatch.setattr(RowMaker, "rows", watched)
    run(model, data, tmp_path / "k.npy")
    assert seen == [3, 1]  # the measurement, and the last sample


def test_the_chosen_block_size_is_kept(
    model: nn.Module, data: list[Tensor], tmp_path: Path, counter: Counter
) -> None:
    counter.fail_at = 3
    with pytest.raises(RuntimeError, match="power cut"):
        run(model, data, tmp_path / "k.npy")
    counter.restart()
    run(model, data, tmp_path / "k.npy", block_size=None)
    assert counter.computed == BLOCKS - 3


def test_a_line_that_was_cut_off_does_not_count(
    model: nn.Module, data: list[Tensor], tmp_path: Path, counter: Counter
) -> None:
    expected = run(model, data, tmp_path / "k.npy")
    journal = tmp_path / "k.npy.journal"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + BLOCKS
    journal.write_text("".join(lines[:-2]) + lines[-2].rstrip("\n"))
    counter.restart()
    assert torch.equal(run(model, data, tmp_path / "k.npy"), expected)
    assert counter.computed == 2
    assert sorted(journal.read_text().splitlines()) == sorted("".join(lines).splitlines())


def test_the_result_does_not_write_to_the_file(
    model: nn.Module, data: list[Tensor], tmp_path: Path
) -> None:
    found = run(model, data, tmp_path / "k.npy")
    before = np.load(tmp_path / "k.npy")
    found.zero_()
    assert np.array_equal(np.load(tmp_path / "k.npy"), before)
    assert before.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "trace"}, "the options"),
        ({"outputs": [0]}, "the options"),
        ({"block_size": 3}, "the block size"),
        ({"param_groups": [["0.weight"]]}, "the parameter groups"),
        ({"loader2": [torch.zeros(7, 4).double()]}, "the data of loader2"),
    ],
)
def test_other_options_are_refused(
    model: nn.Module,
    data: list[Tensor],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    run(model, data, tmp_path / "k.npy")
    with pytest.raises(OptionError, match=f"begun with something else: .*{message}.*Delete"):
        run(model, data, tmp_path / "k.npy", **change)


def test_another_model_is_refused(model: nn.Module, data: list[Tensor], tmp_path: Path) -> None:
    run(model, data, tmp_path / "k.npy")
    other = nn.Sequential(model[0], nn.ReLU(), model[2])
    with pytest.raises(OptionError, match="the model's weights, buffers or architecture"):
        run(other, data, tmp_path / "k.npy")
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-9
    with pytest.raises(OptionError, match="the model's weights, buffers or architecture"):
        run(model, data, tmp_path / "k.npy")


def test_other_data_are_refused(model: nn.Module, data: list[Tensor], tmp_path: Path) -> None:
    run(model, data, tmp_path / "k.npy")
    with pytest.raises(OptionError, match="the data of loader1 changed"):
        run(model, [data[0], data[1] + 1e-9, data[2]], tmp_path / "k.npy")
    with pytest.raises(OptionError, match="the data of loader1, shape changed"):
        run(model, [*data, data[0]], tmp_path / "k.npy")


def test_a_file_of_unknown_origin_is_kept(
    model: nn.Module, data: list[Tensor], tmp_path: Path
) -> None:
    np.save(tmp_path / "k.npy", np.ones(3))
    with pytest.raises(OptionError, match="has no journal beside it"):
        run(model, data, tmp_path / "k.npy")
    assert np.load(tmp_path / "k.npy").shape == (3,)


def test_a_lost_file_is_begun_anew(
    model: nn.Module, data: list[Tensor], tmp_path: Path, counter: Counter
) -> None:
    expected = run(model, data, tmp_path / "k.npy")
    (tmp_path / "k.npy").unlink()
    counter.restart()
    assert torch.equal(run(model, data, tmp_path / "k.npy"), expected)
    assert counter.computed == BLOCKS
