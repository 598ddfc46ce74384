"""The kernel's spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.eigen.symmetric import numerical_floor
from lightning_vivit.figures import draw_spectra
from lightning_vivit.metrics import functional
from lightning_vivit.statistics.findings import Draw
from lightning_vivit.statistics.key import Key
from lightning_vivit.statistics.ntk.kernel_look import KernelLook

JACOT = "[Jacot et al. 2018](https://arxiv.org/abs/1806.07572)"


@Key(
    name="trace",
    category="Kernel",
    chart="Trace of the NTK",
    definition="Σₙ tr Kₙₙ",
    source=JACOT,
    range="≥ 0",
    reading="how fast the outputs move for a step in the parameters",
    cost="spectrum of K",
    detail="high",
)
def trace(look: KernelLook) -> Tensor:
    """Sum of the eigenvalues."""
    return look.eigenvalues.sum()


@Key(
    name="eigenvalue_i",
    category="Kernel",
    chart="Leading eigenvalues of the NTK",
    definition='i-th largest eigenvalue of K, of Σ_c Kₙₘ[c, c] with `mode="trace"`',
    source=JACOT,
    range="≥ 0",
    reading="rate at which a mode is learned by gradient flow",
    cost="spectrum of K",
)
def eigenvalue(look: KernelLook) -> Tensor:
    """The k largest ones, the largest first."""
    return look.eigenvalues.flip(0)[: look.k]


@Key(
    name="condition_number",
    category="Kernel",
    chart="Condition number of the NTK",
    definition="largest over smallest eigenvalue above rounding",
    range="≥ 1",
    reading="large: some modes are learned that much more slowly",
    cost="spectrum of K",
)
def condition_number(look: KernelLook) -> Tensor:
    """With the rounding of the kernel's own dtype."""
    floor = min(look.eigenvalues.numel() * torch.finfo(look.kernel.dtype).eps, 0.5)
    return functional.condition_number(look.eigenvalues, floor)


@Key(
    name="effective_rank",
    category="Kernel",
    chart="Effective rank of the NTK",
    definition="exp(−Σᵢ pᵢ log pᵢ) of K's eigenvalues",
    source="[Roy, Vetterli 2007](https://ieeexplore.ieee.org/document/7098875)",
    range="1 to NC",
    reading="low: samples are told apart in few ways only",
    cost="spectrum of K",
    detail="high",
)
def effective_rank(look: KernelLook) -> Tensor:
    """Of all eigenvalues."""
    return functional.effective_rank(look.eigenvalues)


@Key(
    name="eigenvalues_log10",
    kind="histogram",
    category="Kernel",
    definition="log₁₀ of the eigenvalues of K above rounding",
    reading="modes by how fast they are learned",
)
def eigenvalues_log10(look: KernelLook) -> Tensor:
    """Those above rounding."""
    values = look.eigenvalues
    return values[values > numerical_floor(values, look.kernel.dtype)].log10()


@Key(
    name="spectrum",
    kind="figure",
    category="Kernel",
    definition="eigenvalues of K against their index on log axes at up to 32 monitored steps",
    reading="a steep fall: slow modes",
)
def spectrum(look: KernelLook) -> Draw:
    """The spectra so far, this step's included."""
    history = look.memory.history
    history.add(look.step, look.eigenvalues)
    return lambda: draw_spectra(history.entries(), "NTK eigenvalues")


@Key(
    name="eigenvalues", kind="array", category="Kernel", definition="all eigenvalues, [K] ascending"
)
def eigenvalues(look: KernelLook) -> Tensor:
    """All."""
    return look.eigenvalues
