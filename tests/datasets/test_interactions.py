import copy
import os
import pickle

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.loader.utils import filter_node_store_

from pyg_c2f.datasets import InteractionDataset, Labels, with_validation_in_train
from pyg_c2f.typing import ITEM, RATED_BY, RATES, USER

HELD_OUT = ('val_edge_label_index', 'test_edge_label_index')


def lines(pairs):
    items = {}
    for user, item in pairs:
        items.setdefault(user, []).append(item)
    return ''.join(f'{u} {" ".join(map(str, i))}\n' for u, i in items.items())


KEYS = np.random.default_rng(0).choice(40 * 70, 900, False).tolist()


@pytest.fixture
def root(put):
    pairs = [divmod(key, 70) for key in KEYS]
    return put('toy', {'train.txt': lines(pairs[:700]), 'test.txt': lines(pairs[700:])})


@pytest.fixture
def table_root(put):
    pairs = [divmod(key, 70) for key in KEYS]
    rows = ''.join(f'u{user},i{item}\n' for user, item in pairs)
    return put('table', {'table.csv': 'user_id,item_id\n' + rows})


@pytest.mark.parametrize('protocol', ['c2f', 'standard'])
def test_graph(root, protocol):
    dataset = InteractionDataset(root, 'toy', protocol=protocol, split_seed=5)
    assert str(dataset) == "InteractionDataset('toy')"
    assert len(dataset) == 1
    data = dataset[0]
    data.validate()
    assert (data.dataset, data.protocol, data.split_seed) == ('toy', protocol, 5)
    assert data.num_nodes_dict == {USER: 40, ITEM: 70}
    edges = data[RATES].edge_index
    assert edges.dtype == torch.int64 and edges.is_contiguous()
    pairs = list(map(tuple, edges.t().tolist()))
    assert pairs == sorted(set(pairs))
    assert data[RATED_BY].edge_index.equal(edges.flip(0))
    for key in HELD_OUT:
        assert data[RATES][key].dtype == torch.int64
        assert data[RATES][key].size(0) == 2
    assert 'raw_id' not in data[USER]


def test_order_in_file_does_not_matter(root, put):
    files = {}
    for file in ('train.txt', 'test.txt'):
        text = (root / 'toy' / file).read_text().splitlines()
        rows = [[row.split()[0], *row.split()[:0:-1]] for row in reversed(text)]
        files[file] = ''.join(' '.join(row) + '\n' for row in rows)
    put('mixed', files)
    left = InteractionDataset(root, 'toy')[0]
    right = InteractionDataset(root, 'mixed')[0]
    for key in ('edge_index', *HELD_OUT):
        assert left[RATES][key].equal(right[RATES][key])


def test_access(root):
    before = sorted(os.walk(root))
    dataset = InteractionDataset(str(root), 'toy', transform=T.ToUndirected())
    reverse = dataset[0][ITEM, 'rev_rates', USER].edge_index
    assert reverse.equal(dataset[0][RATES].edge_index.flip(0))
    dataset[0][USER].x = torch.ones(40, 1)
    assert 'x' not in dataset[0][USER]
    assert sorted(os.walk(root)) == before


@pytest.mark.parametrize('name', ['toy', 'table'])
def test_to_homogeneous(root, table_root, name):
    data = InteractionDataset(root, name)[0]
    data[ITEM].x = torch.ones(70, 2)
    homogeneous = data.to_homogeneous()
    num_edges = data[RATES].edge_index.size(1)
    offset = torch.tensor([[0], [40]])
    assert homogeneous.num_nodes == 110
    assert homogeneous.x.shape == (110, 2)
    assert homogeneous.edge_index[:, :num_edges].equal(data[RATES].edge_index + offset)
    for key in HELD_OUT:
        assert homogeneous[key].equal(data[RATES][key] + offset)
        assert data[RATES][key].max() < 70


def test_labels_survive_subgraphs_and_batches(table_root):
    data = InteractionDataset(table_root, 'table')[0]
    subset = torch.tensor([3, 1])
    assert data.subgraph({USER: subset})[USER].num_nodes == 2
    batch = copy.copy(data)
    filter_node_store_(data[ITEM], batch[ITEM], subset)
    assert batch[ITEM].num_nodes == 2
    assert batch[ITEM].raw_id == data[ITEM].raw_id
    assert data.clone().to('cpu')[ITEM].raw_id == data[ITEM].raw_id


def test_labels():
    labels = Labels(['a', 'b', 'a'])
    assert (len(labels), labels[1], list(labels)) == (3, 'b', ['a', 'b', 'a'])
    assert repr(labels) == 'Labels(3)'
    assert pickle.loads(pickle.dumps(labels)) == labels
    assert labels != Labels(['a']) and labels != ['a', 'b', 'a']
    assert len({labels, Labels(['a', 'b', 'a'])}) == 1


def test_with_validation_in_train(root):
    data = InteractionDataset(root, 'toy')[0]
    before = copy.deepcopy(data)
    merged = with_validation_in_train(data)
    edges = [data[RATES].edge_index, data[RATES].val_edge_label_index]
    expected = sorted(map(tuple, torch.cat(edges, 1).t().tolist()))
    assert list(map(tuple, merged[RATES].edge_index.t().tolist())) == expected
    assert merged[RATED_BY].edge_index.equal(merged[RATES].edge_index.flip(0))
    assert merged[RATES].val_edge_label_index.shape == (2, 0)
    assert merged[RATES].test_edge_label_index.equal(data[RATES].test_edge_label_index)
    assert merged.num_nodes_dict == data.num_nodes_dict
    merged.validate()
    for key in ('edge_index', *HELD_OUT):
        assert data[RATES][key].equal(before[RATES][key])
    again = with_validation_in_train(merged)
    assert again[RATES].edge_index.equal(merged[RATES].edge_index)
