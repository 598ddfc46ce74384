"""Which logged keys share axes, in which order, as the table of statistics says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from lightning_vivit.statistics import SECTIONS, LoggedKey, find_key
from lightning_vivit.statistics.key import CATEGORIES

TRAINING = "Training"
ORDER = (TRAINING, *CATEGORIES)
_TABLE = [section.name for section in SECTIONS.values()]


@dataclass
class Plot:
    """Keys that share axes.

    Attributes:
        category: Title of the section of the page.
        title: What they show; empty for the user's own keys.
        path: The keys in one expression.
        grouped: Whether they are of one or several parameter groups among several.
        limit: A value that they are compared with.
        lines: Key -> its label; empty for the only line.
    """

    category: str
    title: str
    path: str
    grouped: bool = False
    limit: float | None = None
    lines: dict[str, str] = field(default_factory=dict)


def plots(keys: Iterable[str]) -> list[Plot]:
    """The plots of some scalars, in the order of the page; keys of nobody are left out.

    Keys with an index or a layer (eigenvalue_1, eigenvalue_2, ...) share one, the parameter groups
    of other keys share one.
    """
    losses: list[Plot] = []
    found: dict[tuple[str, ...], dict[str, LoggedKey]] = {}
    for key in sorted(set(keys), key=natural):
        logged = find_key(key, "scalar")
        if logged is not None:
            found.setdefault(_shared(logged), {})[key] = logged
        elif "loss" in key.lower():
            losses.append(Plot(TRAINING, "", key, lines={key: ""}))
    return losses + [_plot(logged) for _, logged in sorted(found.items(), key=_place)]


def natural(key: str) -> list[tuple[str, int]]:
    """Sorts net.2 before net.10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", key)]


def glance(keys: Iterable[str]) -> dict[str, LoggedKey]:
    """The keys to look at first: those of low detail over all parameters, and of several the first.

    Args:
        keys: Logged scalars.

    Returns:
        Key -> what it is, in the order of the table.
    """
    logged = {key: find_key(key, "scalar") for key in sorted(set(keys))}
    first = {
        key: each
        for key, each in logged.items()
        if each and each.statistic.detail == "low" and not each.group and each.each in ("", "1")
    }
    return dict(sorted(first.items(), key=lambda item: _rank(item[1])))


def _rank(logged: LoggedKey) -> tuple[int, tuple[int, bool], int, int]:
    statistic, section = logged.statistic, logged.section
    return (
        ORDER.index(statistic.category),
        statistic.rank(),
        _TABLE.index(section.name),
        section.statistics.index(statistic),
    )


def _shared(logged: LoggedKey) -> tuple[str, str, str, str, str]:
    """What keys on the same axes have in common."""
    group = logged.group if logged.statistic.ending else "*" * bool(logged.group)
    statistic, section = logged.statistic, logged.section
    return logged.start, section.name, group, statistic.category, statistic.title(section.words)


def _place(item: tuple[tuple[str, ...], dict[str, LoggedKey]]) -> tuple[object, ...]:
    """Sections, whole parameter vector, what to look at first, group."""
    (start, _, group, *_), logged = item
    category, *rank = min(map(_rank, logged.values()))
    return category, bool(group), *rank, natural(start), natural(group)


def _plot(logged: dict[str, LoggedKey]) -> Plot:
    start, section, group, category, title = _shared(next(iter(logged.values())))
    statistics = {each.statistic.name: each.statistic for each in logged.values()}

    def label(each: LoggedKey) -> str:
        name = each.statistic.stem if len(statistics) > 1 else ""
        parts = (each.group if group == "*" else "", name, each.each)
        return "/".join(part for part in parts if part)

    verdicts = [statistic.verdict for statistic in statistics.values() if statistic.verdict]
    return Plot(
        category,
        title,
        f"{start}{section}/{group and f'{group}/'}{', '.join(statistics)}",
        bool(group),
        verdicts[0].limit if verdicts else None,
        {key: label(each) for key, each in logged.items()},
    )
