"""The backends by name, and the choice among them."""

from __future__ import annotations

import logging

from lightning_vivit.backpack.backpack_backend import BackpackBackend
from lightning_vivit.errors import OptionError
from lightning_vivit.jacobian.autograd import AutogradBackend
from lightning_vivit.jacobian.backend import Backend
from lightning_vivit.problem.problem import Problem

BACKENDS: dict[str, type[Backend]] = {
    backend.name: backend for backend in (AutogradBackend, BackpackBackend)
}
_log = logging.getLogger(__name__)
_SAID: set[str] = set()


def choose_backend(name: str, problem: Problem, own_columns: bool = False) -> Backend:
    """The backend of a name; for ``auto`` the one of least expected cost that can.

    Args:
        name: ``auto`` or one of `BACKENDS`.
        problem: What is differentiated.
        own_columns: Whether ``auto`` has to take one whose columns may differ between samples.

    Returns:
        A backend for one evaluation.

    Raises:
        OptionError: It can't be used; the message says why.
    """
    kinds = [BACKENDS[name]] if name != "auto" else list(BACKENDS.values())
    known = [kind() for kind in kinds if name != "auto" or kind.has_own_columns or not own_columns]
    reasons = [backend.refusal(problem) for backend in known]
    able = [backend for backend, reason in zip(known, reasons, strict=True) if reason is None]
    if not able:
        raise OptionError(" ".join(reason for reason in reasons if reason is not None))
    costs = {backend.name: backend.expected_cost(problem) for backend in able}
    chosen = min(able, key=lambda backend: costs[backend.name])
    if name == "auto" and chosen.name not in _SAID:
        _SAID.add(chosen.name)
        told = ", ".join(f"{other} {cost:.2g}" for other, cost in costs.items())
        _log.info("backend='auto' takes %s, by expected cost: %s.", chosen.name, told)
    return chosen
