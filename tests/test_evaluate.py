import math

import pytest
import torch
from torch_geometric.data import HeteroData

from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import (
    evaluate,
    evaluate_split,
    exclude_edges,
    popularity_score,
    rank_items,
    with_sampled_users,
)
from pyg_c2f.sparse import TILE_SIZE
from pyg_c2f.typing import RATES, InputError


def random_pairs(num_users, num_items, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        (torch.rand(num_users, num_items, generator=generator) < density).nonzero().t()
    )


def random_scores(num_users, num_items, num_levels, seed):
    """Whole numbers, negative ones too; few levels make many ties."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_users, num_items)
    return (
        torch.randint(num_levels, shape, generator=generator).float() - num_levels // 2
    )


def naive_ranking(scores, user, exclude):
    """All items of a user, best first, the seen ones last."""
    row = scores[user].tolist()
    for other, item in exclude.t().tolist():
        if other == user:
            row[item] = -math.inf
    return sorted(range(len(row)), key=lambda item: (-row[item], item))


def naive_metrics(scores, labels, exclude, ks):
    seen = set(map(tuple, exclude.t().tolist()))
    wanted = set(map(tuple, labels.t().tolist())) - seen
    users = sorted({user for user, _ in wanted})
    out = {f'{name}@{k}': 0.0 for name in ('recall', 'ndcg') for k in ks}
    for user in users:
        relevant = {item for other, item in wanted if other == user}
        ranking = naive_ranking(scores, user, exclude)
        for k in ks:
            hits = [item in relevant for item in ranking[:k]]
            gain = sum(hit / math.log2(r + 2) for r, hit in enumerate(hits))
            ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(relevant))))
            out[f'recall@{k}'] += sum(hits) / len(relevant) / len(users)
            out[f'ndcg@{k}'] += gain / ideal / len(users)
    return out


@pytest.mark.parametrize('num_items', [3, TILE_SIZE, 5 * TILE_SIZE + 7])
@pytest.mark.parametrize('num_levels', [2, 1000])
@pytest.mark.parametrize('block_size', [1, 4, 100])
def test_ranking_matches_naive(num_items, num_levels, block_size):
    num_users, k = 9, 4
    scores = random_scores(num_users, num_items, num_levels, seed=0)
    scores[0] *= 0.0  # all equal, some of them -0
    exclude = random_pairs(num_users, num_items, 0.3, seed=1)
    exclude = exclude[:, torch.randperm(exclude.size(1))]
    users = torch.tensor([8, 0, 3, 3, 5])
    before = scores.clone()
    ranking = rank_items(
        lambda u: scores[u], users, num_items, exclude, k, block_size=block_size
    )
    expected = [naive_ranking(scores, user, exclude)[:k] for user in users.tolist()]
    assert ranking.tolist() == expected
    assert torch.equal(scores, before)


def test_ranking_of_no_users_and_nothing_excluded():
    scores = random_scores(2, 10, 1000, seed=0)
    nothing = torch.empty(2, 0, dtype=torch.long)

    def score(users):
        return scores[users]

    users = torch.arange(2)
    assert rank_items(score, users[:0], 10, nothing, 5).shape == (0, 5)
    ranking = rank_items(score, users, 10, nothing, 20)
    assert torch.equal(ranking, scores.sort(descending=True, stable=True).indices)


@pytest.mark.parametrize('num_items', [5, 30, 200])
@pytest.mark.parametrize('seed', range(5))
def test_metrics_match_naive(num_items, seed):
    num_users, ks = 15, (1, 3, 20)
    scores = random_scores(num_users, num_items, 8 if seed == 0 else 10**6, seed)
    exclude = random_pairs(num_users, num_items, 0.2, seed + 100)
    # Some users without labels, some labels repeated, some of them excluded.
    labels = random_pairs(num_users, num_items, 0.1, seed + 200)
    labels = labels[:, labels[0] % 3 > 0]
    labels = torch.cat([labels, labels[:, ::2]], dim=1)
    result = evaluate(lambda u: scores[u], labels, exclude, num_users, num_items, ks)
    assert result == pytest.approx(naive_metrics(scores, labels, exclude, ks), abs=1e-6)


@pytest.mark.parametrize('num_labels', [1, 11, 20, 59])
def test_a_perfect_list_has_one_and_no_more(num_labels):
    scores = -torch.arange(60.0).view(1, -1)
    labels = torch.stack([torch.zeros(num_labels), torch.arange(num_labels)]).long()
    nothing, ks = labels[:, :0], range(1, 60)
    result = evaluate(lambda u: scores[u], labels, nothing, 1, 60, ks)
    assert max(result.values()) == 1.0
    assert all(result[f'ndcg@{k}'] == pytest.approx(1.0) for k in ks)


def test_masked_items_never_count():
    # All items of user 0 but one are seen, so that seen items fill up the ranking.
    exclude = torch.tensor([[0, 0, 0], [0, 1, 2]])
    labels = torch.tensor([[0, 0, 0], [0, 1, 3]])
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    result = evaluate(lambda u: scores[u], labels, exclude, 1, 4, ks=(4,))
    assert result == {'recall@4': 1.0, 'ndcg@4': 1.0}


def make_data(protocol):
    pairs = random_pairs(20, 40, 0.4, seed=3)
    part = torch.randint(
        4, (pairs.size(1),), generator=torch.Generator().manual_seed(4)
    )
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 20, 40
    data['user', 'rates', 'item'].edge_index = pairs[:, part > 1]
    data['user', 'rates', 'item'].val_edge_label_index = pairs[:, part == 0]
    data['user', 'rates', 'item'].test_edge_label_index = pairs[:, part == 1]
    data.protocol = protocol
    return data


@pytest.mark.parametrize('protocol', ['c2f', 'standard'])
@pytest.mark.parametrize('split', ['val', 'test'])
def test_split_masks_follow_the_protocol(protocol, split):
    data = make_data(protocol)
    store = data['user', 'rates', 'item']
    masked = set(map(tuple, store.edge_index.t().tolist()))
    if (protocol, split) == ('standard', 'test'):
        masked |= set(map(tuple, store.val_edge_label_index.t().tolist()))
    exclude = exclude_edges(data, split)
    assert sorted(map(tuple, exclude.t().tolist())) == sorted(masked)

    scores = random_scores(20, 40, 10**6, seed=5)
    result = evaluate_split(lambda u: scores[u], data, split, ks=(3, 10))
    labels = store[f'{split}_edge_label_index']
    expected = naive_metrics(scores, labels, exclude, (3, 10))
    assert result == pytest.approx(expected, abs=1e-6)


def test_popularity_counts_train_pairs():
    edge_index = torch.tensor([[0, 1, 2, 0, 1], [4, 4, 4, 2, 2]])
    score = popularity_score(edge_index, 6)
    assert score(torch.tensor([7, 1])).tolist() == [[0.0, 0.0, 2.0, 0.0, 3.0, 0.0]] * 2
    ranking = rank_items(score, torch.tensor([0, 2]), 6, edge_index, 6)
    assert ranking.tolist() == [[0, 1, 3, 5, 2, 4], [2, 0, 1, 3, 5, 4]]


def test_bad_input():
    exclude = torch.tensor([[0], [0]])
    labels = torch.tensor([[0, 1], [1, 2]])

    def call(num_items=3, labels=labels, value=0.0, k=2):
        evaluate(
            lambda users: torch.full((len(users), 3), value),
            labels,
            exclude,
            num_users=2,
            num_items=num_items,
            ks=(k,),
        )

    call()
    with pytest.raises(InputError, match=r'shape \[2, 3\]'):
        call(num_items=4)
    with pytest.raises(InputError, match='item ids 1 to 2 of edge_label_index'):
        call(num_items=2)
    with pytest.raises(InputError, match='user ids 0 to 2 of edge_label_index'):
        call(labels=torch.tensor([[0, 2], [1, 1]]))
    with pytest.raises(InputError, match='no held-out pairs'):
        call(labels=exclude)
    with pytest.raises(InputError, match='NaN'):
        call(value=math.nan)
    with pytest.raises(InputError, match=r'ks=\(0,\)'):
        call(k=0)
    with pytest.raises(InputError, match="split 'train'"):
        exclude_edges(make_data('c2f'), 'train')
    with pytest.raises(InputError, match="protocol is 'other'"):
        exclude_edges(make_data('other'), 'val')
    data = make_data('c2f')
    del data['user', 'rates', 'item'].val_edge_label_index
    with pytest.raises(InputError, match='has no val_edge_label_index'):
        evaluate_split(popularity_score(exclude, 40), data, 'val')
    with pytest.raises(InputError, match='protocol is None'):
        exclude_edges(HeteroData(), 'val')


@pytest.mark.parametrize('protocol', ['c2f', 'standard'])
def test_some_users_are_ranked_as_all_are(protocol):
    data = SyntheticHierarchy(150, 100, 3000, 5, 20, protocol=protocol)[0]
    some = with_sampled_users(data, 40, 7)
    table = torch.rand(150, 100, generator=torch.Generator().manual_seed(0))
    drawn = some['user'].is_ranked.nonzero().flatten()
    assert len(drawn) == 40 and 'is_ranked' not in data['user']
    for key in ('edge_index', 'val_edge_label_index', 'test_edge_label_index'):
        assert some[RATES][key] is data[RATES][key]
    for split in ('val', 'test'):
        held_out = data[RATES][f'{split}_edge_label_index']
        held_out = held_out[:, torch.isin(held_out[0], drawn)]
        exclude = exclude_edges(data, split)
        expected = evaluate(lambda x: table[x], held_out, exclude, 150, 100)
        assert evaluate_split(lambda x: table[x], some, split) == expected
    again = with_sampled_users(data, 40, 7)['user'].is_ranked
    assert torch.equal(again, some['user'].is_ranked)
    assert with_sampled_users(data, 10**6, 7)['user'].is_ranked.sum() > 100
