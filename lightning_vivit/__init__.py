"""Curvature and tangent kernels of PyTorch Lightning modules, seen while they train."""

from lightning_vivit.backpack.computations import (
    DirectionalDampedNewtonComputation,
    DirectionalDerivativesComputation,
    EighComputation,
    EigvalshComputation,
)
from lightning_vivit.callbacks import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.datasets import ntk_between
from lightning_vivit.errors import InteractionError, OptionError, ProblemError, ViViTError
from lightning_vivit.evaluation.derivatives import Directions
from lightning_vivit.evaluation.evaluate import evaluate
from lightning_vivit.evaluation.exact import Evaluation
from lightning_vivit.evaluation.matrix_free import MatrixFreeEvaluation
from lightning_vivit.functions import (
    directional_derivatives,
    empirical_ntk,
    ggn_eigenpairs,
    ggn_eigenvalues,
    newton_step,
)
from lightning_vivit.kernel.modes import KernelEstimate
from lightning_vivit.problem.own_losses import loss_function, register_loss, unregister_loss
from lightning_vivit.problem.problem import Problem
from lightning_vivit.problem.tape.operation import operation
from lightning_vivit.rules import register_rule, unregister_rule

__all__ = [
    "DirectionalDampedNewtonComputation",
    "DirectionalDerivativesComputation",
    "DirectionalDerivativesMonitor",
    "Directions",
    "EighComputation",
    "EigvalshComputation",
    "Evaluation",
    "GGNSpectrumMonitor",
    "InteractionError",
    "KernelEstimate",
    "MatrixFreeEvaluation",
    "NTKMonitor",
    "OptionError",
    "Problem",
    "ProblemError",
    "ViViTError",
    "directional_derivatives",
    "empirical_ntk",
    "evaluate",
    "ggn_eigenpairs",
    "ggn_eigenvalues",
    "loss_function",
    "newton_step",
    "ntk_between",
    "operation",
    "register_loss",
    "register_rule",
    "unregister_loss",
    "unregister_rule",
]
