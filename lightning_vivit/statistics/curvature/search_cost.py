"""What a search without a Gram matrix took."""

from __future__ import annotations

from lightning_vivit.statistics.curvature.curvature_look import CurvatureLook
from lightning_vivit.statistics.key import Key


@Key(
    name="products",
    category="Cost",
    chart="Matrix-vector products of a search{mark}",
    definition="products with the matrix that this monitor's search took, 0 where another one "
    "paid; without a Gram matrix only",
    range="≥ 0",
    reading="each 1 to 1.5 training steps on the same samples, 1.5 to 2.5 with the Hessian; "
    "falls where the search starts from the last eigenvectors",
    cost="none",
    detail="high",
)
def products(look: CurvatureLook) -> float | None:
    """Of a search only."""
    return None if look.whole else float(look.products)
