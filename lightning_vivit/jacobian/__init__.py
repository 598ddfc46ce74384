"""Jacobian factors of every operation that uses parameters."""
