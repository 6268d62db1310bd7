"""iALS against implicit: the same tables, and the same users from their items."""

import sys

import pytest
import torch
from methods import IALS, Half, file_bytes
from methods.filters import as_scipy
from safetensors.torch import load

from tests.hard import tables

als = pytest.importorskip('implicit.cpu.als')

SMALL = {'embedding_dim': 5, 'epochs': 4}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def theirs(method, train=None, seed=0):
    """The model of implicit, trained or not."""
    model = als.AlternatingLeastSquares(
        method.embedding_dim,
        regularization=method.lambda_reg,
        alpha=method.alpha,
        iterations=method.epochs,
        num_threads=1,
        random_state=int(torch.randint(2**31 - 1, (), generator=generator(seed))),
    )
    if train is not None:
        model.fit(as_scipy(train.matrix(), train.num_items), show_progress=False)
    return model


@pytest.mark.parametrize('alpha', [1.0, 10.0])
@pytest.mark.parametrize('lambda_reg', [0.1, 10.0])
def test_scores_are_those_of_implicit(alpha, lambda_reg, small, others):
    method = IALS(alpha=alpha, lambda_reg=lambda_reg, **SMALL)
    stored = method.fit(small, generator())
    model = theirs(method, small)
    assert stored['item.table'].equal(torch.from_numpy(model.item_factors))
    for asks in (small, others):
        users = torch.arange(asks.num_users)
        rows = as_scipy(asks.matrix(), asks.num_items)
        factors = model.recalculate_user(users.numpy(), rows)
        want = torch.from_numpy(factors @ model.item_factors.T)
        torch.testing.assert_close(
            method.scorer(stored, asks)(users), want, rtol=0, atol=1e-4
        )


def dense_scores(method, item, histories):
    """The scores of all users by the formula, float64."""
    y, want = item.double(), []
    penalty = method.lambda_reg * torch.eye(y.size(1)).double()
    for rated in histories.rows(torch.arange(histories.num_users)).double():
        confidence = 1 + (method.alpha - 1) * rated
        left = y.T @ (confidence[:, None] * y) + penalty
        want.append(y @ torch.linalg.solve(left, y.T @ (confidence * rated)))
    return torch.stack(want)


def test_scores_are_those_of_the_dense_formula(small, others):
    method = IALS(alpha=3.0, lambda_reg=0.5, **SMALL)
    stored = method.fit(small, generator())
    want = dense_scores(method, stored['item.table'], others)
    got = method.scorer(stored, others)(torch.arange(others.num_users))
    assert torch.allclose(got.double(), want, atol=1e-5)


@pytest.mark.parametrize('lambda_reg', [1e-3, 10.0])
@pytest.mark.parametrize('name', tables(1, 1))
def test_scores_of_hard_items(name, lambda_reg, small):
    item = tables(small.num_items, 8)[name]
    method = IALS(embedding_dim=8, lambda_reg=lambda_reg)
    want = dense_scores(method, item, small)
    got = method.scorer({'item.table': item}, small)(torch.arange(small.num_users))
    size = want.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    assert float(((got - want) / size).abs().max()) < 1e-4


def test_no_users_have_no_scores(small):
    method = IALS(**SMALL)
    score = method.scorer(method.fit(small, generator()), small)
    assert score(torch.arange(0)).shape == (0, small.num_items)


def test_more_rounds_fit_better(small):
    """The weighted square error falls: users are solved for, items trained."""

    def error(epochs):
        method = IALS(embedding_dim=5, epochs=epochs, lambda_reg=0.01)
        users = torch.arange(small.num_users)
        score = method.scorer(method.fit(small, generator()), small)(users)
        rated = small.rows(users)
        return float(((1 + 9 * rated) * (rated - score).square()).sum())

    assert error(8) < error(1) < 10 * len(small.col)


def test_the_codec_is_used(small, others):
    method = IALS(codec=Half(), **SMALL)
    stored = method.fit(small, generator())
    plain = IALS(**SMALL).fit(small, generator())
    assert stored['item.table'].equal(plain['item.table'].half())
    users = torch.arange(others.num_users)
    rounded = {'item.table': plain['item.table'].half().float()}
    want = IALS(**SMALL).scorer(rounded, others)(users)
    assert method.scorer(load(file_bytes(stored)), others)(users).equal(want)


def test_missing_library_names_the_extra(small, monkeypatch):
    monkeypatch.setitem(sys.modules, 'implicit.cpu.als', None)
    with pytest.raises(ImportError, match=r'pyg-c2f\[bench\]'):
        IALS().fit(small)
