"""What is wanted from an evaluation: one typed object, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lightning_vivit.eigen.start import Start
from lightning_vivit.errors import OptionError, require_choice, require_integer
from lightning_vivit.evaluation.backends import BACKENDS
from lightning_vivit.kernel.modes import OutputKernel
from lightning_vivit.matrices import Matrix, find_matrix
from lightning_vivit.parallel import Part
from lightning_vivit.problem.groups import ParamGroups

METHODS = ("auto", "gram", "mc", "matrix_free")
COLUMNS = ("exact", "mc")


@dataclass(frozen=True)
class Request:
    """What is wanted from an evaluation, and how it may be found.

    Attributes:
        param_groups: One block (``all``), one per ``layer``, one per ``parameter``, or lists.
        method: One of `METHODS`.
        matrix: Whose eigenpairs: one of `MATRICES` by its name, or a matrix of your own. Without
            rows it is always looked at matrix-free.
        columns: One of `COLUMNS`: ``mc`` is a Monte-Carlo estimate, for Gram matrices.
        mc_samples: Columns for each sample with ``mc``.
        generator: Random generator for ``mc``.
        kernel: Whether the NTK will be asked for; None is True once there is one, which columns of
            each sample's own do not give.
        output_kernel: The NTK in this mode is all that is wanted; None for everything.
        k: Eigenpairs of a matrix-free search.
        tol: Relative residual of matrix-free eigenpairs.
        microbatch: Samples in memory at once, matrix-free; None for as many as fit.
        start: What `warm_start` of an earlier evaluation gave.
        dtype: Dtype of the Gram matrix and its eigenvalues; None for float64.
        max_memory: Bytes that may be used over the forward pass; None for half of what is free.
        backend: ``auto`` or one of `BACKENDS`.
        part: Says that the problem's batch is this rank's part of one batch. Gram matrices only.

    Raises:
        OptionError: An option has an impossible value, or two contradict each other.
    """

    param_groups: ParamGroups = "all"
    method: str = "gram"
    matrix: str | Matrix = "ggn"
    columns: str = "exact"
    mc_samples: int = 1
    generator: torch.Generator | None = None
    kernel: bool | None = None
    output_kernel: OutputKernel | None = None
    k: int = 10
    tol: float = 1e-3
    microbatch: int | None = None
    start: Mapping[str, Start] | None = None
    dtype: torch.dtype | None = None
    max_memory: int | None = None
    backend: str = "auto"
    part: Part | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        require_choice("method", self.method, METHODS)
        require_choice("columns", self.columns, COLUMNS)
        require_choice("backend", self.backend, ("auto", *BACKENDS))
        require_integer("mc_samples", self.mc_samples, lowest=1)
        require_integer("k", self.k, lowest=1)
        for name, value in (("microbatch", self.microbatch), ("max_memory", self.max_memory)):
            if value is not None:
                require_integer(name, value, lowest=1)
        tol = self.tol
        if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not 0 < tol < 1:
            raise OptionError(f"tol has to be a number between 0 and 1, got {tol!r}.")
        named = BACKENDS.get(self.backend)
        if self.sampled and named is not None and not named.has_own_columns:
            raise OptionError(
                f"The backend {self.backend!r} has exact columns, no Monte-Carlo columns. Use "
                "backend='autograd'."
            )
        self.chosen_matrix.check_method("matrix_free" if self.matrix_free else self.method)
        if self.matrix_free and self.part is not None:
            raise OptionError(
                "Matrix-free products are not divided among ranks. Give the whole batch."
            )

    @property
    def sampled(self) -> bool:
        """Whether the columns are a Monte-Carlo estimate."""
        return "mc" in (self.method, self.columns)

    @property
    def chosen_matrix(self) -> Matrix:
        """The matrix, or its Monte-Carlo estimate."""
        matrix = find_matrix(self.matrix)
        return matrix.sampled(self.mc_samples, self.generator) if self.sampled else matrix

    @property
    def own_columns(self) -> bool:
        """Whether each sample's own columns of the matrix are backpropagated, not its outputs."""
        able = self.backend == "auto" or BACKENDS[self.backend].has_own_columns
        return self.chosen_matrix.own_columns and able and not self.kernel

    @property
    def matrix_free(self) -> bool:
        """Whether no Gram matrix will be formed, whatever it would cost."""
        return self.method == "matrix_free" or not find_matrix(self.matrix).has_rows

    @property
    def undecided(self) -> bool:
        """Whether Gram matrix or products are chosen by their cost."""
        fixed = self.matrix_free or self.sampled or self.part is not None
        both = self.backend == "auto" or BACKENDS[self.backend].has_products
        return self.method == "auto" and both and not fixed
