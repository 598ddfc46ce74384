"""One recorded forward pass as a linear map: Jacobian products in both directions.

J^T w is a backward pass. J v is a backward pass through the backward pass: u -> J^T u is linear in
u, so its derivative with respect to u applied to v is J v. Both reuse the graph of one forward
pass, so a product costs no further forward pass. The double backward is taken instead of forward
mode because it works with a whole training step, custom autograd functions and activation
checkpointing. Several vectors are not faster at once than one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_vivit.errors import ProblemError
from lightning_vivit.problem.tape.cotangents import batched_grad
from lightning_vivit.problem.tape.graph import graph_nodes


class Linearization:
    """Jacobian products of outputs with a live graph.

    Attributes:
        outputs: [rows, ...], the differentiated outputs.
        parameters: The parameters that they are differentiated in, by name.
    """

    def __init__(self, outputs: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
        """Keep the graph; the graph of its backward pass is made at the first J v.

        Args:
            outputs: The outputs, graph attached.
            parameters: The parameters that the outputs are differentiated in.
        """
        self.outputs = outputs
        self.parameters = dict(parameters)
        self._dual: tuple[Tensor, dict[str, Tensor]] | None = None

    def jacobian_vector(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """J v for K vectors.

        Args:
            vectors: Parameter name -> [K, *shape]; missing parameters count as zero.

        Returns:
            [K, *outputs shape].
        """
        cotangent, pulled = self._backward()
        names = [name for name in vectors if name in pulled]
        count = next(iter(vectors.values())).shape[0]
        if not names:
            return self.outputs.new_zeros(count, *self.outputs.shape)
        pushed = [pulled[name] for name in names]
        (found,) = graph_grad(pushed, [cotangent], [vectors[name] for name in names])
        return self.outputs.new_zeros(count, *self.outputs.shape) if found is None else found

    def vector_jacobian(self, columns: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """J^T w for K columns.

        Args:
            columns: [K, *outputs shape].
            names: Parameters that are wanted.

        Returns:
            Parameter name -> [K, *shape].
        """
        parameters = [self.parameters[name] for name in names]
        grads = graph_grad([self.outputs], parameters, [columns])
        return {
            name: parameter.new_zeros(columns.shape[0], *parameter.shape) if grad is None else grad
            for name, parameter, grad in zip(names, parameters, grads, strict=True)
        }

    def check(self) -> None:
        """Compare J v with J^T w, parameter by parameter in one number.

        A custom autograd function may let no derivative through its backward pass without an
        error; J v would then lack the parameters behind it. With v the gradients of w.f, each
        divided by its squared norm, w.(J v) is the number of parameters that have one.

        Raises:
            ProblemError: The two do not agree.
        """
        draw = torch.Generator().manual_seed(0)
        column = torch.randn(1, *self.outputs.shape, generator=draw, dtype=self.outputs.dtype)
        column = column.to(self.outputs)
        vectors = self.vector_jacobian(column, list(self.parameters))
        squares = {name: float(v.square().sum(dtype=torch.float64)) for name, v in vectors.items()}
        floor = torch.finfo(column.dtype).eps * max(squares.values())  # below it is rounding
        expected = sum(square > floor for square in squares.values())
        for name, vector in vectors.items():  # not in place: it may be the column's memory
            vectors[name] = vector * (1 / squares[name] if squares[name] > floor else 0.0)
        pushed = self.jacobian_vector(vectors)
        found = float((pushed.double() * column).sum())
        if not abs(found - expected) < 0.1:
            raise ProblemError(
                "Matrix-free products differentiate the backward pass, and some operation of this "
                f"model lets no derivative through it: {found:.2f} of {expected} parameters are "
                "seen (a custom autograd function marked once_differentiable, or with a backward "
                "that leaves torch). Use method='gram', or write it with differentiable functions."
            )

    def unused(self) -> list[str]:
        """Names of the parameters that do not influence the outputs: the graph lacks them."""
        reached = {  # a node with a variable accumulates the gradient of a leaf
            id(node.variable) for node in graph_nodes(self.outputs) if hasattr(node, "variable")
        }
        return [name for name, leaf in self.parameters.items() if id(leaf) not in reached]

    def _backward(self) -> tuple[Tensor, dict[str, Tensor]]:
        if self._dual is None:
            cotangent = torch.zeros_like(self.outputs, requires_grad=True)
            try:
                grads = torch.autograd.grad(
                    self.outputs,
                    list(self.parameters.values()),
                    cotangent,
                    create_graph=True,
                    allow_unused=True,
                )
            except RuntimeError as error:
                raise not_twice(error) from error
            live = {
                name: grad
                for name, grad in zip(self.parameters, grads, strict=True)
                if grad is not None and grad.requires_grad
            }
            self._dual = cotangent, live
        return self._dual


def graph_grad(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], columns: Sequence[Tensor]
) -> list[Tensor | None]:
    """`batched_grad`, without vmap for a single column.

    Args:
        outputs: Tensors of the graph; the graph is kept.
        inputs: Tensors.
        columns: For each output, K cotangents [K, *output shape].

    Returns:
        For each input [K, *shape], or None where it does not influence the outputs.

    Raises:
        ProblemError: An operation cannot be differentiated twice.
    """
    try:
        if columns[0].shape[0] > 1:
            return batched_grad(outputs, inputs, columns)
        single = [column[0] for column in columns]
        grads = torch.autograd.grad(outputs, inputs, single, retain_graph=True, allow_unused=True)
        return [None if grad is None else grad.unsqueeze(0) for grad in grads]
    except RuntimeError as error:
        raise not_twice(error) from error


def not_twice(error: RuntimeError) -> RuntimeError:
    """The error for operations that cannot be differentiated twice; others stay as they are."""
    text = str(error)
    signs = (
        "not implemented",
        "not differentiable",
        "once_differentiable",
        "does not require grad",
    )
    if isinstance(error, torch.OutOfMemoryError) or not any(sign in text for sign in signs):
        return error
    return ProblemError(
        "Matrix-free products differentiate the backward pass, and an operation of this model "
        f"does not allow it: {text.splitlines()[0]} Use method='gram', or write the operation "
        "with differentiable torch functions."
    )
