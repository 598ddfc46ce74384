"""Evaluate a problem, and what the result answers."""

from lightning_vivit.evaluation.evaluate import evaluate
from lightning_vivit.evaluation.exact import Evaluation
from lightning_vivit.evaluation.matrix_free import MatrixFreeEvaluation

__all__ = ["Evaluation", "MatrixFreeEvaluation", "evaluate"]
