"""What a run has logged, read from TensorBoard's event files and from CSVLogger's files."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_vivit.errors import ViViTError
from lightning_vivit.loggers.csv import FOLDER
from lightning_vivit.loggers.files import METADATA
from lightning_vivit.loggers.pictures import binned
from lightning_vivit.loggers.tensorboard import BINS

EVENTS = "events.out.tfevents.*"
CSV = "metrics.csv"
NOT_METRICS = ("step", "epoch")
LISTED = 10


class ReportError(ViViTError):
    """A report cannot be made."""


@dataclass(frozen=True)
class Histogram:
    """Counts [B] between edges [B + 1], as logged at a step."""

    step: int
    edges: list[float]
    counts: list[float]


@dataclass(frozen=True)
class Picture:
    """An encoded image, as logged at a step."""

    step: int
    content: bytes


@dataclass
class Run:
    """The logs of one run.

    Attributes:
        path: Its directory.
        scalars: Key -> step -> value, steps ascending; of several values of a step the last one.
        histograms: Key -> the last one.
        images: Key -> the last one.
    """

    path: Path
    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    images: dict[str, Picture] = field(default_factory=dict)


def read_run(path: str | Path) -> Run:
    """Read what is in a log directory.

    Where a key is both in event files and in metrics.csv, the event files are taken.

    Args:
        path: Directory with event files or a metrics.csv, or one that has a single such directory
            somewhere below.

    Raises:
        ReportError: If there is none, or more than one.
    """
    run = Run(_locate(Path(path)))
    if any(run.path.glob(EVENTS)):
        _read_events(run)
    if (run.path / CSV).is_file():
        _read_csv(run)
        _read_arrays(run)
    return run


def _locate(path: Path) -> Path:
    if not path.exists():
        raise ReportError(f"{path} does not exist. Give the log directory of a run.")
    path = path.resolve()
    if path.is_file():
        path = path.parent
    if any(path.glob(EVENTS)) or (path / CSV).is_file():
        return path
    found = {file.parent for name in (EVENTS, CSV) for file in path.rglob(name)}
    if not found:
        raise ReportError(
            f"{path} has no TensorBoard event files ({EVENTS}) and no {CSV}, neither has a folder "
            "below. Give the log directory that the run printed."
        )
    if len(found) > 1:
        shown = sorted(map(str, found))
        rest = f"\n  and {len(shown) - LISTED} more" if len(shown) > LISTED else ""
        raise ReportError(
            f"{path} has the logs of {len(shown)} runs. Give one or two of them:\n  "
            + "\n  ".join(shown[:LISTED])
            + rest
        )
    return found.pop()


def _read_events(run: Run) -> None:
    everything, last = 0, 1
    limits = {"scalars": everything, "histograms": last, "images": last, "tensors": last}
    events = EventAccumulator(str(run.path), size_guidance=limits).Reload()
    tags = events.Tags()
    for key in tags["scalars"]:
        written = sorted(events.Scalars(key), key=attrgetter("wall_time"))  # files come by name
        points = {int(event.step): float(event.value) for event in written}
        run.scalars[key] = dict(sorted(points.items()))
    for key in tags["histograms"]:
        event = events.Histograms(key)[-1]
        value = event.histogram_value
        edges, counts = [float(limit) for limit in value.bucket_limit], list(value.bucket)
        if counts and counts[0] == 0:  # the writer's first bucket ends at the first edge
            counts = counts[1:]
        else:
            edges = [float(value.min), *edges]
        run.histograms[key] = Histogram(event.step, edges, counts)
    for key in tags["images"]:
        image = events.Images(key)[-1]
        run.images[key] = Picture(image.step, image.encoded_image_string)


def _read_csv(run: Run) -> None:
    found: dict[str, dict[int, float]] = {}
    with (run.path / CSV).open(newline="") as file:
        for row in csv.DictReader(file):
            step = row.get("step")
            if not step:
                continue
            for key, text in row.items():
                if key and key not in NOT_METRICS and text:
                    value = _float(text)
                    if value is not None:
                        found.setdefault(key, {})[int(float(step))] = value
    for key, points in found.items():
        run.scalars.setdefault(key, dict(sorted(points.items())))


def _read_arrays(run: Run) -> None:
    """The last histograms that CSVWriter put beside the scalars."""
    for folder in sorted((run.path / FOLDER).glob("*")):
        files = sorted(folder.glob("step_*.npz"), key=lambda file: (len(file.name), file.name))
        if not files:
            continue
        with np.load(files[-1]) as arrays:
            about = json.loads(str(arrays[METADATA]))
            for key in about["histograms"]:
                values = arrays[key].astype(np.float64).ravel()
                values = values[np.isfinite(values)]
                if values.size and key not in run.histograms:
                    counts, edges = binned(values, BINS)
                    run.histograms[key] = Histogram(about["step"], edges.tolist(), counts.tolist())


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
