r"""Writes interactions of any size, with a planted two-level structure, as Parquet."""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pyg_c2f.datasets.synthetic import (
    POPULARITY_EXPONENT,
    check_sizes,
    draw_activity,
)
from pyg_c2f.sparse import pair_keys
from pyg_c2f.typing import InputError

_NUM_DRAWS = 2**20  # held at a time and written to a file, of more than one user
_COMMUNITY = 1000  # items
_COMMUNITIES = 10  # of a group
_LOYAL, _IN_GROUP = 0.7, 0.15  # draws that stay in the community, and in the group
_SURPLUS = 1.25  # draws for each that counts, some come twice
_ROUNDS = 4  # of draws by popularity; then all items are drawn alike


def write_synthetic(
    folder: str | Path,
    num_users: int,
    num_items: int,
    num_interactions: int,
    seed: int = 0,
) -> None:
    r"""Writes interactions with a planted two-level structure, of any size.

    Items are divided into communities of a thousand, and these into groups of ten. A
    user draws until there are enough different items: 70 % of the draws are from the
    user's community, 15 % from any in its group and the others from anywhere, each by
    popularity, of exponent 0.8 in the rank within the community. The number of items is
    5 plus a power law of exponent 0.6 in the rank of the user, at most half of all
    items. Memory grows with the number of users, not of interactions.

    The folder is a Parquet table of part files with the columns ``user_id`` and
    ``item_id``, numbers counted from 0: as ``ROOT/NAME/NAME.parquet`` it is a data set
    for class `InteractionDataset`, or for `build_dataset` first.

    Args:
        folder (str or Path): The folder to make; it must not exist.
        num_users (int): The number of users.
        num_items (int): The number of items; some may be in no interaction.
        num_interactions (int): The number of interactions; slightly fewer where users
            reach the limit.
        seed (int, optional): The seed of the interactions. (default: :obj:`0`)

    Raises:
        InputError: If the numbers do not go together, or the folder exists.
        ImportError: If pyarrow is not installed.
        OSError: If the folder cannot be written.
    """
    check_sizes(num_users, num_items, num_interactions, 1, 1)
    folder = Path(folder).expanduser()
    if folder.exists():
        raise InputError(f'{folder} exists already; delete it or name another')
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f'writing {folder} needs pyarrow; pip install pyg-c2f[tables]'
        ) from error
    # The folder gets its name only when it is complete.
    part = folder.with_name(f'{folder.name}-part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    blocks = _draw_blocks(num_users, num_items, num_interactions, rng)
    try:
        for number, (users, items) in enumerate(blocks):
            table = pa.table({'user_id': users, 'item_id': items})
            path = part / f'part-{number:05}.parquet'
            pq.write_table(table, path, row_group_size=2**20)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


_Pairs = tuple[np.ndarray, np.ndarray]


def _draw_blocks(
    num_users: int, num_items: int, num_interactions: int, rng: np.random.Generator
) -> Iterator[_Pairs]:
    r"""Yields the users and items of the interactions, range by range of users."""
    activity = draw_activity(num_users, num_items, num_interactions, rng)
    items = _Items(num_items, rng)
    total = np.cumsum(activity)
    first = 0
    while first < num_users:
        before = total[first - 1] if first else 0
        end = int(total.searchsorted(before + _NUM_DRAWS, side='right'))
        end = max(end, first + 1)
        users, drawn = _draw_distinct(activity[first:end], items, rng)
        yield users + first, drawn
        first = end


class _Items:
    r"""Items in communities, to be drawn from."""

    def __init__(self, num_items: int, rng: np.random.Generator) -> None:
        self.num_items = num_items
        self.num_communities = max(num_items // _COMMUNITY, 1)
        num_ranks = -(-num_items // self.num_communities)
        share = (1.0 + np.arange(num_ranks)) ** -POPULARITY_EXPONENT
        self._below = np.cumsum(share / share.sum())[:-1]
        self._place = rng.permutation(num_items)

    def draw(self, community: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        r"""Draws an item for each user, whose community is given."""
        size = len(community)
        goes = rng.random(size)
        first = community // _COMMUNITIES * _COMMUNITIES
        group_size = np.minimum(self.num_communities - first, _COMMUNITIES)
        in_group = first + (rng.random(size) * group_size).astype(np.int64)
        anywhere = rng.integers(self.num_communities, size=size)
        chosen = np.where(goes < _LOYAL + _IN_GROUP, in_group, anywhere)
        chosen = np.where(goes < _LOYAL, community, chosen)
        rank = self._below.searchsorted(rng.random(size), side='right')
        at = rank * self.num_communities + chosen
        at[at >= self.num_items] -= self.num_communities  # the last rank may lack some
        return self._place[at]


def _draw_distinct(
    activity: np.ndarray, items: _Items, rng: np.random.Generator
) -> _Pairs:
    r"""Draws the first different items, as many as each user is to have."""
    num_users = len(activity)
    community = rng.integers(items.num_communities, size=num_users)
    keys = np.empty(0, np.int64)  # distinct, of each user in the order of the draws
    missing = activity
    for turn in itertools.count():
        user = np.arange(num_users).repeat(
            np.ceil(_SURPLUS * missing).astype(np.int64) + (missing > 0)
        )
        if turn < _ROUNDS:
            drawn = items.draw(community[user], rng)
        else:
            drawn = rng.integers(items.num_items, size=len(user))
        keys = np.concatenate([keys, pair_keys((user, drawn), items.num_items)])
        _, first = np.unique(keys, return_index=True)
        first.sort()
        keys = keys[first]
        user = keys // items.num_items
        order = np.argsort(user, kind='stable')
        keys, user = keys[order], user[order]
        count = np.bincount(user, minlength=num_users)
        rank = np.arange(len(user)) - (np.cumsum(count) - count)[user]
        keys = keys[rank < activity[user]]
        missing = np.maximum(activity - count, 0)
        if not missing.any():
            break
    return np.divmod(keys, items.num_items)
