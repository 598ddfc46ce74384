"""The leading eigenvalues, and pictures of the spectrum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_vivit.figures import draw_layers, draw_spectra
from lightning_vivit.statistics.curvature.curvature_look import CurvatureLook
from lightning_vivit.statistics.findings import Draw
from lightning_vivit.statistics.key import Key
from lightning_vivit.statistics.look import AllGroups

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@Key(
    name="eigenvalue_i",
    category="Curvature",
    chart="Leading eigenvalues of the {matrix}",
    definition="μᵢ, the i-th largest eigenvalue",
    source="{source}",
    range="{range}",
    reading="μ₁ is the sharpness: growing is sharpening; a gap after i separates i stiff "
    "directions from the rest",
    cost="spectrum; without a Gram matrix a search, see `{section}/products`",
    detail="low",
)
def eigenvalue(look: CurvatureLook) -> Tensor:
    """The k largest ones."""
    return look.top


@Key(
    name="eigenvalues_log10",
    kind="histogram",
    category="Curvature",
    definition="log₁₀ of the μᵢ above rounding",
    reading="bulk and outliers",
    needs=("has_rows",),
)
def eigenvalues_log10(look: CurvatureLook) -> Tensor | None:
    """Of the whole spectrum only."""
    if not look.whole:
        return None
    return look.eigenvalues[look.eigenvalues.numel() - look.determined :].log10()


@Key(
    name="spectrum",
    kind="figure",
    category="Curvature",
    definition="μᵢ against i on log axes at up to 32 monitored steps, earlier ones lighter; of "
    "signed ones those that are positive",
    reading="a cliff: few stiff directions",
)
def spectrum(look: CurvatureLook) -> Draw:
    """The spectra so far, this step's included."""
    history = look.memory.history
    history.add(look.step, look.eigenvalues)
    return lambda: draw_spectra(history.entries(), f"{look.matrix.title} eigenvalues")


@Key(
    name="layers",
    kind="overview",
    category="Curvature",
    definition="largest eigenvalue of each parameter group (rows) over the steps, log₁₀; with "
    "several groups",
    reading="which layer is stiff, and when",
)
def layers(groups: AllGroups) -> Draw | None:
    """The largest eigenvalues of several groups over the steps."""
    if len(groups.memories) < 2:
        return None

    def draw() -> Figure:
        histories = {group: memory.history for group, memory in groups.memories.items()}
        entries = {group: dict(history.entries()) for group, history in histories.items()}
        steps = sorted({step for found in entries.values() for step in found})
        nothing = torch.tensor([torch.nan])
        values = [[float(e.get(step, nothing).max()) for step in steps] for e in entries.values()]
        title = f"Largest {groups.words['matrix']} eigenvalues"
        return draw_layers(list(entries), steps, np.array(values), title)

    return draw


@Key(
    name="eigenvalues",
    kind="array",
    category="Curvature",
    definition="all known μᵢ, [K] ascending",
)
def eigenvalues(look: CurvatureLook) -> Tensor:
    """As they were found."""
    return look.eigenvalues
