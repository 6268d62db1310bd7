r"""Anchors by coding: sparse coordinates, and residual codes of rows."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyg_c2f.shards import Group, Rows
from pyg_c2f.typing import Assignment

MAX_LINKS = 255
KMEANS_ITERATIONS = 12
BLOCK = 8192


def threshold_assignment(
    x: Tensor,
    num_links: float,
    importance: Tensor,
    max_links: int = MAX_LINKS,
    rows: Rows | None = None,
) -> Assignment:
    r"""Ties each row to the axes on which it has large coordinates.

    .. math::
        s_{ia} = x_{ia} \; [\, |x_{ia}| \sqrt{w_i} \geq \tau \,]

    One threshold :math:`\tau` for all rows, such that a row has ``num_links`` links on
    average. Of all assignments with that many links it leaves the least weighted
    squared error :math:`\sum_i w_i \| x_i - s_i \|^2`: rows that matter more, or that
    lie between more axes, get more links.

    Args:
        x (Tensor): The coordinates, ``[num_rows, d]``.
        num_links (float): The mean number of links of a row.
        importance (Tensor): The weights :math:`w_i`, ``[num_rows]``.
        max_links (int, optional): The most links of one row. (default: ``255``)
        rows (Rows, optional): The rows, where several processes share them; ``x`` and
            ``importance`` are then the own ones, and so is the result.

    Returns:
        Assignment: As wide as the row with most links needs, the links of a row by
        axis; zero is no link.
    """
    rows = rows or Group().rows(len(x))
    size = (x * importance.sqrt().unsqueeze(1)).abs_().float()
    least = kth_largest(size, round(num_links * rows.num_rows), rows.group)
    alive = (size >= least) & (x != 0)
    full = (alive.sum(dim=1) > max_links).nonzero().flatten()
    if full.numel():
        top = size[full].topk(max_links, dim=1).indices
        alive[full] = torch.zeros_like(alive[full]).scatter_(1, top, True)
    row, col = alive.nonzero(as_tuple=True)
    count = alive.sum(dim=1)
    slot = torch.arange(len(row), device=x.device) - (count.cumsum(0) - count)[row]
    width = int(rows.group.max(max(int(count.max()), 1)))
    index = torch.zeros(len(x), width, dtype=torch.long, device=x.device)
    weight = x.new_zeros(len(x), width)
    index[row, slot], weight[row, slot] = col, x[row, col]
    return Assignment(index, weight)


def kth_largest(x: Tensor, k: int, group: Group) -> float:
    r"""The :math:`k`-th largest of the numbers of all processes, none below zero.

    By counting: the bits of such a number, as an integer, rise with it. The upper half
    of them says in which of :math:`2^{16}` bins the number is, the lower half which one
    of the bin it is; two passes, and two sums of counts. It is exact, and any number of
    processes finds the same.

    Args:
        x (Tensor): The numbers of this process, float32.
        k (int): Which one; the least of all, if there are fewer.
        group (Group): The processes.
    """
    bits = x.contiguous().view(torch.int32).flatten()
    upper = group.all_reduce(_counts(bits >> 16, 1 << 15))
    k = min(max(k, 1), int(upper.sum()))
    place, above = _find(upper, k)
    lower = bits[(bits >> 16) == place] & 0xFFFF
    least, _ = _find(group.all_reduce(_counts(lower, 1 << 16)), k - above)
    return torch.tensor([place << 16 | least], dtype=torch.int32).view(x.dtype).item()


def _counts(number: Tensor, num_bins: int) -> Tensor:
    count = number.new_zeros(num_bins, dtype=torch.long)
    for part in number.split(1 << 22):  # as 64-bit numbers, only some at a time
        count += torch.bincount(part, minlength=num_bins)
    return count


def _find(count: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th number from above, and how many are above it."""
    at_least = count.flip(0).cumsum(0).flip(0)
    place = max(int((at_least >= k).sum()) - 1, 0)
    return place, int(at_least[place] - count[place])


def kmeans(
    x: Tensor,
    num_centroids: int,
    importance: Tensor,
    generator: torch.Generator | None = None,
    num_restarts: int = 1,
    num_iterations: int = KMEANS_ITERATIONS,
    rows: Rows | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Weighted k-means; of several starts the one with the least weighted error.

    Starts from rows drawn by importance. A centroid without rows takes the row that is
    worst off, so that none is empty in the end (unless there are fewer distinct rows).

    Args:
        x (Tensor): The rows, ``[num_rows, d]``.
        num_centroids (int): The number of centroids.
        importance (Tensor): The rows' weights, ``[num_rows]``.
        generator (torch.Generator, optional): Draws the starts, on the CPU.
        num_restarts (int, optional): The number of starts. (default: ``1``)
        num_iterations (int, optional): Iterations of each. (default: ``12``)
        rows (Rows, optional): The rows, where several processes share them; ``x`` and
            ``importance`` are then the own ones, and so are the labels.

    Returns:
        Tuple: The centroids ``[num_centroids, d]`` and the centroid of each row.
    """
    best: tuple[Tensor, Tensor, Tensor] | None = None
    rows = rows or Group().rows(len(x))
    weight = importance.clamp(min=1e-12)
    chances = rows.gather(weight).double().cpu()
    for _ in range(num_restarts):
        pick = torch.multinomial(
            chances, num_centroids, len(chances) < num_centroids, generator=generator
        )
        centroids = rows.select(x, pick.to(x.device))
        for _ in range(num_iterations):
            label, error = _nearest(x, centroids, rows)
            centroids = _means(x, label, weight, error, num_centroids, rows)
        label, error = _nearest(x, centroids, rows)
        total = rows.group.sum((weight[b] * error[b]).sum() for b in rows.blocks)
        if best is None or total < best[2]:
            best = centroids, label, total
    assert best is not None
    return best[:2]


def _nearest(x: Tensor, centroids: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    half = centroids.square().sum(dim=1) / 2
    parts = [part for block in rows.blocks for part in x[block].split(BLOCK)]
    tops = [torch.addmm(-half, part, centroids.T).max(dim=1) for part in parts]
    gain = torch.cat([top.values for top in tops])
    error = (x.square().sum(dim=1) - 2 * gain).clamp(min=0)
    return torch.cat([top.indices for top in tops]), error


def _means(
    x: Tensor,
    label: Tensor,
    weight: Tensor,
    error: Tensor,
    num_centroids: int,
    rows: Rows,
) -> Tensor:
    def sums(table: Tensor) -> Tensor:
        zeros = table.new_zeros(num_centroids, *table.shape[1:])
        return rows.group.sum(
            zeros.index_add(0, label[block], table[block]) for block in rows.blocks
        )

    mass, total = sums(weight), sums(x * weight.unsqueeze(1))
    empty = (mass == 0).nonzero().flatten()
    if empty.numel():
        worst = _largest(weight * error, empty.numel(), rows)
        empty = empty[: len(worst)]
        total[empty], mass[empty] = rows.select(x, worst), 1.0
    return total / mass.clamp(min=1e-30).unsqueeze(1)


def _largest(value: Tensor, k: int, rows: Rows) -> Tensor:
    """The numbers of the rows with the largest values, the largest first."""
    # Of equal ones the first: whoever holds them, the same rows are found.
    value = rows.gather(value)
    return value.sort(descending=True, stable=True).indices[:k]


def residual_codes(
    x: Tensor,
    num_levels: int,
    num_centroids: int,
    importance: Tensor,
    generator: torch.Generator | None = None,
    shrink: Callable[[Tensor], Tensor] = lambda centroids: centroids,
    rows: Rows | None = None,
) -> tuple[Assignment, Tensor]:
    r"""Residual quantisation: each level codes what the levels before left over.

    Args:
        x (Tensor): The rows, ``[num_rows, d]``.
        num_levels (int): The number of levels, each with its own centroids.
        num_centroids (int): The number of centroids of a level.
        importance (Tensor): The rows' weights, ``[num_rows]``.
        generator (torch.Generator, optional): Draws the starts, on the CPU.
        shrink (Callable, optional): Applied to a level's centroids before the next
            level looks at the rest, such as a soft threshold.
        rows (Rows, optional): The rows, where several processes share them; ``x`` and
            ``importance`` are then the own ones, and so is the assignment.

    Returns:
        Tuple: The assignment (one anchor of each level, weight 1) and the codebook of
        all levels, ``[num_levels * num_centroids, d]``, as it was before ``shrink``.
    """
    rows = rows or Group().rows(len(x))
    labels, codebook, rest = [], [], x.clone()
    for level in range(num_levels):
        centroids, _ = kmeans(rest, num_centroids, importance, generator, rows=rows)
        kept = shrink(centroids)
        label, _ = _nearest(rest, kept, rows)
        rest -= kept[label]
        labels.append(label + level * num_centroids)
        codebook.append(centroids)
    index = torch.stack(labels, dim=1)
    return Assignment(index, torch.ones_like(index, dtype=x.dtype)), torch.cat(codebook)
