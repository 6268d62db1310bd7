r"""Interactions with a planted two-level structure."""

from collections.abc import Callable

import numpy as np
import torch
from torch_geometric.data import HeteroData, InMemoryDataset

from pyg_c2f.datasets.interactions import make_graph, to_edges
from pyg_c2f.datasets.spec import DataSpec
from pyg_c2f.datasets.splits import split
from pyg_c2f.sparse import pair_keys
from pyg_c2f.typing import ITEM, USER, InputError, Protocol

_MIN_ACTIVITY = 5  # interactions of a user
POPULARITY_EXPONENT = 0.8
_ACTIVITY_EXPONENT = 0.6
_GROUP_AFFINITY = 50.0  # items of the user's own group, relative to all others
_SUBGROUP_AFFINITY = 200.0  # items of the user's favourite sub-groups
_NUM_FAVOURITES = 2
_BLOCK = 2**22  # scores held at a time


class SyntheticHierarchy(InMemoryDataset):
    r"""Users who prefer a group of items, and more strongly some of its sub-groups.

    User :math:`u` draws :math:`n_u` distinct items one after the other, each with
    probability proportional to

    .. math::
        a_{u, s(i)} \, (1 + \mathrm{rank}_i)^{-0.8}

    among those left, where :math:`s(i)` is the sub-group of item :math:`i` and the
    affinity :math:`a` is 200 for two favourite sub-groups in the user's group, 50 for
    its other sub-groups and 1 elsewhere. The draws are the :math:`n_u` largest of the
    log-probabilities plus Gumbel noise. The activity :math:`n_u` is 5 plus a power law
    of exponent 0.6 in the rank of the user, at most half of the items.

    The graph has the form of
    :class:`~pyg_c2f.datasets.InteractionDataset`, divided in the same way as a single
    file, and the planted ``group`` and ``subgroup``: of items :math:`(|I|)` each, of
    users :math:`(|U|)` and :math:`(|U|, 2)`, the favourites (one, where a group has
    a single sub-group). Nothing is read or
    written.

    Args:
        num_users (int, optional): The number of users. (default: :obj:`2000`)
        num_items (int, optional): The number of items. (default: :obj:`3000`)
        num_interactions (int, optional): The number of interactions, train and
            held-out ones; slightly fewer where users reach the limit.
            (default: :obj:`80000`)
        num_groups (int, optional): The number of groups. (default: :obj:`20`)
        num_subgroups (int, optional): The number of sub-groups in all, a multiple of
            :obj:`num_groups`. (default: :obj:`100`)
        seed (int, optional): The seed of the interactions. (default: :obj:`0`)
        protocol (str, optional): ``'c2f'`` or ``'standard'``.
            (default: :obj:`'standard'`)
        split_seed (int, optional): The seed of the split. (default: :obj:`2024`)
        transform (Callable, optional): Applied to the graph at every access.

    Raises:
        InputError: If the numbers do not go together.

    Example:
        >>> data = SyntheticHierarchy(num_users=100, num_interactions=2000)[0]
        >>> data.num_nodes_dict
        {'user': 100, 'item': 3000}
        >>> data['item'].subgroup.unique().numel()
        100
    """

    def __init__(  # noqa: PLR0913
        self,
        num_users: int = 2000,
        num_items: int = 3000,
        num_interactions: int = 80000,
        num_groups: int = 20,
        num_subgroups: int = 100,
        seed: int = 0,
        protocol: Protocol = 'standard',
        split_seed: int = 2024,
        transform: Callable[[HeteroData], HeteroData] | None = None,
    ) -> None:
        self.name = 'synthetic'
        spec = DataSpec(self.name, protocol=protocol, split_seed=split_seed)
        check_sizes(num_users, num_items, num_interactions, num_groups, num_subgroups)
        super().__init__(None, transform)
        rng = np.random.default_rng(seed)

        num_children = num_subgroups // num_groups
        item_subgroup = rng.permutation(np.arange(num_items) % num_subgroups)
        user_group = rng.integers(num_groups, size=num_users)
        children = rng.random((num_users, num_children)).argsort(axis=1)
        favourites = user_group[:, None] * num_children + children[:, :_NUM_FAVOURITES]

        affinity = np.ones((num_users, num_subgroups), dtype=np.float32)
        subgroup_group = np.arange(num_subgroups) // num_children
        affinity[user_group[:, None] == subgroup_group] = _GROUP_AFFINITY
        np.put_along_axis(affinity, favourites, _SUBGROUP_AFFINITY, axis=1)

        keys = _draw(
            np.log(affinity),
            item_subgroup,
            np.log(_power_law(num_items, POPULARITY_EXPONENT, rng)),
            draw_activity(num_users, num_items, num_interactions, rng),
            rng,
        )
        splits = split({self.name: keys}, num_items, spec)
        edges = to_edges(splits, num_items)
        self._data = make_graph(edges, (num_users, num_items), spec)
        self._data[USER].group = torch.from_numpy(user_group)
        self._data[USER].subgroup = torch.from_numpy(favourites)
        self._data[ITEM].group = torch.from_numpy(item_subgroup // num_children)
        self._data[ITEM].subgroup = torch.from_numpy(item_subgroup)


def check_sizes(
    num_users: int,
    num_items: int,
    num_interactions: int,
    num_groups: int,
    num_subgroups: int,
) -> None:
    r"""Refuses numbers that do not go together."""
    if num_users < 1 or num_items < 2 * _MIN_ACTIVITY:
        raise InputError(
            f'at least 1 user and {2 * _MIN_ACTIVITY} items are needed (got '
            f'{num_users} and {num_items})'
        )
    if num_groups < 1 or num_subgroups < 1 or num_subgroups % num_groups:
        raise InputError(
            f'num_subgroups must be a multiple of num_groups (got {num_subgroups} and '
            f'{num_groups})'
        )
    if not (
        _MIN_ACTIVITY * num_users <= num_interactions <= num_users * (num_items // 2)
    ):
        raise InputError(
            f'num_interactions must lie between {_MIN_ACTIVITY * num_users} and '
            f'{num_users * (num_items // 2)} for {num_users} users and {num_items} '
            f'items (got {num_interactions})'
        )


def _power_law(size: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    return (1.0 + rng.permutation(size)) ** -exponent


def draw_activity(
    num_users: int, num_items: int, num_interactions: int, rng: np.random.Generator
) -> np.ndarray:
    r"""Draws the number of interactions of each user, ``[num_users]``."""
    share = _power_law(num_users, _ACTIVITY_EXPONENT, rng)
    surplus = num_interactions - _MIN_ACTIVITY * num_users
    # Rounding the running total instead of the shares preserves the sum.
    total = np.rint(np.cumsum(share) / share.sum() * surplus)
    activity = _MIN_ACTIVITY + np.diff(total, prepend=0).astype(np.int64)
    return activity.clip(max=num_items // 2)


def _draw(
    log_affinity: np.ndarray,
    item_subgroup: np.ndarray,
    log_popularity: np.ndarray,
    activity: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    num_users, num_items = log_affinity.shape[0], item_subgroup.size
    keys = []
    # Blocks of users bound the memory of the scores.
    step = max(1, _BLOCK // num_items)
    for start in range(0, num_users, step):
        user = np.arange(start, min(start + step, num_users))
        score = log_affinity[user][:, item_subgroup] + log_popularity.astype(np.float32)
        noise = rng.standard_exponential(score.shape, dtype=np.float32)
        score -= np.log(noise.clip(min=np.finfo(np.float32).tiny))  # It may be zero.
        k = int(activity[user].max())
        items = torch.from_numpy(score).topk(k, dim=1).indices.numpy()
        drawn = np.arange(k) < activity[user, None]
        keys.append(pair_keys((user[:, None], items), num_items)[drawn])
    return np.sort(np.concatenate(keys))
