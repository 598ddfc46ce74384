"""Curvature and tangent kernels of PyTorch Lightning modules, seen while they train."""

from lightning_vivit.between import ntk_between
from lightning_vivit.callbacks import (
    DirectionalDerivativesMonitor,
    GGNSpectrumMonitor,
    NTKMonitor,
)
from lightning_vivit.computations import (
    DirectionalDampedNewtonComputation,
    DirectionalDerivativesComputation,
    EighComputation,
    EigvalshComputation,
)
from lightning_vivit.directions import Directions
from lightning_vivit.errors import InteractionError, OptionError, ProblemError, ViViTError
from lightning_vivit.evaluation import Evaluation, MatrixFreeEvaluation, evaluate
from lightning_vivit.functions import (
    directional_derivatives,
    empirical_ntk,
    ggn_eigenpairs,
    ggn_eigenvalues,
    newton_step,
)
from lightning_vivit.output_kernels import KernelEstimate
from lightning_vivit.own_losses import loss_function, register_loss, unregister_loss
from lightning_vivit.problem import Problem
from lightning_vivit.rules import operation, register_rule, unregister_rule

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
