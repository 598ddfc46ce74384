"""Write the blocks fenced with ```math as MathML while the site is built: no script, no network."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each block of LaTeX, one equation a line."""

    def write(found: re.Match[str]) -> str:
        lines = [line for line in found.group(1).splitlines() if line.strip()]
        return "\n\n".join(f"<div>{convert(line, display='block')}</div>" for line in lines)

    return BLOCK.sub(write, markdown)
