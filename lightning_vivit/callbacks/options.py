"""Checks of option values."""

from __future__ import annotations

from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.evaluate import METHODS
from lightning_vivit.matrices import MATRICES


def require_integer(name: str, value: object, lowest: int) -> int:
    """The value, an integer that is not below `lowest`; else an OptionError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise OptionError(f"{name} has to be an integer >= {lowest}, got {value!r}.")
    return value


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise an OptionError unless `value` is one of the choices."""
    if value not in choices:
        supported = ", ".join(map(repr, choices))
        raise OptionError(f"{name} has to be one of {supported}, got {value!r}.")


def require_share(name: str, value: object) -> float | None:
    """The value, a number above 0 and at most 1, or None; else an OptionError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise OptionError(
            f"{name} has to be a share of wall-clock time above 0 and at most 1, got {value!r}."
        )
    return float(value)


def require_method(
    method: str, matrix: str, tol: object, microbatch: object, mc_samples: int
) -> None:
    """Check the options of a monitor that can do without a Gram matrix; else an OptionError."""
    require_choice("method", method, METHODS)
    require_choice("matrix", matrix, tuple(MATRICES))
    if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not 0 < tol < 1:
        raise OptionError(f"tol has to be a number between 0 and 1, got {tol!r}.")
    if microbatch is not None:
        require_integer("microbatch", microbatch, lowest=1)
    sampled = method == "mc" or mc_samples > 0
    wanted = MATRICES[matrix].sampled(mc_samples, None) if sampled else MATRICES[matrix]
    wanted.check_method(method)
