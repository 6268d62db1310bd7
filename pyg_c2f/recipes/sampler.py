"""Training triples (user, positive item, negative item), one epoch at a time."""

import torch
from torch import Tensor

from pyg_c2f.sparse import check_pairs, degree, pair_keys, unique_pairs
from pyg_c2f.typing import InputError


class TripletSampler:
    r"""Draws the training triples of an epoch, exactly and without rejection.

    With :math:`E` distinct train interactions, an epoch is :math:`E` draws of a user,
    uniform with replacement over *all* users. A user without train items is skipped;
    every other draw takes one uniform train item :math:`i^+` of the user and a uniform
    set of :math:`m` distinct items outside the user's train items, which makes the
    triples :math:`(u, i^+, i^-_1), \ldots, (u, i^+, i^-_m)`. All triples of the epoch
    are shuffled.

    The negatives of a user are drawn by their rank among the items that the user has
    not rated. Floyd's algorithm (Bentley and Floyd, *A sample of brilliance*, Commun.
    ACM 30 (9), 1987) draws a uniform :math:`m`-subset of the ranks
    :math:`0, \ldots, n - 1` in the steps :math:`j = 0, \ldots, m - 1`: draw :math:`x`
    uniformly from :math:`0, \ldots, n - m + j` and take it, or :math:`n - m + j` if
    :math:`x` is taken already. With the user's train items :math:`p_0 < p_1 < \ldots`,
    train item :math:`p_i` has :math:`p_i - i` unrated items before it, so that rank
    :math:`x` is the item :math:`x + |\{i : p_i - i \le x\}|`, found by one binary
    search. The time does not depend on how many items a user has rated.

    Args:
        edge_index: train pairs, users in row 0 and items in row 1, ``[2, num_edges]``;
            a repeated pair counts once.
        num_users: number of users.
        num_items: number of items; item ids run from 0 to ``num_items - 1``.
        num_neg_samples: negatives :math:`m` per draw.
        generator: source of randomness, on the device of ``edge_index``.

    Raises:
        InputError: if there are no train pairs, an id is out of range,
            ``num_neg_samples`` is below 1, a user leaves fewer than
            ``num_neg_samples`` items unrated, or so few of the users have train items
            that an epoch would hold none of them.

    Example:
        >>> edge_index = torch.tensor([[0, 0, 2], [1, 3, 0]])
        >>> generator = torch.Generator().manual_seed(0)
        >>> sampler = TripletSampler(edge_index, 3, 9, 2, generator)
        >>> users, positives, negatives = sampler.sample_epoch()
        >>> users.shape == positives.shape == negatives.shape
        True
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_users: int,
        num_items: int,
        num_neg_samples: int = 5,
        generator: torch.Generator | None = None,
    ) -> None:
        if edge_index.numel() == 0:
            raise InputError(
                'TripletSampler: no train pairs in edge_index; give at least one'
            )
        check_pairs(edge_index, num_users, num_items, 'TripletSampler', 'edge_index')
        if num_neg_samples < 1:
            raise InputError(
                f'TripletSampler: num_neg_samples={num_neg_samples}; give at least 1'
            )
        self.num_users = num_users
        self.num_items = num_items
        self.num_neg_samples = num_neg_samples
        self.generator = generator or torch.default_generator

        user, self._items = unique_pairs(edge_index, num_items)
        self._degree = degree(user, num_users)
        self._start = self._degree.cumsum(0) - self._degree
        # One sorted list for all users: the number of unrated items before each train
        # item, offset by num_items per user.
        place = torch.arange(len(user), device=user.device) - self._start[user]
        self._unrated_before = pair_keys((user, self._items), num_items) - place

        num_active = int((self._degree > 0).sum())
        if len(user) * num_active < num_users:
            raise InputError(
                f'TripletSampler: {num_active} of {num_users} users have train items, '
                f'so that {len(user)} draws of a user meet hardly any; number the '
                'users without gaps'
            )

        fullest = int(self._degree.argmax())
        num_unrated = num_items - int(self._degree[fullest])
        if num_unrated < num_neg_samples:
            lower = f' or lower num_neg_samples from {num_neg_samples}'
            raise InputError(
                f'TripletSampler: user {fullest} leaves {num_unrated} of {num_items} '
                f'items unrated; drop the user{lower if num_unrated else ""}'
            )

    def sample_epoch(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Draws one epoch.

        Returns:
            ``(users, positives, negatives)``, each int64 ``[num_triples]`` with at most
            :math:`E m` triples.
        """
        users, positives, negatives = self._sample_draws()
        order = torch.randperm(
            negatives.numel(), generator=self.generator, device=users.device
        )
        draw = order % len(users)
        # index_select: several times faster on the CPU than indexing with brackets.
        return (
            users.index_select(0, draw),
            positives.index_select(0, draw),
            negatives.view(-1).index_select(0, order),
        )

    def _sample_draws(self) -> tuple[Tensor, Tensor, Tensor]:
        """Users [D], positives [D] and negatives [m, D] of an epoch, users sorted."""
        times = self._draw_users()
        while not times.any():  # A tiny data set can miss all users with train items.
            times = self._draw_users()
        users = torch.arange(self.num_users, device=times.device)
        users = users.repeat_interleave(times)

        start, deg = self._start[users], self._degree[users]
        positives = self._items[start + self._draw_below(deg)]

        num_unrated = self.num_items - deg
        ranks = users.new_empty(self.num_neg_samples, len(users))
        for j in range(self.num_neg_samples):
            last = num_unrated - self.num_neg_samples + j
            rank = self._draw_below(last + 1)
            taken = (ranks[:j] == rank).any(dim=0)
            torch.where(taken, last, rank, out=ranks[j])

        offset = users * self.num_items
        ranks += offset
        ranks += torch.searchsorted(self._unrated_before, ranks, right=True)
        ranks -= offset + start
        return users, positives, ranks

    def _draw_users(self) -> Tensor:
        """How often each user is drawn, [num_users]; never without train items."""
        drawn = torch.randint(
            self.num_users,
            (len(self._items),),
            generator=self.generator,
            device=self._items.device,
        )
        # Counting the draws of each user sorts them. The triples are shuffled anyway,
        # and the binary search is twice as fast when neighbours share a user.
        times = degree(drawn, self.num_users)
        times[self._degree == 0] = 0
        return times

    def _draw_below(self, high: Tensor) -> Tensor:
        """Uniform integers from 0 to ``high - 1``, element by element."""
        # Double precision: 53 random bits leave no visible bias for any catalogue.
        unit = torch.rand(
            high.shape,
            dtype=torch.float64,
            generator=self.generator,
            device=high.device,
        )
        return (unit * high).long()
