"""The autograd graph behind a tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor
from torch.autograd.graph import Node


def graph_nodes(outputs: Tensor, without: Collection[Node] = ()) -> Iterator[Node]:
    """The nodes that a backward pass from some outputs may run, each once.

    Args:
        outputs: Where the graph starts.
        without: Nodes at which to stop, which are left out.

    Yields:
        The nodes, that of the outputs first.
    """
    waiting, seen = [outputs.grad_fn], set(without)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [before for before, _ in node.next_functions]
