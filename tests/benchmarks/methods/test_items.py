"""Item neighbours and iALS against dense formulas and the library implicit."""

import sys
from math import log

import pytest
import torch
from methods import IALS, ItemKNN, histories_of
from methods.filters import as_scipy

from tests.benchmarks.methods.conftest import (
    EXACT,
    dense,
    generator,
    kept_of,
    scores_of,
)
from tests.hard import tables

# Neighbours ---------------------------------------------------------------------------


def similarity(rated, measure):
    """Dense similarities of items, float64."""
    _, num_items = rated.shape
    item_degree, user_degree = rated.sum(0), rated.sum(1, keepdim=True)
    # implicit's documents are the items, its terms the users.
    idf = log(num_items) - (1 + user_degree).log()
    if measure == 'cosine':
        weighted = rated
    elif measure == 'tfidf':
        weighted = rated * idf
    else:
        norm = 0.25 + 0.75 * item_degree / item_degree.mean()
        weighted = rated * 2.2 / (1.2 * norm + 1) * idf
    if measure != 'bm25':
        weighted = torch.nn.functional.normalize(weighted, dim=0)
    return weighted.T @ weighted


def test_users_of_all_items_but_one_weigh_nothing_by_tfidf():
    # Item 3 has no other user; the idf of the first one is log(4) - log(1 + 3) = 0.
    pytest.importorskip('implicit')
    pairs = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 3, 0, 1, 1, 2]])
    train, method = histories_of(pairs, 3, 4), ItemKNN(2, 'tfidf', weight_bits=EXACT)
    want = dense(train) @ similarity(dense(train), 'tfidf').fill_diagonal_(0)
    got = scores_of(method, method.fit(train), train).double()
    assert torch.allclose(got, want, atol=1e-6) and not got[:, 3].any()


@pytest.mark.parametrize('measure', ['cosine', 'tfidf', 'bm25'])
def test_neighbours_are_those_of_the_dense_formula(measure, small, others):
    pytest.importorskip('implicit')
    method = ItemKNN(4, measure, item_power=0.5, weight_bits=EXACT)
    stored = method.fit(small)
    full = similarity(dense(small), measure).fill_diagonal_(0)
    kept, col = kept_of(stored, small.num_items)
    scale = dense(small).sum(0).sqrt()
    found = kept / scale
    # Of equal similarities any may be kept.
    best = full.topk(4, dim=1).values
    assert torch.allclose(found.topk(4, dim=1).values, best, rtol=1e-5)
    assert torch.allclose(found[kept != 0], full[kept != 0], rtol=1e-5)
    assert len(col) == 4 * small.num_items
    got = scores_of(method, stored, others).double()
    assert torch.allclose(got, dense(others) @ kept, rtol=1e-5, atol=1e-6)


# iALS ---------------------------------------------------------------------------------


@pytest.mark.parametrize('alpha', [1.0, 10.0])
@pytest.mark.parametrize('lambda_reg', [0.1, 10.0])
def test_ials_is_that_of_implicit(alpha, lambda_reg, small, others):
    als = pytest.importorskip('implicit.cpu.als')
    method = IALS(5, alpha, lambda_reg, epochs=4)
    stored = method.fit(small, generator())
    model = als.AlternatingLeastSquares(
        method.embedding_dim,
        regularization=lambda_reg,
        alpha=alpha,
        iterations=method.epochs,
        num_threads=1,
        random_state=int(torch.randint(2**31 - 1, (), generator=generator())),
    )
    model.fit(as_scipy(small.matrix(), small.num_items), show_progress=False)
    assert stored['item.table'].equal(torch.from_numpy(model.item_factors))
    for asks in (small, others):
        users = torch.arange(asks.num_users).numpy()
        rows = as_scipy(asks.matrix(), asks.num_items)
        want = model.recalculate_user(users, rows) @ model.item_factors.T
        got = scores_of(method, stored, asks)
        torch.testing.assert_close(got, torch.from_numpy(want), rtol=0, atol=1e-4)


@pytest.mark.parametrize('lambda_reg', [1e-3, 10.0])
@pytest.mark.parametrize('name', tables(1, 1))
def test_ials_of_hard_items(name, lambda_reg, small):
    """The scores of all users by the formula, float64."""
    y = tables(small.num_items, 8)[name]
    method, item, want = IALS(8, lambda_reg=lambda_reg), y.double(), []
    for rated in dense(small):
        confidence = 1 + (method.alpha - 1) * rated
        left = item.T @ (confidence[:, None] * item) + lambda_reg * torch.eye(8)
        x = torch.linalg.solve(left, item.T @ (confidence * rated))
        want.append(item @ x)
    want, got = torch.stack(want), scores_of(method, {'item.table': y}, small)
    size = want.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    assert float(((got - want) / size).abs().max()) < 1e-4


# What is refused ----------------------------------------------------------------------


@pytest.mark.parametrize('method', [IALS(), ItemKNN()], ids=repr)
def test_missing_library_names_the_extra(method, small, monkeypatch):
    for name in ('implicit.nearest_neighbours', 'implicit.cpu.als'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pyg-c2f\[bench\]'):
        method.fit(small)
