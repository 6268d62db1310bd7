r"""The spectral basis of the interactions: what the anchors of recipe ``fast`` span."""

import logging
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_c2f.graph import interaction_weight
from pyg_c2f.shards import Group, Rows, one_thread_each
from pyg_c2f.sparse import CSR, csr_matmul, pairs_of, rowptr_of, unique_pairs

logger = logging.getLogger(__name__)

# Columns beside the wanted ones, which make the last of these converge. An eighth of
# them, if that is more.
OVERSAMPLING = 32
MAX_DEGREE = 8
MAX_GROWTH = 100.0
# Of the Gram matrix of the start, for single precision.
MAX_CONDITION = 1e3
# Relative to the largest eigenvalue: smaller ones are rounding errors.
SMALLEST = 1e-11
# Of a table of all users or items that a product needs whole, some columns at a time.
TABLE_BYTES = 1 << 30
ITEMS = 1024
# Singular values of shuffled interactions.
MOST_OF_CHANCE = 32
VARIMAX_ROWS = 12_000
VARIMAX_ITERATIONS = 15


class SharedInteractions(NamedTuple):
    """The normalised interactions of the users that this process holds.

    In ``by_item`` an item's row is cut where a block of users ends, so that sums can be
    formed block by block.
    """

    by_user: CSR  # [num_own_users, num_items]
    by_item: CSR  # [num_items * num_own_blocks, num_own_users]
    users: Rows
    items: Rows


def shared_interactions(
    edge_index: Tensor,
    users: Rows,
    items: Rows,
    user_norm: float,
    item_norm: float,
    item_degree: Tensor,
) -> SharedInteractions:
    """The interactions of the users that this process holds, normalised.

    Args:
        edge_index (Tensor): The pairs of the own users, sorted by user, then item.
        users (Rows): The users.
        items (Rows): The items.
        user_norm (float): The exponent of a user's degree.
        item_norm (float): The exponent of an item's degree.
        item_degree (Tensor): The items' degrees among all users.
    """
    num_users, num_blocks = users.stop - users.start, len(users.blocks)
    num_items = items.num_rows
    edge_index = edge_index - edge_index.new_tensor([[users.start], [0]])
    user, item = edge_index
    norms = user_norm, item_norm, item_degree
    weight = interaction_weight(edge_index, num_users, num_items, *norms)
    by_user = CSR.from_sorted(user, item, weight, num_users)
    ends = user.new_tensor([block.stop for block in users.blocks[:-1]])
    part = item * num_blocks + torch.bucketize(user, ends, right=True)
    rowptr = rowptr_of(part, num_items * num_blocks).int()
    by_item = by_user.transpose(num_items)._replace(rowptr=rowptr)
    return SharedInteractions(by_user, by_item, users, items)


def randomized_svd(
    by_user: CSR,
    num_items: int,
    rank: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The leading singular triplets of the normalised interactions.

    Args:
        by_user (CSR): The matrix :math:`\tilde{R}`.
        num_items (int): The number of its columns.
        rank (int): The number of triplets.
        generator (torch.Generator, optional): Draws the start, on the CPU.

    Returns:
        Tuple: Left vectors ``[num_users, rank]``, singular values ``[rank]`` (falling),
        right vectors ``[num_items, rank]``; see :func:`right_vectors`.

    Raises:
        ValueError: If the rank is not positive or larger than the matrix.
    """
    num_users = by_user.num_rows
    if not 1 <= rank <= min(num_users, num_items):
        raise ValueError(
            f"'randomized_svd' expected a rank from 1 to {min(num_users, num_items)} "
            f'(got {rank})'
        )
    rows = (Group().rows(size) for size in (num_users, num_items))
    shared = SharedInteractions(by_user, by_user.transpose(num_items), *rows)
    spectrum = right_vectors(shared, rank, generator)
    value, right = spectrum.value, spectrum.right
    scale = torch.where(value > 0, value, torch.inf).reciprocal()
    return csr_matmul(by_user, right) * scale, value, right


class Spectrum(NamedTuple):
    r"""The leading singular values and right vectors, and how exact they are.

    The vectors are orthonormal to about :math:`10^{-6}`. Where the matrix has a lower
    rank than was asked for, the values and vectors beyond it are zero.
    """

    value: Tensor
    """The singular values, falling, ``[rank]``."""
    right: Tensor
    """The right vectors of the own items, ``[num_own_items, rank]``."""
    residual: float
    """The largest residual of :func:`right_vectors`."""
    num_rounds: int
    """The number of Rayleigh-Ritz steps."""


def right_vectors(
    interactions: SharedInteractions,
    rank: int,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-3,
    max_rounds: int = 40,
    floor: float = 0.0,
) -> Spectrum:
    r"""The leading singular values and right vectors of the normalised interactions.

    Subspace iteration on :math:`A = \tilde{R}^{\top} \tilde{R}` from a Gaussian start
    (`"Finding structure with randomness" <https://arxiv.org/abs/0909.4061>`_) with
    Chebyshev polynomials as powers, which are small on the unwanted part of the
    spectrum and steep above it (`"Self-consistent-field calculations using
    Chebyshev-filtered subspace iteration"
    <https://doi.org/10.1016/j.jcp.2006.03.017>`_), and a Rayleigh-Ritz step after each.
    It ends when all wanted pairs have a residual

    .. math::
        \| A \mathbf{v}_k - w_k \mathbf{v}_k \| \leq \epsilon \, w_{rank}, \quad
        w_k = \sigma_k^2

    relative to the smallest wanted :math:`w`: relative to its own :math:`w_k`, a large
    pair could hold enough of the small vectors to spoil them. The spectra of
    interactions fall slowly (Gowalla), or begin with a value a hundred times the last
    one (ml-1m), or end where the rank does. Therefore:

    - A filter also multiplies what a column holds of other vectors. Its degree is the
      highest that keeps this at the size of the column itself, as the residuals tell.
      So Gram matrices of filtered columns are well conditioned, and one of them
      orthonormalises and rotates at once.
    - Vectors that are exact enough are set aside, and the others kept orthogonal to
      them.
    - All is in double precision where the start shows a spectrum too wide for single
      precision, or a rank lower than the width of the basis.

    Users have no row in it: a block of them takes part in a product, and is gone. With
    :math:`W` processes a product sends, from each of them and of each of its columns,
    :math:`(4 + 8) (W - 1) / W` bytes an item: the items' rows to all, and the sums, in
    double precision, back to those that hold them.

    Args:
        interactions (SharedInteractions): The interactions of the own users.
        rank (int): The number of vectors.
        generator (torch.Generator, optional): Draws the start, on the CPU, the same in
            all processes.
        tolerance (float, optional): :math:`\epsilon`. (default: ``1e-3``)
        max_rounds (int, optional): The number of Rayleigh-Ritz steps after which it
            ends with a warning. (default: ``40``)
        floor (float, optional): Only vectors of singular values above it are wanted,
            and returned; one at least. (default: ``0.0``)
    """
    items = interactions.items
    dtype = interactions.by_user.weight.dtype
    width = rank + max(OVERSAMPLING, rank // 8)
    width = min(width, interactions.users.num_rows, items.num_rows)
    x = _start(interactions, width, generator)
    x /= _norms(x, items).clamp(min=1e-30).to(x)
    square, _ = _orthonormal(x, items)
    if square[-1] > MAX_CONDITION * square[0]:
        by_user, by_item, *rows = interactions
        double = by_user.to(torch.double), by_item.to(torch.double)
        interactions, x = SharedInteractions(*double, *rows), x.double()
    done = x[:, :0]
    done_value, done_error = torch.zeros(2, 0, dtype=torch.double, device=x.device)
    for num_rounds in range(1, max_rounds + 1):
        value, x, product = _ritz(x, _times_gram(interactions, x), items)
        error = _norms(product - x * value.to(x), items)
        value, error = torch.cat([done_value, value]), torch.cat([done_error, error])
        # Smaller values are rounding errors without vectors.
        least = (SMALLEST * value[:1]).clamp(min=floor**2)
        wanted = int((value > least)[:rank].sum())
        if floor:
            wanted = min(max(wanted, 1), len(value))
        last = value[wanted - 1] if wanted else value.new_ones(())
        if floor:  # The same in all rounds: what was exact enough stays it.
            last = last.clamp(max=floor**2)
        residual = float(error[:wanted].max() / last) if wanted else 0.0
        if residual <= tolerance or num_rounds == max_rounds:
            break
        # Without columns beside the wanted ones there is no spectrum between.
        beside = float(value[-1]) if len(value) > wanted else 0.0
        bound = max(beside, float(last) / 2)
        degree, growth = _filter_degree(value, error, bound, torch.finfo(x.dtype).eps)
        is_done = (error <= tolerance * last) & (growth <= MAX_GROWTH)
        count = int(is_done[:wanted].long().cumprod(0).sum())
        new = max(count - done.size(1), 0)
        done = torch.cat([done, x[:, :new]], dim=1)
        done_value, done_error = value[: done.size(1)], error[: done.size(1)]
        x = _chebyshev(interactions, bound, degree, x[:, new:], product[:, new:])
        x -= items.matmul(done, items.gram(done, x))
    if residual > tolerance:
        logger.warning(
            '%d singular vectors have a residual of %.1e after %d rounds, more than '
            '%.0e: they are mixed with others of nearly the same value',
            rank,
            residual,
            num_rounds,
            tolerance,
        )
    rank = wanted if floor else rank
    value, order = value[:wanted].sort(descending=True, stable=True)
    right = torch.cat([done, x[:, : wanted - done.size(1)]], dim=1)[:, order]
    value, right = (
        F.pad(x, (0, rank - wanted)).to(dtype) for x in (value.sqrt(), right)
    )
    return Spectrum(value, right, residual, num_rounds)


def chance_level(
    edge_index: Tensor,
    interactions: SharedInteractions,
    norms: tuple[float, float],
    item_degree: Tensor,
    generator: torch.Generator | None = None,
) -> float:
    r"""The largest singular values that chance gives: what structure has to exceed.

    With their items shuffled, users and items keep their numbers of interactions (but
    for what a user would have twice), and who has what is left to chance. What is above
    these singular values in the real interactions is structure: parallel analysis
    (`Horn, 1965 <https://doi.org/10.1007/BF02289447>`_).

    It is the singular value number :math:`2 + n / 1000`, at most 32, with :math:`n` the
    smaller side of the matrix. The first one comes from the numbers alone. The next
    ones of a large data set lie on few users with long histories, and say little
    about all others.

    Args:
        edge_index (Tensor): The pairs of the own users, sorted by user, then item.
        interactions (SharedInteractions): These pairs, normalised.
        norms (Tuple): The exponents of users' and items' degrees.
        item_degree (Tensor): The items' degrees among all users.
        generator (torch.Generator, optional): Shuffles, on the CPU, the same in all
            processes; items stay in their block of users.
    """
    users, items = interactions.users, interactions.items
    seeds = torch.randint(2**62, (users.group.num_blocks,), generator=generator)
    parts = []
    for block, seed in zip(users.blocks, users.group.local(seeds), strict=True):
        part = pairs_of(edge_index, users.start + block.start, users.start + block.stop)
        draw = torch.Generator().manual_seed(int(seed))
        order = torch.randperm(part.size(1), generator=draw).to(part.device)
        parts.append(torch.stack([part[0], part[1, order]]))
    # Who has an item twice has it once: pairs that count double are a signal of their
    # own, a strong one where popular items meet users with long histories.
    shuffled = unique_pairs(torch.cat(parts, dim=1), items.num_rows)
    rows = shared_interactions(shuffled, users, items, *norms, item_degree)
    most = min(users.num_rows, items.num_rows)
    rank = min(2 + most // 1000, MOST_OF_CHANCE, most)
    return float(right_vectors(rows, rank, generator, tolerance=1e-2).value[-1])


def _norms(x: Tensor, items: Rows) -> Tensor:
    """The lengths of the columns, in double precision."""
    double = torch.double
    norms = (torch.linalg.vector_norm(x[b], dim=0, dtype=double) for b in items.blocks)
    return items.group.sum(norm.square() for norm in norms).sqrt()


def _gram(x: Tensor, y: Tensor, items: Rows) -> Tensor:
    """The symmetric part of X'Y, in double precision."""
    gram = items.gram(x, y).double()
    return (gram + gram.T) / 2


def _eigh(matrix: Tensor, items: Rows) -> tuple[Tensor, Tensor]:
    (found,) = one_thread_each([partial(torch.linalg.eigh, matrix)])
    return items.group.broadcast(*found)


def _orthonormal(x: Tensor, items: Rows) -> tuple[Tensor, Tensor]:
    """The matrix B of an orthonormal basis XB, in double precision.

    Before it the rising eigenvalues of the Gram matrix of the columns, scaled to length
    one; B leaves out what is zero but for rounding.
    """
    gram = _gram(x, x, items)
    scale = gram.diagonal().clamp(min=1e-300).rsqrt()
    square, vector = _eigh(gram * scale * scale.unsqueeze(1), items)
    is_there = square > 100 * torch.finfo(x.dtype).eps * square[-1]
    basis = scale.unsqueeze(1) * vector * square.clamp(min=1e-300).rsqrt()
    return square, basis[:, is_there]


def _ritz(x: Tensor, product: Tensor, items: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate eigenvalues of R'R (falling), their vectors, and R'R times these.

    ``x`` is a basis, not orthonormal, and ``product`` is R'R times it.
    """
    _, basis = _orthonormal(x, items)
    value, vector = _eigh(basis.T @ _gram(x, product, items) @ basis, items)
    turn = (basis @ vector).flip(1).to(x)
    return value.flip(0), items.matmul(x, turn), items.matmul(product, turn)


def _filter_degree(
    value: Tensor, error: Tensor, bound: float, eps: float
) -> tuple[int, Tensor]:
    """The degree of a filter that maps [0, bound] into [-1, 1].

    It is the highest that leaves no column more than ``MAX_GROWTH`` of any other
    vector. Behind it, to what it multiplies what others hold of each vector.
    """
    rest = (error / value.clamp(min=bound)).clamp(min=eps)
    angle = (2 * value / bound - 1).clamp(min=1).acosh()
    growth = [rest * (angle * degree).cosh() for degree in range(1, MAX_DEGREE + 1)]
    fits = [degree for degree, x in enumerate(growth, 1) if x.max() <= MAX_GROWTH]
    degree = max(fits, default=1)
    return degree, growth[degree - 1]


def _start(
    interactions: SharedInteractions, width: int, generator: torch.Generator | None
) -> Tensor:
    """This process's rows of R' times a Gaussian table, a seed for each block."""
    users, weight = interactions.users, interactions.by_user.weight
    seeds = torch.randint(2**62, (users.group.num_blocks,), generator=generator)
    draws = [
        torch.Generator().manual_seed(s) for s in users.group.local(seeds).tolist()
    ]

    def drawn(num_columns: int) -> Tensor:
        sizes = (block.stop - block.start for block in users.blocks)
        parts = [
            torch.randn(size, num_columns, generator=draw)
            for size, draw in zip(sizes, draws, strict=True)
        ]
        return torch.cat(parts).to(weight)

    return torch.cat(
        [
            _sum_by_item(interactions, drawn(len(columns)))
            for columns in torch.arange(width).split(_columns_at_once(interactions))
        ],
        dim=1,
    )


def _columns_at_once(interactions: SharedInteractions) -> int:
    """How many columns of tables of all users or items are in memory at once."""
    longest = max(interactions.users.num_rows, interactions.items.num_rows)
    # Rows of whole cache lines.
    return min(max(TABLE_BYTES // (4 * longest) // 16 * 16, 32), 128)


def _times_gram(interactions: SharedInteractions, x: Tensor) -> Tensor:
    """This process's rows of R'R times a table."""
    out = torch.empty_like(x)
    step = _columns_at_once(interactions)
    for part, target in zip(x.split(step, dim=1), out.split(step, dim=1), strict=True):
        whole = interactions.items.gather(part).contiguous()
        sums = csr_matmul(interactions.by_user, whole)
        target.copy_(_sum_by_item(interactions, sums))
    return out


def _sum_by_item(interactions: SharedInteractions, x: Tensor) -> Tensor:
    """This process's rows of R' times a table of users."""
    by_item, items = interactions.by_item, interactions.items
    num_items = items.num_rows
    if items.group.num_blocks == 1:
        return csr_matmul(by_item, x)
    num_blocks = len(items.blocks)
    if x.dtype == torch.double and items.group.size > 1:
        sums = csr_matmul(by_item, x).view(num_items, num_blocks, x.size(1))
        return items.group.sum_in_order(sums.unbind(1), items.reduce_scatter)
    dtype = torch.double if items.group.size > 1 else x.dtype
    out = torch.empty(num_items, x.size(1), dtype=dtype, device=x.device)
    # Some items at a time: what the blocks give for them stays near the cores.
    for first in range(0, num_items, ITEMS):
        last = min(first + ITEMS, num_items)
        some = by_item.between(first * num_blocks, last * num_blocks)
        sums = csr_matmul(some, x).view(last - first, num_blocks, x.size(1))
        total = sums[:, 0].to(torch.double, copy=True)
        for block in range(1, num_blocks):
            total += sums[:, block]
        out[first:last] = total
    return items.reduce_scatter(out).to(x.dtype)


def _chebyshev(
    interactions: SharedInteractions,
    bound: float,
    degree: int,
    x: Tensor,
    product: Tensor,
) -> Tensor:
    """The Chebyshev polynomial of R'R that maps [0, bound] into [-1, 1], times X."""
    scale = 2 / bound
    last, this = x, product * scale - x
    for _ in range(degree - 1):
        step = _times_gram(interactions, this) * scale - this
        last, this = this, step.mul_(2).sub_(last)
    return this


def varimax(
    rows: Tensor,
    weight: Tensor,
    generator: torch.Generator | None = None,
    num_rows: int = VARIMAX_ROWS,
    num_iterations: int = VARIMAX_ITERATIONS,
    items: Rows | None = None,
) -> Tensor:
    r"""The rotation that makes the coordinates of rows sparse.

    .. math::
        \max_{Q^{\top} Q = I} \sum_{j} \mathrm{Var}_i \left( z_{ij}^2 \right), \quad
        z_i = w_i \, Q^{\top} x_i / \| x_i \|

    `Kaiser's criterion (1958) <https://doi.org/10.1007/BF02289233>`_, by the usual
    ascent: a polar decomposition of the gradient each iteration. Singular vectors mix
    all communities of users into each axis. Rotated, an axis is one community, and most
    items lie close to few axes, so that few anchors say where an item is.

    Args:
        rows (Tensor): The rows :math:`x_i`, ``[num_rows, d]``.
        weight (Tensor): The weight :math:`w_i` of each row, ``[num_rows]``.
        generator (torch.Generator, optional): Draws the rows to use, on the CPU.
        num_rows (int, optional): The most rows to use; at least twelve for each
            column are used. (default: ``12_000``)
        num_iterations (int, optional): Iterations. (default: ``15``)
        items (Rows, optional): The rows, where several processes share them; ``rows``
            and ``weight`` are then the own ones.

    Returns:
        Tensor: The rotation :math:`Q`, ``[d, d]``, for new coordinates ``rows @ Q``.
    """
    items = items or Group().rows(len(rows))
    group = items.group
    num_rows = max(num_rows, 12 * rows.size(1))
    seen = torch.ones(items.num_rows, dtype=torch.bool)
    if items.num_rows > num_rows:
        pick = torch.randperm(items.num_rows, generator=generator)[:num_rows]
        seen = torch.zeros_like(seen)
        seen[pick] = True
    seen = items.local(seen).to(rows.device)
    parts = []
    for block in items.blocks:
        x = rows[block][seen[block]]
        norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.double).clamp(min=1e-30)
        parts.append((x * (weight[block][seen[block]] / norm).unsqueeze(1)).to(x))
    num_seen = min(items.num_rows, num_rows)
    square = group.sum(x.square().sum(dim=0) for x in parts)
    scale = (square.sum() / (num_seen * len(square))).sqrt().clamp(min=1e-30)
    parts = [x / scale for x in parts]
    rotation = torch.eye(rows.size(1), dtype=rows.dtype, device=rows.device)
    for _ in range(num_iterations):
        turned = one_thread_each([partial(torch.mm, x, rotation) for x in parts])
        mean = group.sum(z.square().sum(dim=0) for z in turned) / num_seen
        both = zip(parts, turned, strict=True)
        gradient = group.sum_of_each([partial(_gradient, x, z, mean) for x, z in both])
        ((u, _, vh),) = one_thread_each([partial(torch.linalg.svd, gradient)])
        rotation = group.broadcast(u @ vh)
    return rotation


def _gradient(x: Tensor, z: Tensor, mean: Tensor) -> Tensor:
    # The mean is taken off before the sum over rows: where all rows point one way,
    # X' z^3 and X' z mean(z^2) differ in their last digits only.
    return x.T @ (z * (z.square() - mean))
