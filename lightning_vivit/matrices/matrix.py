"""What a matrix has to offer: a name, products with vectors and, where it can, rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError
from lightning_vivit.jacobian.live import LivePart, Space
from lightning_vivit.losses import SampleLoss


class Matrix(ABC):
    """A symmetric matrix A [P, P] over the parameters, whose eigenpairs are looked at.

    Nobody asks which matrix it is: what differs between matrices is an attribute or a method here.
    All per-sample quantities are those of l_n, where the loss is ``scale * sum_n l_n``.

    Attributes:
        name: What users type, and the first part of its keys.
        title: What charts and messages call it.
        directions: First part of the keys of slopes and curvatures along its eigenvectors, if
            samples have any.
        source: Who defined it, as a link.
        readings: How to read its keys where that is not as for the GGN: last part -> text.
        semidefinite: Whether no eigenvalue is negative.
        is_curvature: Whether v^T A v says how the loss bends along v, so that learning rates and
            Newton steps go with it.
        linearised: Whether the network enters by its Jacobian alone. Products then differentiate
            the backward pass in its cotangent only, which cheaper forms of operations allow.
        has_products: Whether `multiply` is there, for a search without a Gram matrix.
        has_rows: Whether `root` is there: A = scale * sum_n J_n^T S_n S_n^T J_n, so that a Gram
            matrix has all its eigenvalues.
        has_directions: Whether samples have slopes and curvatures along its eigenvectors.
        own_columns: Whether the columns of S_n, which are others for each sample, are
            backpropagated in place of the outputs where nobody wants the NTK: there are few.
        root_is_gradient: Whether the only column of S_n is the gradient r_n.
    """

    name: str
    title: str
    directions: str = ""
    source: str = ""
    readings: ClassVar[Mapping[str, str]] = MappingProxyType({})
    semidefinite = True
    is_curvature = True
    linearised = True
    has_products = True
    has_rows = True
    has_directions = True
    own_columns = False
    root_is_gradient = False

    @abstractmethod
    def multiply(self, part: LivePart, space: Space, vectors: Tensor) -> Tensor:
        """What a part of the batch adds to A v, for K vectors.

        Args:
            part: Samples with their graph.
            space: The parameters; A is its block of these.
            vectors: [K, P].

        Returns:
            [K, P] in memory of its own; A v is the sum over the parts.
        """

    def quadratic(self, part: LivePart, space: Space, vectors: Tensor) -> Tensor:
        """What a part of the batch adds to v^T A v, [K] in float64; by default by a product."""
        return (self.multiply(part, space, vectors) * vectors).sum(1, dtype=torch.float64)

    def columns(self, depth: int) -> int:
        """M, how many columns S_n has for D outputs."""
        return depth

    def root(self, loss: SampleLoss) -> Tensor:
        """Roots S_n [N, D, M] in the outputs.

        Raises:
            OptionError: There are none.
        """
        raise OptionError(f"The {self.title} has no rows, only products.")

    def basis(self, loss: SampleLoss) -> Tensor | None:
        """Orthonormal columns [D, D'] that span all S_n and all r_n; None if all D outputs do."""
        return None

    def root_product(
        self, loss: SampleLoss, vectors: Tensor, transpose: bool = False
    ) -> Tensor | None:
        """Roots times vectors without forming them, for a search among vectors of N*M entries.

        Args:
            loss: Of the samples.
            vectors: [N, M, K].
            transpose: Multiply [N, D, K] with S_n^T instead.

        Returns:
            [N, D, K], or [N, M, K] with the transpose; None if they have to be formed.
        """
        return None

    def curvatures(self, loss: SampleLoss, pushed: Tensor) -> Tensor:
        """Every sample's v^T J_n^T S_n S_n^T J_n v, [N, K] in float64.

        Args:
            loss: Of the samples.
            pushed: J_n v, [N, D, K].

        Raises:
            OptionError: Samples have none.
        """
        raise OptionError(self.no_directions)

    def sampled(self, mc_samples: int, generator: torch.Generator | None) -> Matrix:
        """A Monte-Carlo estimate of this matrix.

        Args:
            mc_samples: Columns for each sample.
            generator: Source of the random numbers; None for torch's default.

        Raises:
            OptionError: There is none.
        """
        raise OptionError(
            f"Monte-Carlo columns estimate the GGN, and got the {self.title}. Use matrix='ggn', "
            "or mc_samples=0 and another method than 'mc'."
        )

    @property
    def mark(self) -> str:
        """What tells its charts from those of the GGN."""
        return f" ({self.title})"

    @property
    def no_directions(self) -> str:
        """Why slopes and curvatures of samples are refused."""
        return (
            f"Slopes and curvatures of samples along the eigenvectors of the {self.title} are not "
            "supported. Use matrix='ggn'."
        )

    def check_method(self, method: str) -> None:
        """Raise an OptionError where a method needs rows or products that the matrix lacks."""
        if method == "gram" and not self.has_rows:
            raise OptionError(
                f"The {self.title} is looked at matrix-free: there is no Gram matrix of it. Use "
                "method='auto' or 'matrix_free'."
            )
        if method == "matrix_free" and not self.has_products:
            raise OptionError(
                f"The {self.title} of Monte-Carlo columns is looked at by its Gram matrix. Use "
                "method='mc', or mc_samples=0 and columns='exact' for matrix-free products."
            )
