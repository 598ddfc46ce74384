"""Errors of the package, and checks of options that raise them.

Every message says what was got, what is supported and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable


class ViViTError(RuntimeError):
    """Base class of every error that the package raises on purpose."""


class ProblemError(ViViTError):
    """The module, the batch or the loss cannot be turned into a curvature problem."""


class InteractionError(ProblemError):
    """The samples of the batch influence each other, so per-sample factors do not exist."""


class OptionError(ViViTError, ValueError):
    """An option has a value that is not supported."""


class UnknownOptionError(OptionError, TypeError):
    """There is no option of this name."""


def require_integer(name: str, value: object, lowest: int) -> int:
    """The value, an integer that is not below `lowest`; else an OptionError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise OptionError(f"{name} has to be an integer >= {lowest}, got {value!r}.")
    return value


def require_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise an OptionError unless `value` is one of the choices."""
    known = tuple(choices)
    if value not in known:
        supported = ", ".join(map(repr, known))
        raise OptionError(f"{name} has to be one of {supported}, got {value!r}.")
