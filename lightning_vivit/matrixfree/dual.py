"""A matrix among vectors over samples and columns of their roots.

A = scale V V^T with V = J^T S [P, N*M] has the nonzero eigenvalues of scale V^T V, whose vectors
are shorter where N*M < P. V u is kept in a compact form: of a linear layer with fewer positions R
than inputs, the cotangents g [R, O] at its output instead of the weight's gradient g^T x. What J
gives of that gradient is then x x^T g, which costs R^2 O instead of 2 R I O multiply-adds, and no
vector of the size of the weight is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lightning_vivit.jacobian.linearization import graph_grad, not_twice
from lightning_vivit.jacobian.live import LivePart, Space
from lightning_vivit.jacobian.probing import tolerance
from lightning_vivit.jacobian.trust import Proofs, signature
from lightning_vivit.matrices import Matrix
from lightning_vivit.problem.tape.recorder import Tape
from lightning_vivit.samples.batch import tensors_in

_AGREED: Proofs[bool] = Proofs()  # whether the short layers' gradients are what autograd says


@dataclass(frozen=True)
class Layer:
    """A linear layer whose gradient is kept as cotangents.

    Attributes:
        edge: Where its output's gradient arrives.
        weight: Name of the weight.
        bias: Name of the bias; None if there is none, or if it is not wanted.
        inputs: x, [R, I].
        kernel: x x^T, and 1 for the bias, [R, R].
    """

    edge: GradientEdge
    weight: str
    bias: str | None
    inputs: Tensor
    kernel: Tensor

    @property
    def names(self) -> list[str]:
        """Its parameters."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def write_gradients(self, cotangents: Tensor, places: Mapping[str, Tensor]) -> None:
        """Write gradients [K, *shape] by name, from cotangents [K, R, O]."""
        for cotangent, place in zip(cotangents, places[self.weight], strict=True):
            torch.mm(cotangent.T, self.inputs, out=place)
        if self.bias is not None:
            torch.sum(cotangents, 1, out=places[self.bias])


class DualSpace:
    """V and V^T for one group of parameters.

    Attributes:
        size: N*M, M columns of a root.
        halves: Half products so far.
        width: Entries of V u in compact form beside J V u.
    """

    def __init__(
        self, part: LivePart, matrix: Matrix, space: Space, tape: Tape, model: nn.Module
    ) -> None:
        """Make the graph of V^T.

        Args:
            part: All samples with their graph.
            matrix: It has `root_product`.
            space: The parameters.
            tape: The recording of the graph.
            model: What is proved is remembered as long as it lives.

        Raises:
            ProblemError: An operation cannot be differentiated twice.
        """
        self._part, self._matrix, self._space = part, matrix, space
        self._outputs = part.linear.outputs
        flat = part.layout.flatten(self._outputs.detach())
        self._shape = flat.shape  # [N, D]
        self.size, self.halves = flat.shape[0] * matrix.columns(flat.shape[1]), 0
        self._layers = _short_layers(tape, space)
        key = (*signature(tape, self._outputs, model), tuple(space.shapes))
        if self._layers and not _AGREED.get(model, key, lambda: (self._agree(tape), True)):
            self._layers = []
        short = {name for layer in self._layers for name in layer.names}
        self._names = [name for name in space.shapes if name not in short]
        targets: list[GradientEdge] = [layer.edge for layer in self._layers]
        targets += [get_gradient_edge(tape.parameters[name]) for name in self._names]
        self._cotangent = torch.zeros_like(self._outputs, requires_grad=True)
        try:
            pulled = torch.autograd.grad(
                self._outputs, targets, self._cotangent, create_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            raise not_twice(error) from error
        live = [grad is not None and grad.requires_grad for grad in pulled]
        count = len(self._layers)
        self._layers = [layer for layer, used in zip(self._layers, live, strict=False) if used]
        self._names = [n for n, used in zip(self._names, live[count:], strict=True) if used]
        self._targets = [target for target, used in zip(targets, live, strict=True) if used]
        self._pulled = [grad for grad, used in zip(pulled, live, strict=True) if used]
        self._sizes = [grad.numel() for grad in self._pulled]
        self.width = sum(self._sizes) + flat.numel()

    def __call__(self, columns: Tensor, forms: Tensor) -> Tensor:
        """V^T V u [K, N*M] of u [K, N*M]; V u in compact form beside J V u to K of [Q + N*D]."""
        compact = sum(self._sizes)
        images = []
        for form, column in zip(forms, columns, strict=True):
            pushed = self._push(self._pull(column, form[:compact]))
            form[compact:] = pushed.reshape(-1)
            images.append(self._weigh(pushed.unsqueeze(2)))
        return images[0] if len(images) == 1 else torch.cat(images)

    def vectors(self, count: int) -> int:
        """How many vectors u to keep.

        With V u and J V u they need less memory than `count` of twice P.
        """
        return max(count, 2 * count * self._space.size // (self.width + self.size))

    def pull(self, columns: Tensor) -> Tensor:
        """V u for K vectors, [K, N*M] to the compact form [K, Q]: half a product."""
        found = columns.new_empty(columns.shape[0], sum(self._sizes))
        for row, column in zip(found, columns, strict=True):
            self._pull(column, row)
        return found

    def squares(self, compact: Tensor) -> Tensor:
        """|V u|^2 from K compact forms, [K] in float64."""
        found = []
        for row in compact:
            parts = zip(row.split(self._sizes), self._along(self._unfold(row)), strict=True)
            terms = [(first.double() * second.reshape(-1)).sum() for first, second in parts]
            found.append(torch.stack(terms).sum())
        return torch.stack(found)

    def expand(self, compact: Tensor) -> Tensor:
        """K compact forms as vectors of the parameters, [K, Q] (and more entries) to [K, P]."""
        count = compact.shape[0]
        parts = list(compact[:, : sum(self._sizes)].split(self._sizes, dim=1))
        vectors = compact.new_empty(count, self._space.size)
        places = self._space.split(vectors)
        for layer, part in zip(self._layers, parts, strict=False):
            layer.write_gradients(part.reshape(count, layer.kernel.shape[0], -1), places)
        for name, part in zip(self._names, parts[len(self._layers) :], strict=True):
            places[name].copy_(part.reshape(places[name].shape))
        written = {name for layer in self._layers for name in layer.names} | set(self._names)
        for name in self._space.shapes.keys() - written:
            places[name].zero_()
        return vectors

    def pushed(self, forms: Tensor) -> Tensor:
        """J V u from what a call gave for K vectors, [K, Q + N*D] to [N, D, K]."""
        flat = forms[:, sum(self._sizes) :]
        return flat.reshape(forms.shape[0], *self._shape).permute(1, 2, 0)

    def push(self, vectors: Tensor) -> Tensor:
        """V^T v for K vectors of the parameters, [K, P] to [K, N*M]: half a product."""
        found = [self._weigh(self._part.push(self._space, one)) for one in vectors.split(1)]
        self.halves += vectors.shape[0]
        return torch.cat(found)

    def _pull(self, column: Tensor, compact: Tensor) -> list[Tensor]:
        """V u of u [N*M] into a compact form [Q]; its parts."""
        self.halves += 1
        parts = column.reshape(self._shape[0], -1, 1)
        weighed = self._matrix.root_product(self._part.loss, parts)
        assert weighed is not None
        cotangent = self._part.columns_of(weighed)
        grads = torch.autograd.grad(
            self._outputs, self._targets, cotangent[0], retain_graph=True, allow_unused=True
        )
        found = []
        places = zip(compact.split(self._sizes), grads, self._pulled, strict=True)
        for place, grad, like in places:
            if grad is None:
                found.append(place.zero_().view(like.shape))
            else:
                found.append(grad)
                place.copy_(grad.reshape(-1))
        return found

    def _unfold(self, row: Tensor) -> list[Tensor]:
        return [
            part.reshape(grad.shape)
            for part, grad in zip(row.split(self._sizes), self._pulled, strict=True)
        ]

    def _along(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """What a compact form is as tangents at the layers' outputs and in the parameters."""
        found = list(parts)
        for index, layer in enumerate(self._layers):
            own = found[index]
            flat = own.reshape(layer.kernel.shape[0], -1)
            found[index] = (layer.kernel @ flat).reshape(own.shape)
        return found

    def _push(self, parts: Sequence[Tensor]) -> Tensor:
        """J V u, [N, D]."""
        self.halves += 1
        (pushed,) = graph_grad(
            self._pulled, [self._cotangent], [part.unsqueeze(0) for part in self._along(parts)]
        )
        if pushed is None:
            pushed = torch.zeros_like(self._outputs).unsqueeze(0)
        return self._part.outputs_of(pushed)[:, :, 0]

    def _weigh(self, pushed: Tensor) -> Tensor:
        """S^T J v [K, N*M] from J v [N, D, K]."""
        weighed = self._matrix.root_product(self._part.loss, pushed, transpose=True)
        assert weighed is not None
        return weighed.permute(2, 0, 1).flatten(1)

    def _agree(self, tape: Tape) -> bool:
        """Whether the layers' gradients are what autograd says.

        They are not where a weight is used elsewhere too, or an input was overwritten.
        """
        draw = torch.Generator().manual_seed(0)
        random = torch.randn(self._outputs.shape, generator=draw, dtype=self._outputs.dtype)
        edges: list[GradientEdge] = [layer.edge for layer in self._layers]
        names = [name for layer in self._layers for name in layer.names]
        try:
            grads = torch.autograd.grad(
                self._outputs,
                edges + [get_gradient_edge(tape.parameters[name]) for name in names],
                random.to(self._outputs),
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError:  # an input was overwritten; the products will say so if it matters
            return False
        expected = dict(zip(names, grads[len(edges) :], strict=True))
        bound = tolerance([self._outputs])
        places = self._space.split(self._outputs.new_empty(1, self._space.size))
        for layer, cotangent in zip(self._layers, grads, strict=False):
            if cotangent is None:
                return False
            flat = cotangent.reshape(1, layer.kernel.shape[0], -1)
            layer.write_gradients(flat, places)
            for name in layer.names:
                known = expected[name]
                if known is None:
                    return False
                difference = torch.linalg.vector_norm(places[name][0] - known)
                if not bool(difference <= bound * torch.linalg.vector_norm(known)):
                    return False
        return True


def _short_layers(tape: Tape, space: Space) -> list[Layer]:
    """The linear layers with fewer positions than inputs, whose parameters nothing else uses."""
    names = {id(tape.parameters[name]): name for name in space.shapes}
    uses: dict[int, int] = {}
    for call in tape.calls:
        for tensor in tensors_in([call.args, call.kwargs]):
            uses[id(tensor)] = uses.get(id(tensor), 0) + 1
    found = []
    for call in tape.calls:
        output = call.outputs[0]
        if call.function is not F.linear or output is None or call.is_complex:
            continue
        inputs, weight, bias = _arguments(*call.args, **call.kwargs)
        flat = inputs.detach().reshape(-1, inputs.shape[-1])
        own = [tensor for tensor in (weight, bias) if tensor is not None]
        if weight.ndim != 2 or any(uses[id(tensor)] > 1 for tensor in own):
            continue
        if id(weight) not in names or not 0 < flat.shape[0] <= flat.shape[1]:
            continue
        kernel = flat @ flat.T
        wanted_bias = None if bias is None else names.get(id(bias))
        if wanted_bias is not None:
            kernel += 1.0
        found.append(Layer(output.edge, names[id(weight)], wanted_bias, flat, kernel))
    return found


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias
