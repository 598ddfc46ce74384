"""Sums over the whole spectrum: trace and effective rank."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.metrics import functional
from lightning_vivit.statistics.curvature.curvature_look import CurvatureLook
from lightning_vivit.statistics.key import Key

HUTCHPP = "[Meyer et al. 2021](https://arxiv.org/abs/2010.09649)"


@Key(
    name="trace",
    category="Curvature",
    chart="Trace of the {matrix}",
    definition="Σᵢ μᵢ; without a Gram matrix an estimate (Hutch++)",
    source=HUTCHPP,
    range="{range}",
    reading="total curvature; if it grows while μ₁ stays, many directions became stiff",
    cost="spectrum; without a Gram matrix 6 products",
)
def trace(look: CurvatureLook) -> float:
    """The sum of the spectrum, or its estimate."""
    return look.trace.value


@Key(
    name="trace_error",
    category="Curvature",
    chart="Trace of the {matrix}",
    definition="standard error of `{section}/trace`; without a Gram matrix only",
    source=HUTCHPP,
    range="≥ 0",
    reading="the trace is known to about twice this number",
    cost="none",
    detail="high",
)
def trace_error(look: CurvatureLook) -> float | None:
    """Of an estimate only."""
    return None if look.whole else look.trace.error


@Key(
    name="effective_rank",
    category="Curvature",
    chart="Effective rank of the {matrix}",
    definition="exp(−Σᵢ pᵢ log pᵢ), pᵢ = μᵢ / Σⱼ μⱼ; with a Gram matrix only",
    source="[Roy, Vetterli 2007](https://ieeexplore.ieee.org/document/7098875)",
    range="1 to NC, 0 for a zero matrix",
    reading="number of directions that carry the curvature; n for n equal eigenvalues",
    cost="spectrum",
    detail="low",
    needs=("has_rows",),
)
def effective_rank(look: CurvatureLook) -> Tensor | None:
    """Of the whole spectrum only."""
    return functional.effective_rank(look.eigenvalues) if look.whole else None
