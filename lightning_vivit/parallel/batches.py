"""Batches over ranks: the part of a rank, and all parts together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_vivit.parallel.ranks import Ranks
from lightning_vivit.samples.batch import map_leaves
from lightning_vivit.samples.cut import cut, join
from lightning_vivit.samples.size import read


def take_part(batch: Any, ranks: Ranks) -> tuple[Any, bool]:
    """The contiguous part of a batch that all ranks hold.

    Args:
        batch: The same on all ranks.
        ranks: All ranks.

    Returns:
        The rank's part, and whether it has none: then the batch's first sample stands in for it,
        so that the rank knows the shapes.
    """
    size = read(batch).count
    if size == 0:
        return batch, ranks.rank > 0
    start, stop = (size * place // ranks.size for place in (ranks.rank, ranks.rank + 1))
    if start == stop:
        return cut(batch, 0, 1), True
    return cut(batch, start, stop), False


def gather_batch(batch: Any, ranks: Ranks) -> Any:
    """The parts of all ranks, one after the other.

    Args:
        batch: This rank's part; the same structure on all ranks. What has a row or an entry for
            each sample is joined; everything else is kept as it is here.
        ranks: All ranks.

    Returns:
        The whole batch on the device of the part.
    """
    sent = map_leaves(lambda x: x.detach().cpu() if isinstance(x, Tensor) else x, batch)
    return join(ranks.exchange(sent), batch)
