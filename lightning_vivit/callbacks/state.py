"""Where a monitor is in its run, and what of it goes into checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from lightning_vivit.samples.batch import tensors_in

References: TypeAlias = "Mapping[str, Mapping[str, Tensor]]"  # group -> name -> tensor

MAX_STATE_BYTES = 64 * 2**20  # of the tensors of one monitor in a checkpoint


@dataclass
class RunState:
    """Where one monitor is in its run.

    Attributes:
        step: The last one that the schedule was asked about.
        measured: Whether a step of this run, or of the one that it resumes, was measured.
        looks: Monitored steps since the start or the resume.
        failure: What stopped the monitor; None while it goes on.
        late: Error of a hook between the monitored steps, told at the next one.
        looked_at: The batch that an error message describes.
        stretched: Whether a scheduled step was left out because of max_overhead.
        values: The last scalars.
    """

    step: int = -1
    measured: bool = False
    looks: int = 0
    failure: str | None = None
    late: Exception | None = None
    looked_at: Any = None
    stretched: bool = False
    values: dict[str, float] = field(default_factory=dict)


def pack(state: RunState, references: References, probe: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into a checkpoint: tensors and plain values only.

    Tensors have at most `MAX_STATE_BYTES` together. Beyond that references stay out first:
    after a resume, comparisons with them start anew. Then the probe, which is drawn anew.

    Args:
        state: Of a monitor.
        references: Tensors that its later steps are compared with.
        probe: State of its `BatchSource`.
    """
    kept = dict(probe) if _size(probe) <= MAX_STATE_BYTES else {}
    fits = _size(kept) + _size(references) <= MAX_STATE_BYTES
    return {
        "step": state.step,
        "measured": state.measured,
        "values": dict(state.values),
        "references": {
            group: {name: tensor.cpu() for name, tensor in named.items()}
            for group, named in references.items()
            if fits
        },
        **kept,
    }


def unpack(saved: Mapping[str, Any]) -> tuple[RunState, References]:
    """The state and the references of `pack`.

    Raises:
        KeyError: A part is missing.
        TypeError, AttributeError, ValueError: A part is of another kind.
    """
    state = RunState(
        step=int(saved["step"]),
        measured=bool(saved["measured"]),
        values={str(key): float(value) for key, value in saved["values"].items()},
    )
    references = {group: dict(named) for group, named in saved["references"].items()}
    for named in references.values():
        for tensor in named.values():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"a reference is a {type(tensor).__name__}, not a tensor")
    return state, references


def _size(nested: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_in(nested))
