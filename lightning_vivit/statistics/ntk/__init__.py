"""Statistics of the neural tangent kernel. A new one: a file here, and its name in the table."""

from lightning_vivit.statistics.ntk import alignment, kernel_spectrum, movement, projection
from lightning_vivit.statistics.section import statistics_of

NTK = statistics_of(
    kernel_spectrum,
    alignment,
    projection,
    movement,
)
