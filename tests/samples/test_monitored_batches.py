"""Monitors on batches of every structure, against dense float64 matrices of the same samples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monitor_toys import trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.samples.batch import checksum
from samples.structures import FEATURES, STRUCTURES, Structure, inputs_of, labels_of

BATCH, KEPT = 24, 8


class Reader(pl.LightningModule):
    """A network on whatever batches a structure gives."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.structure = structure
        self.net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 3))
        self.sizes: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = self.structure.read(batch)
        self.sizes.append(len(inputs))
        return F.cross_entropy(self.net(inputs.to(self.net[0].weight)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(params=STRUCTURES.values(), ids=STRUCTURES.keys())
def structure(request: pytest.FixtureRequest) -> Structure:
    return request.param


def fit(root: Path, structure: Structure, *monitors: pl.Callback) -> Reader:
    module = Reader(structure)
    batches = DataLoader(range(BATCH), batch_size=BATCH, collate_fn=structure.make)
    trainer(root, *monitors, max_epochs=2).fit(module, batches)
    return module


def dense(samples: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the GGN, descending, and the kernel [N, N], by explicit Jacobians."""
    net = copy.deepcopy(Reader(STRUCTURES["list"]).net).double()
    outputs = net(inputs_of(samples).double())
    rows = []
    for output in outputs.flatten():
        grads = torch.autograd.grad(output, list(net.parameters()), retain_graph=True)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    jacobian = torch.stack(rows).reshape(len(samples), 3, -1)
    p = outputs.detach().softmax(1)
    hessians = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    ggn = torch.einsum("nci,ncd,ndj->ij", jacobian, hessians, jacobian) / len(samples)
    kernel = torch.einsum("nci,mci->nm", jacobian, jacobian)
    return torch.linalg.eigvalsh(ggn).flip(0).numpy(), kernel.numpy()


@pytest.mark.parametrize("method", ["gram", "matrix_free"])
def test_eigenvalues_and_kernels_of_the_first_samples(
    tmp_path: Path, structure: Structure, method: str
) -> None:
    eigenvalues, kernel = dense(list(range(KEPT)))
    spectra: list[Any] = []
    kernels: list[Any] = []
    options = {"microbatch": 3, "tol": 1e-6} if method == "matrix_free" else {}
    monitors: list[pl.Callback] = [
        GGNSpectrumMonitor(
            k=3, max_samples=KEPT, method=method, on_result=spectra.append, **options
        )
    ]
    if method == "gram":
        monitors.append(
            NTKMonitor(k=1, data="batch", mode="trace", max_samples=KEPT, on_result=kernels.append)
        )
        monitors.append(DirectionalDerivativesMonitor(k=2, max_samples=KEPT))
    module = fit(tmp_path, structure, *monitors)
    found = [spectra[0].scalars[f"ggn/eigenvalue_{i}"] for i in (1, 2, 3)]
    np.testing.assert_allclose([float(value) for value in found], eigenvalues[:3], rtol=1e-5)
    for result in kernels[:1]:
        np.testing.assert_allclose(result.arrays["ntk/kernel"], kernel, rtol=1e-5, atol=1e-5)
    assert module.sizes[-1] == BATCH  # the run itself sees them all
    plain = fit(tmp_path, structure)
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_given_batch_is_left_as_it_is(tmp_path: Path, structure: Structure) -> None:
    given = structure.make(list(range(BATCH)))
    before, spectra = checksum(given), []
    monitor = GGNSpectrumMonitor(k=2, probe=given, max_samples=KEPT, on_result=spectra.append)
    fit(tmp_path, structure, monitor)
    eigenvalues, _ = dense(list(range(KEPT)))
    found = [float(spectra[0].scalars[f"ggn/eigenvalue_{i}"]) for i in (1, 2)]
    np.testing.assert_allclose(found, eigenvalues[:2], rtol=1e-5)
    assert checksum(given) == before


@pytest.mark.parametrize("name", ["dataclass with names", "mapping with state", "list of samples"])
def test_a_drawn_probe_is_of_the_structure(tmp_path: Path, name: str) -> None:
    module = Reader(STRUCTURES[name])
    batches = DataLoader(range(BATCH), batch_size=BATCH, collate_fn=STRUCTURES[name].make)
    monitor = NTKMonitor(k=2, data="train", max_samples=KEPT, mode="trace")
    trainer(tmp_path, monitor).fit(module, batches)
    probe = monitor.source.probe
    inputs, labels = STRUCTURES[name].read(probe)
    chosen = [int((inputs_of(range(BATCH)) == row).all(1).nonzero()) for row in inputs]
    assert len(set(chosen)) == KEPT and torch.equal(labels, labels_of(chosen))


def test_double_precision_reaches_tensors_and_arrays_everywhere(tmp_path: Path) -> None:
    arrays = Structure(
        lambda s: {"x": inputs_of(s).numpy(), "y": labels_of(s)},
        lambda b: (torch.from_numpy(b["x"]), b["y"]),
    )
    for structure in (arrays, STRUCTURES["slots with to"], STRUCTURES["graphs"]):
        spectra: list[Any] = []
        monitor = GGNSpectrumMonitor(
            k=2, max_samples=KEPT, replay_dtype="float64", on_result=spectra.append
        )
        fit(tmp_path, structure, monitor)
        eigenvalues, _ = dense(list(range(KEPT)))
        found = [float(spectra[0].scalars[f"ggn/eigenvalue_{i}"]) for i in (1, 2)]
        np.testing.assert_allclose(found, eigenvalues[:2], rtol=1e-7)


def test_a_list_of_images_whose_samples_cannot_be_told_is_one_line(tmp_path: Path) -> None:
    images = Structure(
        lambda s: list(torch.ones(len(s), 3, FEATURES)),
        lambda b: (torch.stack(b)[:, 0], labels_of(range(len(b)))),
    )
    monitor = NTKMonitor(k=1, data="batch", mode="trace")
    batches = DataLoader(range(9), batch_size=9, collate_fn=images.make)
    with pytest.warns(
        RuntimeWarning, match=r"which rows\s+belong\s+to\s+which\s+sample\s+cannot\s+be\s+told"
    ):
        trainer(tmp_path, monitor).fit(Reader(images), batches)
