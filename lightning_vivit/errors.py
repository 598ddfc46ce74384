"""Errors of the package. Every message says what was got, what is supported and what to do."""

from __future__ import annotations


class ViViTError(RuntimeError):
    """Base class of every error that the package raises on purpose."""


class ProblemError(ViViTError):
    """The module, the batch or the loss cannot be turned into a curvature problem."""


class InteractionError(ProblemError):
    """The samples of the batch influence each other, so per-sample factors do not exist."""


class OptionError(ViViTError, ValueError):
    """An option has a value that is not supported."""
