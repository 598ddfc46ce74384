"""Which operations write to a tensor that they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vivit.samples.batch import tensors_in

_HARMLESS = frozenset(("requires_grad_", "detach_", "share_memory_"))
_ASSIGNMENTS = frozenset(
    ("__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "mod")))
)
_RENORMALISING = (F.embedding, F.embedding_bag)  # with max_norm


class ParameterWriteError(Exception):
    """A forward pass was about to write to a parameter of the run."""


class WriteGuard:
    """Stops an operation before it writes to a parameter that belongs to the run.

    Examples are the moving average of a teacher network inside of `training_step`, clipped
    weights, and embeddings with max_norm.
    """

    def __init__(self, model: nn.Module) -> None:
        """Note where the parameters lie.

        Args:
            model: A module that shares its parameters with the run.
        """
        self._places = frozenset(_places(model.parameters()))

    def check(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Look at one operation before it runs.

        Raises:
            ParameterWriteError: It would write to a parameter.
        """
        written = list(_written(func, args, kwargs))
        if written and not self._places.isdisjoint(_places(written)):
            raise ParameterWriteError


def _written(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[Tensor]:
    """The tensors that an operation may write to."""
    name = getattr(func, "__name__", "")
    if kwargs.get("out") is not None:
        yield from tensors_in(kwargs["out"])
    if func in _RENORMALISING:
        if kwargs.get("max_norm") is not None or any(isinstance(a, float) for a in args[2:]):
            yield from tensors_in([*args[:2], *kwargs.values()])
    elif name == "__set__":
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            yield from tensors_in(args[0])
    elif name in _ASSIGNMENTS or (
        name.endswith("_") and not name.endswith("__") and name not in _HARMLESS
    ):
        yield from tensors_in(args[0] if args else list(kwargs.values()))


def _places(tensors: Iterable[Tensor]) -> Iterator[int]:
    """Where plain tensors have their numbers; views lie where their base does."""
    for tensor in tensors:
        if type(tensor) in (Tensor, nn.Parameter) and not tensor.is_sparse:
            place = tensor.untyped_storage().data_ptr()
            if place:
                yield place
