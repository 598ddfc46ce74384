"""Which keys belong on one chart, which charts in one section, and how to read them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# first part of a monitor's keys -> section
SECTIONS = {
    "ggn": "Curvature",
    "directions": "Directions",
    "ntk": "Kernel",
    "gradients": "Gradients",
    "cost": "Cost",
}
TRAINING = "Training"
ORDER = (TRAINING, *SECTIONS.values())

# names of other sections' monitors that are about gradients
GRADIENTS = ("gradient_norm", "sample_gradient_norm", "sample_gradient_norms", "gradient_variance")

# several names on one chart
TOGETHER = {"distance_first": "distance", "distance_previous": "distance"}

# a line that values are compared with
LIMITS = {"sharpness_lr": 1.0}

# what to look at first, and how to read it
GLANCE = {
    "ggn/sharpness_lr": "largest eigenvalue x learning rate over the stability limit of SGD: "
    "above 1 the learning rate is too large for the curvature",
    "ggn/eigenvalue_1": "largest eigenvalue of the GGN: growing means sharpening",
    "ggn/effective_rank": "how many directions carry the curvature",
    "ggn/subspace_overlap": "top subspace against the previous one: near 1 it is stable",
    "directions/gradient_share": "share of the squared gradient along the leading directions",
    "directions/gamma_snr_1": "signal to noise of the slope along the first direction: far below "
    "1 / (number of samples) it is noise",
    "ntk/alignment": "kernel against the labels: rising means that features are learned",
    "ntk/distance_first": "kernel against the first one: near 0 it does not move (lazy)",
}

_OURS = re.compile(rf"(?:^|[^A-Za-z0-9])({'|'.join(SECTIONS)})/(.+)$")
_RANKED = re.compile(r"(.+)_(\d+)$")


@dataclass(frozen=True)
class Place:
    """Where a key belongs.

    Attributes:
        section: Title of the section.
        chart: What is on one chart has this in common.
        line: Label on the chart; empty for the only line.
        grouped: Whether the key is of one of several parameter groups.
        name: Last part of the key.
    """

    section: str
    chart: str
    line: str
    grouped: bool
    name: str


@dataclass
class Chart:
    """Keys that share axes."""

    section: str
    title: str
    grouped: bool
    limit: float | None = None
    lines: dict[str, str] = field(default_factory=dict)  # key -> label


def place(key: str) -> Place | None:
    """Where a key of a monitor belongs; None for a key that is not one of a monitor.

    Ranked keys (eigenvalue_1, eigenvalue_2, ...) share a chart; with several parameter groups the
    groups share one where the key is not ranked.
    """
    found = _OURS.search(key)
    if found is None:
        return None
    kind, rest = found.groups()
    start = key[: found.start(2)]
    group, _, name = rest.rpartition("/")
    section = SECTIONS["gradients"] if name in GRADIENTS else SECTIONS[kind]
    ranked = _RANKED.match(name)
    grouped = bool(group)
    if ranked:
        path = f"{start}{group}/" if grouped else start
        return Place(section, f"{path}{ranked[1]}", ranked[2], grouped, name)
    common = TOGETHER.get(name, name)
    label = "/".join(part for part in (group, name if common != name else "") if part)
    chart = f"{start}*/{common}" if grouped else f"{start}{common}"
    return Place(section, chart, label, grouped, name)


def plain(key: str) -> str | None:
    """A monitor's key without what a logger or a prefix put before it; else None."""
    found = _OURS.search(key)
    return None if found is None else f"{found[1]}/{found[2]}"


def is_ours(key: str) -> bool:
    """Whether a key is one of a monitor."""
    return _OURS.search(key) is not None


def is_loss(key: str) -> bool:
    """Whether a key that is not one of a monitor looks like the user's own loss."""
    return not is_ours(key) and "loss" in key.lower()


def charts(keys: Iterable[str]) -> list[Chart]:
    """The charts of some scalars, in the order of the page; other keys are left out."""
    found: dict[tuple[str, str], Chart] = {}
    placed = []
    for key in sorted(set(keys), key=natural):
        where = place(key)
        if where is None and is_loss(key):
            where = Place(TRAINING, key, "", False, key)
        if where is not None:
            placed.append((where, key))
    for where, key in placed:
        chart = found.setdefault(
            (where.section, where.chart),
            Chart(where.section, where.chart, where.grouped, LIMITS.get(where.name)),
        )
        chart.lines[key] = where.line
    return sorted(found.values(), key=_rank)


def natural(key: str) -> list[tuple[str, int]]:
    """Sorts net.2 before net.10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", key)]


def _rank(chart: Chart) -> tuple[int, bool, int, list[tuple[str, int]]]:
    """Sections, whole parameter vector, what to look at first, title."""
    first = list(GLANCE)
    ranks = [first.index(name) for key in chart.lines if (name := plain(key)) in first]
    return (
        ORDER.index(chart.section),
        chart.grouped,
        min(ranks, default=len(first)),
        natural(chart.title),
    )
