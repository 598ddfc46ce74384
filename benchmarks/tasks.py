"""What is timed: our functions and the peers', as closures that return a comparable tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.workloads import Workload
from lightning_vivit import Problem, empirical_ntk, evaluate

K = 10
Task = Callable[[], Tensor]


def our_kernel(work: Workload) -> Task:
    if work.split is None:
        return lambda: empirical_ntk(work.model, work.inputs)
    left, right = work.inputs[: work.split], work.inputs[work.split :]
    return lambda: empirical_ntk(work.model, left, right)


def our_eigenpairs(work: Workload) -> Task:
    """Top-10 eigenpairs with the slope and the curvature of every sample."""
    return _eigenpairs(work, "autograd")


def _eigenpairs(work: Workload, backend: str) -> Task:
    def run() -> Tensor:
        problem = Problem(work.model, F.cross_entropy, work.inputs, work.targets)
        found = evaluate(problem, kernel=False, backend=backend)
        directions = found.directions(k=K)
        found.eigenvectors(k=K)
        return directions.eigenvalues

    return run


def our_backpack_eigenpairs(work: Workload) -> Task:
    """The same on the BackPACK backend."""
    return _eigenpairs(work, "backpack")


def our_eigenvalues(work: Workload) -> Task:
    def run() -> Tensor:
        problem = Problem(work.model, F.cross_entropy, work.inputs, work.targets)
        return evaluate(problem, kernel=False).eigenvalues()[-K:]

    return run


def _functional(work: Workload) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    params = {name: p.detach() for name, p in work.model.named_parameters()}
    buffers = dict(work.model.named_buffers())

    def single(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(work.model, (params, buffers), (x.unsqueeze(0),)).squeeze(0)

    return single, params


def func_jacobians(work: Workload) -> Task:
    """torch.func: Jacobian contraction."""
    single, params = _functional(work)

    def rows(x: Tensor) -> list[Tensor]:
        return [j.flatten(2) for j in vmap(jacrev(single), (None, 0))(params, x).values()]

    def run() -> Tensor:
        left, right = rows(work.inputs[: work.split]), rows(work.inputs[work.split :])
        pairs = zip(left, right, strict=True)
        return torch.stack([torch.einsum("Naf,Mbf->NMab", *pair) for pair in pairs]).sum(0)

    return run


def func_products(work: Workload) -> Task:
    """torch.func: kernel-vector products."""
    single, params = _functional(work)

    def pair(x: Tensor, y: Tensor) -> Tensor:
        outputs, pull = vjp(lambda params: single(params, x), params)
        basis = torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device)

        def column(vector: Tensor) -> Tensor:
            return jvp(lambda params: single(params, y), (params,), pull(vector))[1]

        return vmap(column)(basis)

    def run() -> Tensor:
        each = vmap(vmap(pair, (None, 0)), (0, None))
        return each(work.inputs[: work.split], work.inputs[work.split :])

    return run


def vivit_kernel(work: Workload) -> Task:
    """ViViT 1.0.0's ViViTGGNExact under BackPACK, as in its tutorial."""
    from vivit.extensions.secondorder.vivit import ViViTGGNExact

    return _extension_kernel(work, ViViTGGNExact)


def our_extension_kernel(work: Workload) -> Task:
    """Our ViViTGGNExact in the same BackPACK program."""
    from lightning_vivit.extensions import ViViTGGNExact

    return _extension_kernel(work, ViViTGGNExact)


def _extension_kernel(work: Workload, extension: Any) -> Task:
    from backpack import backpack, extend

    net, loss = extend(work.model), extend(nn.MSELoss(reduction="sum"))

    def run() -> Tensor:
        grams: list[Tensor] = []

        def collect(module: nn.Module) -> None:
            for p in module.parameters(recurse=False):
                grams.append(p.vivit_ggn_exact["gram_mat"]())
                del p.vivit_ggn_exact

        net.zero_grad()
        with backpack(extension(), extension_hook=collect):
            outputs = net(work.inputs)
            loss(outputs, torch.zeros_like(outputs)).backward()
        total = sum(grams)
        assert isinstance(total, Tensor)
        kernel = 0.5 * torch.einsum("cndm->nmcd", total)
        return kernel if work.split is None else kernel[: work.split, work.split :]

    return run


def vivit_eigenvalues(work: Workload) -> Task:
    """ViViT 1.0.0's eigenvalues; torch.symeig, which it calls, is put back here alone."""
    from backpack import backpack, extend
    from vivit import EigvalshComputation

    def symeig(matrix: Tensor, eigenvectors: bool = False, **_: Any) -> Any:
        if eigenvectors:
            return torch.linalg.eigh(matrix)
        return torch.linalg.eigvalsh(matrix), None

    net, loss = extend(work.model), extend(nn.CrossEntropyLoss())
    group = {"params": list(net.parameters())}

    def run() -> Tensor:
        torch.Tensor.symeig = symeig
        computation = EigvalshComputation()
        net.zero_grad()
        try:
            extension = computation.get_extension()
            hook = computation.get_extension_hook([group])
            value = loss(net(work.inputs), work.targets)
            with backpack(extension, extension_hook=hook):
                value.backward()
        finally:
            del torch.Tensor.symeig
        return computation.get_result(group)[-K:]

    return run


def curvlinops_eigenpairs(work: Workload) -> Task:
    """curvlinops' GGN with scipy's eigsh, tolerance 1e-3."""
    import numpy as np
    from curvlinops import GGNLinearOperator
    from scipy.sparse.linalg import eigsh

    params = [p for p in work.model.parameters() if p.requires_grad]

    def run() -> Tensor:
        operator = GGNLinearOperator(
            work.model,
            nn.CrossEntropyLoss(),
            params,
            [(work.inputs, work.targets)],
            check_deterministic=False,
        )
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward-mode derivative
            values, _ = eigsh(operator.to_scipy(), k=K, tol=1e-3, which="LA")
        return torch.from_numpy(np.sort(values))

    return run


def eigenthings_eigenpairs(work: Workload) -> Task:
    """hessian-eigenthings' GGN with its own Lanczos, tolerance 1e-3."""
    from hessian_eigenthings import (
        GGNOperator,
        lanczos,
        supervised_forward,
        supervised_loss_of_output,
    )

    def run() -> Tensor:
        operator = GGNOperator(
            work.model,
            [(work.inputs, work.targets)],
            supervised_forward,
            supervised_loss_of_output(nn.CrossEntropyLoss()),
        )
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward-mode derivative
            return lanczos(operator, k=K, tol=1e-3, seed=0).eigenvalues.sort().values[-K:]

    return run


def nngeometry_kernel(work: Workload) -> Task:
    """nngeometry's Gram matrix."""
    from nngeometry.gram import GramMatrix
    from nngeometry.layercollection import LayerCollection
    from torch.utils.data import DataLoader, TensorDataset

    layers = LayerCollection.from_model(work.model)
    loader = DataLoader(TensorDataset(work.inputs, work.targets), batch_size=len(work.inputs))

    def run() -> Tensor:
        gram = GramMatrix(
            model=work.model,
            loader=loader,
            function=lambda *batch: work.model(batch[0]),
            layer_collection=layers,
        )
        return gram.to_torch().permute(1, 3, 0, 2)

    return run


# name -> what of ours it is compared with, the peer, the workloads
PEERS: dict[str, tuple[str, Callable[[Workload], Task], tuple[str, ...]]] = {
    "torch.func Jacobians": ("kernel", func_jacobians, ("cnn",)),
    "torch.func products": ("kernel", func_products, ("cnn",)),
    "ViViT kernel": ("kernel", vivit_kernel, ("cnn",)),
    "ViViT's extension": ("extension", vivit_kernel, ("cnn", "mlp")),
    "nngeometry Gram": ("kernel", nngeometry_kernel, ("mlp", "resnet20")),
    "ViViT eigenvalues": ("eigenvalues", vivit_eigenvalues, ("mlp", "3c3d")),
    "our BackPACK backend": ("eigenpairs", our_backpack_eigenpairs, ("mlp", "3c3d")),
    "curvlinops + eigsh": (
        "eigenpairs",
        curvlinops_eigenpairs,
        ("mlp", "3c3d", "resnet20", "resnet18", "transformer"),
    ),
    "hessian-eigenthings": (
        "eigenpairs",
        eigenthings_eigenpairs,
        ("mlp", "3c3d", "resnet20", "resnet18", "transformer"),
    ),
}
OURS: dict[str, Callable[[Workload], Task]] = {
    "kernel": our_kernel,
    "eigenpairs": our_eigenpairs,
    "eigenvalues": our_eigenvalues,
    "extension": our_extension_kernel,
}
