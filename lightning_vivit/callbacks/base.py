"""What the monitors have in common: when, on which data, to which loggers, with which errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_vivit.callbacks.checks import check_setup
from lightning_vivit.callbacks.failures import cause_of, failure_message, stop_messages
from lightning_vivit.callbacks.options import require_share
from lightning_vivit.callbacks.probe import BatchSource
from lightning_vivit.callbacks.progress import shown_in_progress_bar
from lightning_vivit.callbacks.raw import MonitorResult, RawResults
from lightning_vivit.callbacks.schedule import Schedule
from lightning_vivit.callbacks.session import MonitorRequest, ProblemFactory, Session
from lightning_vivit.errors import OptionError, ViViTError, require_choice, require_integer
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.evaluation.request import Request
from lightning_vivit.kernel.modes import OutputKernel
from lightning_vivit.loggers import (
    Chart,
    Findings,
    LogEntry,
    charts,
    lay_out,
    publish,
    set_callback_metrics,
    x_axis_step,
)
from lightning_vivit.matrices import find_matrix
from lightning_vivit.parallel import Ranks, Replica
from lightning_vivit.problem.isolation.rng import isolated_rng
from lightning_vivit.samples.batch import tensors_in
from lightning_vivit.statistics import SECTIONS, Draw, measure
from lightning_vivit.statistics.cost import Cost

References: TypeAlias = "Mapping[str, Mapping[str, Tensor]]"  # group -> name -> tensor

DTYPES = {"float32": torch.float32, "float64": torch.float64}
GROUPINGS = ("all", "layer", "parameter")
COST = SECTIONS["cost"]
FIGURE_GROUPS = 4  # with more parameter groups, only figures over all of them
MAX_STATE_BYTES = 64 * 2**20  # larger tensors stay out of checkpoints


class Monitor(Callback):
    """Base of the monitors: evaluates at the parameters before a step, and never changes the run.

    Values go to every logger of the Trainer at exactly the scheduled steps, and to
    `trainer.callback_metrics`, where the last value stays for ModelCheckpoint and EarlyStopping.

    Steps are those on the x axis of the loggers: batches after which the optimizers stepped. One
    batch counts once with LBFGS and in manual optimization; with accumulate_grad_batches=n, n
    batches count once.

    Args:
        k: How many leading eigenvalues or directions to look at.
        every_n_steps: Compute at steps 0, n, 2n, ... (every 100 if no other schedule is given).
        every_n_epochs: Compute at the first step of epochs 0, n, 2n, ...
        steps: Compute at exactly these steps.
        steps_per_decade: Logarithmic spacing: 3 computes at steps 0, 1, 2, 5, 10, 22, 46, 100, ...
        data: "batch" looks at the current training batch, "train" or "val" at a fixed probe batch
            drawn from that loader's data set.
        seed: Chooses the samples of the probe batch, and seeds Monte Carlo draws.
        max_samples: Upper limit of samples; tensors of the batch whose first dimension is the
            batch size are sliced. For a probe drawn from a loader, its size. None for no limit:
            the kernel has (samples times outputs) squared entries. With DDP it limits each rank's
            part of the training batch; a probe is divided among the ranks.
        param_groups: "all" (one block), "layer", "parameter", or lists of parameter names. With
            several groups the name of the group goes after the first part of each key.
        dtype: Of the small linear algebra, "float32" or "float64" (the default).
        on_error: "warn" gives one warning with the cause and stops this monitor, while training
            goes on; "raise" ends the run.
        prefix: Put before every key, for a second monitor of the same kind.
        backend: "autograd" works for any architecture, "backpack" extends a copy of the module
            with BackPACK and refuses what BackPACK cannot do, "auto" takes the faster one that is
            safe.
        figures: Whether to draw pictures for loggers that show them. With more than 4 parameter
            groups, only those over all groups.
        figures_every: Draw at each n-th monitored step, from the first one on.
        probe: A batch to look at, or a callable that returns one.
        schedule: Called with each step, returns whether to compute.
        problem: Called with the module and the batch, returns the `Problem` to look at in place of
            the replayed `training_step`. Needed in manual optimization.
        replay_dtype: What the network is evaluated in, "float32" or "float64"; None for the
            module's own dtype, and float32 in place of half precision. Autocast and TF32 are off.
        max_overhead: Share of wall-clock time that the monitors of the Trainer may take together,
            such as 0.05. Scheduled steps that would exceed it are left out. None: never.
        max_memory: Bytes that a Gram matrix and its columns may use over the forward pass, or
            matrix-free the samples in memory at once; under FSDP the gathered copy of the module
            counts too. None: half of what is free.
        on_result: Called with the `MonitorResult` of each monitored step, on every rank with its
            own. What it raises is treated as `on_error` says.
        history: How many results to keep in `results`, at most 64 MiB together; 0 for none.
        dump: "npz" or "safetensors" writes each result to a file in the directory of the run (see
            `lightning_vivit.callbacks.raw`); None writes none.

    Raises:
        OptionError: If an option has an impossible value or contradicts another one.
    """

    section: str  # first part of every key
    mc_samples = 0  # 0: exact columns
    output_kernel: OutputKernel | None = None  # all that `measure` asks for
    needs_kernel = False  # whether `measure` asks for the NTK
    method = "auto"
    matrix = "ggn"
    tol = 1e-2  # of matrix-free eigenpairs
    microbatch: int | None = None
    parameter_vectors = 0  # of the size of the parameters, kept between monitored steps

    def __init__(
        self,
        k: int = 10,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        steps: list[int] | None = None,
        steps_per_decade: int | None = None,
        data: Literal["batch", "train", "val"] = "batch",
        seed: int = 0,
        max_samples: int | None = 64,
        param_groups: str | list[list[str]] | dict[str, list[str]] = "all",
        dtype: Literal["float32", "float64"] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        prefix: str = "",
        backend: Literal["auto", "autograd", "backpack"] = "auto",
        figures: bool = True,
        figures_every: int = 5,
        probe: Any = None,
        schedule: Callable[[int], bool] | None = None,
        problem: ProblemFactory | None = None,
        replay_dtype: Literal["float32", "float64"] | None = None,
        max_overhead: float | None = None,
        max_memory: int | None = None,
        on_result: Callable[[MonitorResult], Any] | None = None,
        history: int = 4,
        dump: Literal["npz", "safetensors"] | None = None,
    ) -> None:
        super().__init__()
        require_choice("on_error", on_error, ("warn", "raise"))
        for name, value in (("dtype", dtype), ("replay_dtype", replay_dtype)):
            if value is not None:
                require_choice(name, value, tuple(DTYPES))
        if isinstance(param_groups, str):
            require_choice("param_groups", param_groups, GROUPINGS)
        if problem is not None and not callable(problem):
            raise OptionError(
                f"problem has to be a callable (module, batch) -> Problem, got {problem!r}. "
                "A Problem itself is tied to one batch."
            )
        self.k = require_integer("k", k, lowest=1)
        self.schedule = Schedule(every_n_steps, every_n_epochs, steps, steps_per_decade, schedule)
        self.source = BatchSource(data, seed, max_samples, probe)
        self.param_groups = param_groups
        self.dtype = dtype
        self.on_error = on_error
        self.prefix = prefix
        self.backend = backend
        self.figures = figures
        self.figures_every = require_integer("figures_every", figures_every, lowest=1)
        self.problem = problem
        self.replay_dtype = replay_dtype
        self.max_overhead = require_share("max_overhead", max_overhead)
        self.max_memory = max_memory
        self._raw = RawResults(on_result, history, dump)
        self._request()  # checks the options
        self._session = Session(last=self)
        self._looked_at: Any = None  # the batch that an error message describes
        self._state_key: str | None = None  # during a run
        self._start_over()

    def _start_over(self) -> None:
        self._step = -1  # the last step that the schedule was asked about
        self._measured = False  # whether a step of this run was measured
        self._looks = 0  # monitored steps since the start or the resume
        self._stopped = False
        self._failure = ""  # what stopped it
        self._late: Exception | None = None  # of a hook between the monitored steps
        self._values: dict[str, float] = {}
        self._raw.clear()
        self.source.reset()
        self.forget()

    @abstractmethod
    def measure(self, evaluation: Result, group: str) -> Findings:
        """What this monitor has to say about one parameter group."""

    def prepare(self, trainer: Trainer, module: LightningModule, evaluation: Result) -> None:
        """Note what `measure` needs of the Trainer."""

    def forget(self) -> None:
        """Forget what later steps are compared with; a new run starts."""

    def overview(self) -> dict[str, Draw]:
        """Figures over all parameter groups, after each group was measured."""
        return {}

    def charts(self) -> list[Chart]:
        """The charts that show this monitor's keys."""
        return charts(COST, COST.statistics)

    @property
    def grouped(self) -> bool:
        """Whether there may be several parameter groups."""
        return self.param_groups != "all" and len(self.param_groups) != 1

    def references(self) -> References:
        """Tensors that later steps are compared with, for checkpoints."""
        return {}

    def set_references(self, references: References) -> None:
        """Take the tensors of `references` from a checkpoint."""

    def options(self) -> dict[str, object]:
        """The options that tell this monitor from others of its class, as plain values."""
        return {
            "k": self.k,
            **self.schedule.describe(),
            "data": self.source.data,
            "seed": self.source.seed,
            "max_samples": self.source.max_samples,
            "param_groups": self.param_groups,
            "dtype": self.dtype,
            "mc_samples": self.mc_samples,
            "prefix": self.prefix,
            "backend": self.backend,
            "problem": getattr(self.problem, "__qualname__", None),
            "replay_dtype": self.replay_dtype,
            "max_overhead": self.max_overhead,
        }

    @property
    def results(self) -> tuple[MonitorResult, ...]:
        """The last results of this run, the newest at the end; as many as `history` says."""
        return self._raw.results

    @property
    def state_key(self) -> str:
        """One key per set of options, so that several instances keep their states apart.

        During a run it is that of its start: the Trainer asks for it around every hook.
        """
        return self._state_key or self._generate_state_key(**self.options())

    # ------------------------------------------------------------------ hooks of the Trainer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what can be checked before training, and join the other monitors."""
        if stage != "fit":
            return
        self._state_key = None
        self._state_key = self.state_key
        monitors = _monitors(trainer)
        check_setup(
            type(self).__name__,
            trainer,
            pl_module,
            has_problem=self.problem is not None,
            uses_batch=self.source.data == "batch",
            first=not monitors or monitors[0] is self,
        )
        self._start_over()
        if monitors and monitors[0] is self:
            needs = [monitor._request() for monitor in monitors if monitor.needs_kernel]
            requests = [monitor._request() for monitor in monitors]
            replica = Replica.of(trainer)
            session = Session(monitors[-1], needs, requests, Ranks.of(trainer), replica)
            for monitor in monitors:
                monitor._session = session
        self._session.check_room(type(self).__name__, trainer, pl_module, self._request())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the memory again: `configure_model` may have built layers."""
        self._session.check_room(type(self).__name__, trainer, pl_module, self._request())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, bring back a resumed run's last values."""
        self._session.pacer.start()
        set_callback_metrics(trainer, self._values)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compute if the step is due; free what was shared after the last monitor.

        Steps that are not due pay for little more than the question.
        """
        session = self._session
        try:
            if not self._stopped and self._due(trainer, batch_idx):
                with session.pacer.timed():
                    self._look(trainer, pl_module, batch, batch_idx)
        except Exception as error:
            self._fail(session.ranks.spread(error))
        finally:
            self._looked_at = None
        if session.last is self and session.pacer.counting:
            self._end_step(trainer)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first validation batch, in case no probe can be drawn from the loader."""
        if self.source.wants_validation and dataloader_idx == 0:
            try:
                self.source.see_validation(batch)
            except Exception as error:  # told at the next monitored step, to all ranks
                self._late = error

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say again who stopped: the warning lies far above, between the progress bars."""
        if self._session.last is not self:
            return
        monitors = _monitors(trainer)
        stops = [(type(m).__name__, m._step, m._failure) for m in monitors if m._failure]
        for message in stop_messages(stops):
            rank_zero_info(message)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Free what was shared."""
        self._session.end_step()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free what was shared."""
        self._session.end_step()
        self._state_key = None

    # ------------------------------------------------------------------ one monitored step

    def _due(self, trainer: Trainer, batch_idx: int) -> bool:
        step = x_axis_step(trainer)
        if step == self._step:  # a further batch of an accumulated step
            return False
        self._step = step
        due = self._scheduled(trainer, step, batch_idx)
        if self.schedule.function is not None:
            due = bool(self._session.ranks.first(due))  # it may say something else on each rank
        return due and self._session.affords(self, self._step, self.max_overhead)

    def _may_look(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether it can't be ruled out that this monitor computes at the current step."""
        if self._stopped or self.schedule.function is not None:
            return not self._stopped
        return self._scheduled(trainer, x_axis_step(trainer), batch_idx)

    def _scheduled(self, trainer: Trainer, step: int, batch_idx: int) -> bool:
        epoch = 0 if self.schedule.every_n_epochs is None else trainer.current_epoch
        return self.schedule.due(step, epoch, batch_idx == 0)

    def _end_step(self, trainer: Trainer) -> None:
        """All monitors of the step have computed."""
        try:
            cost = self._session.pacer.end_step()
            if cost is not None and not self._stopped:
                entry = LogEntry(x_axis_step(trainer))
                entry.add(COST.name, measure(COST.statistics, Cost(*cost)))
                entry.scalars = self._session.ranks.first(entry.scalars)
                publish(trainer, entry)
                self._session.ranks.exchange()
        except Exception as error:
            self._fail(self._session.ranks.spread(error))
        try:
            self._lay_out_once(trainer)
        finally:
            self._session.end_step()

    def _lay_out_once(self, trainer: Trainer) -> None:
        """Lay out the dashboards after the first monitored step, which tells what is known."""
        monitors = _monitors(trainer)
        if not self._session.laid_out and any(monitor._looks for monitor in monitors):
            self._session.laid_out = True
            lay_out(trainer, [chart for monitor in monitors for chart in monitor.charts()])

    def _look(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        with isolated_rng(), shown_in_progress_bar(trainer, type(self).__name__):
            if self._late is not None:
                raise self._late
            batch = self._session.batch(self.source, trainer, module, batch)
            if batch is None:
                return
            self._looked_at = batch
            request = self._request()
            sharers = [m for m in _monitors(trainer) if m._request().key == request.key]
            evaluation = self._session.evaluate(
                request,
                module,
                batch,
                batch_idx if self.source.data == "batch" else 0,
                self.source.seed + self._step,
                any(m.needs_kernel and m._may_look(trainer, batch_idx) for m in sharers),
            )
            self._session.warn_of_unused(evaluation)
            self.prepare(trainer, module, evaluation)
            entry = self._entry(evaluation)
            entry.scalars = self._session.ranks.first(entry.scalars)
            self._measured = True
            self._values = entry.scalars
            publish(trainer, entry)
            self._raw.take(trainer, entry, type(self).__name__, self.options())
            self._session.ranks.exchange()

    def choose_method(self, method: str, matrix: str, tol: float, microbatch: int | None) -> None:
        """Take and check the options of a monitor that can do without a Gram matrix."""
        find_matrix(matrix).check_method(method)
        if method == "mc" and self.mc_samples == 0:
            self.mc_samples = 1
        self.method, self.matrix, self.tol = method, matrix, tol
        self.microbatch = microbatch
        self._request()  # checks them

    def _request(self) -> MonitorRequest:
        wanted = Request(
            param_groups=self.param_groups,
            method=self.method,
            matrix=self.matrix,
            columns="mc" if self.mc_samples else "exact",
            mc_samples=max(1, self.mc_samples),
            output_kernel=self.output_kernel,
            k=self.k,
            tol=self.tol,
            microbatch=self.microbatch,
            dtype=None if self.dtype is None else DTYPES[self.dtype],
            max_memory=self.max_memory,
            backend=self.backend,
        )
        replay = None if self.replay_dtype is None else DTYPES[self.replay_dtype]
        return MonitorRequest(self.source, wanted, self.problem, replay, self.parameter_vectors)

    def _entry(self, evaluation: Result) -> LogEntry:
        entry = LogEntry(self._step, monitor=f"{self.prefix}{self.section}")
        drawn = self.figures and self._looks % self.figures_every == 0
        self._looks += 1
        for group in evaluation.groups:
            path = self.section if len(evaluation.groups) == 1 else f"{self.section}/{group}"
            for key in entry.add(f"{self.prefix}{path}", self.measure(evaluation, group)):
                self._claim(key)
        if not drawn or len(evaluation.groups) > FIGURE_GROUPS:
            entry.figures.clear()
        if drawn:
            place = f"{self.prefix}{self.section}"
            entry.figures.update({f"{place}/{n}": draw for n, draw in self.overview().items()})
        return entry

    def _claim(self, key: str) -> None:
        other = self._session.claim(key, self)
        if other is not None:
            raise OptionError(
                f"Two monitors write {key!r} at step {self._step}: {type(self).__name__} and "
                f"{type(other).__name__}. Give one of them a prefix, or other steps."
            )

    def limit_k(self, available: int) -> int:
        """k, or what a later, smaller batch has.

        Raises:
            OptionError: If k is too large already at the first monitored step.
        """
        if self.k > available and not self._measured:
            raise OptionError(
                f"k={self.k} is too large: the batch gives {available} eigenvalues (samples times "
                f"columns). Use k <= {available}, or more samples."
            )
        return min(self.k, available)

    def _fail(self, error: Exception) -> None:
        self._stopped = True
        self._failure = cause_of(error)
        name, data = type(self).__name__, self.source.data
        message = failure_message(name, self._step, data, self._looked_at, self._failure)
        if self.on_error == "raise":
            self._session.end_step()
            if isinstance(error, ViViTError):
                raise error
            raise ViViTError(message) from error
        if self._session.first_report(error):
            rank_zero_warn(
                f"{message}\nThis monitor, and those that share its evaluation, stop here; the "
                "training goes on. Use on_error='raise' to end the run instead.",
                category=RuntimeWarning,
            )

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Position, last values, probe and references: tensors and plain values only.

        References above 64 MiB stay out: after a resume, comparisons with them start anew.
        """
        references = {
            group: {name: tensor.cpu() for name, tensor in named.items()}
            for group, named in self.references().items()
        }
        if sum(tensor.nbytes for tensor in tensors_in(references)) > MAX_STATE_BYTES:
            references = {}
        return {
            "step": self._step,
            "measured": self._measured,
            "values": dict(self._values),
            "references": references,
            **self.source.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        self._step = state_dict["step"]
        self._measured = state_dict["measured"]
        self._values = dict(state_dict["values"])
        self.set_references(state_dict["references"])
        self.source.load_state_dict(state_dict)


def _monitors(trainer: Trainer) -> list[Monitor]:
    """All monitors of a Trainer, in the order in which it calls them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Monitor)]
