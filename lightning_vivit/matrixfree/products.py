"""Products of the GGN or the Hessian with vectors, and Jacobian products of every sample.

Choose this where N*D is too large for a Gram matrix. Nothing of the size outputs x parameters is
formed. One microbatch at a time is in memory; with a single one its graph is kept, and a product
costs one double backward pass (J v) and one backward pass (J^T w). Where samples times outputs
are fewer than half the parameters, the search can run among vectors over those (`dual`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.losses import make_loss
from lightning_vivit.machine.heap import reuse_freed_memory
from lightning_vivit.matrixfree.dual import DualSpace
from lightning_vivit.matrixfree.fitting import fitting_samples
from lightning_vivit.matrixfree.linear import Linearization, graph_grad
from lightning_vivit.matrixfree.live import LivePart, Space, is_own, live_gradients
from lightning_vivit.matrixfree.microbatches import (
    Size,
    locate,
    require_loss,
    shares,
    split_samples,
)
from lightning_vivit.problem.forms.twice import TwiceDifferentiable
from lightning_vivit.problem.isolation.numerics import quiet_numerics
from lightning_vivit.problem.problem import Problem, Recording
from lightning_vivit.problem.tape.recorder import Tape
from lightning_vivit.samples.batch import batch_size
from lightning_vivit.samples.layout import SampleLayout

MATRICES = ("ggn", "hessian")
_PROVED: WeakKeyDictionary[nn.Module, set[tuple[str, ...]]] = WeakKeyDictionary()
_BATCH_ENTRIES = 1 << 22  # outputs of all vectors that go through the graph at once


class Products:
    """Products of a problem's curvature with vectors.

    Attributes:
        num_samples: N.
        depth: D, outputs of a sample.
        scale: The loss is ``scale * sum_n l_n``.
        value: Value of the loss, as the user reduces it.
        targets: The loss call's target; None if there are several microbatches.
        ignore_index: Class index that the loss ignores.
        outputs: [N, D], detached.
        halves: Half products so far: backward passes, and passes through a backward pass.
        dtype: Dtype of the outputs, in which all is computed.
    """

    def __init__(
        self,
        problem: Problem,
        names: Sequence[str],
        *,
        matrix: str = "ggn",
        microbatch: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        """Run every microbatch once, for the scale of the whole batch's loss.

        Args:
            problem: What is differentiated; it needs a loss.
            names: Parameters that the vectors range over.
            matrix: ``ggn`` or ``hessian``.
            microbatch: Samples that are in memory at once; None for as many as fit.
            max_memory: Bytes for the graph and the outputs of the samples that are in memory
                at once, if there is no `microbatch`; None for half of what is free.

        Raises:
            OptionError: Unknown matrix, no loss, or an impossible microbatch.
            ProblemError: The loss of microbatches cannot be put together.
            InteractionError: Samples influence each other.
        """
        if matrix not in MATRICES:
            raise OptionError(f"Unknown matrix {matrix!r}. Supported: {', '.join(MATRICES)}.")
        if torch.device("cpu") in {parameter.device for parameter in problem.trainable().values()}:
            reuse_freed_memory()
        self._problem, self._names, self._matrix = problem, list(names), matrix
        count = batch_size(problem.inputs)
        self._bounds = split_samples(count, microbatch)
        self.halves = 0
        if self._visit(microbatch is None and count > 1, max_memory):
            return
        try:
            self._visit(False, None)
        except ProblemError:  # not to be divided: half of the free memory is not all of it
            self._bounds = split_samples(count, None)
            self._visit(False, None)

    def _visit(self, may_split: bool, max_memory: int | None) -> bool:
        """Run every microbatch.

        Args:
            may_split: Whether the batch may be divided if it does not fit.
            max_memory: Budget for that.

        Returns:
            Whether it is done; else the batch does not fit, and smaller microbatches are set.
        """
        self._kept: LivePart | None = None
        self._tape: Tape | None = None  # of what is kept
        self._prepared = False
        self._starts: list[int] = []
        alone = len(self._bounds) == 1
        sizes: list[Size] = []
        values: list[Tensor] = []
        scales: list[float] = []
        outputs: list[Tensor] = []
        for index in range(len(self._bounds)):
            with self._recorded(index) as found:
                if may_split:
                    count = self._bounds[0][1]
                    fitting = fitting_samples(found, count, max_memory)
                    if fitting < count:
                        self._bounds = split_samples(count, fitting)
                        return False
                if index == 0:
                    self._layout = locate(self._part(index), found)
                    self._by_rows = self._layout.num_samples == found.outputs.shape[0]
                    self.targets = require_loss(found)[0].target if alone else None
                    options = require_loss(found)[0].options
                    self.ignore_index = int(options.get("ignore_index", -100))
                self._starts.append(sum(part.shape[0] for part in outputs))
                part = self._live(index, found)
                call, total = require_loss(found)
                values.append(total.detach())
                scales.append(part.loss.scale)
                outputs.append(part.layout.flatten(part.linear.outputs.detach()))
                if index == 0:
                    self._prove(part)
                if alone:
                    self._kept, self._tape = part, found.tape
                else:
                    sizes.append(Size.of(call, part.loss, part.layout.num_samples))
        self.outputs = outputs[0] if alone else torch.cat(outputs)  # [N, D]
        self.num_samples, self.depth = self.outputs.shape
        self.dtype, self.device = self.outputs.dtype, self.outputs.device
        self._shares = [1.0] if alone else shares(sizes, self._other_size(sizes))
        self._weights = [share * own for share, own in zip(self._shares, scales, strict=True)]
        self.scale = scales[0]
        if not alone:
            self.scale = 1.0 / self.num_samples if sizes[0].averages else 1.0
        shared = [share * value for share, value in zip(self._shares, values, strict=True)]
        self.value = torch.stack(shared).sum()
        return True

    @property
    def microbatch(self) -> int:
        """Samples that are in memory at once."""
        return self._bounds[0][1]

    def space(self, names: Sequence[str]) -> Space:
        """Vectors over some of the parameters."""
        parameters = self._problem.trainable()
        return Space({name: parameters[name].shape for name in names})

    def _prove(self, part: LivePart) -> None:
        """Check the products in both directions, once for each model and set of parameters."""
        proved = _PROVED.setdefault(self._problem.model, set())
        if tuple(self._names) not in proved:
            part.linear.check()
            proved.add(tuple(self._names))

    def split_rows(self, tensor: Tensor) -> Tensor:
        """[N*T, ...] like the outputs to [N, T, ...]."""
        return SampleLayout(self.num_samples, self._layout.minor).split(tensor)

    def multiply(self, space: Space, vectors: Tensor) -> Tensor:
        """The block of the curvature matrix of a space's parameters, times K vectors.

        Args:
            space: The parameters.
            vectors: [K, P].

        Returns:
            [K, P].
        """
        self.halves += 2 * vectors.shape[0]
        total = torch.zeros_like(vectors)
        for index in range(len(self._bounds)):
            with self._opened(index) as (part, weight, share):
                for some in self._blocks(part, vectors.shape[0]):
                    block = space.split(vectors[some])
                    if self._matrix == "hessian":
                        total[some] += share * self._hessian_vector(part, space, block)
                        continue
                    pushed = part.outputs_of(part.linear.jacobian_vector(block))
                    weighed = part.columns_of(
                        part.loss.hessian_product(pushed, overwrite=is_own(pushed, vectors))
                    )
                    del pushed
                    pulled = part.linear.vector_jacobian(weighed, list(space.shapes))
                    total[some] += weight * space.join(pulled)
        return total

    def dual(self, space: Space) -> DualSpace | None:
        """V and V^T of G = scale V V^T, if a search among vectors of N*D entries is cheaper.

        Only for the GGN, one microbatch, and losses that multiply with S without forming it.
        """
        size = self.num_samples * self.depth
        if self._matrix == "hessian" or self._kept is None or 2 * size > space.size:
            return None
        probe = self.outputs.new_zeros(self.num_samples, self.depth, 1)
        if self._kept.loss.root_product(probe) is None:
            return None
        assert self._tape is not None
        with self.prepared():
            return DualSpace(self._kept, space, self._tape, self._problem.model)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Set the numerics once for many products; each one sets them by itself otherwise."""
        if self._prepared or self._kept is None:
            yield
            return
        with quiet_numerics():
            self._prepared = True
            try:
                yield
            finally:
                self._prepared = False

    def quadratic(self, space: Space, vectors: Tensor) -> Tensor:
        """v^T G v for K vectors, [K]; for the GGN it costs J v only, half a product."""
        if self._matrix == "hessian":
            return (self.multiply(space, vectors) * vectors).sum(1)
        return self.scale * self.derivatives(space, vectors)[1].sum(0)

    def derivatives(self, space: Space, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and GGN curvature of every sample's loss along K vectors.

        Args:
            space: The parameters.
            vectors: [K, P].

        Returns:
            g_n . v_k and v_k^T J_n^T H_n J_n v_k, both [N, K] in float64. Costs one J v each.
        """
        count = vectors.shape[0]
        slopes = torch.zeros(self.num_samples, count, dtype=torch.float64, device=self.device)
        curvatures = torch.zeros_like(slopes)
        for index in range(len(self._bounds)):
            with self._opened(index) as (part, weight, _):
                rows = slice(part.start, part.start + part.layout.num_samples)
                for some in self._blocks(part, count):
                    block = space.split(vectors[some])
                    pushed = part.outputs_of(part.linear.jacobian_vector(block))  # [N, D, K]
                    found = _derivatives(part, weight / self.scale, pushed)
                    slopes[rows, some], curvatures[rows, some] = found
        return slopes, curvatures

    def along(self, pushed: Tensor) -> tuple[Tensor, Tensor]:
        """The same from J v_k [N, D, K] of all samples, which are in memory at once."""
        assert self._kept is not None
        return _derivatives(self._kept, 1.0, pushed)

    def gradient(self, space: Space) -> Tensor:
        """Gradient of the loss, [P]."""
        total = torch.zeros(space.size, dtype=self.dtype, device=self.device)
        for index in range(len(self._bounds)):
            with self._opened(index) as (part, weight, _):
                column = part.columns_of(part.loss.gradient().unsqueeze(2))
                pulled = part.linear.vector_jacobian(column, list(space.shapes))
                total += weight * space.join(pulled)[0]
        return total

    def sample_gradient_norms(self, space: Space) -> Tensor:
        """Norms of the g_n, [N] in float64. Costs a backward pass for each sample."""
        norms = torch.zeros(self.num_samples, dtype=torch.float64, device=self.device)
        for index in range(len(self._bounds)):
            with self._opened(index) as (part, weight, _):
                gradient = part.loss.gradient()
                for sample in range(part.layout.num_samples):
                    own = torch.zeros_like(gradient)
                    own[sample] = gradient[sample]
                    column = part.columns_of(own.unsqueeze(2))
                    pulled = part.linear.vector_jacobian(column, list(space.shapes))
                    squares = [grad.double().square().sum() for grad in pulled.values()]
                    norm = torch.stack(squares).sum().sqrt() * (weight / self.scale)
                    norms[part.start + sample] = norm
        return norms

    def unused(self) -> list[str]:
        """Parameters that do not influence the outputs (of any microbatch)."""
        found = []
        for index in range(len(self._bounds)):
            with self._opened(index) as (part, _, _):
                found.append(part.linear.unused())
        return [name for name in found[0] if all(name in names for names in found)]

    def _hessian_vector(self, part: LivePart, space: Space, block: Mapping[str, Tensor]) -> Tensor:
        names = [name for name in space.shapes if name in part.gradients]
        count = next(iter(block.values())).shape[0]
        parameters = self._parameters(list(space.shapes))
        grads: list[Tensor | None] = [None] * len(parameters)
        if names:
            live = [part.gradients[name] for name in names]
            grads = graph_grad(live, parameters, [block[name] for name in names])
        return space.join(
            {
                name: parameter.new_zeros(count, *parameter.shape) if grad is None else grad
                for name, parameter, grad in zip(space.shapes, parameters, grads, strict=True)
            }
        )

    def _parameters(self, names: Sequence[str]) -> list[nn.Parameter]:
        parameters = self._problem.trainable()
        return [parameters[name] for name in names]

    def _blocks(self, part: LivePart, count: int) -> Iterator[slice]:
        step = max(1, _BATCH_ENTRIES // part.linear.outputs.numel())
        for start in range(0, count, step):
            yield slice(start, min(count, start + step))

    def _part(self, index: int) -> Problem:
        return self._problem if len(self._bounds) == 1 else self._problem.part(*self._bounds[index])

    @contextmanager
    def _recorded(self, index: int) -> Iterator[Recording]:
        cudnn = torch.backends.cudnn.flags(enabled=not self._recurrent())
        twice = TwiceDifferentiable(lean=self._matrix == "ggn")
        with cudnn, twice, self._part(index).recorded(self._names) as found:
            yield found

    def _recurrent(self) -> bool:
        """CuDNN's recurrent layers cannot be differentiated twice."""
        return any(isinstance(child, nn.RNNBase) for child in self._problem.model.modules())

    def _live(self, index: int, recording: Recording) -> LivePart:
        call, total = require_loss(recording)
        start, stop = self._bounds[index]
        rows = recording.outputs.shape[0]
        own = rows if self._by_rows else stop - start
        layout = SampleLayout(own, self._layout.minor)
        linear = Linearization(recording.outputs, recording.tape.parameters)
        gradients: dict[str, Tensor] = {}
        if self._matrix == "hessian":
            gradients = live_gradients(total, recording.tape.parameters)
        loss = make_loss(call, layout)
        return LivePart(linear, layout, loss, gradients, self._starts[index])

    @contextmanager
    def _opened(self, index: int) -> Iterator[tuple[LivePart, float, float]]:
        """A microbatch with its weight in sum_n l_n and its share of the loss."""
        weight, share = self._weights[index], self._shares[index]
        if self._kept is not None:
            with self.prepared():
                yield self._kept, weight, share
            return
        with self._recorded(index) as recording:
            yield self._live(index, recording), weight, share

    def _other_size(self, sizes: Sequence[Size]) -> Size | None:
        """A microbatch of another size, if the sizes at hand do not tell how the scale changes."""
        if all(size.plain for size in sizes) or len({size.samples for size in sizes}) > 1:
            return None
        count = 1 if sizes[0].samples > 1 else 2
        with self._problem.part(0, count).recorded(self._names) as recording:
            call, _ = require_loss(recording)
            layout = SampleLayout(count, self._layout.minor)
            return Size.of(call, make_loss(call, layout), count)


def _derivatives(part: LivePart, factor: float, pushed: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes and curvatures of a part's samples, both [N, K] in float64, from J v [N, D, K]."""
    gradient = part.loss.gradient().unsqueeze(2)
    slopes = factor * (gradient * pushed).sum(1, dtype=torch.float64)
    weighed = part.loss.hessian_product(pushed).mul_(pushed)
    return slopes, factor * weighed.sum(1, dtype=torch.float64)
