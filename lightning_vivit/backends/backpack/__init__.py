"""Jacobian factors through BackPACK, behind a guard."""

from lightning_vivit.backends.backpack.session import BackpackSession

__all__ = ["BackpackSession"]
