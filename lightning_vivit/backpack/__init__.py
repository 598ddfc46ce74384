"""Jacobian factors through BackPACK, behind a guard."""

from lightning_vivit.backpack.session import BackpackSession

__all__ = ["BackpackSession"]
