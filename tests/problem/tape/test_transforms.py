"""Derivatives of a program against the module's own: forward mode, torch.func, twice backward."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from tape_steps import NAMES, is_plain, subject, trainable
from test_observation import HOLES
from torch import Tensor
from torch.func import jvp, vjp, vmap

from lightning_vivit.problem.forms.twice import TwiceDifferentiable
from lightning_vivit.problem.isolation.numerics import default_dtype, quiet_numerics
from lightning_vivit.problem.tape.executor import execute, leaves, prepared

# An operation that has no forward mode in torch, or, with padding, another derivative there.
NO_FORWARD_MODE = {
    *("RandomSlopes", "Parametrized", "Lookup", "CustomOperators", "radial_basis", "weight_norm"),
    *("weight_norm_of_a_convolution", "embedding_bag", "embedding_with_padding"),
}
# Derivatives inside of the step, and operations that torch.func does not take.
NO_TORCH_FUNC = {
    *("GradientPenalty", "PhysicsInformed", "MetaLearning", "Lookup", "CustomOperators"),
    *("Recurrent", "packed_sorted", "packed_reordered", "packed_and_padded_again"),
}
COUNT = 3
WHOLE = [name for name in NAMES if name not in HOLES and name != "Grows"]  # its layer is made anew


def along(grads: dict[str, Tensor], tangents: dict[str, Tensor]) -> Tensor:
    """Inner products with the tangents, [K]."""
    return torch.stack(
        [(tangents[name] * grad).flatten(1).sum(1) for name, grad in grads.items()]
    ).sum(0)


def dense(grad: Tensor | None, like: Tensor) -> Tensor:
    if grad is None:
        return torch.zeros_like(like)
    return grad.to_dense() if grad.is_sparse else grad


@pytest.mark.parametrize("name", WHOLE)
def test_directional_derivatives(name: str) -> None:
    _, program = subject(name).observed()
    made = prepared(program, form="eval", dtype=torch.float64)
    values = {
        name: leaf for name, leaf in leaves(made, torch.float64).items() if leaf.requires_grad
    }
    torch.manual_seed(0)
    tangents = {name: torch.randn(COUNT, *p.shape, dtype=p.dtype) for name, p in values.items()}
    plain = {name: p.detach() for name, p in values.items()}

    def run(parameters: dict[str, Tensor]) -> Tensor:
        return execute(made, parameters)

    def forward(tangent: dict[str, Tensor]) -> Tensor:
        return jvp(run, (plain,), (tangent,))[1]

    with quiet_numerics():
        grads = torch.autograd.grad(run(values), list(values.values()), allow_unused=True)
        found = {n: dense(g, p) for (n, p), g in zip(values.items(), grads, strict=True)}
        expected = along(found, tangents)
        if name not in NO_FORWARD_MODE:
            for k in range(COUNT):
                with forward_ad.dual_level():
                    duals = {n: forward_ad.make_dual(p, tangents[n][k]) for n, p in values.items()}
                    slope = forward_ad.unpack_dual(run(duals)).tangent
                torch.testing.assert_close(slope.detach(), expected[k])
        if name in NO_TORCH_FUNC:
            return
        pull = vjp(run, plain)[1]
        pulled = vmap(lambda scale: pull(scale)[0])(torch.ones(2, dtype=torch.float64))
        for k in range(2):
            torch.testing.assert_close(
                along({n: g[k] for n, g in pulled.items()}, tangents), expected
            )
        if name not in NO_FORWARD_MODE:
            slopes = vmap(forward, randomness="same")(tangents)
            torch.testing.assert_close(slopes, expected)


@pytest.mark.parametrize("name", [name for name in WHOLE if is_plain(name)])
def test_second_derivatives(name: str) -> None:
    """Hessian times a vector, of the program and of the module in evaluation mode."""
    found = subject(name)
    _, program = found.observed()
    other = subject(name)
    other.module.double().eval()
    other.batch = tuple(t.double() if t.is_floating_point() else t for t in other.batch)
    other.autocast = False
    made = prepared(program, form="eval", dtype=torch.float64)
    values = {
        name: leaf for name, leaf in leaves(made, torch.float64).items() if leaf.requires_grad
    }
    torch.manual_seed(1)
    vectors = {name: torch.randn_like(value) for name, value in values.items()}
    with quiet_numerics(), default_dtype(torch.float64), TwiceDifferentiable():
        products = product(execute(made, values), values, vectors)
        expected = product(other.loss(), trainable(other.module), vectors)
    for key in values:
        torch.testing.assert_close(products[key], expected[key], rtol=1e-9, atol=1e-11)


def product(
    loss: Tensor, parameters: dict[str, Tensor], vectors: dict[str, Tensor]
) -> dict[str, Tensor]:
    wanted = [parameters[name] for name in vectors]
    grads = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
    slope = sum(
        (dense(grad, value) * vector).sum()
        for grad, value, vector in zip(grads, wanted, vectors.values(), strict=True)
    )
    bends = torch.autograd.grad(slope, wanted, materialize_grads=True)
    return dict(zip(vectors, bends, strict=True))
