"""The sparse matrix, and the best columns of each row."""

import numpy as np
import pytest
import torch

from pyg_c2f.sparse import (
    CSR,
    TILE_SIZE,
    csr_matmul,
    degree,
    pair_keys,
    rowptr_of,
    split_keys,
    take_rows,
    top_items,
    unique_pairs,
)

NUM_ROWS, NUM_COLS = 7, 11


def draw(seed=0, share=0.4):
    """A dense matrix with empty rows and columns, and its shuffled pairs."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(NUM_ROWS, NUM_COLS, generator=generator)
    matrix[torch.rand(NUM_ROWS, NUM_COLS, generator=generator) > share] = 0
    matrix[2] = matrix[:, 5] = 0
    pairs = matrix.nonzero().T
    pairs = pairs[:, torch.randperm(pairs.size(1), generator=generator)]
    return matrix, pairs


def to_dense(csr, num_cols):
    out = csr.weight.new_zeros(csr.num_rows, num_cols)
    out[csr.row, csr.col] = csr.weight
    return out


@pytest.mark.parametrize(
    ('share', 'is_sorted'), [(0.4, True), (0.4, False), (0.0, False)]
)
def test_matrix(share, is_sorted):
    matrix, pairs = draw(share=share)
    if is_sorted:
        pairs = unique_pairs(pairs, NUM_COLS)
    csr = CSR.from_pairs(pairs, matrix[tuple(pairs)], NUM_ROWS, NUM_COLS)
    assert csr.num_rows == NUM_ROWS
    assert csr.rowptr.dtype == csr.col.dtype == csr.row.dtype == torch.int32
    assert to_dense(csr, NUM_COLS).equal(matrix)
    assert (pair_keys((csr.row, csr.col), NUM_COLS).diff() > 0).all()

    turned = csr.transpose(NUM_COLS)
    assert to_dense(turned, NUM_ROWS).equal(matrix.T)
    assert (pair_keys((turned.row, turned.col), NUM_ROWS).diff() > 0).all()
    assert all(map(torch.equal, turned.transpose(NUM_ROWS), csr))

    rows = torch.tensor([6, 2, 0, 6])
    assert to_dense(csr.select(rows), NUM_COLS).equal(matrix[rows])
    for first, last in ((0, NUM_ROWS), (1, 4), (2, 3), (4, 4)):
        some = to_dense(csr.between(first, last), NUM_COLS)
        assert some.equal(matrix[first:last])
    x = torch.randn(NUM_COLS, 3)
    torch.testing.assert_close(csr_matmul(csr, x), matrix @ x)
    assert csr.to(torch.double).weight.dtype == torch.double


def test_rows_and_degrees():
    row = torch.tensor([3, 0, 3, 0, 1])
    assert degree(row, 5).tolist() == [2, 1, 0, 2, 0]
    assert rowptr_of(row, 5).tolist() == [0, 2, 3, 3, 5, 5]
    rowptr, place = take_rows(torch.tensor([0, 2, 3, 3, 5]), torch.tensor([3, 2, 0]))
    assert rowptr.tolist() == [0, 2, 2, 4]
    assert place.tolist() == [3, 4, 0, 1]


def test_pairs():
    pairs = torch.tensor([[2, 0, 2, 0, 2], [1, 3, 0, 3, 1]])
    unique = unique_pairs(pairs, 4)
    assert unique.tolist() == [[0, 2, 2], [3, 0, 1]]
    assert unique_pairs(unique, 4) is unique
    for form in (pairs, pairs.numpy()):
        keys = pair_keys(form, 4)
        assert keys.tolist() == [9, 3, 8, 3, 9]
        assert [x.tolist() for x in split_keys(keys, 4)] == pairs.tolist()


@pytest.mark.parametrize('num_columns', [30, 10 * TILE_SIZE, 10 * TILE_SIZE + 30])
@pytest.mark.parametrize(('num_values', 'k'), [(1, 3), (5, 0), (5, 30), (1000, 4)])
@pytest.mark.parametrize('dtype', [torch.float, torch.bfloat16])
def test_top_items(num_columns, num_values, k, dtype):
    generator = torch.Generator().manual_seed(k)
    size = (40, num_columns)
    scores = torch.randint(num_values, size, generator=generator).to(dtype)
    scores[torch.rand(size, generator=generator) < 0.3] = -torch.inf
    scores[0] = -torch.inf
    is_zero = scores == 0
    scores[is_zero] *= torch.tensor([1.0, -1.0]).repeat(scores.numel())[: is_zero.sum()]
    ids, top = top_items(scores, k)
    for row, ours, values in zip(scores.tolist(), ids, top, strict=True):
        order = sorted(range(num_columns), key=lambda i: (-row[i], i))[:k]
        assert ours.tolist() == order
        assert values.tolist() == [row[i] for i in order]


@pytest.mark.parametrize('num_columns', [30, 10 * TILE_SIZE + 30])
def test_nan_comes_first_in_top_items(num_columns):
    for place in (0, 20, num_columns - 1):
        scores = torch.full((2, num_columns), torch.inf)
        scores[1, place] = -torch.tensor(np.nan)
        _, top = top_items(scores, 3)
        assert top[1, 0].isnan() and not top[0].isnan().any()
