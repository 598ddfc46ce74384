"""Products of a matrix with vectors, and Jacobian products of every sample.

Choose this where N*D is too large for a Gram matrix. Nothing of the size outputs x parameters is
formed. One microbatch at a time is in memory; with a single one its graph is kept, and a product
costs one double backward pass (J v) and one backward pass (J^T w). Where samples times outputs
are fewer than half the parameters, the search can run among vectors over those (`dual`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lightning_vivit.jacobian.live import LivePart, Space
from lightning_vivit.matrices import Matrix
from lightning_vivit.matrixfree.dual import DualSpace
from lightning_vivit.matrixfree.microbatches import Microbatches
from lightning_vivit.problem.problem import Problem

_BATCH_ENTRIES = 1 << 22  # outputs of all vectors that go through the graph at once


class Products:
    """Products of a problem's matrix with vectors.

    Attributes:
        matrix: Whose products.
        batches: The parts of the batch, with its outputs, targets and loss.
        num_samples: N.
        depth: D, outputs of a sample.
        scale: The loss is ``scale * sum_n l_n``.
        halves: Half products so far: backward passes, and passes through a backward pass.
        dtype: Dtype of the outputs, in which all is computed.
        device: Of the outputs.
    """

    def __init__(
        self,
        problem: Problem,
        names: Sequence[str],
        matrix: Matrix,
        *,
        microbatch: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        """Run every microbatch once, for the scale of the whole batch's loss.

        Args:
            problem: What is differentiated; it needs a loss.
            names: Parameters that the vectors range over.
            matrix: Whose products.
            microbatch: Samples that are in memory at once; None for as many as fit.
            max_memory: Bytes for the graph and the outputs of the samples that are in memory
                at once, if there is no `microbatch`; None for half of what is free.

        Raises:
            OptionError: No loss, or an impossible microbatch.
            ProblemError: The loss of microbatches cannot be put together.
            InteractionError: Samples influence each other.
        """
        self._problem, self.matrix = problem, matrix
        self.batches = Microbatches(problem, names, matrix.linearised, microbatch, max_memory)
        self.num_samples, self.depth = self.batches.outputs.shape
        self.dtype, self.device = self.batches.outputs.dtype, self.batches.outputs.device
        self.scale = self.batches.scale
        self.halves = 0

    def space(self, names: Sequence[str]) -> Space:
        """Vectors over some of the parameters."""
        parameters = self._problem.trainable()
        return Space({name: parameters[name].shape for name in names})

    def prepared(self) -> AbstractContextManager[None]:
        """Set the numerics once for many products; each one sets them by itself otherwise."""
        return self.batches.prepared()

    def multiply(self, space: Space, vectors: Tensor) -> Tensor:
        """The block of the matrix of a space's parameters, times K vectors.

        Args:
            space: The parameters.
            vectors: [K, P].

        Returns:
            [K, P].
        """
        self.halves += 2 * vectors.shape[0]
        total = torch.zeros_like(vectors)
        for index in range(len(self.batches)):
            with self.batches.opened(index) as part:
                for some in _blocks(part, vectors.shape[0]):
                    total[some] += self.matrix.multiply(part, space, vectors[some])
        return total

    def dual(self, space: Space) -> DualSpace | None:
        """V and V^T of A = scale V V^T, if a search among vectors of N*M entries is cheaper.

        Only for one microbatch, and matrices that multiply with their root without forming it.
        """
        part, outputs = self.batches.kept, self.batches.outputs
        if part is None or not self.matrix.has_rows or 2 * outputs.numel() > space.size:
            return None
        probe = outputs.new_zeros(self.num_samples, self.matrix.columns(self.depth), 1)
        if self.matrix.root_product(part.loss, probe) is None:
            return None
        assert self.batches.tape is not None
        with self.prepared():
            return DualSpace(part, self.matrix, space, self.batches.tape, self._problem.model)

    def quadratic(self, space: Space, vectors: Tensor) -> Tensor:
        """v^T A v for K vectors, [K]; where A has rows it costs J v only, half a product."""
        total = torch.zeros(len(vectors), dtype=torch.float64, device=self.device)
        for index in range(len(self.batches)):
            with self.batches.opened(index) as part:
                for some in _blocks(part, len(vectors)):
                    total[some] += self.matrix.quadratic(part, space, vectors[some])
        return total

    def derivatives(self, space: Space, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and curvature of every sample's loss along K vectors.

        Args:
            space: The parameters.
            vectors: [K, P].

        Returns:
            g_n . v_k and v_k^T J_n^T S_n S_n^T J_n v_k, both [N, K] in float64. Costs one J v each.

        Raises:
            OptionError: Samples have no curvature.
        """
        count = vectors.shape[0]
        slopes = torch.zeros(self.num_samples, count, dtype=torch.float64, device=self.device)
        curvatures = torch.zeros_like(slopes)
        for index in range(len(self.batches)):
            with self.batches.opened(index) as part:
                for some in _blocks(part, count):
                    pushed = part.push(space, vectors[some])  # [N, D, K]
                    slopes[part.samples, some] = _slopes(part, pushed)
                    curvatures[part.samples, some] = self.matrix.curvatures(part.loss, pushed)
        return slopes, curvatures

    def along(self, pushed: Tensor) -> tuple[Tensor, Tensor]:
        """The same from J v_k [N, D, K] of all samples, which are in memory at once."""
        part = self.batches.kept
        assert part is not None
        return _slopes(part, pushed), self.matrix.curvatures(part.loss, pushed)

    def gradient(self, space: Space) -> Tensor:
        """Gradient of the loss, [P]."""
        total = torch.zeros(space.size, dtype=self.dtype, device=self.device)
        for index in range(len(self.batches)):
            with self.batches.opened(index) as part:
                total += part.scale * part.pull(space, part.loss.gradient().unsqueeze(2))[0]
        return total

    def sample_gradient_norms(self, space: Space) -> Tensor:
        """Norms of the g_n, [N] in float64. Costs a backward pass for each sample."""
        norms = torch.zeros(self.num_samples, dtype=torch.float64, device=self.device)
        for index in range(len(self.batches)):
            with self.batches.opened(index) as part:
                gradient = part.loss.gradient()
                for sample in range(part.layout.num_samples):
                    own = torch.zeros_like(gradient)
                    own[sample] = gradient[sample]
                    pulled = part.pull(space, own.unsqueeze(2))
                    norm = torch.linalg.vector_norm(pulled, dtype=torch.float64)
                    norms[part.start + sample] = norm
        return norms

    def unused(self) -> list[str]:
        """Parameters that do not influence the outputs (of any microbatch)."""
        found = []
        for index in range(len(self.batches)):
            with self.batches.opened(index) as part:
                found.append(part.linear.unused())
        return [name for name in found[0] if all(name in names for names in found)]


def _blocks(part: LivePart, count: int) -> Iterator[slice]:
    """Which of `count` vectors go through a part's graph together."""
    step = max(1, _BATCH_ENTRIES // part.linear.outputs.numel())
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def _slopes(part: LivePart, pushed: Tensor) -> Tensor:
    """g_n . v for a part's samples, [N, K] in float64, from J v [N, D, K]."""
    return (part.loss.gradient().unsqueeze(2) * pushed).sum(1, dtype=torch.float64)
