"""What is differentiated: a module, a loss and a batch, recorded in one forward pass."""

from lightning_vivit.problem.problem import Problem, Recording

__all__ = ["Problem", "Recording"]
