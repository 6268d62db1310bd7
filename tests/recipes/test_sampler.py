import math

import pytest
import torch

from pyg_c2f.recipes.sampler import TripletSampler
from pyg_c2f.typing import InputError

NUM_USERS, NUM_ITEMS, NUM_NEG = 6, 12, 5


def train_edges():
    """User 3 has no items, user 5 has all but five."""
    degrees = [3, 1, 5, 0, 2, NUM_ITEMS - NUM_NEG]
    generator = torch.Generator().manual_seed(1)
    pairs = [
        (user, item)
        for user, degree in enumerate(degrees)
        for item in torch.randperm(NUM_ITEMS, generator=generator)[:degree].tolist()
    ]
    order = torch.randperm(len(pairs), generator=generator)
    return torch.tensor(pairs)[order].t()


def make_sampler(edge_index, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TripletSampler(edge_index, NUM_USERS, NUM_ITEMS, NUM_NEG, generator)


def train_items(edge_index):
    items = [set() for _ in range(NUM_USERS)]
    for user, item in edge_index.t().tolist():
        items[user].add(item)
    return items


def assert_uniform(counts):
    """Chi-square is within five standard deviations of its mean."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_triples_respect_the_train_pairs():
    edge_index = train_edges()
    items = train_items(edge_index)
    sampler = make_sampler(edge_index)
    for _ in range(20):
        triples = sampler.sample_epoch()
        assert len({x.shape for x in triples}) == 1
        assert all(x.dtype == torch.int64 for x in triples)
        assert len(triples[0]) <= edge_index.size(1) * NUM_NEG
        assert 0 <= int(triples[2].min()) and int(triples[2].max()) < NUM_ITEMS
        for user, positive, negative in torch.stack(triples, dim=1).tolist():
            assert positive in items[user]
            assert negative not in items[user]


def test_an_epoch_holds_every_triple_of_its_draws():
    users, positives, negatives = make_sampler(train_edges())._sample_draws()
    assert users.shape == positives.shape
    assert negatives.shape == (NUM_NEG, len(users))
    draws = list(
        zip(users.tolist(), positives.tolist(), negatives.T.tolist(), strict=True)
    )
    assert all(len(set(draw)) == NUM_NEG for _, _, draw in draws)
    drawn = [(user, item, other) for user, item, row in draws for other in row]
    epoch = torch.stack(make_sampler(train_edges()).sample_epoch(), dim=1)
    assert sorted(map(tuple, epoch.tolist())) == sorted(drawn)
    assert list(map(tuple, epoch.tolist())) != drawn


def test_draws_are_uniform():
    edge_index = train_edges()
    items = train_items(edge_index)
    sampler = make_sampler(edge_index)
    epochs = [sampler._sample_draws() for _ in range(1000)]
    users = torch.cat([epoch[0] for epoch in epochs])
    positives = torch.cat([epoch[1] for epoch in epochs])
    negatives = torch.cat([epoch[2] for epoch in epochs], dim=1)

    times = torch.bincount(users, minlength=NUM_USERS)
    assert times[3] == 0
    # The draws of the inactive user are lost; no other user gets them.
    skipped = torch.tensor([1000 * edge_index.size(1) - len(users)])
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


def test_one_seed_gives_the_same_epochs():
    edge_index = train_edges()
    # The order of pairs, and pairs that are there twice, do not matter.
    doubled = torch.cat([edge_index.flip(1), edge_index], dim=1)
    first, second = make_sampler(edge_index), make_sampler(doubled)
    one, two = first.sample_epoch(), second.sample_epoch()
    assert all(map(torch.equal, one, two))
    assert not torch.equal(first.sample_epoch()[2], one[2])
    assert not torch.equal(make_sampler(edge_index, 1).sample_epoch()[2], one[2])


@pytest.mark.parametrize(
    ('edges', 'num_neg', 'match'),
    [
        ([[], []], 5, 'no train pairs'),
        ([[0, 1], [0, 12]], 5, 'item ids 0 to 12'),
        ([[0, 6], [0, 1]], 5, 'user ids 0 to 6'),
        ([[0, 1], [0, 1]], 0, 'num_neg_samples=0'),
        ([[0] + [4] * 8, [0, *range(8)]], 5, 'user 4 leaves 4 of 12.*lower num_neg'),
        ([[4] * 12, [*range(12)]], 1, 'user 4 leaves 0 of 12 .*drop the user$'),
    ],
)
def test_bad_input(edges, num_neg, match):
    edge_index = torch.tensor(edges, dtype=torch.int64)
    with pytest.raises(InputError, match=match):
        TripletSampler(edge_index, NUM_USERS, NUM_ITEMS, num_neg)


def test_epoch_is_shuffled() -> None:
    sampler = make_sampler(train_edges())
    first = torch.cat([sampler.sample_epoch()[0][:1] for _ in range(3000)])
    # Every active user opens an epoch about equally often.
    assert_uniform(torch.bincount(first, minlength=NUM_USERS)[[0, 1, 2, 4, 5]].double())
