"""What is differentiated: outputs, loss call and trainable parameters of a module on a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses import LossCall
from lightning_vivit.machine.numbers import all_finite
from lightning_vivit.problem.forms.sweeps import Substitutes
from lightning_vivit.problem.groups import plain_name
from lightning_vivit.problem.isolation.eval_mode import eval_mode
from lightning_vivit.problem.isolation.numerics import quiet_numerics
from lightning_vivit.problem.isolation.precision import (
    convert_batch,
    converted_copy,
    default_dtype_of,
    replay_dtype,
)
from lightning_vivit.problem.isolation.shadow import copy_sharing_parameters, shadow
from lightning_vivit.problem.isolation.writes import ParameterWriteError, WriteGuard
from lightning_vivit.problem.outputs import check_outputs, forward
from lightning_vivit.problem.preparation import PLAIN, Preparation
from lightning_vivit.problem.returned_loss import explicit_loss, replayed_loss
from lightning_vivit.problem.tape.recorder import Recorder, Tape
from lightning_vivit.problem.training_step import check_replayable, run_training_step
from lightning_vivit.samples.axis import is_sequence_first, likely_counts
from lightning_vivit.samples.batch import tensors_in
from lightning_vivit.samples.cut import cut
from lightning_vivit.samples.size import Reading, check_rows, leading_sizes, read


@dataclass(frozen=True)
class Recording:
    """One recorded forward pass with its live graph.

    Attributes:
        tape: The operations that use parameters.
        outputs: What is differentiated, in the shape that the loss got.
        sizes: Leading sizes of the batch's tensors; the outputs' rows are as many samples as one
            of them says, or these samples times positions.
        loss: The loss call, or None if only the kernel is asked for.
        value: Value of the returned loss, or None.
        total: The same with its graph, a scalar, or None.
        model: The user's module.
    """

    tape: Tape
    outputs: Tensor
    sizes: tuple[int, ...]
    loss: LossCall | None
    value: Tensor | None
    total: Tensor | None
    model: nn.Module

    @property
    def batch_size(self) -> int:
        """The likely number of samples."""
        return likely_counts(self.sizes, self.outputs.shape[0])[0]


class Problem:
    """A model, a loss and a batch.

    Building one is cheap; nothing runs before it is evaluated.

    Attributes:
        model: The module whose trainable parameters are differentiated.
        dtype: What it is evaluated in; None for its own, and float32 in place of half precision.
            A conversion makes a copy of the parameters.
        in_eval: Whether to put the model in eval mode while it runs, and back afterwards. A
            training step is replayed in eval mode anyway.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Any], Tensor] | None,
        inputs: Any,
        targets: Any = None,
        *,
        reduction: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """State an explicit problem.

        Args:
            model: Any module. It runs in the mode in which it is (train or eval).
            loss: ``loss(outputs, targets)``: an nn loss module, a function of
                torch.nn.functional, or any differentiable function of the outputs that is a mean
                or a sum over samples. None if only the kernel is wanted.
            inputs: Passed to the model: a tensor, a tuple (positional) or a dict (by name).
            targets: Passed to the loss.
            reduction: ``mean`` or ``sum``: how a custom loss reduces over the samples. None reads
                ``loss.reduction`` and falls back to ``mean``.
            dtype: torch.float32 or torch.float64 to evaluate in; None for the model's own, and
                float32 in place of half precision.
        """
        self.model = model
        self._loss = loss
        self._inputs = inputs
        self._targets = targets
        self._reduction = reduction
        self._step: tuple[Any, int] | None = None
        self._reading: Reading | None = None  # of a part of another problem
        self.dtype = dtype
        self.in_eval = False

    @classmethod
    def from_training_step(cls, module: LightningModule, batch: Any, batch_idx: int = 0) -> Problem:
        """The problem that a LightningModule's own training_step states on a batch.

        Args:
            module: An unmodified LightningModule with automatic optimization.
            batch: A batch on the module's device.
            batch_idx: Passed to training_step.

        Returns:
            The problem; its evaluation replays training_step on a shadow copy in eval mode.

        Raises:
            ProblemError: Manual optimization, or not a LightningModule.
        """
        check_replayable(module)
        problem = cls(module, None, batch)
        problem._step = (batch, batch_idx)
        return problem

    @property
    def inputs(self) -> Any:
        """The batch: the model's inputs, or what training_step gets."""
        return self._inputs

    @property
    def num_samples(self) -> int:
        """Number of samples, as most of the batch's tensors say."""
        return self._read().count

    def _read(self) -> Reading:
        """How the batch is read.

        Raises:
            ProblemError: It has no samples.
        """
        if self._reading is None:
            leading_sizes(self._inputs)
            return read(self._inputs)
        return self._reading

    @property
    def has_loss(self) -> bool:
        """Whether there is a loss, and with it a curvature."""
        return self._loss is not None or self._step is not None

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name; compiled modules keep their plain names.

        Raises:
            ProblemError: There are none.
        """
        found = _trainable(self.model)
        if not found:
            raise ProblemError(
                f"{type(self.model).__name__} has no trainable parameter (none with "
                "requires_grad=True), so there is nothing to differentiate. Unfreeze the "
                "parameters whose curvature you want to see."
            )
        return found

    def part(self, start: int, stop: int) -> Problem:
        """The same problem on some of the samples.

        Args:
            start: The first sample.
            stop: One after the last sample.

        Returns:
            A problem whose data are slices: of everything with a row or an entry per sample, and
            of targets with T rows per sample, those of a sample together.
        """
        reading = self._read()
        cut_inputs = cut(self._inputs, start, stop, reading)
        cut_targets = cut(self._targets, start, stop, reading, rows=True)
        part = Problem(self.model, self._loss, cut_inputs, cut_targets, reduction=self._reduction)
        part.dtype, part.in_eval = self.dtype, self.in_eval
        part._reading = replace(reading, count=stop - start)
        if self._step is not None:
            part._step = (cut_inputs, self._step[1])
        return part

    @contextmanager
    def recorded(
        self,
        names: list[str] | None = None,
        preparation: Preparation = PLAIN,
        is_part: bool = False,
    ) -> Iterator[Recording]:
        """Run the forward pass under the recorder.

        Args:
            names: Differentiate only these parameters.
            preparation: Of the module, such as by a backend.
            is_part: The batch is a part of one; its own loss may be undefined, such as the mean
                over targets that are all ignored.

        Yields:
            The recording; autocast is off and the random state is forked until the end.

        Raises:
            ProblemError: The batch, the loss or the outputs are not supported.
        """
        wanted = list(self.trainable()) if names is None else names
        known = self._reading
        sizes = leading_sizes(self._inputs) if known is None else (known.count,)
        dtype = replay_dtype(self.model, self.dtype)
        with quiet_numerics(), ExitStack() as stack:
            if self.in_eval:
                stack.enter_context(eval_mode(self.model))
            forms = Substitutes() if preparation.takes_forms else None
            if self.model in _FORMATTED:
                forms = None
            try:
                recorder, returned = self._run(stack, preparation, wanted, dtype, forms)
            except Exception:
                if forms is None or not forms.changed_format:
                    raise
                recorder, returned = self._run(stack, preparation, wanted, dtype)
                _FORMATTED.add(self.model)  # it ran only in the format that it expects
            loss, value = None, None
            if self._step is not None:
                loss, value = replayed_loss(returned, recorder.tape, type(self.model).__name__)
            elif self._loss is not None:
                targets = convert_batch(self._targets, dtype)
                loss, value = explicit_loss(
                    recorder, self._loss, returned, targets, self._reduction
                )
            outputs = check_outputs(returned if loss is None else loss.outputs)
            if self._step is not None and known is None:
                check_rows(self._inputs, outputs.shape[0])
            if is_sequence_first(tensors_in(self._inputs), outputs.shape[0]):
                sizes = (outputs.shape[0], *sizes)
            recorder.forget()
            total = None if value is None else value.sum()
            value = None if value is None else value.detach()
            if value is not None and not is_part and not all_finite(value):
                raise ProblemError(
                    "The loss on this batch is not finite, so its curvature is undefined. Look "
                    "for divergence (a smaller learning rate), or for NaN in the data."
                )
            yield Recording(recorder.tape, outputs, sizes, loss, value, total, self.model)

    def _run(
        self,
        stack: ExitStack,
        preparation: Preparation,
        wanted: list[str],
        dtype: torch.dtype | None,
        forms: Substitutes | None = None,
    ) -> tuple[Recorder, Any]:
        """The forward pass or the training step, recorded, on a copy if it writes to parameters."""
        try:
            return self._run_once(stack, preparation, wanted, dtype, forms)
        except ParameterWriteError:  # only to a copy of its own, from now on
            _WRITERS.add(self.model)
            return self._run_once(stack, preparation, wanted, dtype, forms)

    def _run_once(
        self,
        stack: ExitStack,
        preparation: Preparation,
        wanted: list[str],
        dtype: torch.dtype | None,
        forms: Substitutes | None,
    ) -> tuple[Recorder, Any]:
        """One attempt.

        Args:
            stack: Keeps what has to last as long as the recording.
            preparation: Of the module.
            wanted: The parameters.
            dtype: What the module is converted to.
            forms: Runs the operations in equivalent forms.

        Returns:
            The recorder, and the outputs or what training_step returned.

        Raises:
            ParameterWriteError: It would have written to the parameters of the run.
        """
        if dtype is None and self.model in _WRITERS:
            dtype = torch.float32  # at least: a copy that converts nothing
        replays = self._step is not None
        data = convert_batch(self._inputs, dtype)
        with ExitStack() as attempt:
            model = attempt.enter_context(self._stand_in(preparation, dtype))
            attempt.enter_context(default_dtype_of(model, replays))
            parameters = self.trainable() if dtype is None else _trainable(model)
            guard = WriteGuard(model) if dtype is None else None
            recorder = Recorder({name: parameters[name] for name in wanted}, data, guard, forms)
            with preparation.attach(model, self.model), recorder.watch(model):
                if self._step is not None:
                    returned = run_training_step(model, data, self._step[1])  # type: ignore[arg-type]
                else:
                    returned = check_outputs(forward(model, data))
            stack.push(attempt.pop_all())
        return recorder, returned

    def _stand_in(
        self, preparation: Preparation, dtype: torch.dtype | None
    ) -> AbstractContextManager[nn.Module]:
        """What runs in place of the module, so that the module itself keeps no trace."""
        if self._step is not None:
            return shadow(self.model, dtype)  # type: ignore[arg-type]
        if dtype is not None:
            return nullcontext(converted_copy(self.model, dtype))
        return nullcontext(
            copy_sharing_parameters(self.model) if preparation.needs_copy else self.model
        )


# Modules that write to their parameters while they run.
_WRITERS: WeakSet[nn.Module] = WeakSet()
# Modules that run only in the memory format that they expect.
_FORMATTED: WeakSet[nn.Module] = WeakSet()


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        plain_name(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
