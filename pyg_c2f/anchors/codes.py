r"""Anchors by coding: sparse coordinates, and residual codes of rows."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pyg_c2f.shards import Group, Rows, one_thread_each
from pyg_c2f.typing import Assignment

MAX_LINKS = 255
KMEANS_ITERATIONS = 12
# Rows at a time: what is formed of them stays near a core.
BLOCK = 2048


def threshold_assignment(
    x: Tensor,
    num_links: float,
    importance: Tensor,
    max_links: int = MAX_LINKS,
    rows: Rows | None = None,
) -> Assignment:
    r"""Assigns each row to the axes on which it has large coordinates.

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
        axis; a zero is not a link.
    """
    rows = rows or Group().rows(len(x))
    size = (x * importance.sqrt().unsqueeze(1)).abs_().float()
    least = kth_largest(size, round(num_links * rows.num_rows), rows.group)
    is_link = (size >= least) & (x != 0)
    full = (is_link.sum(dim=1) > max_links).nonzero().flatten()
    if full.numel():
        top = size[full].topk(max_links, dim=1).indices
        is_link[full] = torch.zeros_like(is_link[full]).scatter_(1, top, True)
    row, col = is_link.nonzero(as_tuple=True)
    count = is_link.sum(dim=1)
    slot = torch.arange(len(row), device=x.device) - (count.cumsum(0) - count)[row]
    width = int(rows.group.max(max(int(count.max()), 1)))
    index = torch.zeros(len(x), width, dtype=torch.long, device=x.device)
    weight = x.new_zeros(len(x), width)
    index[row, slot], weight[row, slot] = col, x[row, col]
    return Assignment(index, weight)


def kth_largest(x: Tensor, k: int, group: Group) -> float:
    r"""The :math:`k`-th largest of the numbers of all processes, all zero or above.

    By counting: the bits of such a number, read as an integer, increase with it. The
    upper half of them says in which of :math:`2^{16}` bins the number is, the lower
    half which one of the bin it is; two passes, and two sums of counts. It is exact,
    and any number of processes finds the same.

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
    num_iterations: int = KMEANS_ITERATIONS,
    rows: Rows | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Weighted k-means from rows drawn by importance.

    A centroid without rows takes the row that is farthest away, so that no centroid is
    empty in the end (unless there are fewer distinct rows).

    Args:
        x (Tensor): The rows, ``[num_rows, d]``.
        num_centroids (int): The number of centroids.
        importance (Tensor): The rows' weights, ``[num_rows]``.
        generator (torch.Generator, optional): Draws the starts, on the CPU.
        num_iterations (int, optional): Iterations. (default: ``12``)
        rows (Rows, optional): The rows, where several processes share them; ``x`` and
            ``importance`` are then the own ones, and so are the labels.

    Returns:
        Tuple: The centroids ``[num_centroids, d]`` and the centroid of each row.
    """
    rows = rows or Group().rows(len(x))
    every = rows.gather(importance)
    largest = every.max().clamp(min=torch.finfo(every.dtype).tiny)
    weight, chances = ((w / largest).clamp(min=1e-12) for w in (importance, every))
    chances = chances.double().cpu()
    pick = torch.multinomial(
        chances, num_centroids, len(chances) < num_centroids, generator=generator
    )
    centroids = rows.select(x, pick.to(x.device))
    for _ in range(num_iterations):
        label = _nearest(x, centroids, rows)
        centroids = _means(x, label, weight, centroids, rows)
    return centroids, _nearest(x, centroids, rows)


def _nearest(x: Tensor, centroids: Tensor, rows: Rows) -> Tensor:
    """The nearest centroid of each row, in double precision where it takes that."""
    half = centroids.double().square().sum(dim=1) / 2
    parts = [part for block in rows.blocks for part in x[block].split(BLOCK)]
    return torch.cat(
        one_thread_each([partial(_nearest_of, part, centroids, half) for part in parts])
    )


def _nearest_of(x: Tensor, centroids: Tensor, half: Tensor) -> Tensor:
    gain = torch.addmm(-half.to(x), x, centroids.T)
    best, label = gain.max(dim=1)
    # Twice the most that rounding changes. Rows far from the origin, or half way from
    # one centroid to another, have a second one within it; elsewhere one in 200 has.
    longest = (2 * half.max()).sqrt().to(x)
    length = (x.size(1) + 2) * torch.linalg.vector_norm(x, dim=1) + 2 * longest
    slack = torch.finfo(x.dtype).eps * longest * length
    second = gain.scatter_(1, label.unsqueeze(1), -torch.inf).amax(dim=1)
    unsure = (best - second <= slack).nonzero().flatten()
    if unsure.numel():
        gain = torch.addmm(-half, x[unsure].double(), centroids.double().T)
        label[unsure] = gain.argmax(dim=1)
    return label


def _errors(x: Tensor, centroids: Tensor, label: Tensor) -> Tensor:
    """The squared distance of each row from its centroid."""
    parts = zip(x.split(BLOCK), label.split(BLOCK), strict=True)
    return torch.cat([(part - centroids[at]).square().sum(dim=1) for part, at in parts])


def _means(
    x: Tensor, label: Tensor, weight: Tensor, centroids: Tensor, rows: Rows
) -> Tensor:
    own = ([table[block] for table in (x, label, weight)] for block in rows.blocks)
    sums = rows.group.sum_of_each(
        [partial(_sums, len(centroids), *part) for part in own]
    )
    total, mass = sums[:, :-1], sums[:, -1:]
    empty = (mass == 0).nonzero()[:, 0]
    if empty.numel():
        error = weight * _errors(x, centroids, label)
        worst = _largest(error, empty.numel(), rows)
        empty = empty[: len(worst)]
        total[empty], mass[empty] = rows.select(x, worst), 1.0
    return total / mass.clamp(min=1e-30)


def _sums(num_centroids: int, x: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """The weighted sums of the rows of each centroid, their weights' behind them."""
    out = x.new_zeros(num_centroids, x.size(1) + 1, dtype=torch.double)
    parts = zip(x.split(BLOCK), label.split(BLOCK), weight.split(BLOCK), strict=True)
    for part, at, w in parts:
        w = w.double().unsqueeze(1)
        out.index_add_(0, at, torch.cat([part * w, w], dim=1))
    # Rounded, so that the sum over blocks is exact: it has no order.
    return out.to(x)


def _largest(value: Tensor, k: int, rows: Rows) -> Tensor:
    """The numbers of the rows with the largest values, the largest first."""
    # Of equal values the first, so that the result does not depend on the processes.
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
        label = _nearest(rest, kept, rows)
        rest -= kept[label]
        labels.append(label + level * num_centroids)
        codebook.append(centroids)
    index = torch.stack(labels, dim=1)
    return Assignment(index, torch.ones_like(index, dtype=x.dtype)), torch.cat(codebook)
