"""The options that all monitors have: values with their checks, and keywords with their types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, cast

import torch
from lightning.pytorch import LightningModule

from lightning_vivit.callbacks.raw import Dump, MonitorResult
from lightning_vivit.errors import (
    OptionError,
    UnknownOptionError,
    require_choice,
    require_integer,
)
from lightning_vivit.problem.problem import Problem

DTYPES = {"float32": torch.float32, "float64": torch.float64, None: None}
GROUPINGS = ("all", "layer", "parameter")

ProblemFactory: TypeAlias = Callable[[LightningModule, Any], Problem]
Data: TypeAlias = Literal["batch", "train", "val"]
Groups: TypeAlias = str | list[list[str]] | dict[str, list[str]]
Precision: TypeAlias = Literal["float32", "float64"]
_Init = TypeVar("_Init", bound=Callable[..., None])


class OptionsButData(TypedDict, total=False):
    """Keywords of a monitor whose `data` has a default of its own; see `MonitorOptions`."""

    every_n_steps: int | None
    every_n_epochs: int | None
    steps: list[int] | None
    steps_per_decade: int | None
    seed: int
    max_samples: int | None
    param_groups: Groups
    dtype: Precision | None
    on_error: Literal["warn", "raise"]
    prefix: str
    backend: Literal["auto", "autograd", "backpack"]
    figures: bool
    figures_every: int
    probe: Any
    schedule: Callable[[int], bool] | None
    problem: ProblemFactory | None
    replay_dtype: Precision | None
    max_overhead: float | None
    max_memory: int | None
    on_result: Callable[[MonitorResult], Any] | None
    history: int
    dump: Dump | None
    save_state: bool


class Options(OptionsButData, total=False):
    """The keywords of every monitor beside k, for ``**options: Unpack[Options]``."""

    data: Data


@dataclass(frozen=True)
class MonitorOptions:
    """The options that all monitors have, checked.

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
        save_state: Whether checkpoints get the monitor's state, at most 64 MiB: its last values,
            a drawn probe, and what later steps are compared with. Without it a resumed run draws
            the probe anew and starts comparisons anew.

    Raises:
        OptionError: If an option has an impossible value or contradicts another one.
    """

    k: int = 10
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    steps: list[int] | None = None
    steps_per_decade: int | None = None
    data: Data = "batch"
    seed: int = 0
    max_samples: int | None = 64
    param_groups: Groups = "all"
    dtype: Precision | None = None
    on_error: Literal["warn", "raise"] = "warn"
    prefix: str = ""
    backend: Literal["auto", "autograd", "backpack"] = "auto"
    figures: bool = True
    figures_every: int = 5
    probe: Any = None
    schedule: Callable[[int], bool] | None = None
    problem: ProblemFactory | None = None
    replay_dtype: Precision | None = None
    max_overhead: float | None = None
    max_memory: int | None = None
    on_result: Callable[[MonitorResult], Any] | None = None
    history: int = 4
    dump: Dump | None = None
    save_state: bool = True

    def __post_init__(self) -> None:
        require_choice("on_error", self.on_error, ("warn", "raise"))
        for name in ("dtype", "replay_dtype"):
            if getattr(self, name) is not None:
                require_choice(name, getattr(self, name), ("float32", "float64"))
        if isinstance(self.param_groups, str):
            require_choice("param_groups", self.param_groups, GROUPINGS)
        if self.problem is not None and not callable(self.problem):
            raise OptionError(
                f"problem has to be a callable (module, batch) -> Problem, got {self.problem!r}. "
                "A Problem itself is tied to one batch."
            )
        require_integer("figures_every", self.figures_every, lowest=1)
        share = self.max_overhead
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if share is not None and not (number and 0 < share <= 1):
            raise OptionError(
                "max_overhead has to be a share of wall-clock time above 0 and at most 1, got "
                f"{share!r}."
            )


def lists_options(init: _Init) -> _Init:
    """Let an ``__init__`` with ``**options: Unpack[Options]`` list the options and refuse others.

    They stand in its signature with their defaults and in its docstring, so that help, notebooks
    and LightningCLI show them. Unknown ones raise an `UnknownOptionError`.
    """
    own = signature(init, eval_str=True).parameters.values()
    found = {each.name: each for each in own if each.kind is not Parameter.VAR_KEYWORD}
    for each in signature(MonitorOptions, eval_str=True).parameters.values():
        found.setdefault(each.name, each.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(init)
    def checked(self: object, *args: Any, **options: Any) -> None:
        unknown = [name for name in options if name not in found]
        if unknown:
            message = unknown_option(unknown[0], [name for name in found if name != "self"])
            raise UnknownOptionError(f"{type(self).__name__}: {message}")
        init(self, *args, **options)

    checked.__doc__ = MonitorOptions.__doc__
    checked.__signature__ = Signature(list(found.values()))  # type: ignore[attr-defined]
    return cast(_Init, checked)


def unknown_option(name: str, known: Sequence[str]) -> str:
    """A message that names the known option nearest to an unknown one, else all of them."""
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
    return f"unknown option {name!r}; {hint}"
