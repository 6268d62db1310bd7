"""EASE, EDLAE and the sparse inverse against dense formulas."""

from dataclasses import replace

import pytest
import torch
from methods import EASE, FSAI, histories_of, linear
from methods.base import unpack_matrix, without_prefix
from methods.linear import ease_weights, largest, regressions

from tests.benchmarks.methods.conftest import (
    EXACT,
    dense,
    generator,
    kept_of,
    scores_of,
)

PLAIN = {'l2': 2.0}
NORMED = {
    'l2': 3.0,
    'dropout': 0.4,
    'user_norm': 0.5,
    'item_norm': 0.2,
    'item_power': -0.3,
}
SETTINGS = pytest.mark.parametrize('settings', [PLAIN, NORMED], ids=['plain', 'normed'])


def inverted(rated, settings):
    """The matrix that is inverted, dense, float64."""
    user, item = rated.sum(dim=1, keepdim=True).clamp(min=1), rated.sum(0)
    share = settings.dropout / (1 - settings.dropout)
    ridge = settings.l2 + share * item
    return rated.T @ (rated * user**-settings.user_norm) + ridge.diag()


def closed_form(rated, settings):
    p = torch.linalg.inv(inverted(rated, settings))
    return torch.eye(len(p)).double() - p / p.diagonal()


def scaled_scores(rows, train, weight, settings):
    item = train.sum(0).clamp(min=1)
    return (rows * item**-settings.item_norm) @ weight * item**settings.item_power


@pytest.fixture(scope='module')
def full():
    """Histories in which all pairs of items share users."""
    rated = torch.rand(60, 20, generator=generator()) < 0.5
    return histories_of(rated.nonzero().T, 60, 20)


# EASE and EDLAE -----------------------------------------------------------------------


def hard_histories(name, num_users):
    """Ratings whose Gram matrix has no full rank, and one value above all others."""
    draw = torch.rand(num_users, 80, generator=generator())
    share = {
        'twins': draw.repeat(1, 2),
        'popular items': draw * torch.linspace(1, 9, 80),
    }
    rated = share.get(name, draw) < (0.95 if name == 'nearly all' else 0.5)
    return histories_of(rated.nonzero().T, *rated.shape)


@pytest.mark.parametrize('settings', [{'l2': 1.0}, {'l2': 100.0}, NORMED], ids=str)
@pytest.mark.parametrize('name', ['random', 'twins', 'popular items', 'nearly all'])
@pytest.mark.parametrize('num_users', [60, 200])
@pytest.mark.parametrize('most', [8_000, 0], ids=['double', 'single'])
def test_ease_is_the_closed_form(most, num_users, name, settings, monkeypatch):
    """With fewer users than items, and with more."""
    monkeypatch.setattr(linear, 'MAX_DOUBLE_ITEMS', most)
    histories, method = hard_histories(name, num_users), EASE(**settings)
    want = closed_form(dense(histories), method)
    error = (ease_weights(histories, method) - want).abs().max() / want.abs().max()
    # Single precision keeps what is stored, in float16.
    assert error < (1e-6 if most else 5e-4)


@SETTINGS
def test_scores_of_ease(settings, small, others):
    method = EASE(**settings)
    weight, stored = closed_form(dense(small), method), method.fit(small)
    got = scores_of(method, stored, others).double()
    want = scaled_scores(dense(others), dense(small), weight, method)
    assert torch.allclose(got, want, atol=1e-2)
    assert stored['weight'].dtype == torch.half


def test_edlae_expects_dropout(small):
    """Its weights are the least squares over all ways to drop interactions."""
    rated, method = dense(small), EASE(l2=1e-6, dropout=0.4)
    weight = closed_form(rated, method)
    item, keep = 3, 0.6
    others = [x for x in range(small.num_items) if x != item]
    x, y = rated[:, others], rated[:, item]
    # E[z z'] and E[z] of z = x / keep where it is kept, with probability keep.
    second = x.T @ x
    second.diagonal().div_(keep)
    assert torch.allclose(
        weight[others, item], torch.linalg.solve(second, x.T @ y), atol=1e-4
    )


@SETTINGS
@pytest.mark.parametrize(('each', 'num'), [(0.001, 1), (3, 60), (20, 380)])
def test_pruned_columns_are_fitted_again(each, num, settings, small, others):
    """The entries of the highest cost stay; all but the zeros of the diagonal."""
    method = EASE(**settings, num_neighbors=each, weight_bits=EXACT)
    rated, matrix = dense(small), inverted(dense(small), method)
    weight, p = closed_form(rated, method), torch.linalg.inv(matrix)
    cost = weight.square() / p.diagonal().unsqueeze(1)
    kept = torch.zeros_like(cost)
    kept.view(-1)[cost.flatten().topk(num).indices] = 1
    want = torch.zeros_like(weight)
    for j in range(len(want)):
        s = kept[:, j].nonzero().flatten()
        want[s, j] = torch.linalg.solve(matrix[s][:, s], matrix[s, j])
    stored = method.fit(small)
    # Alone with an item that it shares no user with, a column is zero.
    assert len(kept_of(stored, small.num_items)[1]) == int((want != 0).sum())
    got = scores_of(method, stored, others).double()
    want = scaled_scores(dense(others), rated, want, method)
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('num', [1, 7, 399, 400, 500])
def test_largest_entries(num):
    weight = torch.randn(20, 20, generator=generator()).fill_diagonal_(0)
    kept = largest(weight, num)
    want = weight.abs().flatten().topk(min(num, 380)).values.sort().values
    assert weight[kept].abs().sort().values.equal(want)


# The sparse inverse -------------------------------------------------------------------


@SETTINGS
@pytest.mark.parametrize('popular_first', [True, False])
def test_full_sparse_inverse_is_ease(
    popular_first, settings, full, others, monkeypatch
):
    monkeypatch.setattr(linear, 'COLUMN_BITS', EXACT)
    method = FSAI(**settings, weight_bits=EXACT, popular_first=popular_first)
    weight = closed_form(dense(full), method)
    got = scores_of(method, method.fit(full), others).double()
    want = scaled_scores(dense(others), dense(full), weight, method)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'few', [{'num_candidates': 4}, {'num_neighbors': 2.0}], ids=str
)
def test_factor_has_the_least_error(few, small, monkeypatch):
    """Rows fit the inverse of the Cholesky factor best; earlier items alone matter."""
    monkeypatch.setattr(linear, 'COLUMN_BITS', EXACT)
    method = FSAI(**NORMED, **few, weight_bits=EXACT)
    stored, size = method.fit(small), small.num_items
    matrix = unpack_matrix(without_prefix('matrix', stored), size, size)
    w = torch.sparse_csr_tensor(*matrix, (size, size)).to_dense().double()
    variance = linear.unpack_column(without_prefix('variance', stored), size)
    degree = dense(small).sum(0)
    order = degree.argsort(descending=True, stable=True)
    w, variance = w[order][:, order], variance.double()[order]
    assert not w.triu().any()
    assert int((w != 0).sum(1).max()) <= 4 or few == {'num_neighbors': 2.0}
    assert few != {'num_neighbors': 2.0} or int((w != 0).sum()) == 2 * size
    factor = (torch.eye(size).double() - w) / variance.sqrt().unsqueeze(1)
    a = inverted(dense(small), method)[order][:, order]
    # The gradient of | G L - I |^2 is zero at all entries but those of the diagonal,
    # which make the diagonal of G A G' one.
    root = torch.linalg.cholesky(a)
    left = (factor @ root @ root.T).tril(-1)
    assert float(left[w != 0].abs().max()) < 1e-4
    assert torch.allclose((factor @ a @ factor.T).diagonal(), torch.ones(size).double())


def test_what_is_pruned_from_the_factor(small):
    """The entries that raise the logarithm of what is left over the least."""
    method = FSAI(**NORMED, num_candidates=3)
    whole = method.whole(small)
    row, col = whole['row'].long(), whole['col'].long()
    gram, ridge = method.gram(small), method.ridge(small)
    for place in range(0, len(row), 7):
        rest = torch.arange(len(row)) != place
        without = regressions(gram, ridge, row[rest], col[rest]).variance
        at = row[place]
        rise = without[at] / whole['variance'][at] - 1
        assert float(rise) == pytest.approx(float(whole['cost'][place]), rel=1e-4)
    few = replace(method, num_neighbors=1.0).kept(whole, small)
    matrix = unpack_matrix(without_prefix('matrix', few), *[small.num_items] * 2)
    best = whole['cost'].topk(small.num_items).indices.sort().values
    assert matrix.col.long().equal(col[best]) and matrix.row.equal(row[best])


def test_systems_in_several_batches_are_the_same(small, monkeypatch):
    method = FSAI(**NORMED, num_candidates=5)
    want = method.whole(small)
    monkeypatch.setattr(linear, 'BATCH', 60)
    got = method.whole(small)
    for name, x in want.items():
        torch.testing.assert_close(got[name], x)
