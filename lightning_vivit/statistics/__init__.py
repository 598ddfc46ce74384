"""What the monitors tell: one small file for each statistic or a few, with its declaration."""

from lightning_vivit.statistics.findings import Draw, Findings
from lightning_vivit.statistics.key import Key, Statistic, Verdict
from lightning_vivit.statistics.look import AllGroups, Look, Memory
from lightning_vivit.statistics.section import Section, measure
from lightning_vivit.statistics.table import SECTIONS, LoggedKey, find_key

__all__ = [
    "SECTIONS",
    "AllGroups",
    "Draw",
    "Findings",
    "Key",
    "LoggedKey",
    "Look",
    "Memory",
    "Section",
    "Statistic",
    "Verdict",
    "find_key",
    "measure",
]
