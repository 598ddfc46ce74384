"""Rule for matrix products and two-operand einsums of data and a parameter."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.factors import Factor, OuterProduct
from lightning_vivit.rules.broadcast import broadcasts_over_samples, reduce_columns
from lightning_vivit.rules.registry import Use, register_rule
from lightning_vivit.samples.axis import SampleAxis


@register_rule(torch.einsum)
def einsum(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Parameter with letters (G, A, B): G in all, A shared with the output, B with the data."""
    equation, *operands = use.call.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "." in equation:
        return None
    equation = equation.replace(" ", "")
    if "->" not in equation:
        return None
    left, output = equation.split("->")
    return _two_operands(use, left.split(","), operands, output)


@register_rule(
    torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm
)
def matmul(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """The product of two tensors of at least two axes, one of them a plain matrix."""
    first, second = use.call.args[:2]
    if use.call.function is Tensor.__rmatmul__:
        first, second = second, first
    return _matmul(use, first, second)


@register_rule(torch.addmm, Tensor.addmm)
def addmm(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Bias + data @ weight."""
    if use.call.kwargs or len(use.call.args) != 3:
        return None
    bias, first, second = use.call.args
    found = _matmul(use, first, second) if use.wants(first) or use.wants(second) else []
    if found is None:
        return None
    if use.wants(bias):
        if not broadcasts_over_samples(use, tuple(bias.shape)):
            return None
        found.append((bias, reduce_columns(use, use.columns, tuple(bias.shape), bias)))
    return found


def _matmul(use: Use, first: Tensor, second: Tensor) -> list[tuple[Tensor, Factor]] | None:
    if first.ndim < 2 or second.ndim < 2:
        return None
    letters = string.ascii_lowercase
    rank = max(first.ndim, second.ndim) - 2
    if first.ndim != second.ndim and min(first.ndim, second.ndim) != 2:
        return None
    if first.ndim == second.ndim and first.shape[:-2] != second.shape[:-2]:
        return None
    batch = letters[:rank]
    terms = [
        (batch if tensor.ndim > 2 else "") + ends
        for tensor, ends in ((first, "xy"), (second, "yz"))
    ]
    return _two_operands(use, terms, [first, second], batch + "xz")


def _two_operands(
    use: Use, terms: list[str], operands: list[Any], output: str
) -> list[tuple[Tensor, Factor]] | None:
    wanted = [use.wants(operand) for operand in operands]
    if sum(wanted) != 1 or any(len(set(term)) != len(term) for term in [*terms, output]):
        return None
    place = wanted.index(True)
    weight, data = operands[place], operands[1 - place]
    own, other = terms[place], terms[1 - place]
    sample = output[use.axis.dim]
    if sample in own or sample not in other or weight.ndim != len(own):
        return None
    shared = "".join(letter for letter in own if letter in output and letter in other)
    outer = "".join(letter for letter in own if letter in output and letter not in other)
    inner = "".join(letter for letter in own if letter in other and letter not in output)
    if len(shared + outer + inner) != len(own):
        return None  # a letter that only the parameter has is summed over: left to the dense rule
    places = "".join(letter for letter in output if letter in other and letter not in own)
    places = places.replace(sample, "")
    axis = SampleAxis(other.index(sample), use.axis.num_samples, use.axis.minor)
    samples = axis.split(data.detach())  # [N, *other with T on the sample letter]
    spare = _spare(own + other + output)
    samples = torch.einsum(f"{spare[0]}{other}->{spare[0]}{shared}{inner}{sample}{places}", samples)
    columns = torch.einsum(
        f"{spare[0]}{spare[1]}{output}->{spare[0]}{spare[1]}{shared}{outer}{sample}{places}",
        use.columns,
    )
    sizes = dict(zip(own, weight.shape, strict=True))
    count = [_size(sizes, names) for names in (shared, outer, inner)]
    n, d = columns.shape[:2]
    inputs = samples.reshape(n, count[0], count[2], -1)
    columns = columns.reshape(n, d, count[0], count[1], -1)
    order = shared + outer + inner
    if order == own:
        return [(weight, OuterProduct(columns, inputs, weight.shape))]
    if shared + inner + outer == own:
        return [(weight, OuterProduct(columns, inputs, weight.shape, transposed=True))]
    return None


def _size(sizes: dict[str, int], names: str) -> int:
    total = 1
    for name in names:
        total *= sizes[name]
    return total


def _spare(used: str) -> list[str]:
    return [letter for letter in string.ascii_letters if letter not in used][:2]
