"""Histories, the packed forms of graphs and matrices, and the file of a method."""

from math import ceil, floor, log2

import pytest
import torch
from methods import file_bytes, histories_of
from methods.base import (
    pack_graph,
    pack_matrix,
    pack_pairs,
    unpack_graph,
    unpack_matrix,
)
from safetensors.torch import load, save_file

from pyg_c2f.packing import round_weights, weights_of
from tests.benchmarks.methods.conftest import generator


def draw(num_rows, num_cols, share):
    """The places of a random binary matrix, sorted, ``[2, num_entries]``."""
    rated = torch.rand(num_rows, num_cols, generator=generator()) < share
    return rated.nonzero().T


def num_bytes(stored):
    return sum(x.nbytes for x in stored.values())


GRAPHS = [(1, 1, 1.0), (7, 3, 0.0), (40, 300, 0.02), (300, 40, 0.3), (60, 50, 1.0)]


@pytest.mark.parametrize(('num_users', 'num_items', 'share'), GRAPHS)
def test_graphs_come_back(num_users, num_items, share):
    pairs = draw(num_users, num_items, share)
    histories = histories_of(pairs, num_users, num_items)
    stored = load(file_bytes(pack_graph(histories)))
    back = unpack_graph(stored, num_items, num_users)
    assert back.num_users == num_users and back.num_items == num_items
    assert back.rowptr.equal(histories.rowptr) and back.col.equal(histories.col)
    assert back.edge_index.equal(pairs)
    if num := pairs.size(1):  # the bits of Elias and Fano
        places = num_users * num_items
        low = floor(log2(places / num))
        assert abs(stored['low'].nbytes - low * num / 8) < 1
        assert abs(stored['high'].nbytes - (num + places / 2**low) / 8) < 4


@pytest.mark.parametrize('num_bits', [2, 8, 24])
@pytest.mark.parametrize(('num_rows', 'num_cols', 'share'), GRAPHS[:4])
def test_matrices_come_back(num_rows, num_cols, share, num_bits):
    row, col = draw(num_rows, num_cols, share)
    weight = torch.randn(len(row), generator=generator(1))
    stored = load(file_bytes(pack_matrix(row, col, weight, num_cols, num_bits)))
    back = unpack_matrix(stored, num_rows, num_cols)
    assert torch.repeat_interleave(back.rowptr.diff()).equal(row.int())
    assert back.rowptr.numel() == num_rows + 1 and back.col.equal(col.int())
    codes, grid = round_weights(weight, num_bits)
    want = weight if num_bits == 24 else weights_of(codes, num_bits, grid)
    torch.testing.assert_close(back.weight, want, rtol=1e-5, atol=1e-6)
    assert back.weight.sign().equal(weight.sign())
    places = num_bytes(pack_pairs(row, col, num_cols))
    assert num_bytes(stored) == places + ceil(num_bits * len(row) / 8) + 8 + 1


def test_files_are_those_of_safetensors(tmp_path):
    table = torch.arange(12.0).view(3, 4)
    stored = {
        'half': table.half(),
        'turned': table.T,
        'part': table[1:],
        'none': torch.empty(0, 2, dtype=torch.int16),
        'scalar': torch.tensor(3),
    }
    save_file({k: x.clone().contiguous() for k, x in stored.items()}, tmp_path / 'x')
    content = file_bytes(stored)
    assert content == (tmp_path / 'x').read_bytes()
    assert content == file_bytes(dict(reversed(stored.items())))


def test_histories_of_pairs():
    pairs = torch.tensor([[3, 0, 3, 0, 3, 3], [4, 2, 0, 2, 4, 1]])
    histories = histories_of(pairs, 5, 6)
    assert histories.rowptr.tolist() == [0, 1, 1, 1, 4, 4]
    assert histories.edge_index.tolist() == [[0, 3, 3, 3], [2, 0, 1, 4]]
    rated = torch.zeros(5, 6)
    rated[tuple(pairs)] = 1
    users = torch.tensor([3, 0, 1, 3])
    assert histories.rows(users).equal(rated[users])
    assert histories.rows(users[:0]).shape == (0, 6)
    for weight in (None, torch.rand(4, generator=generator())):
        matrix = histories.matrix(weight)
        dense = torch.sparse_csr_tensor(*matrix, rated.shape).to_dense()
        want = torch.ones(4) if weight is None else weight
        assert dense[tuple(histories.edge_index)].equal(want)
        assert dense.count_nonzero() == 4
