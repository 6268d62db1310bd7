"""Filters against their formulas with dense matrices."""

import pytest
import torch
from methods import Histories, file_bytes
from methods.base import unpack_graph
from methods.filters import (
    GFCF,
    LinkProp,
    LowPass,
    TurboCF,
    as_scipy,
    history_rows,
    item_degree,
    small_int,
)

from pyg_c2f.typing import InputError

METHODS = [
    LinkProp(),
    LinkProp(0.8, 1.1, 0.2),
    LowPass(8, power=0.25),
    GFCF(8),
    TurboCF(0.4),
    TurboCF(0.6, filter='second'),
    TurboCF(power=0.7),
    TurboCF(0.6, 0.8, filter='third'),
]


def dense(histories):
    """All rows, float64."""
    return histories.rows(torch.arange(histories.num_users)).double()


def scaled(rated, alpha=0.5):
    return (
        rated.sum(dim=1, keepdim=True) ** -alpha * rated * rated.sum(0) ** (alpha - 1)
    )


def all_scores(method, stored, histories):
    return method.scorer(stored, histories)(torch.arange(histories.num_users))


@pytest.fixture(params=['train', 'others'])
def askers(request, small, others):
    return small if request.param == 'train' else others


@pytest.mark.parametrize('exponents', [(0.8, 1.1, 0.2), (0, 0.5, 1), (1, 0, 0)])
def test_link_prop(exponents, small, askers):
    rated, rows = dense(small), dense(askers)
    beta, gamma, delta = exponents
    item, user = rated.sum(0), rated.sum(dim=1, keepdim=True)
    want = (rows * item**-beta) @ rated.T @ (user**-gamma * rated * item**-delta)
    method = LinkProp(*exponents)
    got = all_scores(method, method.fit(small), askers)
    assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-6)


def test_link_prop_has_two_hops_of_the_normalised_graph(small):
    rated, method = scaled(dense(small)), LinkProp(1, 1, 0.5)
    got = all_scores(method, method.fit(small), small)
    user = small.rowptr.diff().unsqueeze(1) ** -0.5
    assert torch.allclose((user * got).double(), rated @ rated.T @ rated, atol=1e-6)


def test_link_prop_has_linear_turbo_cf(small, askers):
    alpha = 0.7
    got, want = (
        all_scores(method, method.fit(small), askers)
        for method in (LinkProp(1 - alpha, 2 * alpha, 1 - alpha), TurboCF(alpha))
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize('power', [0.0, 0.5])
def test_low_pass(power, small, askers):
    method = LowPass(6, power, item_power=0.3)
    stored = method.fit(small, torch.Generator().manual_seed(0))
    rated, rows = dense(small), dense(askers)
    degree = rated.sum(0)
    _, value, right = torch.linalg.svd(scaled(rated))
    x = right[:6].T * value[:6] ** power
    want = (rows * degree**-0.5) @ x @ x.T * degree**0.3
    assert torch.allclose(all_scores(method, stored, askers).double(), want, atol=1e-4)
    assert set(stored) == {'degree', 'item.table'}


def test_gfcf(small, askers):
    method = GFCF(5, weight=0.7)
    stored = method.fit(small, torch.Generator().manual_seed(0))
    rated, rows = dense(small), dense(askers)
    degree = rated.sum(0)
    right = torch.linalg.svd(scaled(rated))[2][:5].T
    low = degree.unsqueeze(1) ** -0.5 * (right @ right.T) * degree**0.5
    want = rows @ (scaled(rated).T @ scaled(rated) + 0.7 * low)
    assert torch.allclose(all_scores(method, stored, askers).double(), want, atol=1e-4)


@pytest.mark.parametrize('name', ['linear', 'second', 'third'])
@pytest.mark.parametrize('power', [1.0, 0.7])
@pytest.mark.parametrize('alpha', [0.5, 0.2])
def test_turbo_cf(name, power, alpha, small, askers):
    method = TurboCF(alpha, power, name)
    rated, rows = dense(small), dense(askers)
    p = (scaled(rated, alpha).T @ scaled(rated, alpha)) ** power
    want = {
        'linear': p,
        'second': 2 * p - p @ p,
        'third': p + 0.01 * (-p @ p @ p + 10 * p @ p - 29 * p),
    }[name]
    got = all_scores(method, method.fit(small), askers)
    assert torch.allclose(got.double(), rows @ want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('method', METHODS, ids=repr)
def test_lists_need_histories_only(method, small, check_served):
    stored = method.fit(small, torch.Generator().manual_seed(1))
    check_served(method, stored, small)
    again = method.fit(small, torch.Generator().manual_seed(1))
    assert file_bytes(stored) == file_bytes(again)


def test_rank_is_cut_to_the_matrix(small, others):
    # Of as many vectors as there are items nothing is filtered.
    stored = GFCF(500).fit(others, torch.Generator().manual_seed(0))
    assert stored['item.table'].shape == (small.num_items, others.num_users)


def test_items_without_users_are_served(small):
    more = small._replace(num_items=small.num_items + 3)
    for method in METHODS:
        scores = all_scores(method, method.fit(more), more)
        assert scores.isfinite().all()
        assert not scores[:, small.num_items :].any()


def test_large_dense_graphs_are_refused():
    many = Histories(torch.tensor([0, 1]), torch.tensor([0]), 20_001)
    with pytest.raises(InputError, match='1.6 GB.*use power=1'):
        TurboCF(power=0.5).fit(many)
    stored = TurboCF().fit(many)
    assert TurboCF().scorer(stored, many)(torch.tensor([0])).argmax() == 0


def test_unknown_filter():
    with pytest.raises(InputError, match="got 'fourth'"):
        TurboCF(filter='fourth')


@pytest.mark.parametrize(
    ('most', 'dtype'),
    [(255, torch.uint8), (256, torch.int16), (1 << 15, torch.int32)],
)
def test_small_int(most, dtype):
    values = torch.tensor([0, most])
    assert small_int(values).dtype == dtype
    assert torch.equal(small_int(values).long(), values)


def test_sparse_rows(small):
    users = torch.tensor([4, 29, 4])
    rows = as_scipy(history_rows(small, users), small.num_items).toarray()
    assert torch.equal(torch.from_numpy(rows), small.rows(users))


def test_graph_and_degrees_come_back(small):
    train = unpack_graph(LinkProp().fit(small), small.num_items)
    assert torch.equal(train.col, small.col)
    assert torch.equal(item_degree(train), dense(small).sum(0).long())
