import math

import pytest
import torch

from pyg_c2f.recipes.sampler import TripletSampler
from pyg_c2f.typing import InputError

NUM_USERS, NUM_ITEMS, NUM_NEG = 6, 12, 5


def train_edges() -> torch.Tensor:
    """Users of degree 0 (user 3) to all but 5 items (user 5)."""
    degrees = [3, 1, 5, 0, 2, NUM_ITEMS - NUM_NEG]
    generator = torch.Generator().manual_seed(1)
    pairs = [
        (user, item)
        for user, degree in enumerate(degrees)
        for item in torch.randperm(NUM_ITEMS, generator=generator)[:degree].tolist()
    ]
    order = torch.randperm(len(pairs), generator=generator)
    return torch.tensor(pairs)[order].t()


def make_sampler(edge_index: torch.Tensor, seed: int = 0) -> TripletSampler:
    generator = torch.Generator().manual_seed(seed)
    return TripletSampler(edge_index, NUM_USERS, NUM_ITEMS, NUM_NEG, generator)


def train_items(edge_index: torch.Tensor) -> list[set[int]]:
    items: list[set[int]] = [set() for _ in range(NUM_USERS)]
    for user, item in edge_index.t().tolist():
        items[user].add(item)
    return items


def assert_uniform(counts: torch.Tensor) -> None:
    """Chi-square within 5 standard deviations of its mean."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_triples_respect_the_train_pairs() -> None:
    edge_index = train_edges()
    items = train_items(edge_index)
    sampler = make_sampler(edge_index)
    for _ in range(20):
        users, positives, negatives = sampler.sample_epoch()
        assert users.shape == positives.shape == negatives.shape
        assert users.dtype == positives.dtype == negatives.dtype == torch.int64
        assert len(users) <= edge_index.size(1) * NUM_NEG
        assert 0 <= int(negatives.min()) and int(negatives.max()) < NUM_ITEMS
        for user, positive, negative in zip(
            users.tolist(), positives.tolist(), negatives.tolist(), strict=True
        ):
            assert positive in items[user]
            assert negative not in items[user]


def test_draws_have_distinct_negatives() -> None:
    edge_index = train_edges()
    sampler = make_sampler(edge_index)
    for _ in range(20):
        users, positives, negatives = sampler._sample_draws()
        assert users.shape == positives.shape
        assert negatives.shape == (NUM_NEG, len(users))
        for draw in negatives.t().tolist():
            assert len(set(draw)) == NUM_NEG


def test_epoch_holds_every_triple_of_its_draws() -> None:
    edge_index = train_edges()
    users, positives, negatives = make_sampler(edge_index)._sample_draws()
    drawn = [
        (user, positive, negative)
        for user, positive, row in zip(
            users.tolist(), positives.tolist(), negatives.t().tolist(), strict=True
        )
        for negative in row
    ]
    epoch = torch.stack(make_sampler(edge_index).sample_epoch(), dim=1)
    assert sorted(map(tuple, epoch.tolist())) == sorted(drawn)
    assert list(map(tuple, epoch.tolist())) != drawn


def test_draws_are_uniform() -> None:
    edge_index = train_edges()
    items = train_items(edge_index)
    sampler = make_sampler(edge_index)
    epochs = [sampler._sample_draws() for _ in range(3000)]
    users = torch.cat([epoch[0] for epoch in epochs])
    positives = torch.cat([epoch[1] for epoch in epochs])
    negatives = torch.cat([epoch[2] for epoch in epochs], dim=1)

    times = torch.bincount(users, minlength=NUM_USERS)
    assert times[3] == 0
    # The draws of the inactive user are lost, not given to others.
    skipped = torch.tensor([3000 * edge_index.size(1) - len(users)])
    assert_uniform(torch.cat([times[times > 0], skipped]).double())
    for user in (0, 1, 2, 4, 5):
        mask = users == user
        positive = torch.bincount(positives[mask], minlength=NUM_ITEMS)
        assert set(positive.nonzero().view(-1).tolist()) == items[user]
        assert_uniform(positive[positive > 0].double())

        # Every subset of 5 unrated items, as a bit mask.
        subset = (1 << negatives[:, mask]).sum(dim=0).unique(return_counts=True)[1]
        unrated = NUM_ITEMS - len(items[user])
        assert len(subset) == math.comb(unrated, NUM_NEG)
        assert_uniform(subset.double())


def test_epoch_is_shuffled() -> None:
    sampler = make_sampler(train_edges())
    first = torch.cat([sampler.sample_epoch()[0][:1] for _ in range(3000)])
    # Every active user opens an epoch about equally often.
    assert_uniform(torch.bincount(first, minlength=NUM_USERS)[[0, 1, 2, 4, 5]].double())


def test_same_seed_same_epoch() -> None:
    edge_index = train_edges()
    first, second = make_sampler(edge_index), make_sampler(edge_index)
    one, two = first.sample_epoch(), second.sample_epoch()
    assert all(map(torch.equal, one, two))
    assert not torch.equal(first.sample_epoch()[2], one[2])
    assert not torch.equal(make_sampler(edge_index, 1).sample_epoch()[2], one[2])


def test_input_order_and_repeated_pairs_do_not_matter() -> None:
    edge_index = train_edges()
    doubled = torch.cat([edge_index.flip(1), edge_index], dim=1)
    one = make_sampler(edge_index).sample_epoch()
    assert all(map(torch.equal, one, make_sampler(doubled).sample_epoch()))


def test_dense_users_cost_no_more() -> None:
    num_items = 20_000
    seen = torch.arange(num_items - NUM_NEG)
    edge_index = torch.stack([torch.zeros_like(seen), seen + 2])
    generator = torch.Generator().manual_seed(0)
    sampler = TripletSampler(edge_index, 1, num_items, NUM_NEG, generator)
    negatives = sampler._sample_draws()[2]
    left = torch.tensor([0, 1, num_items - 3, num_items - 2, num_items - 1])
    assert torch.equal(negatives.sort(dim=0).values, left[:, None].expand_as(negatives))


@pytest.mark.parametrize(
    ('edges', 'num_neg', 'match'),
    [
        ([[], []], 5, 'no train pairs'),
        ([[0, 1], [0, 12]], 5, 'item ids 0 to 12'),
        ([[0, 6], [0, 1]], 5, 'user ids 0 to 6'),
        ([[0, -1], [0, 1]], 5, 'user ids -1 to 0'),
        ([[0, 1], [0, 1]], 0, 'num_neg_samples=0'),
        ([[0] + [4] * 8, [0, *range(8)]], 5, 'user 4 leaves 4 of 12.*lower num_neg'),
        ([[4] * 12, [*range(12)]], 1, 'user 4 leaves 0 of 12 .*drop the user$'),
    ],
)
def test_bad_input(edges: list[list[int]], num_neg: int, match: str) -> None:
    edge_index = torch.tensor(edges, dtype=torch.int64)
    with pytest.raises(InputError, match=match):
        TripletSampler(edge_index, NUM_USERS, NUM_ITEMS, num_neg)
