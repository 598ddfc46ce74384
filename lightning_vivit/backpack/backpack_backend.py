"""One BackPACK pass over a copy of the user's module, that leaves nothing behind.

The module is extended on the shadow copy that shares its parameters, so that the user's own
module never gets a hook or a flag; what BackPACK puts on the parameters is removed, also after an
exception. Gradients are taken with `torch.autograd.grad`: `.grad` is not touched.

What BackPACK keeps of the forward pass (``input0``, ``output`` of each layer) would tie the copy to
its own autograd graph in a cycle that Python cannot collect. So it stays in the backend, and is on
the layers only while the extended backward pass runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from backpack import backpack, extend
from backpack.context import CTX
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor, nn

from lightning_vivit.backpack.guard import ADVICE, Guard, check_layers
from lightning_vivit.backpack.vivit import ViViTGGNExact
from lightning_vivit.errors import ProblemError
from lightning_vivit.factors import Factor
from lightning_vivit.jacobian.backend import Backend
from lightning_vivit.jacobian.passes import Pass
from lightning_vivit.jacobian.probing import make_probe, mismatch, tolerance
from lightning_vivit.jacobian.proof import refuse_mixing
from lightning_vivit.jacobian.structure import Located, Structure
from lightning_vivit.problem.problem import Problem, Recording
from lightning_vivit.samples.axis import SampleAxis


class _Columns(nn.modules.loss._Loss):
    """Stands for a loss; what it sends back are the columns that are asked for."""

    def __init__(self, columns: Tensor) -> None:
        super().__init__(reduction="sum")
        self.columns = columns  # [D, N, C]

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.sum()


class _ColumnsExtension(ModuleExtension):
    """Starts BackPACK's propagation with given columns."""

    def backpropagate(
        self, ext: Any, module: Any, grad_inp: Any, grad_out: Any, backproped: None
    ) -> Tensor:
        return module.columns


class BackpackBackend(Backend):
    """Extends a stand-in of the user's module and collects the factors of its layers."""

    name = "backpack"
    needs_copy = True

    def __init__(self) -> None:
        """Prepare; `attach` comes before the forward pass, `factors` after it."""
        self._extension = ViViTGGNExact()
        self._extension.set_module_extension(_Columns, _ColumnsExtension())
        self._guard: Guard | None = None
        self._activations: list[tuple[nn.Module, dict[str, Any]]] = []

    def expected_cost(self, problem: Problem) -> float:
        """1.5: between 1.2 and 1.8 on the networks of the benchmark."""
        return 1.5

    @contextmanager
    def attach(self, stand_in: nn.Module, original: nn.Module) -> Iterator[None]:
        """Extend the layers of a stand-in while it runs.

        Args:
            stand_in: A copy that shares the parameters.
            original: The user's module.

        Raises:
            ProblemError: BackPACK cannot be used on this module.
        """
        if stand_in is original:
            raise ProblemError(
                f"{type(original).__name__} cannot be copied, and BackPACK would leave its hooks "
                f"on the module itself. {ADVICE}"
            )
        layers = {
            name or "the model": module
            for name, module in stand_in.named_modules()
            if next(module.children(), None) is None
        }
        supported = set(self._supported())
        check_layers(layers, supported)
        self._guard = Guard(layers, supported)
        before = len(CTX.hook_handles)
        extended = [layer for layer in layers.values() if type(layer) in supported]
        for layer in extended:
            extend(layer)
        del CTX.hook_handles[before:]  # the handles of copies that are thrown away
        try:
            with self._guard.watch(stand_in):
                yield
        finally:
            self._activations = _take_activations(extended)
        self._guard.check()

    def locate(self, recording: Recording) -> Located:
        """One sample in each row; nothing is proved, since the factors are checked."""
        tape, outputs = recording.tape, recording.outputs
        refuse_mixing(tape, outputs.shape[0])
        return Located(tape, outputs, SampleAxis(0, outputs.shape[0]), Structure())

    def passes(
        self,
        located: Located,
        names: Sequence[str],
        num_samples: int,
        num_columns: int,
        fixed: int,
        budget: int,
    ) -> list[Pass]:
        """One: BackPACK brings all columns of all layers at once, in memory that it does not tell.

        The pass counts as all that is left of the budget.
        """
        return [Pass(tuple(names), 1, max(0, budget - fixed))]

    def factors(
        self, located: Located, columns: Tensor, names: Sequence[str], gathers: bool = False
    ) -> dict[str, Factor]:
        """Factors of the parameters for given columns, checked against autograd.

        Args:
            located: The forward pass; its outputs [N, C] come directly from an extended layer.
            columns: [D, N, C].
            names: Parameters for which factors are wanted.
            gathers: Without a meaning here.

        Returns:
            Parameter name -> factor.

        Raises:
            ProblemError: BackPACK failed, or its product with a random vector is not autograd's.
        """
        outputs, axis = located.outputs, located.axis
        if outputs.ndim != 2 or axis.num_samples != outputs.shape[0]:
            raise ProblemError(
                f"BackPACK propagates outputs of shape [N, C], got {tuple(outputs.shape)}. {ADVICE}"
            )
        parameters = [located.tape.parameters[name] for name in names]
        by_id = {id(parameter): name for name, parameter in zip(names, parameters, strict=True)}
        found: dict[str, Factor] = {}

        def collect(module: nn.Module) -> None:
            for parameter in module.parameters(recurse=False):
                name, kept = by_id.get(id(parameter)), vars(parameter).pop(self._field, None)
                if name is not None and kept is not None:
                    found[name] = kept["factor"]

        try:
            self._run(outputs, columns, parameters, collect)
        except ProblemError:
            raise
        except Exception as error:
            raise ProblemError(
                f"BackPACK failed with {type(error).__name__}: {error}. {ADVICE}"
            ) from error
        finally:
            for parameter in parameters:
                vars(parameter).pop(self._field, None)
        self._check(outputs, axis, parameters, names, found, columns)
        return found

    @property
    def _field(self) -> str:
        return str(self._extension.savefield)

    def _supported(self) -> Sequence[type[nn.Module]]:
        known = vars(self._extension)
        tables = [value for value in known.values() if isinstance(value, dict)]
        return [kind for table in tables for kind in table if isinstance(kind, type)]

    def _run(
        self,
        outputs: Tensor,
        columns: Tensor,
        parameters: Sequence[nn.Parameter],
        collect: Callable[[nn.Module], None],
    ) -> None:
        before = len(CTX.hook_handles)
        loss = extend(_Columns(columns))
        del CTX.hook_handles[before:]
        layers = [layer for layer, _ in self._activations]
        for layer, kept in self._activations:
            vars(layer).update(kept)
        try:
            with backpack(self._extension, extension_hook=collect, retain_graph=True):
                torch.autograd.grad(loss(outputs), parameters, retain_graph=True, allow_unused=True)
        finally:
            _take_activations([loss, *layers])

    def _check(
        self,
        outputs: Tensor,
        axis: SampleAxis,
        parameters: Sequence[nn.Parameter],
        names: Sequence[str],
        found: dict[str, Factor],
        columns: Tensor,
    ) -> None:
        """One product with random vectors against autograd."""
        probe = make_probe(outputs, axis)
        flat = columns.flatten(1)  # unit columns, or an orthonormal basis of some: [D, N*C]
        depth = columns.shape[0]
        basis = flat.reshape(depth, *outputs.shape)[:, 0]  # the same for all samples: [D, C]
        coefficients = torch.einsum("nck,dc->ndk", probe.coefficients, basis)
        seen = torch.einsum("ndk,dc->knc", coefficients, basis)
        expected = [
            torch.autograd.grad(outputs, parameters, column, retain_graph=True, allow_unused=True)
            for column in seen
        ]
        limit = tolerance([outputs, *parameters])
        floor = 1e-6 * max(float(g.norm()) for row in expected for g in row if g is not None)
        for place, name in enumerate(names):
            rows = [row[place] for row in expected]
            reference = None if rows[0] is None else torch.stack([r for r in rows if r is not None])
            factor = found.get(name)
            product = None if factor is None else factor.weighted_sum(coefficients)
            off = mismatch(reference, product, floor)
            if off > limit:
                raise ProblemError(
                    f"BackPACK's Jacobian of {name!r} is not autograd's (relative difference "
                    f"{off:.1e}). {ADVICE}"
                )


def _take_activations(layers: Iterable[nn.Module]) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Move what BackPACK kept of the forward pass off the layers."""
    taken = []
    for layer in layers:
        names = [name for name in vars(layer) if re.fullmatch(r"input\d+|output", name)]
        taken.append((layer, {name: vars(layer).pop(name) for name in names}))
    return taken
