"""Equivalent forms of operations: the same values, with derivatives that are there or cheaper."""
