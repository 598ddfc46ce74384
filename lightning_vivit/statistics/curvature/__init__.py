"""Statistics of a matrix's spectrum. A new one: a file here, and its name in the table."""

from lightning_vivit.statistics.curvature import (
    leading_eigenvalues,
    overlap,
    search_cost,
    stability,
    totals,
)
from lightning_vivit.statistics.section import statistics_of

CURVATURE = statistics_of(
    leading_eigenvalues,
    totals,
    search_cost,
    stability,
    overlap,
)
