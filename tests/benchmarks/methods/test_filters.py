"""Filters against their formulas with dense matrices."""

import pytest
import torch
from methods import GFCF, ChebyCF, LinkProp, LowPass, Popularity, TurboCF

from tests.benchmarks.methods.conftest import dense, generator, scores_of


def scaled(rated, alpha=0.5):
    return (
        rated.sum(dim=1, keepdim=True) ** -alpha * rated * rated.sum(0) ** (alpha - 1)
    )


def all_scores(method, train, histories):
    return scores_of(method, method.fit(train, generator()), histories)


@pytest.fixture(params=['train', 'others'])
def askers(request, small, others):
    return small if request.param == 'train' else others


def test_popularity(small, askers):
    want = dense(small).sum(0).float().expand(askers.num_users, -1)
    assert all_scores(Popularity(), small, askers).equal(want)
    stored = Popularity().fit(small)
    assert stored['degree'].dtype == torch.uint8


@pytest.mark.parametrize('exponents', [(0.8, 1.1, 0.2), (0, 0.5, 1), (1, 0, 0)])
def test_link_prop(exponents, small, askers):
    rated, rows = dense(small), dense(askers)
    beta, gamma, delta = exponents
    item, user = rated.sum(0), rated.sum(dim=1, keepdim=True)
    want = (rows * item**-beta) @ rated.T @ (user**-gamma * rated * item**-delta)
    got = all_scores(LinkProp(*exponents), small, askers)
    assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('power', [0.0, 0.5])
def test_low_pass(power, small, askers):
    rated, rows = dense(small), dense(askers)
    degree = rated.sum(0)
    _, value, right = torch.linalg.svd(scaled(rated))
    x = right[:6].T * value[:6] ** power
    want = (rows * degree**-0.5) @ x @ x.T * degree**0.3
    got = all_scores(LowPass(6, power, item_power=0.3), small, askers)
    assert torch.allclose(got.double(), want, atol=1e-4)


def test_gfcf(small, askers):
    rated, rows = dense(small), dense(askers)
    degree = rated.sum(0)
    right = torch.linalg.svd(scaled(rated))[2][:5].T
    low = degree.unsqueeze(1) ** -0.5 * (right @ right.T) * degree**0.5
    want = rows @ (scaled(rated).T @ scaled(rated) + 0.7 * low)
    got = all_scores(GFCF(5, weight=0.7), small, askers)
    assert torch.allclose(got.double(), want, atol=1e-4)


@pytest.mark.parametrize(('rank', 'flatness'), [(5, 1.5), (0, 10.0)])
def test_chebycf(rank, flatness, small, askers):
    """The filter as the polynomial through its nine points, by matrix products."""
    rated, rows = dense(small), dense(askers)
    degree, place = rated.sum(0), torch.arange(9).double()
    node = ((9 - place - 0.5) / 9 * torch.pi).cos()
    x = ((8 - place) / 8 * torch.pi).cos()
    half = x.abs().pow(flatness) / 2
    value = torch.where(x < 0, 0.5 + half, 0.5 - half)
    one = torch.eye(small.num_items).double()
    graph = one - 2 * scaled(rated).T @ scaled(rated)
    passed = torch.zeros_like(one)
    for j in range(9):  # Lagrange
        part = value[j] * one
        for k in range(9):
            if k != j:
                part = part @ (graph - node[k] * one) / (node[j] - node[k])
        passed += part
    right = torch.linalg.svd(scaled(rated))[2][:rank].T
    passed += 0.7 * right @ right.T
    want = (rows * degree**-0.3) @ passed * degree**0.3
    got = all_scores(ChebyCF(rank, 0.7, 0.3, flatness), small, askers)
    assert torch.allclose(got.double(), want, atol=1e-4)


@pytest.mark.parametrize('name', ['linear', 'second', 'third'])
@pytest.mark.parametrize(('alpha', 'power'), [(0.5, 1.0), (0.2, 1.0), (0.2, 0.7)])
def test_turbo_cf(name, alpha, power, small, askers):
    rated, rows = dense(small), dense(askers)
    p = (scaled(rated, alpha).T @ scaled(rated, alpha)) ** power
    want = {
        'linear': p,
        'second': 2 * p - p @ p,
        'third': p + 0.01 * (-p @ p @ p + 10 * p @ p - 29 * p),
    }[name]
    got = all_scores(TurboCF(alpha, power, name), small, askers)
    assert torch.allclose(got.double(), rows @ want, rtol=1e-5, atol=1e-5)
