"""The batch of a monitor: drawn without touching the run, sliced, transferred by the module."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from monitor_toys import Classifier, NoisyDataset, blobs, loader, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from lightning_vivit.callbacks.probe import BatchSource
from lightning_vivit.errors import OptionError
from lightning_vivit.problem.isolation.eval_mode import eval_mode
from lightning_vivit.problem.isolation.private_copy import private_copy
from lightning_vivit.problem.isolation.rng import isolated_rng
from lightning_vivit.samples.batch import clone
from lightning_vivit.samples.cut import limit
from lightning_vivit.samples.size import read


class Fetcher(pl.Callback):
    """Asks a source for its batch at every step."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source
        self.batches: list[Any] = []
        self.steps: list[Any] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(clone(self.source.fetch(trainer, pl_module, batch)))
        self.steps.append(clone(batch))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        if self.source.wants_validation:
            self.source.see_validation(batch)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(*blobs(24).tensors, strict=True)


def fetch(tmp_path: Path, source: BatchSource, train: Any = None, **options: Any) -> Fetcher:
    fetcher = Fetcher(source)
    run = trainer(tmp_path, fetcher, **options)
    run.fit(Classifier(), loader(shuffle=True) if train is None else train, loader())
    return fetcher


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def global_state() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate()


def test_batch_is_the_training_batch(tmp_path: Path) -> None:
    found = fetch(tmp_path, BatchSource("batch"))
    assert all(same(a, b) for a, b in zip(found.batches, found.steps, strict=True))


def test_max_samples_slices_the_training_batch(tmp_path: Path) -> None:
    found = fetch(tmp_path, BatchSource("batch", max_samples=3))
    assert [len(batch[1]) for batch in found.batches] == [3] * 6
    assert torch.equal(found.batches[0][0], found.steps[0][0][:3])


@pytest.mark.parametrize("data", ["train", "val"])
def test_probe_is_fixed_and_depends_on_the_seed(tmp_path: Path, data: str) -> None:
    first = fetch(tmp_path, BatchSource(data, seed=1))
    again = fetch(tmp_path, BatchSource(data, seed=1))
    other = fetch(tmp_path, BatchSource(data, seed=2))
    assert all(same(batch, first.batches[0]) for batch in first.batches + again.batches)
    assert not same(first.batches[0], other.batches[0])
    assert len(first.batches[0][1]) == 8  # the loader's batch size


def test_probe_may_be_larger_than_a_batch(tmp_path: Path) -> None:
    assert len(fetch(tmp_path, BatchSource("train", max_samples=20)).batches[0][1]) == 20


def test_drawing_a_probe_leaves_dataset_and_random_states_alone(tmp_path: Path) -> None:
    def run(source: BatchSource) -> tuple[Any, ...]:
        pl.seed_everything(3)
        data = NoisyDataset()
        found = fetch(tmp_path, source, loader(data, shuffle=True))
        return found.steps, data.reads, data.generator.bit_generator.state, global_state()

    plain, probed = run(BatchSource("batch")), run(BatchSource("train"))
    assert all(same(a, b) for a, b in zip(plain[0], probed[0], strict=True))
    assert plain[1:] == probed[1:]


def test_probe_respects_a_subset_sampler(tmp_path: Path) -> None:
    inputs, _ = blobs().tensors
    train = loader(sampler=SubsetRandomSampler([4, 5, 6, 7]))
    probe = fetch(tmp_path, BatchSource("train"), train).batches[0][0]
    assert {int((inputs == row).all(1).nonzero()) for row in probe} == {4, 5, 6, 7}


def test_probe_uses_the_collate_function(tmp_path: Path) -> None:
    def collate(samples: list[Any]) -> list[Tensor]:
        inputs, labels = torch.utils.data.default_collate(samples)
        return [inputs * 0 + 5, labels]

    found = fetch(tmp_path, BatchSource("train"), loader(collate_fn=collate))
    assert bool((found.batches[0][0] == 5).all())


def test_probe_of_a_loader_without_automatic_batching(tmp_path: Path) -> None:
    class Ready(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            inputs, labels = blobs().tensors
            return inputs[:10], labels[:10]

    source = BatchSource("train", max_samples=4)
    found = fetch(tmp_path, source, DataLoader(Ready(), batch_size=None))
    assert len(found.batches[0][1]) == 4


def test_probe_of_a_dict_of_loaders_has_its_structure(tmp_path: Path) -> None:
    class Pair(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], batch_idx)

    fetcher = Fetcher(BatchSource("train", max_samples=5))
    loaders = {"a": loader(), "b": [loader(), loader()]}
    trainer(tmp_path, fetcher).fit(Pair(), loaders)
    batch = fetcher.batches[0]
    assert len(batch["a"][1]) == len(batch["b"][1][0]) == 5


def test_iterable_train_data_keeps_the_first_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        found = fetch(tmp_path, BatchSource("train", max_samples=6), loader(Stream()))
    assert all(same(batch, [part[:6] for part in found.steps[0]]) for batch in found.batches)
    said = [text for text in caplog.messages if "cannot be drawn from the train loader" in text]
    assert len(said) == 1


@pytest.mark.parametrize("sanity_steps", [0, 1])
def test_iterable_validation_data_keeps_the_first_batch(tmp_path: Path, sanity_steps: int) -> None:
    fetcher = Fetcher(BatchSource("val"))
    run = trainer(tmp_path, fetcher, max_epochs=2, num_sanity_val_steps=sanity_steps)
    run.fit(Classifier(), loader(), loader(Stream()))
    missing = [batch is None for batch in fetcher.batches]
    assert missing == [sanity_steps == 0] * 6 + [False] * 6
    assert len(fetcher.batches[-1][1]) == 8


def test_data_that_cannot_be_copied_keeps_the_first_batch(tmp_path: Path) -> None:
    data = NoisyDataset()
    data.file = open(__file__)  # type: ignore[attr-defined]  # noqa: SIM115
    found = fetch(tmp_path, BatchSource("train"), loader(data))
    data.file.close()  # type: ignore[attr-defined]
    assert same(found.batches[-1], found.steps[0])


def test_no_validation_data_is_an_error(tmp_path: Path) -> None:
    run = trainer(tmp_path, Fetcher(BatchSource("val")))
    with pytest.raises(OptionError, match="data='val' needs a validation loader"):
        run.fit(Classifier(), loader())


def test_given_batch_goes_through_the_transfer_hooks(tmp_path: Path) -> None:
    class Hooked(Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + 1, batch[1]]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] * 2, batch[1]]

    batch = [torch.ones(4, 6), torch.zeros(4, dtype=torch.long)]
    fetcher = Fetcher(BatchSource(given=batch))
    trainer(tmp_path, fetcher).fit(Hooked(), loader())
    assert all(bool((found[0] == 4).all()) for found in fetcher.batches)


def test_given_callable_is_called_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def give() -> Any:
        calls.append(1)
        return next(iter(loader()))

    fetch(tmp_path, BatchSource(given=give, max_samples=2))
    assert calls == [1]


def test_given_batch_follows_the_precision(tmp_path: Path) -> None:
    batch = [torch.ones(4, 6), torch.zeros(4, dtype=torch.long)]
    found = fetch(tmp_path, BatchSource(given=batch), precision="64-true")
    assert found.batches[0][0].dtype == torch.float64


def test_limit_slices_only_tensors_with_the_batch_axis() -> None:
    batch = {"x": torch.ones(4, 2), "y": [torch.ones(4)], "table": torch.ones(7, 4), "name": "a"}
    found = limit(batch, 3)
    assert found["x"].shape == (3, 2)
    assert found["y"][0].shape == (3,)
    assert found["table"].shape == (7, 4)
    assert found["name"] == "a"


def test_limit_refuses_to_cut_what_may_be_positions() -> None:
    sequences, labels = torch.zeros(9, 20, 4), torch.zeros(20)
    with pytest.raises(OptionError, match=r"sequence\s+first.*max_samples=8"):
        limit((sequences, labels), 8)
    assert limit((sequences, labels), 32)[0].shape == (9, 20, 4)
    images, classes = limit((torch.zeros(9, 20, 4), torch.zeros(9)), 8)
    assert images.shape == (8, 20, 4) and classes.shape == (8,)


def test_limit_reaches_into_dataclasses() -> None:
    @dataclass
    class Batch:
        x: Tensor
        y: Tensor

    batch = Batch(torch.ones(4, 2), torch.ones(4))
    assert limit(batch, 2).x.shape == (2, 2)
    assert batch.x.shape == (4, 2)


def test_batch_size_without_tensors() -> None:
    assert read(["a", 3]).count == 0
    assert limit(["a", 3], 1) == ["a", 3]


def test_clone_takes_changes_of_the_containers() -> None:
    batch = {"x": torch.ones(2), "more": [torch.ones(2), "a"]}
    copied = clone(batch)
    copied["more"].append(1)
    copied["x"].zero_()
    copied.pop("more")
    assert len(batch["more"]) == 2
    assert bool((batch["x"] == 1).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "test"}, "data has to be one of 'batch', 'train', 'val', got 'test'"),
        ({"data": "train", "given": [torch.ones(2)]}, "Both data='train' and a probe"),
        ({"max_samples": 0}, "max_samples has to be a positive integer, got 0"),
        ({"seed": -1}, "seed has to be an integer >= 0, got -1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BatchSource(**options)


def test_isolated_rng_puts_back_after_an_error() -> None:
    before = global_state()
    with pytest.raises(ValueError), isolated_rng(5):
        torch.rand(2), np.random.rand(), random.random()
        raise ValueError
    assert global_state() == before


def test_private_copy_shares_data_and_owns_state() -> None:
    data = NoisyDataset()
    copied = private_copy(data)
    copied[0]
    assert copied.inputs is data.inputs
    assert data.reads == 0
    assert data.generator.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_eval_mode_restores_every_flag_and_buffer() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2))
    net[0].eval()
    with eval_mode(net):
        assert not net.training
        net[1].running_mean.add_(1)  # type: ignore[union-attr, operator]
    assert [child.training for child in net.modules()] == [True, False, True]
    assert bool((net[1].running_mean == 0).all())  # type: ignore[union-attr]
