"""Structured per-sample Jacobians of one parameter, and their products."""

from lightning_vivit.factors.contract import MODES, contract
from lightning_vivit.factors.factor import Dense, Factor, Shift
from lightning_vivit.factors.lookup import Lookup
from lightning_vivit.factors.orders import ORDERS
from lightning_vivit.factors.outer import OuterProduct, add_uses

__all__ = [
    "MODES",
    "ORDERS",
    "Dense",
    "Factor",
    "Lookup",
    "OuterProduct",
    "Shift",
    "add_uses",
    "contract",
]
