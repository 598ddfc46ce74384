"""Matrices over the parameters: GGN, its Monte-Carlo estimate, Hessian."""

from lightning_vivit.matrices.known_matrices import MATRICES, find_matrix
from lightning_vivit.matrices.matrix import Matrix
from lightning_vivit.matrices.rows import RowMatrix

__all__ = ["MATRICES", "Matrix", "RowMatrix", "find_matrix"]
