"""What can be tested without other processes: parts, messages, refusals."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DeepSpeedStrategy, ParallelStrategy
from samples.structures import STRUCTURES
from torch import Tensor

from lightning_vivit import GGNSpectrumMonitor
from lightning_vivit.errors import OptionError
from lightning_vivit.factors import Dense, Factor, Lookup, OuterProduct, Shift
from lightning_vivit.factors.contract import contract
from lightning_vivit.parallel import PeerError, Ranks, gather_batch, take_part
from lightning_vivit.parallel.messages import Form, rows_form
from lightning_vivit.samples.batch import checksum

CPU = torch.device("cpu")


@pytest.mark.parametrize("samples", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_parts_are_contiguous_and_complete(samples: int, size: int) -> None:
    batch = {"x": torch.arange(samples), "y": [torch.ones(samples, 2)], "n": 3, "w": torch.ones(13)}
    parts = [take_part(batch, Ranks(rank, size)) for rank in range(size)]
    kept = [part for part, borrowed in parts if not borrowed]
    assert torch.equal(torch.cat([part["x"] for part in kept]), batch["x"])
    assert all(len(part["y"][0]) == len(part["x"]) for part, _ in parts)
    assert all(part["n"] == 3 and len(part["w"]) == 13 for part, _ in parts)
    lengths = [len(part["x"]) for part in kept]
    assert max(lengths) - min(lengths) <= 1
    assert sum(borrowed for _, borrowed in parts) == max(0, size - samples)


@dataclass
class Pair:
    """Batches may be dataclasses and mappings that are no dicts."""

    x: Tensor
    more: UserDict[str, Tensor]


def test_parts_of_other_containers() -> None:
    batch = Pair(torch.arange(4), UserDict(y=torch.arange(8).reshape(4, 2)))
    part, _ = take_part(batch, Ranks(1, 2))
    assert part.x.tolist() == [2, 3] and part.more["y"].tolist() == [[4, 5], [6, 7]]
    assert checksum(part) != checksum(batch)


@pytest.mark.parametrize("name", STRUCTURES)
def test_parts_of_every_structure_are_the_whole_again(name: str) -> None:
    whole = STRUCTURES[name].make(list(range(9)))
    mine, theirs = (take_part(whole, Ranks(rank, 2))[0] for rank in (0, 1))
    assert checksum(gather_batch(mine, Recorded([theirs]))) == checksum(whole)


def test_parts_are_joined_in_the_order_of_the_ranks() -> None:
    more = UserDict(w=torch.ones(2, 3), s=torch.tensor(1.0))
    ranks = Recorded([Pair(torch.tensor([4, 5, 6]), more)])
    batch = Pair(torch.tensor([1, 2]), UserDict(w=torch.ones(2, 3), s=torch.tensor(1.0)))
    whole = gather_batch(batch, ranks)
    assert whole.x.tolist() == [1, 2, 4, 5, 6]
    assert whole.more["w"].shape == (2, 3)  # a row for each sample of one rank only by chance
    assert ranks.gave[0].x.tolist() == [1, 2]


def test_rows_of_a_factor_give_its_kernel() -> None:
    factor = OuterProduct(
        torch.randn(3, 2, 1, 4, 5), torch.randn(3, 1, 6, 5), torch.Size([4, 6]), False, 1.0
    )
    form = rows_form(factor)
    rows = form.prepare(factor)
    assert isinstance(rows, Dense) and form.tensors["values"][0] == rows.values.shape
    assert form.read(form.write(rows, torch.empty(form.size, dtype=torch.uint8)), CPU).shape == (
        rows.shape
    )
    torch.testing.assert_close(contract(rows, rows), contract(factor, factor))
    plain = Form.of(factor)
    assert plain.prepare(factor) is factor


def test_checksum_sees_every_entry() -> None:
    batch = [torch.zeros(3, dtype=torch.bfloat16), {"y": torch.arange(4)}, "text"]
    changed = [torch.zeros(3, dtype=torch.bfloat16), {"y": torch.tensor([0, 1, 2, 4])}, "text"]
    assert checksum(batch) == checksum(batch) != checksum(changed)


def factors() -> list[Factor]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = torch.tensor([[0, 3], [2, -1], [1, 1]])
    return [
        Dense(noise(3, 2, 5), torch.Size([5])),
        Shift(noise(3, 2, 4, 6), torch.Size([4])),
        OuterProduct(noise(3, 2, 2, 3, 4), noise(3, 2, 5, 4), torch.Size([2, 5, 3]), True),
        OuterProduct(
            noise(2, 2, 1, 3, 4)[:, :1], noise(2, 1, 5, 4), torch.Size([3, 5]), False, 1.0
        ),
        OuterProduct(noise(3, 2, 1, 3, 4), noise(3, 1, 8, 4), torch.Size([3, 2, 2, 2]), taps=4),
        Dense(noise(3, 2, 24), torch.Size([3, 2, 2, 2]), 4),
        Lookup(noise(3, 2, 2, 5), tokens, torch.Size([4, 5])),
    ]


@pytest.mark.parametrize("factor", factors(), ids=lambda factor: type(factor).__name__)
def test_a_factor_survives_its_message(factor: Factor) -> None:
    form = Form.of(factor)
    buffer = torch.full((form.size + 100,), 7, dtype=torch.uint8)
    message = form.write(factor, buffer)
    assert message.numel() == form.size
    found = form.read(message.clone(), CPU)
    assert type(found) is type(factor) and vars(found).keys() == vars(factor).keys()
    for name, value in vars(factor).items():
        other = getattr(found, name)
        assert torch.equal(other, value) if isinstance(value, Tensor) else other == value
    assert bool((buffer[form.size :] == 7).all())


def test_one_process_has_nothing_to_agree_on() -> None:
    ranks, error = Ranks(), ValueError("x")
    assert ranks.exchange(5) == [5] and ranks.first("a") == "a"
    assert ranks.spread(error) is error
    tensor = torch.ones(2)
    ranks.add_up({"a": tensor})
    assert torch.equal(tensor, torch.ones(2))


class Recorded(Ranks):
    """Another rank that failed, or nothing."""

    def __init__(self, answers: list[Any]) -> None:
        super().__init__(0, 2)
        self.answers, self.gave = answers, []

    def _gather(self, value: Any) -> list[Any]:
        self.gave.append(value)
        return [value, self.answers.pop(0)]


def test_an_error_is_told_once_and_a_peers_error_never() -> None:
    ranks = Recorded([None, None])
    error = ValueError("x")
    assert ranks.spread(error) is error and ranks.spread(error) is error
    assert len(ranks.gave) == 1 and ranks.gave[0].cause == "ValueError: x"
    peer = Recorded([ranks.gave[0]])
    with pytest.raises(PeerError, match="Rank 1 failed: ValueError: x") as caught:
        peer.exchange()
    assert peer.spread(caught.value) is caught.value and len(peer.gave) == 1
    ranks.end_step()
    ranks.spread(error)
    assert len(ranks.gave) == 2


class Pipeline(ParallelStrategy):
    """A strategy of somebody else."""


Pipeline.__abstractmethods__ = frozenset()


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, Pipeline])
def test_strategies_without_a_whole_model_are_refused_in_setup(
    kind: type[ParallelStrategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = kind.__new__(kind)  # making one needs DeepSpeed itself
    monitor = GGNSpectrumMonitor()
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[monitor])
    monkeypatch.setattr(type(trainer), "strategy", property(lambda self: unknown))
    with pytest.raises(OptionError, match=f"{kind.__name__} is not supported.*DDP.*FSDP2"):
        monitor.setup(trainer, BoringModel(), "fit")
