import doctest

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

import pyg_c2f.datasets.synthetic
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.typing import ITEM, RATES, USER, InputError

KEYS = ('edge_index', 'val_edge_label_index', 'test_edge_label_index')


@pytest.fixture(scope='module')
def data():
    return SyntheticHierarchy()[0]


def all_edges(data):
    return torch.cat([data[RATES][key] for key in KEYS], dim=1)


def is_skewed(degree):
    """Whether a tenth of the nodes has a quarter of the interactions."""
    degree = np.sort(degree)
    return degree[-len(degree) // 10 :].sum() > 0.25 * degree.sum()


def test_graph(data):
    data.validate()
    assert data.num_nodes_dict == {USER: 2000, ITEM: 3000}
    assert data.dataset == 'synthetic'
    edges = all_edges(data)
    assert edges.unique(dim=1).size(1) == edges.size(1) == 80_000
    assert edges[0].bincount(minlength=2000).min() >= 5
    assert data[RATES].edge_index[0].bincount(minlength=2000).min() >= 3
    assert abs(data[RATES].test_edge_label_index.size(1) / 80_000 - 0.2) < 0.01
    assert all(is_skewed(np.bincount(nodes)) for nodes in edges.numpy())


def test_planted_structure(data):
    user, item = all_edges(data)
    group, subgroup = data[ITEM].group, data[ITEM].subgroup
    assert group.unique().numel() == 20 and subgroup.unique().numel() == 100
    # Each sub-group lies in one group.
    assert torch.stack([group, subgroup]).unique(dim=1).size(1) == 100
    favourite = (data[USER].subgroup[user] == subgroup[item, None]).any(dim=1)
    in_group = data[USER].group[user] == group[item]
    assert (in_group | ~favourite).all()
    assert favourite.float().mean() > 5 * 2 / 100
    assert in_group.float().mean() > 5 * 1 / 20
    assert in_group.float().mean() > favourite.float().mean()
    one_level = SyntheticHierarchy(30, 40, 200, num_groups=5, num_subgroups=5)[0]
    assert one_level[USER].subgroup.shape == (30, 1)
    assert one_level[ITEM].group.equal(one_level[ITEM].subgroup)


def ndcg(data, score, k=20):
    score[tuple(data[RATES].edge_index.numpy())] = -np.inf
    relevant = np.zeros(score.shape, dtype=bool)
    relevant[tuple(data[RATES].test_edge_label_index.numpy())] = True
    top = np.argsort(-score, axis=1)[:, :k]
    discount = 1 / np.log2(np.arange(2, k + 2))
    gain = (np.take_along_axis(relevant, top, axis=1) * discount).sum(axis=1)
    count = relevant.sum(axis=1)
    ideal = np.cumsum(discount)[np.minimum(count, k) - 1]
    return (gain / ideal)[count > 0].mean()


def learned_beats_popular(data, k):
    edges = data[RATES].edge_index.numpy()
    shape = data[USER].num_nodes, data[ITEM].num_nodes
    train = csr_array((np.ones(edges.shape[1]), tuple(edges)), shape=shape)
    user_deg, item_deg = train.sum(axis=1), np.maximum(train.sum(axis=0), 1)
    scaled = train / np.sqrt(user_deg)[:, None] / np.sqrt(item_deg)
    left, value, right = svds(csr_array(scaled), k=k, random_state=0)
    learned = ndcg(data, (left * value) @ right * np.sqrt(item_deg))
    return learned > 2 * ndcg(data, np.tile(item_deg, (shape[0], 1)))


def test_learned_beats_popular(data):
    assert learned_beats_popular(data, 20)


def test_seeds():
    def sets(seed, split_seed):
        data = SyntheticHierarchy(50, 120, 1000, 4, 12, seed, split_seed=split_seed)[0]
        edges = [all_edges(data), *(data[RATES][key] for key in KEYS)]
        return [set(map(tuple, x.t().tolist())) for x in edges]

    assert sets(0, 1) == sets(0, 1)
    assert sets(0, 1)[0] == sets(0, 2)[0] and sets(0, 1)[1:] != sets(0, 2)[1:]
    assert sets(1, 1)[0] != sets(0, 1)[0]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_users': 0}, 'at least 1 user'),
        ({'num_items': 5}, 'at least 1 user and 10 items'),
        ({'num_groups': 7}, 'multiple of num_groups'),
        ({'num_interactions': 100}, 'num_interactions must lie between 10000 and'),
        ({'num_interactions': 10**8}, 'num_interactions must lie between'),
        ({'protocol': 'other'}, 'unknown protocol'),
    ],
)
def test_wrong_call(arguments, message):
    with pytest.raises(InputError, match=message):
        SyntheticHierarchy(**arguments)


def test_example():
    assert not doctest.testmod(pyg_c2f.datasets.synthetic).failed
