"""What was proved of a model, remembered and proved again from time to time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lightning_vivit.problem.tape.recorder import Tape

Found = TypeVar("Found")
_MAX_PROOFS = 16  # of one model: index tensors that change make a new one each time
_TRUSTED_USES = 16  # then the proof is made again at uses 16, 32, 64, ...


@dataclass
class _Proof(Generic[Found]):
    """A proof that may be used again.

    Attributes:
        found: What was proved.
        uses: How often it was asked for.
        holds: Whether it came out the same each time.
    """

    found: Found
    uses: int = 1
    holds: bool = True

    def serves(self) -> bool:
        """Whether it may be used this time without being made again."""
        self.uses += 1
        again = self.uses >= _TRUSTED_USES and self.uses & (self.uses - 1) == 0
        return self.holds and not again


class Proofs(Generic[Found]):
    """Proofs of one kind, by model and by all that Python saw of its forward pass."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[object, _Proof[Found]]]
        self._known = WeakKeyDictionary()

    def get(self, model: nn.Module, key: object, prove: Callable[[], tuple[Found, bool]]) -> Found:
        """What was proved, or is proved now.

        Args:
            model: The proof is remembered as long as it lives.
            key: What the proof depends on, as `signature` gives it.
            prove: What is proved, and whether that holds for other contents of the batch too.

        Returns:
            What was proved.
        """
        proofs = self._known.setdefault(model, {})
        known = proofs.get(key)
        if known is not None and known.serves():
            return known.found
        found, certain = prove()
        if known is not None:
            known.holds = known.holds and known.found == found
        elif certain:
            proofs[key] = _Proof(found)
            if len(proofs) > _MAX_PROOFS:
                del proofs[next(iter(proofs))]
        return found


def signature(tape: Tape, outputs: Tensor, model: nn.Module) -> tuple[object, ...]:
    """All operations on data with the contents of index tensors, the modes and the parameters."""
    calls = tuple((call.function, call.module, call.tainted) for call in tape.calls)
    parameters = tuple((name, p.shape, p.dtype) for name, p in tape.parameters.items())
    modes = tuple(module.training for module in model.modules())
    shape = (outputs.shape, outputs.dtype, outputs.device)
    return (calls, hash(tuple(tape.trace)), modes, parameters, *shape)
