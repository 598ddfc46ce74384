"""What the monitors have in common: when, on which data, to which loggers, with which errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_vivit.callbacks.checks import check_setup
from lightning_vivit.callbacks.probe import BatchSource, describe, tensors
from lightning_vivit.callbacks.schedule import Schedule
from lightning_vivit.callbacks.session import Found, ProblemFactory, Request, Session
from lightning_vivit.errors import OptionError, ViViTError
from lightning_vivit.evaluation import BACKENDS, MATRICES, METHODS
from lightning_vivit.loggers import Findings, Report, publish, set_callback_metrics, x_axis_step
from lightning_vivit.rng import isolated_rng

References: TypeAlias = "Mapping[str, Mapping[str, Tensor]]"  # group -> name -> tensor

DTYPES = {"float32": torch.float32, "float64": torch.float64}
GROUPINGS = ("all", "layer", "parameter")
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
            the kernel has (samples times outputs) squared entries.
        param_groups: "all" (one block), "layer", "parameter", or lists of parameter names. With
            several groups the name of the group goes after the first part of each key.
        dtype: Of the small linear algebra, "float32" or "float64" (the default).
        on_error: "warn" gives one warning with the cause and stops this monitor, while training
            goes on; "raise" ends the run.
        prefix: Put before every key, for a second monitor of the same kind.
        backend: "autograd" works for any architecture, "backpack" extends a copy of the module
            with BackPACK and refuses what BackPACK cannot do, "auto" takes the faster one that is
            safe.
        probe: A batch to look at, or a callable that returns one.
        schedule: Called with each step, returns whether to compute.
        problem: Called with the module and the batch, returns the `Problem` to look at in place of
            the replayed `training_step`. Needed in manual optimization.

    Raises:
        OptionError: If an option has an impossible value or contradicts another one.
    """

    section: str  # first part of every key
    mc_samples = 0  # 0: exact columns
    needs_kernel = False  # whether `measure` asks for the NTK
    method = "auto"
    matrix = "ggn"
    tol = 1e-2  # of matrix-free eigenpairs
    microbatch: int | None = None

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
        probe: Any = None,
        schedule: Callable[[int], bool] | None = None,
        problem: ProblemFactory | None = None,
    ) -> None:
        super().__init__()
        require_choice("on_error", on_error, ("warn", "raise"))
        require_choice("backend", backend, BACKENDS)
        if dtype is not None:
            require_choice("dtype", dtype, tuple(DTYPES))
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
        self.problem = problem
        self._session = Session(last=self)
        self._start_over()

    def _start_over(self) -> None:
        self._step = -1  # the last step that the schedule was asked about
        self._measured = False  # whether a step of this run was measured
        self._stopped = False
        self._values: dict[str, float] = {}
        self.source.reset()
        self.forget()

    @abstractmethod
    def measure(self, evaluation: Found, group: str) -> Findings:
        """What this monitor has to say about one parameter group."""

    def prepare(self, trainer: Trainer, module: LightningModule, evaluation: Found) -> None:
        """Note what `measure` needs of the Trainer."""

    def forget(self) -> None:
        """Forget what later steps are compared with; a new run starts."""

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
        }

    @property
    def state_key(self) -> str:
        """One key per set of options, so that several instances keep their states apart."""
        return self._generate_state_key(**self.options())

    # ------------------------------------------------------------------ hooks of the Trainer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what can be checked before training, and join the other monitors."""
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [callback for callback in callbacks if isinstance(callback, Monitor)]
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
            session = Session(last=monitors[-1], kernel_requests=needs, requests=requests)
            for monitor in monitors:
                monitor._session = session

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring back the last values of a resumed run for callbacks that watch them."""
        set_callback_metrics(trainer, self._values)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compute if the step is due; free what was shared after the last monitor."""
        try:
            if not self._stopped and self._due(trainer, batch_idx):
                self._look(trainer, pl_module, batch, batch_idx)
        finally:
            if self._session.last is self:
                self._session.end_step()

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
            self.source.see_validation(batch)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Free what was shared."""
        self._session.end_step()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free what was shared."""
        self._session.end_step()

    # ------------------------------------------------------------------ one monitored step

    def _due(self, trainer: Trainer, batch_idx: int) -> bool:
        step = x_axis_step(trainer)
        if step == self._step:  # a further batch of an accumulated step
            return False
        self._step = step
        return self.schedule.due(step, trainer.current_epoch, batch_idx == 0)

    def _look(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        looked_at: Any = None
        try:
            with isolated_rng():
                looked_at = self._session.batch(self.source, trainer, module, batch)
                if looked_at is None:
                    return
                evaluation = self._session.evaluate(
                    self._request(),
                    module,
                    looked_at,
                    batch_idx if self.source.data == "batch" else 0,
                    self.source.seed + self._step,
                )
                self._session.warn_of_unused(evaluation)
                self.prepare(trainer, module, evaluation)
                report = self._report(evaluation)
                self._measured = True
                self._values = report.scalars
                publish(trainer, report)
        except Exception as error:
            self._fail(error, looked_at)

    def choose_method(self, method: str, matrix: str, tol: float, microbatch: int | None) -> None:
        """Take and check the options of a monitor that can do without a Gram matrix."""
        require_choice("method", method, METHODS)
        require_choice("matrix", matrix, MATRICES)
        if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not 0 < tol < 1:
            raise OptionError(f"tol has to be a number between 0 and 1, got {tol!r}.")
        if microbatch is not None:
            require_integer("microbatch", microbatch, lowest=1)
        if matrix == "hessian" and (method in ("gram", "mc") or self.mc_samples):
            raise OptionError(
                "The Hessian is looked at matrix-free: there is no Gram matrix and no Monte Carlo "
                "estimate of it. Use method='auto' or 'matrix_free' and mc_samples=0."
            )
        if method == "mc" and self.mc_samples == 0:
            self.mc_samples = 1
        self.method, self.matrix, self.tol = method, matrix, float(tol)
        self.microbatch = microbatch

    def _request(self) -> Request:
        dtype = None if self.dtype is None else DTYPES[self.dtype]
        return Request(
            self.source,
            self.param_groups,
            self.mc_samples,
            dtype,
            self.problem,
            self.backend,
            self.method,
            self.matrix,
            self.tol,
            self.microbatch,
            self.k,
        )

    def _report(self, evaluation: Found) -> Report:
        report = Report(self._step)
        for group in evaluation.groups:
            path = self.section if len(evaluation.groups) == 1 else f"{self.section}/{group}"
            for key in report.add(f"{self.prefix}{path}", self.measure(evaluation, group)):
                self._claim(key)
        return report

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

    def _fail(self, error: Exception, looked_at: Any) -> None:
        self._stopped = True
        where = "no batch" if looked_at is None else describe(looked_at)
        cause = str(error) if isinstance(error, ViViTError) else f"{type(error).__name__}: {error}"
        message = (
            f"{type(self).__name__} failed at step {self._step} "
            f"(data={self.source.data!r}: {where}). {cause}"
        )
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
        if sum(tensor.nbytes for tensor in tensors(references)) > MAX_STATE_BYTES:
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


def require_integer(name: str, value: object, lowest: int) -> int:
    """The value, an integer that is not below `lowest`; else an OptionError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise OptionError(f"{name} has to be an integer >= {lowest}, got {value!r}.")
    return value


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise an OptionError unless `value` is one of the choices."""
    if value not in choices:
        supported = ", ".join(map(repr, choices))
        raise OptionError(f"{name} has to be one of {supported}, got {value!r}.")
