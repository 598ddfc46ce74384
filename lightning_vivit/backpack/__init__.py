"""Jacobian factors through BackPACK, behind a guard."""
