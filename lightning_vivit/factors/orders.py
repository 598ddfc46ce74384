"""Orders of summation for the kernel of two outer-product factors.

All compute the same sum over groups g, outputs a, inputs b and positions l, k,

    kernel[(n, c), (m, d)] = sum s[n,c,g,a,l] u[n,g,b,l] s[m,d,g,a,k] u[m,g,b,k] + constant terms,

with s the columns and u the inputs. They differ by factors of hundreds in time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_vivit.factors.outer import OuterProduct

CHUNK_ENTRIES = 1 << 24  # entries of temporary rows held at once (64 MB in float32)
_REUSED_ENTRIES = 1 << 22  # of them on a CPU: blocks that malloc gives again without page faults
_CACHED_ENTRIES = 1 << 19  # of a product that a CPU's thread uses at once (2 MB in float32)
_BLOCKS = 6  # row blocks of a symmetric product
_ALIGNED = 32  # rows; a block has a multiple of them, because others take longer
_SPLIT = 192  # rows, and entries of each, from which half of the blocks is faster than the whole
_WIDTH = 256  # columns of a product of input kernels


def by_kernels(first: OuterProduct, second: OuterProduct, mode: str) -> Tensor:
    """Kernel of the inputs times kernel of the columns, entry by entry.

    Best at one position (a Linear layer on vectors): nothing of the weight's size is formed.
    """
    n, c, groups, a, length = first.columns.shape
    m, d = second.columns.shape[:2]
    b = first.inputs.shape[2]
    total: Tensor | None = None
    for group in range(groups):
        left = first.inputs[:, group].transpose(1, 2).reshape(n * length, b)
        right = second.inputs[:, group].transpose(1, 2).reshape(m * length, b)
        inputs = left @ right.T  # [N*L, M*L]
        if first.offset:
            inputs += first.offset
        side = first.columns[:, :, group].permute(0, 3, 1, 2)  # [N, L, C, A]
        other = second.columns[:, :, group].permute(0, 3, 1, 2)
        if mode == "full":
            flat = side.reshape(n * length * c, a)
            if first is second:
                columns = symmetric_product(flat)
            else:
                columns = flat @ other.reshape(m * length * d, a).T
            columns = columns.reshape(n, length, c, m, length, d)
            columns.mul_(inputs.reshape(n, length, 1, m, length, 1))
            part = columns.reshape(n, c, m, d) if length == 1 else columns.sum((1, 4))
        elif mode == "trace":
            columns = side.reshape(n * length, d * a) @ other.reshape(m * length, d * a).T
            part = columns.mul_(inputs).reshape(n, length, m, length).sum((1, 3))
        else:
            left_d = side.permute(2, 0, 1, 3).reshape(d, n * length, a)
            right_d = other.permute(2, 3, 0, 1).reshape(d, a, m * length)
            columns = torch.bmm(left_d, right_d).mul_(inputs)
            part = columns.reshape(d, n, length, m, length).sum((2, 4)).permute(1, 2, 0)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def by_rows(
    first: OuterProduct, second: OuterProduct, mode: str, entries: int = CHUNK_ENTRIES
) -> Tensor:
    """Jacobian rows of a few outputs at a time, multiplied.

    Best for many positions and small weights (early convolutions).
    """
    n, c, groups, a, _ = first.columns.shape
    m, d = second.columns.shape[:2]
    b = first.inputs.shape[2]
    if first.columns.device.type == "cpu":
        entries = min(entries, _REUSED_ENTRIES)
    step = max(1, min(a, entries // max(1, n * c * b)))
    step = -(-a // -(-a // step))  # blocks of nearly equal size
    workspace = first.columns.new_empty(n * c * step * b)
    spare = workspace if first is second else first.columns.new_empty(m * d * step * b)
    total: Tensor | None = None
    for group in range(groups):
        for start in range(0, a, step):
            stop = min(a, start + step)
            left = _some_rows(first, group, start, stop, workspace)
            right = left if first is second else _some_rows(second, group, start, stop, spare)
            part = multiply_rows(left, right, mode)
            total = part if total is None else total.add_(part)
    assert total is not None
    if first.offset:
        left = first.columns.sum(4).flatten(2)
        right = left if first is second else second.columns.sum(4).flatten(2)
        total.add_(multiply_rows(left, right, mode), alpha=first.offset)
    return total


def by_inputs_first(first: OuterProduct, second: OuterProduct, mode: str) -> Tensor:
    """(Columns . input kernel) . columns, one sample of the second factor at a time.

    Best for large weights at few positions (late convolutions).
    """
    n, c, groups, a, length = first.columns.shape
    m, d = second.columns.shape[:2]
    symmetric = first is second
    side = first.columns.movedim(2, 1).reshape(n, groups, c * a, length)
    inputs = first.inputs.transpose(2, 3).contiguous()  # [N, G, L, B]
    others = second.inputs.permute(1, 2, 0, 3).contiguous()  # [G, B, M, L]
    shape = {"full": (n, c, m, d), "trace": (n, m), "diagonal": (n, m, d)}[mode]
    total = first.columns.new_empty(shape)
    span = _span(first)
    several = max(1, _WIDTH // length)
    workspace = side.new_empty(min(n, span) * groups, c * a, length)
    for begin in range(0, m, several):  # input kernels of several samples in one large product
        start = begin if symmetric else 0
        right = others[:, :, begin : begin + several].flatten(2)  # [G, B, m*L]
        left = inputs[start:].transpose(0, 1).flatten(1, 2)  # [G, n*L, B]
        kernels = torch.bmm(left, right).reshape(groups, n - start, length, -1, length)
        if first.offset:
            kernels += first.offset
        for index in range(begin, min(m, begin + several)):
            columns = second.columns[index].transpose(0, 1).flatten(2)  # [G, D, A*L]
            written = total[:, :, index] if mode == "full" else total[:, index]
            for low in range(index if symmetric else 0, n, span):
                high = min(n, low + span)
                kernel = kernels[:, low - start : high - start, :, index - begin].transpose(0, 1)
                some = kernel.reshape(-1, length, length)
                partial = workspace[: some.shape[0]]
                torch.bmm(side[low:high].flatten(0, 1), some, out=partial)
                _write_block(partial, columns, mode, written[low:high])
            if symmetric and mode == "full":
                total[index, :, index + 1 :] = total[index + 1 :, :, index].permute(2, 0, 1)
            elif symmetric:
                total[index, index + 1 :] = total[index + 1 :, index]
    return total


def _span(factor: OuterProduct) -> int:
    """Samples of the first factor whose partial sums are formed at once: as many as caches hold."""
    n, c, groups, a, length = factor.columns.shape
    if factor.columns.device.type != "cpu":
        return n
    threads = torch.get_num_threads()
    return threads * max(1, _CACHED_ENTRIES // (groups * c * a * length))


def _write_block(partial: Tensor, columns: Tensor, mode: str, written: Tensor) -> None:
    """Write the products of partial sums with the columns of one sample.

    With several threads the batch is divided as it was when the sums were formed, so each thread
    finds its own in its cache. Where the cores do not share a cache that is faster than fewer and
    larger products.

    Args:
        partial: [n*G, C*A, L].
        columns: [G, D, A*L].
        mode: ``full``, ``trace`` or ``diagonal``.
        written: [n, C, D], [n] or [n, D].
    """
    groups, d, width = columns.shape
    n = written.shape[0]
    if mode == "trace":
        written.copy_(partial.reshape(n, -1) @ columns.reshape(-1))
    elif mode == "diagonal":
        single = partial.reshape(n, groups, d, width)
        written.copy_(torch.einsum("ngdx,gdx->nd", single, columns))
    elif groups > 1:
        left = partial.reshape(n, groups, -1, width).transpose(0, 1).reshape(groups, -1, width)
        block = torch.bmm(left, columns.transpose(1, 2)).sum(0)
        written.copy_(block.reshape(n, -1, d))
    elif partial.device.type == "cpu" and torch.get_num_threads() > 1:
        rows = partial.reshape(n, -1, width)
        written.copy_(torch.bmm(rows, columns.transpose(1, 2).expand(n, width, d)))
    else:  # few rows times many columns is the faster way round
        block = columns[0] @ partial.reshape(-1, width).T  # [D, n*C]
        written.copy_(block.reshape(d, n, -1).permute(1, 2, 0))


def multiply_rows(left: Tensor, right: Tensor, mode: str) -> Tensor:
    """Products of explicit rows.

    Args:
        left: [N, C, P].
        right: [M, D, P]; the same object to use the symmetry.
        mode: ``full``, ``trace`` or ``diagonal``; the last two need C = D.

    Returns:
        [N, C, M, D], [N, M] or [N, M, D].
    """
    n, c, _ = left.shape
    m, d = right.shape[:2]
    if mode == "full":
        flat = left.reshape(n * c, -1)
        if right is left:
            return symmetric_product(flat).reshape(n, c, m, d)
        return (flat @ right.reshape(m * d, -1).T).reshape(n, c, m, d)
    if mode == "trace":
        return left.reshape(n, -1) @ right.reshape(m, -1).T
    products = torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0))  # [D, N, M]
    return products.permute(1, 2, 0).contiguous()


def symmetric_product(rows: Tensor) -> Tensor:
    """Rows @ rows^T, computing little more than the lower triangle.

    Args:
        rows: [R, P].

    Returns:
        [R, R], symmetric up to rounding: entries (i, j) and (j, i) of one matrix product are summed
        in one order on some processors and in two on others.
    """
    size, width = rows.shape
    if size < _SPLIT or width < _SPLIT:
        return rows @ rows.T
    product = rows.new_empty(size, size)
    step = -(-size // (_BLOCKS * _ALIGNED)) * _ALIGNED
    for start in range(0, size, step):  # tall blocks are faster than wide ones
        stop = min(size, start + step)
        block = rows[start:] @ rows[start:stop].T
        product[start:, start:stop] = block
        product[start:stop, stop:] = block[stop - start :].T
    return product


def _some_rows(
    factor: OuterProduct, group: int, start: int, stop: int, workspace: Tensor
) -> Tensor:
    """Rows of one group restricted to outputs start..stop-1, [N, D, (stop-start)*B]."""
    side = factor.columns[:, :, group, start:stop]  # [N, D, a, L]
    n, d, a, length = side.shape
    inputs = factor.inputs[:, group]  # [N, B, L]
    width = inputs.shape[1]
    rows = workspace[: n * d * a * width].view(n, d * a, width)
    torch.bmm(side.reshape(n, d * a, length), inputs.transpose(1, 2), out=rows)
    return rows.view(n, d, a * width)


ORDERS: dict[str, Callable[[OuterProduct, OuterProduct, str], Tensor]] = {
    "kernels": by_kernels,
    "rows": by_rows,
    "inputs_first": by_inputs_first,
}
