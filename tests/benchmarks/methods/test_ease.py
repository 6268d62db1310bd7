"""EASE against its closed form and the least squares that it solves."""

import pytest
import torch
from methods import Histories, ease, file_bytes
from methods.base import unpack_matrix
from methods.ease import EASE, ease_weights, largest

from pyg_c2f.typing import InputError


def all_rows(histories):
    return histories.rows(torch.arange(histories.num_users)).double()


def closed_form(rated, l2):
    p = torch.linalg.inv(rated.T @ rated + l2 * torch.eye(rated.size(1)).double())
    return torch.eye(len(p)).double() - p / p.diagonal()


@pytest.mark.parametrize('most', [8_000, 0], ids=['double', 'single'])
def test_weights_are_the_closed_form(most, small, monkeypatch):
    monkeypatch.setattr(ease, 'MAX_DOUBLE_ITEMS', most)
    want = closed_form(all_rows(small), 3.0)
    got = ease_weights(small, 3.0)
    assert got.dtype == torch.float
    assert torch.allclose(got.double(), want, atol=1e-5)


def hard_histories(name):
    """Ratings whose Gram matrix has no full rank, and one value above all others."""
    draw = torch.rand(60, 80, generator=torch.Generator().manual_seed(0))
    share = {
        'twins': draw.repeat(1, 2),
        'popular items': draw * torch.linspace(1, 9, 80),
    }
    rated = share.get(name, draw) < (0.95 if name == 'nearly all' else 0.5)
    rowptr = torch.nn.functional.pad(rated.sum(dim=1).cumsum(0), (1, 0))
    return Histories(rowptr, rated.nonzero()[:, 1], rated.size(1))


@pytest.mark.parametrize('l2', [1.0, 100.0])
@pytest.mark.parametrize('name', ['few users', 'twins', 'popular items', 'nearly all'])
@pytest.mark.parametrize('most', [8_000, 0], ids=['double', 'single'])
def test_weights_of_hard_ratings(most, name, l2, monkeypatch):
    monkeypatch.setattr(ease, 'MAX_DOUBLE_ITEMS', most)
    histories = hard_histories(name)
    want = closed_form(all_rows(histories), l2)
    error = (ease_weights(histories, l2) - want).abs().max() / want.abs().max()
    # Single precision keeps what is stored, in float16.
    assert error < (1e-6 if most else 5e-4)


def test_weights_solve_the_least_squares_of_each_item(small):
    rated, weight = all_rows(small), ease_weights(small, 3.0).double()
    others = torch.arange(1, small.num_items)
    x = rated[:, others]
    want = torch.linalg.solve(x.T @ x + 3 * torch.eye(len(others)), x.T @ rated[:, 0])
    assert torch.allclose(weight[others, 0], want, atol=1e-5)


def test_whole_scores(small, others):
    method = EASE(2.0)
    stored = method.fit(small)
    want = all_rows(others) @ closed_form(all_rows(small), 2.0)
    got = method.scorer(stored, others)(torch.arange(others.num_users))
    assert torch.allclose(got.double(), want, atol=1e-2)
    assert stored['weight'].dtype == torch.half


def test_pruned_scores(small, others):
    method = EASE(2.0, 3, weight_bits=24)
    stored = method.fit(small)
    size = small.num_items
    weight = closed_form(all_rows(small), 2.0)
    least = weight.abs().flatten().topk(3 * size).values[-1]
    pruned = torch.where(weight.abs() >= least * (1 - 1e-6), weight, 0)
    assert len(unpack_matrix(stored, size, size).col) == 3 * size
    got = method.scorer(stored, others)(torch.arange(others.num_users))
    want = all_rows(others) @ pruned
    assert torch.allclose(got.double(), want, atol=1e-5)


def test_pruning_by_nothing_keeps_all_but_zeros(small):
    stored = EASE(2.0, small.num_items).fit(small)
    size = small.num_items
    assert len(unpack_matrix(stored, size, size).col) == size * (size - 1)


def test_largest():
    weight = torch.tensor([[0.0, -3.0], [2.0, 1.0]])
    assert torch.equal(largest(weight, 1), weight == -3)
    assert torch.equal(largest(weight, 2), weight.abs() >= 2)
    assert torch.equal(largest(weight, 4), weight != 0)


@pytest.mark.parametrize('method', [EASE(2.0), EASE(2.0, 3)], ids=repr)
def test_lists_need_histories_only(method, small, check_served):
    stored = method.fit(small)
    check_served(method, stored, small)
    assert file_bytes(stored) == file_bytes(method.fit(small))


def test_many_items_are_refused():
    many = Histories(torch.tensor([0, 1]), torch.tensor([0]), 30_000)
    with pytest.raises(InputError, match='3.6 GB'):
        EASE().fit(many)


@pytest.mark.parametrize(
    'wrong',
    [{'l2': 0.0}, {'num_neighbors': -1}, {'num_neighbors': 3, 'weight_bits': 1}],
)
def test_wrong_settings(wrong):
    with pytest.raises(InputError, match=list(wrong)[-1]):
        EASE(**wrong)


def test_one_entry_at_least(small):
    method = EASE(num_neighbors=0.001)
    score = method.scorer(method.fit(small), small)(torch.arange(small.num_users))
    assert (score != 0).any(dim=0).sum() == 1
