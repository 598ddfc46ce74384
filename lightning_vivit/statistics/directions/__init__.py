"""Statistics of slopes, curvatures and gradients. A new one: a file here, its name in the table."""

from lightning_vivit.statistics.directions import curvatures, gradient_noise, slopes
from lightning_vivit.statistics.section import statistics_of

DIRECTIONS = statistics_of(
    slopes,
    curvatures,
    gradient_noise,
)
