"""Kernels of data sets against the one-shot kernel, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_vivit import (
    InteractionError,
    KernelEstimate,
    OptionError,
    ProblemError,
    empirical_ntk,
    ntk_between,
)
from lightning_vivit.datasets import blocks
from lightning_vivit.datasets.block_rows import RowMaker

MODES = ["trace", "full", "diagonal", "pseudo", "projected"]


class Net(nn.Module):
    """Convolution, normalisation, dropout and a head: of eval mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten()
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Net().double()
    net(torch.randn(32, 1, 4, 4).double())
    return net


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 4, 4, generator=generator).double()


def loader(x: Tensor, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=batch_size, **options)


def between(*args: Any, **options: Any) -> Any:
    return ntk_between(*args, **{"progress": False, **options})


def truth(model: nn.Module, x1: Tensor, x2: Tensor | None, mode: str, **options: Any) -> Any:
    model.eval()
    found = empirical_ntk(model, x1, x2, mode, **options)
    model.train()
    return found


def close(found: Any, expected: Any) -> None:
    if isinstance(expected, KernelEstimate):
        assert isinstance(found, KernelEstimate)
        close(found.kernel, expected.kernel)
        close(found.standard_error, expected.standard_error)
        return
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-10 * float(expected.abs().max()) + 1e-12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block_size", [None, 3, 5])
@pytest.mark.parametrize("file", [False, True])
def test_is_the_kernel_of_all_samples(
    model: nn.Module, tmp_path: Path, mode: str, block_size: int | None, file: bool
) -> None:
    x1, x2 = images(11), images(6, seed=1)
    first = {"mode": mode, "block_size": block_size}
    second = dict(first)
    if file:
        first["out"], second["out"] = tmp_path / "a.npy", tmp_path / "b" / "b.npy"
    close(between(model, loader(x1), **first), truth(model, x1, None, mode))
    both = between(model, loader(x1), loader(x2, 5), **second)
    close(both, truth(model, x1, x2, mode))
    if file:
        saved = torch.from_numpy(np.load(tmp_path / "b" / "b.npy"))
        close(KernelEstimate(*saved) if mode == "projected" else saved, both)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_small_budget_gives_the_same(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, mode: str, symmetric: bool
) -> None:
    """With one block of rows at a time the loader is read again for each."""
    monkeypatch.setattr(blocks, "_block_sizes", lambda *_: (2, 2))
    x1, x2 = images(11), None if symmetric else images(6, seed=1)
    second = None if x2 is None else loader(x2)
    close(between(model, loader(x1), second, mode=mode), truth(model, x1, x2, mode))


def test_every_sample_is_evaluated_once_if_memory_allows(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    plain = RowMaker.rows

    def watched(self: RowMaker, inputs: Any) -> Any:
        counts.append(len(inputs))
        return plain(self, inputs)

    monkeypatch.setattr(RowMaker, "rows", watched)
    between(model, loader(images(11)), block_size=3)
    assert counts == [4, 3, 3, 3, 2]  # the first ones measure the memory of a sample
    counts.clear()
    between(model, loader(images(11)), loader(images(5, seed=1)), block_size=3)
    assert counts == [4, 3, 3, 3, 2, 3, 2]


def test_the_budget_chooses_block_and_stripe(model: nn.Module) -> None:
    sample = RowMaker(model.eval(), blocks.OutputKernel.of("full"), {"all": ["head.weight"]}).rows(
        images(4)
    )
    wanted = blocks.OutputKernel.of("full")
    each = sample.nbytes // 4

    def bytes_of(size: int) -> int:
        return int(3.5 * each * size) + 4 * 8 * 9 * size**2

    for budget in (2**17, 2**20, 2**24):
        size, held = blocks._block_sizes(sample, wanted, None, budget)
        assert bytes_of(size) <= budget // 2
        assert size == 256 or bytes_of(2 * size) > budget // 2
        assert held == max(1, (budget - bytes_of(size)) // (each * size))
    with pytest.raises(ProblemError, match="Use a larger max_memory"):
        blocks._block_sizes(sample, wanted, None, 100)


def test_parameter_groups(model: nn.Module, tmp_path: Path) -> None:
    x = images(5)
    for mode in ("full", "projected"):
        found = between(
            model,
            loader(x),
            mode=mode,
            param_groups="layer",
            block_size=2,
            out=tmp_path / f"{mode}.npy",
        )
        expected = truth(model, x, None, mode, param_groups="layer")
        assert list(found) == list(expected) == ["body.0", "body.1", "head"]
        for group in found:
            close(found[group], expected[group])
    one = between(model, loader(x), param_groups=[["head.bias"]])
    assert list(one) == list(truth(model, x, None, "trace", param_groups=[["head.bias"]]))


def test_chosen_outputs(model: nn.Module) -> None:
    x = images(5)
    found = between(model, loader(x), mode="full", outputs=[2, 0], block_size=2)
    close(found, truth(model, x, None, "full", outputs=[2, 0]))


def test_kinds_of_batches(model: nn.Module) -> None:
    x = images(7)
    expected = truth(model, x, None, "trace")
    plain = [x[:4], x[4:]]
    close(between(model, plain), expected)
    close(between(model, DataLoader(TensorDataset(x), batch_size=3)), expected)
    named = [{"image": part, "name": ["a"] * len(part)} for part in plain]
    close(between(model, named, select=lambda batch: batch["image"]), expected)
    close(between(model, named, select=lambda batch: {"x": batch["image"]}), expected)
    close(between(model, named, select=lambda batch: (batch["image"],)), expected)
    with pytest.raises(OptionError, match=r"loader1 gives a dict of 2 entries.*select="):
        between(model, named)
    with pytest.raises(OptionError, match=r"loader2 gives a list of 3 entries"):
        between(model, plain, [[x, x, x]])


class Stream(IterableDataset[Tensor]):
    """Samples without a length."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from images(7)


def test_a_loader_without_length(model: nn.Module) -> None:
    found = between(model, DataLoader(Stream(), batch_size=2), block_size=3)
    close(found, truth(model, images(7), None, "trace"))


def test_batches_of_several_lengths() -> None:
    torch.manual_seed(0)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.hidden = nn.Embedding(7, 4), nn.Linear(4, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.hidden(self.embedding(tokens)).tanh().mean(1))

    model = Pooled().double()
    batches = [torch.randint(0, 7, (3, length)) for length in (5, 2, 5, 3)]
    found = between(model, batches, mode="full", block_size=4)
    rows = []
    for batch in batches:
        for sample in batch:
            outputs = model(sample[None])[0]
            grads = [
                torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
                for value in outputs
            ]
            rows.append(torch.stack([torch.cat([g.flatten() for g in part]) for part in grads]))
    jacobian = torch.stack(rows)
    close(found, torch.einsum("ncp,mdp->nmcd", jacobian, jacobian))
    with pytest.raises(ProblemError, match="Some samples have 20 outputs and others 8"):
        between(model.embedding, batches)


@pytest.mark.parametrize(
    "shuffled",
    [
        DataLoader(TensorDataset(images(6)), shuffle=True),
        DataLoader(
            TensorDataset(images(6)), sampler=torch.utils.data.WeightedRandomSampler([1.0] * 6, 6)
        ),
        DataLoader(
            TensorDataset(images(6)),
            batch_sampler=torch.utils.data.BatchSampler(
                torch.utils.data.SubsetRandomSampler([1, 2]), 2, drop_last=False
            ),
        ),
    ],
)
def test_a_shuffling_loader_is_refused(model: nn.Module, shuffled: DataLoader[Any]) -> None:
    with pytest.raises(OptionError, match=r"loader1 shuffles .*shuffle=False"):
        between(model, shuffled)
    with pytest.raises(OptionError, match="loader2 shuffles"):
        between(model, loader(images(3)), shuffled)


class Noisy(Dataset[Tensor]):
    """Augments at random."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        if index >= 6:
            raise IndexError
        return images(6)[index] + torch.randn(())


def test_data_that_change_between_passes_are_refused(model: nn.Module) -> None:
    with pytest.raises(ProblemError, match="loader1 gave other data at its second pass"):
        between(model, DataLoader(Noisy(), batch_size=2), block_size=2)


def test_other_refusals(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="can be read once only"):
        between(model, iter([images(3)]))
    with pytest.raises(OptionError, match="Unknown mode 'sum'"):
        between(model, loader(images(3)), mode="sum")
    with pytest.raises(OptionError, match="block_size=0"):
        between(model, loader(images(3)), block_size=0)
    with pytest.raises(OptionError, match=r"the name of an \.npy file"):
        between(model, loader(images(3)), out=tmp_path / "kernel.pt")
    with pytest.raises(ProblemError, match="loader1 gives no batch"):
        between(model, [])
    longer = nn.Sequential(nn.Linear(4, 1), nn.ConstantPad2d((0, 0, 0, 1), 1.0))
    with pytest.raises(ProblemError, match="3 samples gave outputs of shape"):
        between(longer, [torch.randn(3, 4)])
    unused = nn.Sequential(nn.Linear(4, 2))
    unused.extra = nn.Linear(2, 2)
    unused.forward = unused[0].forward
    with pytest.raises(OptionError, match="None of the parameters of group"):
        between(unused, [torch.randn(3, 4)], param_groups=[["extra"]])


def test_samples_that_interact_are_refused() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out = self.layer(x)
            return out - out.mean(0)

    with pytest.raises(InteractionError):
        between(Mixing(), [torch.randn(6, 4)])


def test_nothing_is_left_changed(model: nn.Module) -> None:
    model.train()
    model.body[1].eval()
    modes = [child.training for child in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    between(model, loader(images(6)), block_size=2)
    assert [child.training for child in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_bar(model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    ntk_between(model, loader(images(6)), block_size=2)
    assert "NTK: 100%" in capsys.readouterr().err
    between(model, loader(images(6)))
    assert capsys.readouterr().err == ""


def test_half_precision_is_kept_in_float32(model: nn.Module) -> None:
    found = between(model.bfloat16(), loader(images(5).bfloat16()), block_size=2)
    assert found.dtype == torch.float32
    assert float(found.diagonal().min()) > 0
