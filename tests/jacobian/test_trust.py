"""Proofs that are remembered and made again from time to time."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from lightning_vivit import InteractionError, evaluate
from lightning_vivit.jacobian.trust import Proofs
from lightning_vivit.problem.problem import Problem


def test_a_proof_is_made_at_the_first_use_and_at_powers_of_two():
    proofs, model, made = Proofs(), nn.Linear(1, 1), []
    for use in range(1, 70):
        assert proofs.get(model, "key", lambda: (made.append(use) or "found", True)) == "found"  # noqa: B023
    assert made == [1, 16, 32, 64]
    assert proofs.get(nn.Linear(1, 1), "key", lambda: ("of another model", True)) != "found"
    assert proofs.get(model, "other", lambda: ("of another key", True)) != "found"


def test_a_proof_that_came_out_otherwise_is_not_trusted_again():
    proofs, model, results = Proofs(), nn.Linear(1, 1), iter(range(100))
    found = [proofs.get(model, "key", lambda: (next(results), True)) for _ in range(20)]
    assert found == [0] * 15 + [1, 2, 3, 4, 5]


def test_a_proof_of_one_batch_is_not_remembered():
    proofs, model, results = Proofs(), nn.Linear(1, 1), iter(range(100))
    assert [proofs.get(model, "key", lambda: (next(results), False)) for _ in range(3)] == [0, 1, 2]


def test_the_oldest_of_many_proofs_is_forgotten_and_the_model_not_kept():
    proofs, model, made = Proofs(), nn.Linear(1, 1), []
    for key in [*range(17), 16, 0]:
        proofs.get(model, key, lambda: (made.append(key), True))  # noqa: B023
    assert made == [*range(17), 0]
    del model
    gc.collect()
    assert not proofs._known


class Mixing(nn.Module):
    """Mixes the samples once a switch is on: nothing that the operations' names would show."""

    def __init__(self):
        super().__init__()
        self.linear, self.register = nn.Linear(3, 40), torch.eye(6)

    def forward(self, x):
        return self.register[: len(x), : len(x)] @ self.linear(x)


@pytest.mark.parametrize("method", ["gram", "matrix_free"])
def test_samples_that_begin_to_mix_are_noticed_within_sixteen_uses(method):
    torch.manual_seed(0)
    model, labels = Mixing(), torch.arange(6)

    def use():
        problem = Problem(model, nn.CrossEntropyLoss(), torch.randn(6, 3), labels)
        return evaluate(problem, method=method, kernel=False, k=2).eigenvalues()

    use()
    model.register = torch.eye(6) + 0.1
    with pytest.raises(InteractionError):
        for _ in range(16):
            use()
