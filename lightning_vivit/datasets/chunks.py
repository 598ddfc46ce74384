"""The samples of a data loader in chunks of a chosen size, the same ones in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.samples.batch import checksum
from lightning_vivit.samples.cut import cut, form, join
from lightning_vivit.samples.size import batch_size

Select = Callable[[Any], Any]
_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


@dataclass(frozen=True)
class Survey:
    """What one pass over a loader saw.

    Attributes:
        sizes: Samples of each chunk.
        checksums: Of the inputs of each chunk.
    """

    sizes: tuple[int, ...]
    checksums: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        """Samples of all chunks."""
        return sum(self.sizes)

    @property
    def starts(self) -> list[int]:
        """Index of the first sample of each chunk."""
        return [sum(self.sizes[:index]) for index in range(len(self.sizes))]


class ChunkReader:
    """Reads the inputs of a loader in chunks.

    Batches are joined or cut to the chunk size where their samples have the same shape.
    """

    def __init__(self, loader: Iterable[Any], size: int, select: Select | None, name: str) -> None:
        """Refuse a loader whose order is random.

        Args:
            loader: A DataLoader, or another object that gives the same batches each time.
            size: Samples of a chunk.
            select: Takes the model's inputs out of a batch.
            name: Of the loader, for messages.

        Raises:
            OptionError: The loader shuffles or can be read once only.
        """
        refuse_random(loader, name)
        self._loader = loader
        self._size = size
        self._select = select
        self._name = name
        self._survey: Survey | None = None

    def survey(self) -> Survey:
        """Sizes and checksums of the chunks; one pass over the data the first time.

        Raises:
            ProblemError: No sample.
        """
        if self._survey is None:
            seen = [(batch_size(inputs), checksum(inputs)) for inputs in self._chunks()]
            if not seen:
                raise ProblemError(f"{self._name} gives no batch. At least one sample is needed.")
            sizes, checksums = zip(*seen, strict=True)
            self._survey = Survey(sizes, checksums)
        return self._survey

    def read(self) -> Iterator[tuple[int, Any]]:
        """Index and inputs of every chunk, checked to be those of the survey.

        Raises:
            ProblemError: The data changed since the survey.
        """
        survey = self.survey()
        index = -1
        for index, inputs in enumerate(self._chunks()):
            known = index < len(survey.sizes)
            if not known or checksum(inputs) != survey.checksums[index]:
                self._changed(index)
            yield index, inputs
        if index + 1 < len(survey.sizes):
            self._changed(index + 1)

    def first(self, count: int) -> Any:
        """Inputs of at most so many samples of the first batch.

        Raises:
            ProblemError: No sample.
        """
        for batch in self._loader:
            inputs = self._inputs(batch)
            return cut(inputs, 0, min(count, batch_size(inputs)))
        raise ProblemError(f"{self._name} gives no batch. At least one sample is needed.")

    def _changed(self, index: int) -> None:
        raise ProblemError(
            f"{self._name} gave other data at its second pass (chunk {index} of "
            f"{len(self.survey().sizes)}), so the entries of the kernel would not belong "
            "together. Use a loader with shuffle=False and without random augmentation."
        )

    def _chunks(self) -> Iterator[Any]:
        parts: list[Any] = []
        waiting = 0
        for batch in self._loader:
            inputs = self._inputs(batch)
            if parts and form(parts[0]) != form(inputs):  # padded to another length
                yield join(parts)
                parts, waiting = [], 0
            parts.append(inputs)
            waiting += batch_size(inputs)
            if waiting < self._size:
                continue
            whole = join(parts)
            stop = waiting // self._size * self._size
            for start in range(0, stop, self._size):
                yield cut(whole, start, start + self._size)
            parts = [cut(whole, stop, waiting)] if stop < waiting else []
            waiting -= stop
        if parts:
            yield join(parts)

    def _inputs(self, batch: Any) -> Any:
        if self._select is not None:
            return self._select(batch)
        if isinstance(batch, Tensor):
            return batch
        if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 2:
            return batch[0]
        what = type(batch).__name__
        what += f" of {len(batch)} entries" if isinstance(batch, (tuple, list, dict)) else ""
        raise OptionError(
            f"{self._name} gives a {what}, and it is not clear which part are the model's inputs. "
            "Supported: a tensor, or (inputs, targets). For another batch pass select=, such as "
            "select=lambda batch: batch['image']; a tuple or a dict that it returns is passed to "
            "the model by position or by name."
        )


def refuse_random(loader: Any, name: str) -> None:
    """Refuse what does not give the same samples in the same order each time.

    Args:
        loader: The loader.
        name: For messages.

    Raises:
        OptionError: It shuffles, or is an iterator.
    """
    if isinstance(loader, Iterator):
        raise OptionError(
            f"{name} is an iterator ({type(loader).__name__}), which can be read once only; the "
            "kernel needs several passes. Give the DataLoader itself, or a list of batches."
        )
    if not isinstance(loader, DataLoader):
        return
    samplers = [loader.sampler, getattr(loader.batch_sampler, "sampler", None)]
    for sampler in samplers:
        shuffles = isinstance(sampler, DistributedSampler) and sampler.shuffle
        if isinstance(sampler, _RANDOM) or shuffles:
            raise OptionError(
                f"{name} shuffles ({type(sampler).__name__}), so rows of the kernel could not be "
                "told apart. Give a DataLoader with shuffle=False."
            )
