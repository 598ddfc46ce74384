"""Write the tables of docs/keys.md from the table of statistics.

``python docs/hooks/keys.py`` writes them, with ``--check`` it only says whether they are there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from lightning_vivit.statistics import SECTIONS, Section, Statistic

PAGE = Path(__file__).parents[1] / "keys.md"
COMMAND = "python docs/hooks/keys.py"
# What stands between two marks is written here: scalars of a monitor, or all of other kinds.
MARKS = re.compile(r"(<!-- keys of ([\w ]+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
SCALARS = {  # head -> field
    "definition": "definition",
    "source": "source",
    "range": "range",
    "how to read it": "reading",
    "cost": "cost",
}
OTHERS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "histograms": (("histogram",), {"values": "definition", "how to read it": "reading"}),
    "figures": (("figure", "overview"), {"drawn": "definition", "how to read it": "reading"}),
    "arrays": (("array",), {"what it is": "definition"}),
}


def written(page: str) -> str:
    """The page with its tables as the code has them."""
    return MARKS.sub(lambda mark: f"{mark[1]}\n{_part(mark[2])}\n{mark[3]}", page)


def _part(name: str) -> str:
    if name in OTHERS:
        kinds, fields = OTHERS[name]
        return _table(SECTIONS.values(), kinds, fields)
    sections = [s for s in SECTIONS.values() if s.monitor == name.replace("every monitor", "")]
    parts = []
    for section in sections:
        if len(sections) > 1:
            parts.append(f"### {section.words['matrix']}: `{section.name}/`\n")
        parts.append(_table([section], ("scalar",), SCALARS))
    return "\n".join(parts)


def _table(sections: Iterable[Section], kinds: tuple[str, ...], fields: dict[str, str]) -> str:
    lines = [_line(["key", *fields]), _line(["---"] * (1 + len(fields))).replace(" ", "")]
    for section in sections:
        for statistic in section.statistics:
            if statistic.kind in kinds:
                cells = [_cell(section, statistic, field) for field in fields.values()]
                lines.append(_line([f"`{section.name}/{statistic.name}`", *cells]))
    return "".join(lines)


def _cell(section: Section, statistic: Statistic, field: str) -> str:
    text = getattr(statistic, field).format_map(section.words)
    if field == "range" and statistic.unit:
        text = f"{text}, in {statistic.unit}"
    return text.replace("|", r"\|")


def _line(cells: list[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|\n"


def main(arguments: list[str]) -> int:
    """Write or check; returns the exit code."""
    now = PAGE.read_text(encoding="utf-8")
    then = written(now)
    if "--check" in arguments and now != then:
        print(f"{PAGE} is not what the statistics declare. Run `{COMMAND}`.", file=sys.stderr)
        return 1
    if now != then:
        PAGE.write_text(then, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
