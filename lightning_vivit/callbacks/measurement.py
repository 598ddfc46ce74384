"""What a monitor measures and how it says it: the part that a monitor of your own writes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from dataclasses import replace

from lightning.pytorch import LightningModule, Trainer

from lightning_vivit.callbacks.options import DTYPES, MonitorOptions
from lightning_vivit.callbacks.probe import BatchSource
from lightning_vivit.callbacks.raw import MonitorResult, RawResults
from lightning_vivit.callbacks.schedule import Schedule
from lightning_vivit.callbacks.state import References, RunState
from lightning_vivit.errors import OptionError, require_choice
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.evaluation.request import Request
from lightning_vivit.kernel.modes import OutputKernel
from lightning_vivit.loggers import Chart, charts
from lightning_vivit.matrices import MATRICES
from lightning_vivit.statistics import SECTIONS, Draw, Findings


class Measurement:
    """Says something about each parameter group of an evaluation.

    Args:
        settings: The options that all monitors have.

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

    def __init__(self, settings: MonitorOptions) -> None:
        super().__init__()
        self.settings = settings
        self.schedule = Schedule(
            settings.every_n_steps,
            settings.every_n_epochs,
            settings.steps,
            settings.steps_per_decade,
            settings.schedule,
        )
        self.source = BatchSource(
            settings.data, settings.seed, settings.max_samples, settings.probe
        )
        self.raw_results = RawResults(settings.on_result, settings.history, settings.dump)
        self.request()  # checks its options
        self.start_over()

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

    def references(self) -> References:
        """Tensors that later steps are compared with, for checkpoints."""
        return {}

    def set_references(self, references: References) -> None:
        """Take the tensors of `references` from a checkpoint."""

    def charts(self) -> list[Chart]:
        """The charts that show this monitor's keys."""
        return charts(SECTIONS["cost"], SECTIONS["cost"].statistics)

    @property
    def grouped(self) -> bool:
        """Whether there may be several parameter groups."""
        groups = self.settings.param_groups
        return groups != "all" and len(groups) != 1

    def options(self) -> dict[str, object]:
        """The options that tell this monitor from others of its class, as plain values."""
        settings = self.settings
        return {
            "k": self.k,
            **self.schedule.describe(),
            "data": self.source.data,
            "seed": settings.seed,
            "max_samples": settings.max_samples,
            "param_groups": settings.param_groups,
            "dtype": settings.dtype,
            "mc_samples": self.mc_samples,
            "prefix": settings.prefix,
            "backend": settings.backend,
            "problem": getattr(settings.problem, "__qualname__", None),
            "replay_dtype": settings.replay_dtype,
            "max_overhead": settings.max_overhead,
        }

    def request(self) -> Request:
        """What this monitor wants evaluated."""
        settings = self.settings
        return Request(
            param_groups=settings.param_groups,
            method=self.method,
            matrix=self.matrix,
            columns="mc" if self.mc_samples else "exact",
            mc_samples=max(1, self.mc_samples),
            output_kernel=self.output_kernel,
            k=self.k,
            tol=self.tol,
            microbatch=self.microbatch,
            dtype=DTYPES[settings.dtype],
            max_memory=settings.max_memory,
            backend=settings.backend,
        )

    @property
    def key(self) -> Hashable:
        """Monitors with equal keys share an evaluation; k may differ, the largest is evaluated."""
        settings = self.settings
        same = replace(self.request(), k=1, param_groups="all")
        named = repr(settings.param_groups), id(settings.problem), settings.replay_dtype
        return *self.source.key, same, *named

    @property
    def k(self) -> int:
        """How many leading eigenvalues or directions to look at."""
        return self.settings.k

    @property
    def step(self) -> int:
        """The step that is measured, on the x axis of the loggers."""
        return self.run_state.step

    @property
    def path(self) -> str:
        """Prefix and section, the first part of its keys."""
        return f"{self.settings.prefix}{self.section}"

    @property
    def results(self) -> tuple[MonitorResult, ...]:
        """The last results of this run, the newest at the end; as many as `history` says."""
        return self.raw_results.results

    def limit_k(self, available: int) -> int:
        """k, or what a later, smaller batch has.

        Raises:
            OptionError: If k is too large already at the first monitored step.
        """
        if self.k > available and not self.run_state.measured:
            raise OptionError(
                f"k={self.k} is too large: the batch gives {available} eigenvalues (samples times "
                f"columns). Use k <= {available}, or more samples."
            )
        return min(self.k, available)

    def choose_method(self, method: str, matrix: str, tol: float, microbatch: int | None) -> None:
        """Take and check the options of a monitor that can do without a Gram matrix."""
        require_choice("matrix", matrix, MATRICES)
        MATRICES[matrix].check_method(method)
        if method == "mc" and self.mc_samples == 0:
            self.mc_samples = 1
        self.method, self.matrix, self.tol = method, matrix, tol
        self.microbatch = microbatch
        self.request()  # checks them

    def start_over(self) -> None:
        """Forget the run; a new one starts."""
        self.run_state = RunState()
        self.raw_results.clear()
        self.source.reset()
        self.forget()
