"""Full ranking of the items for each user, and its Recall@k and NDCG@k."""

import copy
import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.metrics import (
    LinkPredMetricCollection,
    LinkPredNDCG,
    LinkPredRecall,
)

from pyg_c2f.shards import Rows
from pyg_c2f.sparse import (
    check_pairs,
    degree,
    pair_keys,
    split_keys,
    take_rows,
    top_items,
)
from pyg_c2f.typing import ITEM, KS, RATES, USER, InputError, Score, Split

logger = logging.getLogger(__name__)

# Users ranked at once: two score matrices with this many rows exist at a time, 126 MB
# for 41,000 items. Larger blocks give each thread more work per step.
BLOCK_SIZE = 384
# Size of one of these matrices: with a large catalogue, fewer users are ranked at once.
BLOCK_BYTES = 1 << 28


@torch.no_grad()
def rank_items(
    score: Score,
    users: Tensor,
    num_items: int,
    exclude: Tensor,
    k: int,
    block_size: int = BLOCK_SIZE,
) -> Tensor:
    r"""The :math:`k` items of highest score for each user, best first.

    Equal scores are ordered by item id, lowest first, so the result does not depend on
    the block size. Items that a user has seen get the score :math:`-\infty`: they come
    last, and only if there are fewer than :math:`k` others.

    Args:
        score: scores of all items for a block of users, finite; its result is copied.
        users: user ids, ``[num_rows]``.
        num_items: number of items.
        exclude: seen pairs, users in row 0 and items in row 1, ``[2, num_edges]``.
        k: length of the ranking.
        block_size: most users scored at once; memory is about ``8 * block_size *
            num_items`` bytes, and half a gigabyte at most.

    Returns:
        Item ids, ``[num_rows, min(k, num_items)]``, int64.

    Raises:
        InputError: if ``score`` gives another shape than ``[B, num_items]`` or NaN.
    """
    k = min(k, num_items)
    if users.numel() == 0:
        return users.new_empty(0, k)
    seen_user, order = exclude[0].sort()
    seen_item = exclude[1][order]
    everyone = torch.arange(int(users.max()) + 2, device=users.device)
    rowptr = torch.searchsorted(seen_user, everyone)

    block_size = min(block_size, max(BLOCK_BYTES // (4 * num_items), 1))
    # Scores are copied before masking, since they may be the caller's own table. All
    # blocks share one buffer: allocating one for each costs as much as the search.
    size = (min(block_size, len(users)), num_items)
    buffer = torch.empty(size, dtype=torch.float, device=users.device)
    rankings = []
    for block in torch.arange(len(users), device=users.device).split(block_size):
        scores = score(users[block])
        if scores.shape != (len(block), num_items):
            raise InputError(
                f'rank_items: score gave shape {list(scores.shape)} for {len(block)} '
                f'users and {num_items} items; return [num_users, num_items]'
            )
        masked = buffer[: len(block)]
        masked.copy_(scores)

        taken, place = take_rows(rowptr, users[block])
        row = torch.repeat_interleave(taken.diff())
        masked[row, seen_item[place]] = -torch.inf
        items, top = top_items(masked, k)
        if top.isnan().any():  # NaN sorts first.
            raise InputError(
                'rank_items: score gave NaN; check the model and lower its lr'
            )
        rankings.append(items)
    return torch.cat(rankings)


def evaluate(
    score: Score,
    edge_label_index: Tensor,
    exclude: Tensor,
    num_users: int,
    num_items: int,
    ks: Sequence[int] = KS,
    users: Rows | None = None,
) -> dict[str, float]:
    r"""Recall@k and NDCG@k over the full ranking of the items.

    With :math:`T_u` the held-out items of user :math:`u` and
    :math:`h_{ur} \in \{0, 1\}` telling whether the item at rank :math:`r` is in
    :math:`T_u`,

    .. math::
        \text{Recall@}k = \frac{1}{|T_u|} \sum_{r=1}^{k} h_{ur}, \qquad
        \text{NDCG@}k = \frac{\sum_{r=1}^{k} h_{ur} / \log_2(r + 1)}
        {\sum_{r=1}^{\min(k, |T_u|)} 1 / \log_2(r + 1)},

    both averaged over the users with :math:`T_u \neq \emptyset`. A repeated held-out
    pair counts once. A held-out pair that is excluded from the ranking cannot be found
    and is left out of :math:`T_u`.

    Args:
        score: see :func:`rank_items`.
        edge_label_index: held-out pairs, ``[2, num_labels]``.
        exclude: pairs excluded from the ranking, ``[2, num_edges]``.
        num_users: number of users.
        num_items: number of items.
        ks: ranking lengths; one above ``num_items`` means the whole ranking.
        users: the users, where several processes share them: each process ranks for
            its own users, and all return the metrics of all users.

    Returns:
        ``'recall@k'`` and ``'ndcg@k'`` for each ``k`` of ``ks``.

    Raises:
        InputError: if no held-out pair is left, an id is out of range or a ``k`` is
            below 1; and from :func:`rank_items`.
    """
    if not ks or min(ks) < 1:
        raise InputError(f'evaluate: ks={tuple(ks)}; give ranking lengths from 1 up')
    pairs, exclude = _findable(edge_label_index, exclude, num_users, num_items)
    names = [f'{what}@{k}' for what in ('recall', 'ndcg') for k in ks]
    if users is not None:
        pairs = pairs[:, (pairs[0] >= users.start) & (pairs[0] < users.stop)]
    means, num_ranked = dict.fromkeys(names, 0.0), 0
    if pairs.size(1):
        ranked, row = torch.unique(pairs[0], return_inverse=True)
        ranking = rank_items(score, ranked, num_items, exclude, max(ks))
        kinds = {'recall': LinkPredRecall, 'ndcg': LinkPredNDCG}
        metrics = LinkPredMetricCollection(
            {f'{name}@{k}': kind(k) for name, kind in kinds.items() for k in ks}
        ).to(ranking.device)
        metrics.update(ranking, (row, pairs[1]))
        # The sums of a perfect list and of its ideal round in different orders.
        means = {key: min(float(x), 1.0) for key, x in metrics.compute().items()}
        num_ranked = len(ranked)
    if users is None:
        return means
    sums = [value * num_ranked for value in means.values()]
    total = torch.tensor([*sums, num_ranked], dtype=torch.double, device=pairs.device)
    *sums, num_ranked = users.group.all_reduce(total).tolist()
    return {name: x / num_ranked for name, x in zip(means, sums, strict=True)}


def _findable(
    pairs: Tensor, exclude: Tensor, num_users: int, num_items: int
) -> tuple[Tensor, Tensor]:
    """The distinct held-out pairs that a ranking can hold, by user, then item.

    Also the excluded pairs of the users with held-out ones, who may be few.
    """
    for what, index in (('edge_label_index', pairs), ('exclude', exclude)):
        check_pairs(index, num_users, num_items, 'evaluate', what)
    label = torch.unique(pair_keys(pairs, num_items))
    is_ranked = torch.zeros(num_users, dtype=torch.bool, device=label.device)
    is_ranked[label // num_items] = True
    exclude = exclude[:, is_ranked[exclude[0]]]
    hidden = torch.isin(label, pair_keys(exclude, num_items))
    if hidden.any():
        logger.warning(
            '%d of %d held-out pairs are excluded from the ranking and left out',
            int(hidden.sum()),
            len(label),
        )
    if hidden.all():
        raise InputError(
            'evaluate: no held-out pairs to rank; check the split of the data'
        )
    return torch.stack(split_keys(label[~hidden], num_items)), exclude


def exclude_edges(data: HeteroData, split: Split) -> Tensor:
    """The pairs that the ranking of a split leaves out, by ``data.protocol``.

    ``'c2f'`` leaves out the train pairs for both splits, so that validation items
    compete in the test ranking. ``'standard'`` leaves out the train pairs for
    ``'val'``, and the train and validation pairs for ``'test'``.

    Args:
        data: graph with train and held-out pairs on ``('user', 'rates', 'item')``.
        split: ``'val'`` or ``'test'``.

    Returns:
        User and item ids, ``[2, num_edges]``.

    Raises:
        InputError: if the split or the protocol is not one of these, or pairs are
            missing.
    """
    if split not in ('val', 'test'):
        raise InputError(f"exclude_edges: split {split!r}; use 'val' or 'test'")
    protocol = data.protocol if 'protocol' in data else None
    if protocol not in ('c2f', 'standard'):
        raise InputError(
            f"exclude_edges: data.protocol is {protocol!r}; set 'c2f' or 'standard'"
        )
    train = data[RATES].edge_index
    if protocol == 'standard' and split == 'test':
        return torch.cat([train, _held_out(data, 'val')], dim=1)
    return train


def evaluate_split(
    score: Score,
    data: HeteroData,
    split: Split,
    ks: Sequence[int] = KS,
    users: Rows | None = None,
) -> dict[str, float]:
    """:func:`evaluate` on the held-out pairs of a split, by the protocol of the data.

    For a graph from :func:`with_sampled_users`, on the pairs of the sampled users.

    Args:
        score: see :func:`rank_items`.
        data: graph with train and held-out pairs on ``('user', 'rates', 'item')``.
        split: ``'val'`` or ``'test'``.
        ks: ranking lengths.
        users: the users, where several processes share them; see :func:`evaluate`.

    Returns:
        ``'recall@k'`` and ``'ndcg@k'`` for each ``k`` of ``ks``.

    Raises:
        InputError: from :func:`exclude_edges` and :func:`evaluate`.
    """
    return evaluate(score, *_split(data, split), ks, users)


def _split(data: HeteroData, split: Split) -> tuple[Tensor, Tensor, int, int]:
    """The arguments of :func:`_findable` for a split."""
    exclude, held_out = exclude_edges(data, split), _held_out(data, split)
    if 'is_ranked' in data[USER]:
        held_out = held_out[:, data[USER].is_ranked[held_out[0]]]
    return held_out, exclude, data[USER].num_nodes, data[ITEM].num_nodes


class Lists(NamedTuple):
    """The lists of a split's users, and which held-out pairs they hold."""

    users: Tensor  # [num_ranked], rising
    items: Tensor  # [num_ranked, k], best first
    pairs: Tensor  # [2, num_pairs], held out, by user, then item
    is_found: Tensor  # [num_pairs], whether the user's list holds the item


def rank_split(score: Score, data: HeteroData, split: Split, k: int) -> Lists:
    """The lists behind the figures of :func:`evaluate_split`.

    Args:
        score: see :func:`rank_items`.
        data: see :func:`evaluate_split`, also for errors.
        split: ``'val'`` or ``'test'``.
        k: length of the lists.
    """
    pairs, exclude = _findable(*_split(data, split))
    num_items = data[ITEM].num_nodes
    users = pairs[0].unique()
    items = rank_items(score, users, num_items, exclude, k)
    listed = pair_keys((users.unsqueeze(1), items), num_items).flatten()
    return Lists(users, items, pairs, torch.isin(pair_keys(pairs, num_items), listed))


def with_sampled_users(data: HeteroData, num_users: int, seed: int) -> HeteroData:
    """The graph with a random sample of users marked as those to rank for.

    Ranking all items for all users takes users times items; with 5,000 sampled users
    the standard error of ``recall@20`` is about .003. The pairs stay as they are:
    rankings exclude them, and a refit trains on them.

    Args:
        data: graph with held-out pairs on ``('user', 'rates', 'item')``.
        num_users: size of the sample, taken from the users with test items.
        seed: seed of the sample.

    Returns:
        A copy with ``data['user'].is_ranked``, which :func:`evaluate_split` uses.
    """
    out = copy.copy(data)
    generator = torch.Generator().manual_seed(seed)
    test = _held_out(data, 'test')
    users = test[0].cpu().unique()
    is_ranked = torch.zeros(data[USER].num_nodes, dtype=torch.bool)
    is_ranked[users[torch.randperm(len(users), generator=generator)[:num_users]]] = True
    out[USER].is_ranked = is_ranked.to(test.device)
    return out


def popularity_score(edge_index: Tensor, num_items: int) -> Score:
    """The baseline that scores an item by its number of train pairs, for every user.

    Args:
        edge_index: train pairs, ``[2, num_edges]``.
        num_items: number of items.

    Returns:
        A ``score`` for :func:`rank_items` and :func:`evaluate`.
    """
    popularity = degree(edge_index[1], num_items).float()
    return lambda users: popularity.expand(len(users), -1)


def _held_out(data: HeteroData, split: Split) -> Tensor:
    name = f'{split}_edge_label_index'
    if name not in data[RATES]:
        raise InputError(
            f'data[{RATES}] has no {name}; set it to pairs [2, num_labels]'
        )
    return data[RATES][name]
