"""Checks of option values."""

from __future__ import annotations

from lightning_vivit.errors import OptionError


def require_share(name: str, value: object) -> float | None:
    """The value, a number above 0 and at most 1, or None; else an OptionError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise OptionError(
            f"{name} has to be a share of wall-clock time above 0 and at most 1, got {value!r}."
        )
    return float(value)
