"""The style of the page: readable in light and dark, on paper and on a narrow screen."""

from __future__ import annotations

LIGHT = (
    "#1f6fb4",
    "#d1500f",
    "#2a8a3a",
    "#b02a2a",
    "#7b53ad",
    "#80564a",
    "#c2459b",
    "#5f6670",
    "#8a8710",
    "#0f8f9e",
)
DARK = (
    "#6cb2f0",
    "#ff9a4d",
    "#6fcf7f",
    "#ff8080",
    "#bd9bea",
    "#c9a294",
    "#f29ad2",
    "#b4bac2",
    "#d6d25a",
    "#5fd3e0",
)


def _colours(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{number}:{colour};" for number, colour in enumerate(colours))


_CLASSES = "".join(f".c{number}{{--c:var(--c{number})}}" for number in range(len(LIGHT)))

STYLE = (
    f":root{{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#57606a;--edge:#d5dae0;"
    f"--panel:#f6f8fa;--limit:#b02a2a;{_colours(LIGHT)}}}"
    "@media (prefers-color-scheme:dark){:root{--page:#14171b;--ink:#e6e9ed;--soft:#a3abb5;"
    f"--edge:#353b43;--panel:#1c2026;--limit:#ff8080;{_colours(DARK)}}}}}"
    f"{_CLASSES}"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;max-width:1200px;padding:1rem 1.2rem;background:var(--page);"
    "color:var(--ink);font:15px/1.45 system-ui,sans-serif}"
    "h1{font-size:1.5rem;margin:.2rem 0;overflow-wrap:anywhere}"
    "h2{font-size:1.2rem;margin:1.6rem 0 .6rem;border-bottom:1px solid var(--edge)}"
    "code{font:13px/1.4 ui-monospace,monospace;overflow-wrap:anywhere}"
    "small,footer{color:var(--soft)}"
    "header ul,.legend{list-style:none;margin:.3rem 0;padding:0}"
    "nav a{margin-right:1rem;color:var(--c0)}"
    ".charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(420px,100%),1fr))}"
    "figure{margin:0;padding:.6rem;background:var(--panel);border:1px solid var(--edge);"
    "border-radius:6px;min-width:0}"
    "figure svg{width:100%;height:auto;display:block}"
    "figure img{max-width:100%;background:#fff;border-radius:4px}"
    ".legend{display:flex;flex-wrap:wrap;gap:.1rem .9rem;font-size:13px}"
    "svg.swatch{display:inline-block;width:24px;height:8px;vertical-align:middle}"
    ".tick{fill:var(--soft);font:12px system-ui,sans-serif}"
    ".grid{stroke:var(--edge);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}"
    ".limit{stroke:var(--limit);stroke-width:1.5;stroke-dasharray:3 3}"
    ".line{stroke:var(--c);stroke-width:1.8;fill:none}.second{stroke-dasharray:6 3}"
    ".dot{fill:var(--c)}.bar{fill:var(--c);fill-opacity:.45;stroke:var(--c);stroke-width:.6}"
    "details{margin-top:.4rem}summary{cursor:pointer;color:var(--soft)}"
    "details.groups{margin-top:1rem}"
    ".scroll{overflow:auto;max-height:24rem}"
    "table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}"
    "th,td{padding:.15rem .6rem;text-align:right;border-bottom:1px solid var(--edge)}"
    "thead th{position:sticky;top:0;background:var(--panel)}"
    ".glance code,.glance td:not(:last-child){white-space:nowrap}.charts+.charts{margin-top:1rem}"
    ".glance th:first-child,.glance td:last-child,.glance th:last-child{text-align:left}"
    "@media print{.scroll{max-height:none}nav{display:none}}"
)
