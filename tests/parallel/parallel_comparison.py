"""One process on all samples, to compare the ranks with."""

from __future__ import annotations

from typing import Any

import torch
from parallel_runs import VALUES, K, determined_damping, separated
from torch import Tensor

from lightning_vivit import Problem
from lightning_vivit.evaluation.evaluate import evaluate
from lightning_vivit.evaluation.exact import Evaluation


def whole_batch(found: list[dict[str, Any]]) -> list[Tensor]:
    """The probe, or the ranks' own batches, cut to the limit and joined."""
    probe = found[0]["probe"]
    if probe is not None:
        return list(probe)
    return [torch.cat(parts) for parts in zip(*(each["batch"] for each in found), strict=True)]


def stated(name: str, found: list[dict[str, Any]], limit: int | None) -> Problem:
    """The problem of one process at the weights and buffers of rank 0."""
    kind, options = VALUES[name]
    module = kind()
    module.load_state_dict(found[0]["state"])
    cut = [{**each, "batch": [t[:limit] for t in each["batch"]]} for each in found]
    batch = whole_batch(cut)
    make = options.get("problem")
    module.eval()
    return Problem.from_training_step(module, batch) if make is None else make(module, batch)


def single(name: str, found: list[dict[str, Any]], limit: int | None, seed: int) -> Evaluation:
    """The evaluation that one process makes."""
    problem, options = stated(name, found, limit), VALUES[name][1]
    choice: dict[str, Any] = {"param_groups": options.get("param_groups", "all")}
    choice["matrix"] = options.get("matrix", "ggn")
    if options.get("mc_samples"):
        choice |= {"columns": "mc", "mc_samples": options["mc_samples"]}
        choice["generator"] = torch.Generator().manual_seed(seed)
    return evaluate(problem, kernel=options.get("kernel", True), **choice)


def assert_close(found: Tensor, expected: Tensor, what: str, limit: float = 1e-5) -> None:
    """Within `limit` of the largest entry."""
    assert found.shape == expected.shape, what
    scale = float(expected.abs().max())
    assert scale > 0, what
    assert float((found - expected).abs().max()) <= limit * scale, what


def compare(name: str, ranks: list[dict[str, Any]], place: int) -> int:
    """Compare all that one monitor kept on every rank; returns how many evaluations there were.

    Sample by sample, so gamma is compared up to the sign of its direction. What depends on a
    direction is compared where its eigenvalue stands apart from its neighbours: see `separated`.
    """
    options = VALUES[name][1]
    kept = [each["found"][place] for each in ranks]
    assert len({len(each) for each in kept}) == 1 and kept[0]
    for found in zip(*kept, strict=True):
        group, first = found[0]["group"], found[0]
        limit = None if "data" in options else options.get("max_samples", 64)
        expected = single(name, list(found), limit, options.get("seed", 0) + first["step"])
        k = min(K, expected.rank(group))
        directions = expected.directions(group, k)
        for each in found:
            assert each["num_samples"] == expected.num_samples
            assert_close(each["outputs"], expected.outputs, "outputs")
            assert torch.equal(each["targets"], expected.sample_targets())
            assert_close(each["loss"], expected.loss, "loss")
            assert_close(each["eigenvalues"], expected.eigenvalues(group), "eigenvalues")
            assert_close(each["norms"], expected.gradient_norms(group), "norms")
            if each["ntk"] is not None:
                assert_close(each["ntk"], expected.ntk(group), "ntk")
            signs = torch.sign((each["gammas"] * directions.gammas).sum(0))
            apart = separated(expected.eigenvalues(group), k)
            assert bool(apart.any())
            gammas = each["gammas"] * signs
            assert_close(gammas[:, apart], directions.gammas[:, apart], "gammas")
            assert_close(each["lambdas"][:, apart], directions.lambdas[:, apart], "lambdas")
            vectors = expected.eigenvectors(group, k)
            for parameter, vector in vectors.items():
                mine = torch.einsum("k...,k->k...", each["vectors"][parameter], signs.float())
                top = mine[-1] - vector[-1]
                assert not apart[-1] or float(top.abs().max()) < 1e-5, parameter
            damping = determined_damping(expected.eigenvalues(group))
            step = expected.newton_step(group, k, damping)
            whole = torch.cat([part.flatten() for part in step.values()])
            mine = torch.cat([each["step_vector"][key].flatten() for key in step])
            assert_close(mine, whole, "newton step")
    return len(kept[0])
