"""A problem's batch in parts of which one at a time is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.jacobian.linearization import Linearization
from lightning_vivit.jacobian.live import LivePart
from lightning_vivit.losses import LossCall, MultipleLoss, make_loss
from lightning_vivit.matrixfree.fitting_samples import fitting_samples
from lightning_vivit.matrixfree.locate import locate
from lightning_vivit.matrixfree.shares import LossSize, shares
from lightning_vivit.problem.forms.twice import TwiceDifferentiable
from lightning_vivit.problem.isolation.numerics import quiet_numerics
from lightning_vivit.problem.problem import Problem, Recording
from lightning_vivit.problem.tape.recorder import Tape
from lightning_vivit.samples.layout import SampleLayout

_PROVED: WeakKeyDictionary[nn.Module, set[tuple[str, ...]]] = WeakKeyDictionary()


class Microbatches:
    """The parts of a batch; a single one keeps its graph.

    Attributes:
        kept: The whole batch, where it is in memory at once; else None.
        tape: The recording of what is kept.
        layout: Where the samples are in the outputs of all.
        scale: The loss of all is ``scale * sum_n l_n``.
        value: Value of that loss, as the user reduces it.
        targets: The loss call's target; None if there are several parts.
        ignore_index: Class index that the loss ignores.
        outputs: [N, D], detached.
    """

    def __init__(
        self,
        problem: Problem,
        names: Sequence[str],
        linearised: bool,
        microbatch: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        """Run every part once, for the scale of the whole batch's loss.

        Args:
            problem: What is differentiated; it needs a loss.
            names: Parameters.
            linearised: Whether the network enters by its Jacobian alone; else the parts keep their
                loss with its graph too.
            microbatch: Samples of a part; None for as many as fit.
            max_memory: Bytes for the graph and the outputs of a part, if there is no `microbatch`;
                None for half of what is free.

        Raises:
            OptionError: No loss, or an impossible microbatch.
            ProblemError: The loss of microbatches cannot be put together.
            InteractionError: Samples influence each other.
        """
        self._problem, self._names, self._linearised = problem, list(names), linearised
        count = problem.num_samples
        self._bounds = _split(count, microbatch)
        self._prepared = False
        if self._visit(microbatch is None and count > 1, max_memory):
            return
        try:
            self._visit(False, None)
        except ProblemError:  # not to be divided: half of the free memory is not all of it
            self._bounds = _split(count, None)
            self._visit(False, None)

    def __len__(self) -> int:
        """How many parts."""
        return len(self._bounds)

    @property
    def size(self) -> int:
        """Samples of the largest part."""
        return self._bounds[0][1]

    @contextmanager
    def opened(self, index: int) -> Iterator[LivePart]:
        """One part with its graph."""
        if self.kept is not None:
            with self.prepared():
                yield self.kept
            return
        with self._recorded(index) as recording:
            yield self._live(index, recording, self._shares[index])

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Set the numerics once for many uses; each one sets them by itself otherwise."""
        if self._prepared or self.kept is None:
            yield
            return
        with quiet_numerics():
            self._prepared = True
            try:
                yield
            finally:
                self._prepared = False

    def _visit(self, may_split: bool, max_memory: int | None) -> bool:
        """Run every part.

        Args:
            may_split: Whether the batch may be divided if it does not fit.
            max_memory: Budget for that.

        Returns:
            Whether it is done; else the batch does not fit, and smaller parts are set.
        """
        self.kept: LivePart | None = None
        self.tape: Tape | None = None
        self._starts: list[int] = []
        alone = len(self._bounds) == 1
        sizes: list[LossSize] = []
        values: list[Tensor] = []
        outputs: list[Tensor] = []
        for index in range(len(self._bounds)):
            with self._recorded(index) as found:
                if may_split:
                    count = self._bounds[0][1]
                    fitting = fitting_samples(found, count, max_memory)
                    if fitting < count:
                        self._bounds = _split(count, fitting)
                        return False
                call, total = _require_loss(found)
                if index == 0:
                    self._take_layout(found, call)
                self._starts.append(sum(part.shape[0] for part in outputs))
                part = self._live(index, found, None)
                values.append(total.detach())
                outputs.append(part.layout.flatten(part.linear.outputs.detach()))
                if index == 0:
                    self._prove(part)
                if alone:
                    self.kept, self.tape, self.scale = part, found.tape, part.scale
                else:
                    sizes.append(LossSize.of(call, part.loss, part.layout.num_samples))
        self.outputs = outputs[0] if alone else torch.cat(outputs)  # [N, D]
        self._shares = [1.0] if alone else shares(sizes, self._other_size(sizes))
        if not alone:
            self.scale = 1.0 / self.outputs.shape[0] if sizes[0].averages else 1.0
        shared = [share * value for share, value in zip(self._shares, values, strict=True)]
        self.value = torch.stack(shared).sum()
        return True

    def _take_layout(self, recording: Recording, call: LossCall) -> None:
        """Find out from the first part what all have in common."""
        found = locate(self._part(0), recording)
        self._by_rows = found.num_samples == recording.outputs.shape[0]
        self._minor = found.minor
        self.targets = call.target if len(self._bounds) == 1 else None
        self.ignore_index = int(call.options.get("ignore_index", -100))

    @property
    def layout(self) -> SampleLayout:
        """Where the samples are in the outputs of all."""
        return SampleLayout(self.outputs.shape[0], self._minor)

    def _prove(self, part: LivePart) -> None:
        """Check the products in both directions, once for each model and set of parameters."""
        proved = _PROVED.setdefault(self._problem.model, set())
        if tuple(self._names) not in proved:
            part.linear.check()
            proved.add(tuple(self._names))

    def _part(self, index: int) -> Problem:
        return self._problem if len(self._bounds) == 1 else self._problem.part(*self._bounds[index])

    @contextmanager
    def _recorded(self, index: int) -> Iterator[Recording]:
        cudnn = torch.backends.cudnn.flags(enabled=not self._recurrent())
        twice = TwiceDifferentiable(lean=self._linearised)
        with cudnn, twice, self._part(index).recorded(self._names) as found:
            yield found

    def _recurrent(self) -> bool:
        """CuDNN's recurrent layers cannot be differentiated twice."""
        return any(isinstance(child, nn.RNNBase) for child in self._problem.model.modules())

    def _live(self, index: int, recording: Recording, share: float | None) -> LivePart:
        """A part; without its share of the loss as if it were alone."""
        call, total = _require_loss(recording)
        start, stop = self._bounds[index]
        own = recording.outputs.shape[0] if self._by_rows else stop - start
        layout = SampleLayout(own, self._minor)
        linear = Linearization(recording.outputs, recording.tape.parameters)
        loss = make_loss(call, layout)
        scale = loss.scale
        if share is not None:
            total, factor, scale = share * total, share * scale / self.scale, self.scale
            loss = loss if abs(factor - 1.0) < 1e-12 else MultipleLoss(loss, factor)
        live = None if self._linearised else total
        return LivePart(linear, layout, loss, scale, self._starts[index], live)

    def _other_size(self, sizes: Sequence[LossSize]) -> LossSize | None:
        """A part of another size, if the sizes at hand do not tell how the scale changes."""
        if all(size.plain for size in sizes) or len({size.samples for size in sizes}) > 1:
            return None
        count = 1 if sizes[0].samples > 1 else 2
        with self._problem.part(0, count).recorded(self._names) as recording:
            call, _ = _require_loss(recording)
            layout = SampleLayout(count, self._minor)
            return LossSize.of(call, make_loss(call, layout), count)


def _split(count: int, microbatch: int | None) -> list[tuple[int, int]]:
    """First sample, and one after the last, of each part.

    Raises:
        OptionError: The microbatch is not a positive integer.
    """
    if microbatch is None:
        return [(0, count)]
    if isinstance(microbatch, bool) or not isinstance(microbatch, int) or microbatch < 1:
        raise OptionError(f"microbatch has to be an integer >= 1 or None, got {microbatch!r}.")
    return [(start, min(count, start + microbatch)) for start in range(0, count, microbatch)]


def _require_loss(recording: Recording) -> tuple[LossCall, Tensor]:
    """The loss call and the live loss of a recording.

    Raises:
        OptionError: There is none.
    """
    if recording.loss is None or recording.total is None:
        raise OptionError("The problem has no loss, so it has no curvature. Give a loss.")
    return recording.loss, recording.total
