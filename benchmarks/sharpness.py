"""Largest Hessian eigenvalue of ResNet-20 (N = 32, eval mode), here and by PyHessian.

    python -m benchmarks.sharpness

Needs `pip install pyhessian` besides the extra `benchmark`.
"""

from __future__ import annotations

import json
import time

import torch
from torch import nn

from benchmarks.workloads import build, training_step
from lightning_vivit import Problem, evaluate


def main() -> None:
    from pyhessian import hessian

    work = build("resnet20")
    optimizer = torch.optim.SGD(work.model.parameters(), lr=0.05)
    train = training_step(work)  # its own optimizer has a learning rate of zero
    for _ in range(5):  # away from the initialisation
        train()
        optimizer.step()
    problem = Problem(work.model, nn.CrossEntropyLoss(), work.inputs, work.targets)
    begin = time.perf_counter()
    found = evaluate(problem, method="matrix_free", matrix="hessian", k=1, tol=1e-2)
    ours = float(found.eigenvalues()[-1])
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    data = (work.inputs, work.targets)
    peer = hessian(work.model, nn.CrossEntropyLoss(), data=data, cuda=False)
    theirs = float(peer.eigenvalues(maxIter=300, tol=1e-4)[0][0])
    result = {
        "what": "largest Hessian eigenvalue, ResNet-20, N = 32, eval mode",
        "ours": ours,
        "pyhessian": theirs,
        "relative_difference": abs(ours - theirs) / abs(theirs),
        "products": found.products,
        "seconds": round(seconds, 2),
        "pyhessian_seconds": round(time.perf_counter() - begin, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
