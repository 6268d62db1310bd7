"""Histories, the packed forms of graphs and matrices, and the file of a method."""

from math import ceil, floor, log2

import pytest
import torch
from methods import Histories, file_bytes, histories_of
from methods.base import (
    pack_graph,
    pack_matrix,
    pack_pairs,
    prefixed,
    unpack_graph,
    unpack_matrix,
    unpack_pairs,
    without_prefix,
)
from safetensors.torch import load, load_file, save_file

from pyg_c2f.packing import round_weights, weights_of
from pyg_c2f.typing import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(num_rows, num_cols, share, seed=0):
    """The places of a random binary matrix, sorted, ``[2, num_entries]``."""
    rated = torch.rand(num_rows, num_cols, generator=generator(seed)) < share
    return rated.nonzero().T


def num_bytes(stored):
    return sum(x.nbytes for x in stored.values())


GRAPHS = [
    (1, 1, 1.0),
    (7, 3, 0.5),
    (40, 300, 0.02),
    (300, 40, 0.3),
    (60, 50, 1.0),
    (900, 800, 0.003),
]


@pytest.mark.parametrize(('num_users', 'num_items', 'share'), GRAPHS)
def test_graphs_come_back(num_users, num_items, share):
    pairs = draw(num_users, num_items, share)
    histories = histories_of(pairs, num_users, num_items)
    stored = load(file_bytes(pack_graph(histories)))
    back = unpack_graph(stored, num_items, num_users)
    assert back.num_users == num_users and back.num_items == num_items
    assert back.rowptr.equal(histories.rowptr) and back.col.equal(histories.col)
    assert back.rowptr.dtype == back.col.dtype == torch.long
    assert back.edge_index.equal(pairs)


@pytest.mark.parametrize(
    'pairs',
    [[], [(0, 0)], [(0, 4)], [(6, 0)], [(6, 4)], [(2, 1), (3, 0)]],
    ids=str,
)
def test_graphs_of_few_pairs_come_back(pairs):
    histories = histories_of(torch.tensor(pairs).long().view(-1, 2).T, 7, 5)
    back = unpack_graph(pack_graph(histories), 5, 7)
    assert back.rowptr.equal(histories.rowptr) and back.col.equal(histories.col)


def test_users_without_items_at_the_end_have_to_be_told():
    histories = histories_of(torch.tensor([[0, 2, 2], [1, 0, 3]]), 6, 4)
    stored = pack_graph(histories)
    assert unpack_graph(stored, 4).rowptr.tolist() == [0, 1, 1, 3]
    assert unpack_graph(stored, 4, 2).rowptr.tolist() == [0, 1, 1, 3]
    assert unpack_graph(stored, 4, 6).rowptr.tolist() == [0, 1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize(('num_users', 'num_items', 'share'), GRAPHS[2:])
def test_graphs_take_the_bits_of_elias_and_fano(num_users, num_items, share):
    pairs = draw(num_users, num_items, share)
    num = pairs.size(1)
    stored = pack_graph(histories_of(pairs, num_users, num_items))
    places = num_users * num_items
    low = floor(log2(places / num))
    high = num + places / 2**low
    assert abs(stored['low'].nbytes - low * num / 8) < 1
    assert abs(stored['high'].nbytes - high / 8) < 4
    assert num_bytes(stored) <= (2 + log2(places / num)) * num / 8 + 4
    # Below the items alone as 32-bit numbers, their row pointers not counted.
    assert num_bytes(stored) < 4 * num


def test_pairs_come_back_whatever_the_numbers():
    row, col = (
        torch.tensor([0, 0, 70_000, 70_001]),
        torch.tensor([0, 90_000, 3, 90_000]),
    )
    got = unpack_pairs(pack_pairs(row, col, 90_001), 90_001)
    assert got[0].equal(row) and got[1].equal(col)


@pytest.mark.parametrize('num_bits', [2, 6, 8, 24])
@pytest.mark.parametrize(('num_rows', 'num_cols', 'share'), GRAPHS[:4])
def test_matrices_come_back(num_rows, num_cols, share, num_bits):
    row, col = draw(num_rows, num_cols, share)
    weight = torch.randn(len(row), generator=generator(1))
    stored = load(file_bytes(pack_matrix(row, col, weight, num_cols, num_bits)))
    back = unpack_matrix(stored, num_rows, num_cols)
    assert back.rowptr.dtype == back.col.dtype == torch.int
    assert torch.repeat_interleave(back.rowptr.diff()).equal(row.int())
    assert back.rowptr.numel() == num_rows + 1 and back.col.equal(col.int())
    want = weights_of(*_codes(weight, num_bits))
    torch.testing.assert_close(back.weight, want, rtol=1e-5, atol=1e-6)
    assert back.weight.sign().equal(weight.sign())
    if num_bits == 24:
        torch.testing.assert_close(back.weight, weight, rtol=1e-5, atol=1e-6)
    places = num_bytes(pack_pairs(row, col, num_cols))
    assert num_bytes(stored) == places + ceil(num_bits * len(row) / 8) + 8 + 1


def _codes(weight, num_bits):
    codes, grid = round_weights(weight, num_bits)
    return codes, num_bits, grid


def test_zeros_of_a_matrix_are_left_out():
    row, col = torch.tensor([0, 0, 2, 4]), torch.tensor([1, 2, 0, 2])
    weight = torch.tensor([0, 0.5, -2, 0])
    back = unpack_matrix(pack_matrix(row, col, weight, 3), 5, 3)
    assert back.rowptr.tolist() == [0, 1, 1, 2, 2, 2] and back.col.tolist() == [2, 0]
    torch.testing.assert_close(back.weight, weight[1:3])


@pytest.mark.parametrize('num', [0, 3])
def test_a_matrix_of_nothing(num):
    none = torch.arange(num)
    back = unpack_matrix(pack_matrix(none, none, torch.zeros(num), 4), 3, 4)
    assert back.rowptr.tolist() == [0, 0, 0, 0]
    assert back.col.numel() == back.weight.numel() == 0


def test_files_are_those_of_safetensors(tmp_path):
    table = torch.arange(12.0).view(3, 4)
    stored = {
        'half': table.half(),
        'turned': table.T,
        'part': table[1:],
        'other': table[:1],
        'bytes': torch.arange(5, dtype=torch.uint8),
        'none': torch.empty(0, 2, dtype=torch.int16),
        'scalar': torch.tensor(3),
    }
    content = file_bytes(stored)
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    ours.write_bytes(content)
    save_file({name: x.clone().contiguous() for name, x in stored.items()}, theirs)
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.stat().st_size == len(content) > num_bytes(stored)
    back = load_file(ours)
    assert back.keys() == stored.keys()
    for name, x in stored.items():
        assert back[name].dtype == x.dtype and back[name].equal(x)
    assert file_bytes(dict(reversed(stored.items()))) == content


def test_prefixes():
    tensors = {'a': torch.tensor(1), 'b.c': torch.tensor(2)}
    stored = prefixed('x', tensors) | prefixed('xy', {'a': torch.tensor(3)})
    assert list(stored) == ['x.a', 'x.b.c', 'xy.a']
    assert without_prefix('x', stored) == tensors
    assert without_prefix('y', stored) == {}


def test_histories_of_pairs():
    pairs = torch.tensor([[3, 0, 3, 0, 3, 3], [4, 2, 0, 2, 4, 1]])
    histories = histories_of(pairs, 5, 6)
    assert histories.rowptr.tolist() == [0, 1, 1, 1, 4, 4]
    assert histories.col.tolist() == [2, 0, 1, 4]
    assert (histories.num_users, histories.num_items) == (5, 6)
    assert histories.edge_index.tolist() == [[0, 3, 3, 3], [2, 0, 1, 4]]


def test_histories_as_rows_and_matrix(small):
    rated = torch.zeros(small.num_users, small.num_items)
    rated[tuple(small.edge_index)] = 1
    users = torch.tensor([29, 0, 7, 7])
    assert small.rows(users).equal(rated[users])
    assert small.rows(users[:0]).shape == (0, small.num_items)
    weight = torch.rand(len(small.col), generator=generator())
    for given, values in ((None, torch.ones(len(small.col))), (weight, weight)):
        rowptr, col, got = small.matrix(given)
        assert rowptr.dtype == col.dtype == torch.int and got.equal(values)
        dense = torch.sparse_csr_tensor(rowptr, col, got, rated.shape).to_dense()
        assert dense.equal(
            torch.zeros_like(rated).index_put(tuple(small.edge_index), got)
        )


def test_histories_of_nobody():
    nobody = histories_of(torch.empty(2, 0, dtype=torch.long), 3, 4)
    assert nobody.rowptr.tolist() == [0, 0, 0, 0]
    assert nobody.edge_index.shape == (2, 0)
    assert not nobody.rows(torch.arange(3)).any()
    assert isinstance(nobody, Histories)


@pytest.mark.parametrize(
    ('pair', 'name'),
    [((5, 0), 'user'), ((-1, 0), 'user'), ((0, 6), 'item'), ((0, -2), 'item')],
)
def test_ids_that_do_not_fit(pair, name):
    pairs = torch.tensor([[0, pair[0]], [1, pair[1]]])
    with pytest.raises(InputError, match=f'histories_of: {name} ids'):
        histories_of(pairs, 5, 6)


@pytest.mark.parametrize('pairs', [torch.zeros(3, 4).long(), torch.zeros(2, 4)])
def test_histories_of_no_pairs(pairs):
    with pytest.raises(InputError, match='pairs of shape'):
        histories_of(pairs, 5, 5)
