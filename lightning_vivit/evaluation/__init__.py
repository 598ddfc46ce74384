"""Evaluate a problem, and what the result answers."""
