"""The batch that a monitor looks at: the training batch, a fixed probe of a loader, or a given one.

A probe is drawn without iterating the Trainer's own loaders, which would move their samplers and
the global random state: indices are chosen by a generator of its own, and the samples are read
through a private copy of the data set. Where that is not possible (an iterable data set, a data set
that cannot be copied) the first batch that the run itself loads is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.problem.isolation.private_copy import private_copy
from lightning_vivit.problem.isolation.rng import isolated_rng
from lightning_vivit.samples.batch import clone
from lightning_vivit.samples.cut import limit

SOURCES = ("batch", "train", "val")
DEFAULT_PROBE_SIZE = 32  # for a loader that does not tell its batch size


class BatchSource:
    """Gives a monitor its batch, on the module's device.

    Args:
        data: "batch" (the current training batch), "train" or "val" (a fixed probe of that loader).
        seed: Chooses the samples of the probe.
        max_samples: Upper limit of the number of samples; the size of a probe drawn from a loader.
            None takes the batch as it is, and a probe of the loader's batch size.
        given: A batch, or a callable without arguments that returns one (called once).

    Raises:
        OptionError: If the options have impossible values or contradict each other.
    """

    def __init__(
        self,
        data: str = "batch",
        seed: int = 0,
        max_samples: int | None = None,
        given: Any | Callable[[], Any] = None,
    ) -> None:
        if data not in SOURCES:
            raise OptionError(
                f"data has to be one of {', '.join(map(repr, SOURCES))}, got {data!r}. "
                "To pass a batch of your own use the option probe."
            )
        if given is not None and data != "batch":
            raise OptionError(
                f"Both data={data!r} and a probe were given. Leave data out to use the probe."
            )
        if max_samples is not None and (not _is_int(max_samples) or max_samples < 1):
            raise OptionError(f"max_samples has to be a positive integer, got {max_samples!r}.")
        if not _is_int(seed) or seed < 0:
            raise OptionError(f"seed has to be an integer >= 0, got {seed!r}.")
        self.data = data if given is None else "given"
        self.seed = seed
        self.max_samples = max_samples
        self._given = given
        self._probe: Any = None
        self._seen: Any = None  # the first validation batch, until the probe is there
        self._told = False

    @property
    def key(self) -> tuple[Any, ...]:
        """Two sources with equal keys give the same samples at the same step."""
        if self.data == "given":
            return (self.data, id(self._given), self.max_samples)
        if self.data == "batch":
            return (self.data, self.max_samples)
        return (self.data, self.seed, self.max_samples)

    @property
    def wants_validation(self) -> bool:
        """Whether the next validation batch is to be shown to `see_validation`."""
        return self.data == "val" and self._probe is None and self._seen is None

    def reset(self) -> None:
        """Forget the probe; the next run draws it anew."""
        self._probe = self._seen = None
        self._told = False

    def fetch(self, trainer: Trainer, module: LightningModule, batch: Any) -> Any:
        """The batch to look at, or None while the first validation batch has not been seen.

        Args:
            trainer: The Trainer that runs.
            module: Its module; a probe goes through its own transfer hooks.
            batch: The current training batch, on its device.

        Raises:
            ProblemError: If the data set of the probe is empty.
            OptionError: If the Trainer has no validation data for `data="val"`.
        """
        if self.data == "batch":
            found = limit(batch, self.max_samples)
        else:
            if self._probe is None:
                self._probe = self._make(trainer, module, batch)
                if self._probe is None:
                    return None
                self._seen = None
            found = self._probe = move_data_to_device(self._probe, module.device)
        return found

    @property
    def probe(self) -> Any:
        """The fixed probe; None for the current training batch and before it was drawn."""
        return self._probe

    def adopt(self, probe: Any) -> None:
        """Share the probe of a source with the same key."""
        self._probe = probe

    def see_validation(self, batch: Any) -> None:
        """Keep a validation batch of the run, for loaders from which no probe can be drawn."""
        self._seen = clone(limit(batch, self.max_samples))

    def _make(self, trainer: Trainer, module: LightningModule, batch: Any) -> Any:
        if self.data == "given":
            with isolated_rng(self.seed):
                given = self._given() if callable(self._given) else self._given
                return _transfer(trainer, module, clone(limit(given, self.max_samples)))
        loaders = trainer.train_dataloader if self.data == "train" else _first_val_loader(trainer)
        try:
            with isolated_rng(self.seed):
                return _transfer(trainer, module, self._draw(loaders))
        except _CannotDrawError as reason:
            if self.data == "val":
                return self._fall_back(self._seen, reason)
            first = clone(limit(batch, self.max_samples))
            return self._fall_back(first, reason)

    def _fall_back(self, found: Any, reason: Exception) -> Any:
        """Say, once, that the probe is a batch of the run."""
        if not self._told:
            self._told = True
            rank_zero_info(
                f"A probe cannot be drawn from the {self.data} loader without touching the run "
                f"({reason}); the probe is the first {self.data} batch of the run. "
                + ("Nothing is computed before it was seen." if found is None else "")
            )
        return found

    def _draw(self, loaders: Any) -> Any:
        """One batch with the structure of `loaders` (one loader, or a dict or list of them)."""
        if isinstance(loaders, Mapping):
            return {name: self._draw(loader) for name, loader in loaders.items()}
        if isinstance(loaders, (list, tuple)):
            return type(loaders)([self._draw(loader) for loader in loaders])
        return draw_batch(loaders, self.seed, self.max_samples)

    def state_dict(self) -> dict[str, Any]:
        """The probe, if it consists of tensors and plain containers; else it is drawn anew."""
        if self._probe is None or self.data in ("batch", "given") or not _is_plain(self._probe):
            return {}
        return {"probe": move_data_to_device(self._probe, torch.device("cpu"))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the probe of a checkpoint."""
        self._probe = state.get("probe")


class _CannotDrawError(Exception):
    """A probe cannot be drawn from this loader without touching the run."""


def draw_batch(loader: Any, seed: int, max_samples: int | None) -> Any:
    """A batch of randomly chosen samples of a loader's data set, collated as the loader does it."""
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is None or collate is None:
        raise _CannotDrawError(f"a {type(loader).__name__} has no dataset and collate_fn")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise _CannotDrawError("its data set has no index")
    try:
        dataset, collate = private_copy((dataset, collate))
    except Exception as error:
        raise _CannotDrawError(f"its data set cannot be copied: {error}") from error
    generator = torch.Generator().manual_seed(seed)
    indices = _sampled_indices(getattr(loader, "sampler", None))
    candidates = list(range(len(dataset))) if indices is None else list(indices)
    if not candidates:
        raise ProblemError("A probe was to be drawn from a data set without samples.")
    order = torch.randperm(len(candidates), generator=generator).tolist()
    batches = getattr(loader, "batch_sampler", None)
    if batches is None and getattr(loader, "batch_size", None) is None:
        return limit(collate(dataset[candidates[order[0]]]), max_samples)
    size = getattr(loader, "batch_size", None) or getattr(batches, "batch_size", None)
    chosen = [candidates[index] for index in order[: max_samples or size or DEFAULT_PROBE_SIZE]]
    if hasattr(dataset, "__getitems__"):
        return collate(dataset.__getitems__(chosen))
    return collate([dataset[index] for index in chosen])


def _sampled_indices(sampler: Any) -> Any:
    """The indices of a subset sampler, also of one that Lightning wrapped for several processes."""
    wrapped = getattr(getattr(sampler, "dataset", None), "_sampler", None)
    return getattr(sampler if wrapped is None else wrapped, "indices", None)


def _first_val_loader(trainer: Trainer) -> Any:
    found: Any = trainer.val_dataloaders
    while isinstance(found, (Mapping, list, tuple)):
        nested = list(found.values()) if isinstance(found, Mapping) else list(found)
        found = nested[0] if nested else None
    if found is None:
        raise OptionError(
            "data='val' needs a validation loader, and this Trainer has none (or "
            "limit_val_batches=0). Add val_dataloader(), or use data='train' or data='batch'."
        )
    return found


def _transfer(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """The way of a batch in Lightning's training loop: precision, hooks, device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, device=module.device, dataloader_idx=0)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return type(value) is dict and all(map(_is_plain, [*value.keys(), *value.values()]))
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    return value is None or type(value) in (Tensor, bool, int, float, str)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
