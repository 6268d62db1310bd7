"""What a model is judged beside: popular items, nearest neighbours and EASE.

Their settings are chosen on validation items, as those of a model are.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.evaluate import evaluate_split, popularity_score
from pyg_c2f.shards import Rows
from pyg_c2f.sparse import CSR, csr_matmul, degree, unique_pairs
from pyg_c2f.typing import ITEM, RATES, USER, InputError, Score

# Above these a run leaves baselines out: they would take more than seconds, or read all
# of a data set that is mapped because it does not fit in memory.
MOST_PAIRS = 2_000_000
MOST_PRODUCTS = 500_000_000  # pairs of items of one user, summed over the users
MOST_ITEMS = 4_000  # of EASE, whose matrix is dense
# What is tried, the default first, until one is better; and on how many users.
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    'popularity': {},
    'item_knn': {'shrinkage': (10.0, 50.0), 'k': (100, 200, 50)},
    'ease': {'l2': (100.0, 500.0, 20.0)},
}
CHOICE_USERS = 500
BLOCK_PRODUCTS = 1 << 23  # of a block of items: half a gigabyte at most

Pairs = tuple[Tensor, int, int]  # of users and items, and the numbers of both


def item_knn_score(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    k: int = 100,
    shrinkage: float = 10.0,
) -> Score:
    r"""The baseline that scores an item by those of its neighbours that the user has.

    .. math::
        s_{uj} = \sum_{i \in N(u) \cap N_k(j)} \frac{c_{ij}}{\sqrt{d_i d_j} + h}

    with :math:`c_{ij}` the users who have both items, :math:`d_i` those who have item
    :math:`i`, and :math:`N_k(j)` the :math:`k` other items of the largest fractions
    above zero, the lower id first where they are equal. After `Sarwar et al., 2001
    <https://doi.org/10.1145/371920.372071>`_, with shrinkage :math:`h`.

    Args:
        edge_index: train pairs, ``[2, num_edges]``; a repeated one counts once.
        num_users: number of users.
        num_items: number of items.
        k: the most neighbours of an item.
        shrinkage: what lowers similarities that few users support.

    Returns:
        A ``score`` for :func:`~pyg_c2f.evaluate.rank_items`, on the CPU.

    Raises:
        InputError: if ``k`` is below 1 or ``shrinkage`` below 0.
    """
    if k < 1 or shrinkage < 0:
        raise InputError(
            f'item_knn_score: k={k}, shrinkage={shrinkage}; give a k from 1 up and a '
            'shrinkage from 0 up'
        )
    make = _item_knn(edge_index, num_users, num_items, k, (shrinkage,))
    return make(k=k, shrinkage=shrinkage)


def ease_score(
    edge_index: Tensor, num_users: int, num_items: int, l2: float = 100.0
) -> Score | None:
    r"""The baseline EASE: linear weights that predict each item from all others.

    .. math::
        \mathbf{s}_u = \mathbf{r}_u \big( I - P \, \mathrm{diag}(P)^{-1} \big), \qquad
        P = (R^{\top} R + \lambda I)^{-1}

    in double precision (`Steck, 2019 <https://arxiv.org/abs/1905.03375>`_).

    Args:
        edge_index: train pairs, ``[2, num_edges]``; a repeated one counts once.
        num_users: number of users.
        num_items: number of items.
        l2: the penalty :math:`\lambda`.

    Returns:
        A ``score`` for :func:`~pyg_c2f.evaluate.rank_items`, on the CPU; ``None`` above
        ``MOST_ITEMS`` items.

    Raises:
        InputError: if ``l2`` is not above 0.
    """
    if l2 <= 0:
        raise InputError(f'ease_score: l2={l2}; give a penalty above 0')
    if num_items > MOST_ITEMS:
        return None
    return _ease(edge_index, num_users, num_items)(l2=l2)


class Baselines(NamedTuple):
    """The baselines of a run, by name."""

    figures: dict[str, dict[str, Any]]  # 'val', 'test' and the chosen 'settings'
    left_out: dict[str, str]  # and why
    scores: dict[str, Score]  # of test items


def evaluate_baselines(
    data: HeteroData, users: Rows, refitted: HeteroData | None = None
) -> Baselines:
    """The figures of the baselines that take seconds on these data.

    Args:
        data: see :func:`~pyg_c2f.evaluate.evaluate_split`, also for errors.
        users: the users of this process; several processes evaluate popularity alone.
        refitted: after a refit the data with its train pairs, by which baselines rank
            test items too.
    """
    out = Baselines({}, _left_out(data, users), {})
    for name, maker in _MAKERS.items():
        if name in out.left_out:
            continue
        settings, val = _choose(maker(*_pairs(data)), GRIDS[name], data)
        test = val if refitted is None else maker(*_pairs(refitted))(**settings)
        out.scores[name], out.figures[name] = (
            test,
            {
                'val': evaluate_split(val, data, 'val', users=users),
                'test': evaluate_split(test, data, 'test', users=users),
            },
        )
        if settings:
            out.figures[name]['settings'] = settings
    return out


def _pairs(data: HeteroData) -> Pairs:
    return data[RATES].edge_index, data[USER].num_nodes, data[ITEM].num_nodes


def _left_out(data: HeteroData, users: Rows) -> dict[str, str]:
    """The baselines that a run does not compute, and why."""
    edge_index, num_users, num_items = _pairs(data)
    why = ''
    if users.group.size > 1:
        why = 'several processes'
    elif edge_index.size(1) > MOST_PAIRS:
        why = f'more than {MOST_PAIRS:,} train interactions'
    elif degree(edge_index[0], num_users).square().sum() > MOST_PRODUCTS:
        why = 'users with too many items'
    if why:
        return {'item_knn': why, 'ease': why}
    return {'ease': f'more than {MOST_ITEMS:,} items'} if num_items > MOST_ITEMS else {}


def _choose(
    make: Callable[..., Score], grid: dict[str, tuple[Any, ...]], data: HeteroData
) -> tuple[dict[str, Any], Score]:
    """The settings of the best validation NDCG@20, one chosen after the other."""
    settings = {key: values[0] for key, values in grid.items()}
    score = make(**settings)
    if not grid:
        return settings, score
    data = _choice_sample(data)
    best = evaluate_split(score, data, 'val', (20,))['ndcg@20']
    for key, values in grid.items():
        for value in values[1:]:
            other = make(**settings | {key: value})
            quality = evaluate_split(other, data, 'val', (20,))['ndcg@20']
            if quality > best:
                best, score, settings = quality, other, settings | {key: value}
                break
    return settings, score


def _choice_sample(data: HeteroData) -> HeteroData:
    """The data with at most so many of the ranked users who have validation items."""
    users = data[RATES].val_edge_label_index[0].unique()
    if 'is_ranked' in data[USER]:
        users = users[data[USER].is_ranked[users]]
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))
    out = copy.copy(data)
    out[USER].is_ranked = torch.zeros(
        data[USER].num_nodes, dtype=torch.bool, device=users.device
    )
    out[USER].is_ranked[users[order[:CHOICE_USERS].to(users.device)]] = True
    return out


def _popularity(edge_index: Tensor, num_users: int, num_items: int) -> Any:
    return lambda: popularity_score(edge_index, num_items)


# Nearest neighbours -------------------------------------------------------------------


def _item_knn(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    most: int = max(GRIDS['item_knn']['k']),
    shrinkages: Iterable[float] = GRIDS['item_knn']['shrinkage'],
) -> Callable[..., Score]:
    """Makes scores of some shrinkages, for at most so many neighbours."""
    rated = _as_scipy(_rows(edge_index, num_users, num_items), num_items)
    nearest = dict(zip(shrinkages, _nearest(rated, most, shrinkages), strict=True))

    def make(k: int, shrinkage: float) -> Score:
        item, near, similarity = nearest[shrinkage]
        kept = _rank(item) < k
        places = near[kept], item[kept]
        weight = csr_matrix((similarity[kept], places), (num_items, num_items))
        return lambda users: torch.from_numpy(
            (rated[users.cpu().numpy()] @ weight).toarray()
        )

    return make


def _nearest(rated: csr_matrix, k: int, shrinkages: Iterable[float]) -> list[list[Any]]:
    """Items, their nearest ones, best first, and similarities, for each shrinkage."""
    by_item, num_items = rated.T.tocsr(), rated.shape[1]
    count = np.diff(by_item.indptr).astype(float)
    work = np.cumsum(by_item @ np.diff(rated.indptr))
    # A key to sort by: the item within its block, the similarity, the neighbour. The
    # bits of positive numbers rise with them; those of numbers below 2 are 30.
    bits = num_items.bit_length()
    most, mask, first = 1 << (63 - 30 - bits), (1 << 30) - 1, 0
    parts: list[list[Any]] = [[] for _ in shrinkages]
    while first < num_items:
        done = work[first - 1] if first else 0
        last = int(np.searchsorted(work, done + BLOCK_PRODUCTS, side='right'))
        last = min(max(last, first + 1), first + most, num_items)
        both = (by_item[first:last] @ rated).tocoo()
        row, col, users = both.row.astype(np.int64), both.col, both.data
        other = row + first != col
        row, col, users = row[other], col[other], users[other]
        length, kept = np.sqrt(count[row + first] * count[col]), _rank(row) < k
        for shrinkage, part in zip(shrinkages, parts, strict=True):
            similarity = (users / (length + shrinkage)).astype(np.float32)
            key = ((row << 30) + (mask - similarity.view(np.int32))) << bits | col
            key.sort()
            key = key[kept]
            similarity = (mask - (key >> bits & mask)).astype(np.int32)
            near = key & ((1 << bits) - 1)
            part.append((row[kept] + first, near, similarity.view(np.float32)))
        first = last
    return [[np.concatenate(x) for x in zip(*part, strict=True)] for part in parts]


def _rank(row: np.ndarray) -> np.ndarray:
    """The place of each entry in its row, of entries sorted by row."""
    count = np.bincount(row)
    return np.arange(len(row)) - (np.cumsum(count) - count)[row]


# EASE ---------------------------------------------------------------------------------


def _ease(edge_index: Tensor, num_users: int, num_items: int) -> Callable[..., Score]:
    rows = _rows(edge_index, num_users, num_items)
    rated = _as_scipy(rows, num_items)
    gram = torch.from_numpy((rated.T @ rated).toarray()).double()

    def make(l2: float) -> Score:
        penalised = gram.clone()
        penalised.diagonal().add_(l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(penalised))
        weight = (inverse / -inverse.diagonal()).fill_diagonal_(0).float().contiguous()
        return lambda users: csr_matmul(rows.select(users.cpu()), weight)

    return make


_MAKERS = {'popularity': _popularity, 'item_knn': _item_knn, 'ease': _ease}


def _rows(edge_index: Tensor, num_users: int, num_items: int) -> CSR:
    """The distinct pairs by user, in the memory of the CPU."""
    pairs = unique_pairs(edge_index.cpu(), num_items)
    return CSR.from_pairs(pairs, torch.ones(pairs.size(1)), num_users, num_items)


def _as_scipy(rows: CSR, num_items: int) -> csr_matrix:
    rowptr, col, weight = (x.numpy() for x in rows)
    return csr_matrix((weight, col, rowptr), (rows.num_rows, num_items))
