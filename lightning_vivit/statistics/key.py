"""The declaration of a key: everything that loggers, pages and people have to know of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

CATEGORIES = ("Curvature", "Directions", "Kernel", "Gradients", "Cost")  # in this order on pages
DETAILS = ("low", "normal", "high")
INDEX = "_i"  # ends a name that has one key for each index
LAYER = "/<layer>"  # ends a name that has one key for each layer

Kind: TypeAlias = Literal["scalar", "histogram", "figure", "overview", "array"]


@dataclass(frozen=True)
class Verdict:
    """A limit that a scalar is read against.

    Attributes:
        limit: The value above which something is wrong.
        above: What is wrong then.
        source: Who says so.
    """

    limit: float
    above: str
    source: str

    def of(self, value: float) -> str:
        """What is wrong; empty if nothing is."""
        return self.above if value > self.limit else ""


@dataclass(frozen=True)
class Key:
    """Declares one key, or one for each index or layer. It decorates the function that computes it.

    Texts may say ``{matrix}``, ``{value}`` and other `Section.words`.

    Attributes:
        name: Last part of the key. An ending ``_i`` stands for all indices from 1 on, ``/<layer>``
            for all layers.
        category: Which of `CATEGORIES` it belongs to.
        chart: Title of the chart that it belongs to; keys with equal titles share it.
        definition: A formula or a few words, with the shape of what has one.
        reading: What a value says to people.
        range: Possible values.
        unit: Of the values, empty for pure numbers and for those in units of the loss.
        source: Who defined it, as a link.
        cost: Of a monitored step, beyond what others have paid for.
        detail: The level of detail from which on it is shown, one of `DETAILS`.
        verdict: What it is read against.
        kind: A scalar, samples of a histogram, a figure of one parameter group, an overview over
            all groups, or a raw array.
        option: The monitor's switch that asks for it; empty for always.
        needs: Attributes of a matrix without which it is not one of the matrix's keys.
        late: Whether it can come at a later step though it is not there at the first one.
    """

    name: str
    category: str
    definition: str
    reading: str = ""
    chart: str = ""
    range: str = ""
    unit: str = ""
    source: str = ""
    cost: str = ""
    detail: Literal["low", "normal", "high"] = "normal"
    verdict: Verdict | None = None
    kind: Kind = "scalar"
    option: str = ""
    needs: tuple[str, ...] = ()
    late: bool = False

    def __call__(self, compute: Callable[[Any], Any]) -> Statistic:
        """The statistic of a function, which returns what the name says or None."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return Statistic(**said, compute=compute)

    def title(self, words: Mapping[str, str]) -> str:
        """Title of the chart, with the unit."""
        title = self.chart.format_map(words)
        return f"{title}, in {self.unit}" if self.unit else title

    def rank(self) -> tuple[int, bool]:
        """What people should look at first: less detail before more, what has a limit first."""
        return DETAILS.index(self.detail), self.verdict is None

    @property
    def ending(self) -> str:
        """`INDEX`, `LAYER` or nothing."""
        return next((end for end in (INDEX, LAYER) if self.name.endswith(end)), "")

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return self.name.removesuffix(self.ending)

    def pattern(self, first_only: bool = False) -> str:
        """A regular expression of the key's last part.

        Args:
            first_only: Whether to match only the first index of several.
        """
        index = "_1" if first_only else r"_\d+"
        return re.escape(self.stem) + {INDEX: index, LAYER: "/.+", "": ""}[self.ending]

    def expand(self, value: Any) -> dict[str, Any]:
        """Last parts of the keys -> their values, nothing for None."""
        if value is None:
            return {}
        if self.ending == INDEX:
            return {f"{self.stem}_{i}": each for i, each in enumerate(value, start=1)}
        if self.ending == LAYER:
            return {f"{self.stem}/{layer}": each for layer, each in value.items()}
        return {self.name: value}


@dataclass(frozen=True, kw_only=True)
class Statistic(Key):
    """A key and how it is computed.

    Attributes:
        compute: Gets the `Look`, returns a number, one for each index (an iterable) or layer (a
            mapping); samples for histograms, a function that draws for figures; None where there
            is nothing to say.
    """

    compute: Callable[[Any], Any]
