import doctest

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

import pyg_c2f.datasets.synthetic
from pyg_c2f.datasets import InteractionDataset, SyntheticHierarchy, write_synthetic
from pyg_c2f.typing import ITEM, RATES, USER, InputError
from tests.memory import peak

KEYS = ('edge_index', 'val_edge_label_index', 'test_edge_label_index')


@pytest.fixture(scope='module')
def data():
    return SyntheticHierarchy()[0]


def all_edges(data):
    return torch.cat([data[RATES][key] for key in KEYS], dim=1)


def test_graph(data):
    data.validate()
    assert data.num_nodes_dict == {USER: 2000, ITEM: 3000}
    assert data.dataset == 'synthetic'
    edges = all_edges(data)
    assert edges.unique(dim=1).size(1) == edges.size(1) == 80_000
    assert edges[0].bincount(minlength=2000).min() >= 5
    assert data[RATES].edge_index[0].bincount(minlength=2000).min() >= 3
    assert abs(data[RATES].test_edge_label_index.size(1) / 80_000 - 0.2) < 0.01


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


@pytest.mark.parametrize(('node', 'num_nodes'), [(0, 2000), (1, 3000)])
def test_skew(data, node, num_nodes):
    degree = all_edges(data)[node].bincount(minlength=num_nodes).sort().values.float()
    assert degree[-num_nodes // 10 :].sum() > 0.25 * degree.sum()


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


def test_learned_beats_popular(data):
    edges = data[RATES].edge_index.numpy()
    train = csr_array((np.ones(edges.shape[1]), tuple(edges)), shape=(2000, 3000))
    user_deg, item_deg = train.sum(axis=1), np.maximum(train.sum(axis=0), 1)
    scaled = train / np.sqrt(user_deg)[:, None] / np.sqrt(item_deg)
    left, value, right = svds(csr_array(scaled), k=20, random_state=0)
    learned = ndcg(data, (left * value) @ right * np.sqrt(item_deg))
    assert learned > 2 * ndcg(data, np.tile(item_deg, (2000, 1)))


def test_seeds():
    assert all_sets(small(0, 1)) == all_sets(small(0, 1))
    same_edges = small(0, 1), small(0, 2)
    assert len({frozenset(edge_set(all_edges(data))) for data in same_edges}) == 1
    assert all_sets(same_edges[0]) != all_sets(same_edges[1])
    assert edge_set(all_edges(small(1, 1))) != edge_set(all_edges(small(0, 1)))


def small(seed, split_seed):
    return SyntheticHierarchy(50, 120, 1000, 4, 12, seed, split_seed=split_seed)[0]


def edge_set(edges):
    return set(map(tuple, edges.t().tolist()))


def all_sets(data):
    return [edge_set(data[RATES][key]) for key in KEYS]


def test_one_level():
    data = SyntheticHierarchy(30, 40, 200, num_groups=5, num_subgroups=5)[0]
    assert data[USER].subgroup.shape == (30, 1)
    assert data[ITEM].group.equal(data[ITEM].subgroup)


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


# Written in part files ----------------------------------------------------------------


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    pytest.importorskip('pyarrow')
    root = tmp_path_factory.mktemp('written')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyg_c2f.datasets.synthetic, '_NUM_DRAWS', 5000)
        patch.setattr(pyg_c2f.datasets.synthetic, '_COMMUNITY', 100)
        folder = root / 'toy' / 'toy.parquet'
        write_synthetic(folder, 2000, 3000, 80_000, rows_per_file=30_000)
    return root


def read_part(path):
    table = pytest.importorskip('pyarrow.parquet').read_table(path)
    return [table.column(name).to_numpy() for name in ('user_id', 'item_id')]


def test_written(written):
    parts = sorted((written / 'toy' / 'toy.parquet').iterdir())
    assert [path.name for path in parts] == [f'part-0000{i}.parquet' for i in range(3)]
    pairs = [np.concatenate(x) for x in zip(*map(read_part, parts), strict=True)]
    assert [len(read_part(path)[0]) for path in parts] == [30_000, 30_000, 20_000]
    users, items = pairs
    assert users.dtype == items.dtype == np.int64
    assert len(np.unique(users * 3000 + items)) == 80_000
    degree = np.bincount(users)
    assert len(degree) == 2000 and degree.min() >= 5
    assert 0 <= items.min() and items.max() < 3000
    for count in (degree, np.bincount(items)):
        count.sort()
        assert count[-len(count) // 10 :].sum() > 0.25 * count.sum()


def test_written_has_a_structure(written):
    data = InteractionDataset(written, 'toy')[0]
    edges = data[RATES].edge_index.numpy()
    shape = data[USER].num_nodes, data[ITEM].num_nodes
    train = csr_array((np.ones(edges.shape[1]), tuple(edges)), shape=shape)
    user_deg, item_deg = train.sum(axis=1), np.maximum(train.sum(axis=0), 1)
    scaled = train / np.sqrt(user_deg)[:, None] / np.sqrt(item_deg)
    left, value, right = svds(csr_array(scaled), k=30, random_state=0)
    learned = ndcg(data, (left * value) @ right * np.sqrt(item_deg))
    assert learned > 2 * ndcg(data, np.tile(item_deg, (shape[0], 1)))


def test_written_by_seed(tmp_path):
    pytest.importorskip('pyarrow')
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        write_synthetic(tmp_path / name, 50, 120, 1000, seed)
    pairs = [np.stack(read_part(tmp_path / name)) for name in 'abc']
    assert np.array_equal(pairs[0], pairs[1])
    assert not np.array_equal(pairs[0], pairs[2])


def test_written_to_the_limit(tmp_path):
    pytest.importorskip('pyarrow')
    # Half of all items: by popularity alone some would never come.
    write_synthetic(tmp_path / 'a', 7, 5000, 7 * 2500)
    users, items = read_part(tmp_path / 'a')
    assert len(np.unique(users * 5000 + items)) == len(users) > 0.5 * 7 * 2500
    assert np.bincount(users).max() == 2500


def test_memory_of_what_is_written(tmp_path, monkeypatch):
    pytest.importorskip('pyarrow')
    monkeypatch.setattr(pyg_c2f.datasets.synthetic, '_NUM_DRAWS', 5000)

    def write(num):
        write_synthetic(tmp_path / str(num), 1000, 2000, num, rows_per_file=5000)

    write(5000)  # imports
    assert peak(lambda: write(400_000)) < 2 * peak(lambda: write(40_000))


def test_wrong_calls_of_what_is_written(tmp_path):
    pytest.importorskip('pyarrow')
    with pytest.raises(InputError, match='num_interactions must lie between'):
        write_synthetic(tmp_path / 'a', 50, 120, 10)
    with pytest.raises(InputError, match='rows_per_file must be positive'):
        write_synthetic(tmp_path / 'a', 50, 120, 1000, rows_per_file=0)
    with pytest.raises(InputError, match='is there already'):
        write_synthetic(tmp_path, 50, 120, 1000)
    assert not list(tmp_path.iterdir())


def test_writing_that_is_interrupted(tmp_path, monkeypatch):
    pytest.importorskip('pyarrow')

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pyg_c2f.datasets.synthetic, '_draw_distinct', stop)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / 'a', 50, 120, 1000)
    assert not list(tmp_path.iterdir())


def test_example():
    assert not doctest.testmod(pyg_c2f.datasets.synthetic).failed
