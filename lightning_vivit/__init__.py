"""Curvature and tangent kernels of PyTorch Lightning modules, seen while they train."""

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
from lightning_vivit.problem import Problem
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
    "newton_step",
    "register_rule",
    "unregister_rule",
]
