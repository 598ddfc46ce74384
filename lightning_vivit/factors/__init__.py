"""Structured per-sample Jacobians of one parameter, and their products."""

from lightning_vivit.factors.base import Dense, Factor, Shift
from lightning_vivit.factors.contract import MODES, contract, contract_keeping
from lightning_vivit.factors.formed import Formed, RowBlock
from lightning_vivit.factors.lookup import Lookup
from lightning_vivit.factors.orders import ORDERS
from lightning_vivit.factors.outer import OuterProduct, add_uses

__all__ = [
    "MODES",
    "ORDERS",
    "Dense",
    "Factor",
    "Formed",
    "Lookup",
    "OuterProduct",
    "RowBlock",
    "Shift",
    "add_uses",
    "contract",
    "contract_keeping",
]
