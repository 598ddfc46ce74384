"""What is done to a module before its forward pass is recorded."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn


class Preparation:
    """Nothing is done: the module runs as it is, and so do its operations.

    Attributes:
        needs_copy: Whether `attach` leaves something on the module, so that a copy has to run.
        takes_forms: Whether operations may run in forms with the same values that are cheaper to
            backpropagate through once for each column.
    """

    needs_copy = False
    takes_forms = False

    def attach(self, stand_in: nn.Module, original: nn.Module) -> AbstractContextManager[None]:
        """Prepare a stand-in of the user's module for one forward pass.

        Args:
            stand_in: What runs; it shares the parameters.
            original: The user's module.
        """
        return nullcontext()


PLAIN = Preparation()
