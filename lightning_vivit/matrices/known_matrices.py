"""The matrices by name."""

from __future__ import annotations

from lightning_vivit.errors import OptionError
from lightning_vivit.matrices.empirical_fisher import EmpiricalFisher
from lightning_vivit.matrices.ggn import GGN
from lightning_vivit.matrices.hessian import Hessian
from lightning_vivit.matrices.matrix import Matrix

MATRICES: dict[str, Matrix] = {
    matrix.name: matrix for matrix in (GGN(), Hessian(), EmpiricalFisher())
}


def find_matrix(matrix: str | Matrix) -> Matrix:
    """The matrix of a name; a matrix is what it is.

    Raises:
        OptionError: Unknown name.
    """
    if isinstance(matrix, Matrix):
        return matrix
    if matrix not in MATRICES:
        supported = ", ".join(map(repr, MATRICES))
        raise OptionError(f"matrix has to be one of {supported}, got {matrix!r}.")
    return MATRICES[matrix]
