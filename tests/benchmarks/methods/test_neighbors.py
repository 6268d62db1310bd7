"""Item neighbours against implicit itself and against dense matrices."""

import sys
from math import log

import pytest
import torch
from methods import Histories, file_bytes, histories_of
from methods.base import unpack_matrix
from methods.filters import as_scipy
from methods.neighbors import ItemKNN, sparse_scorer

from pyg_c2f.typing import InputError

nearest_neighbours = pytest.importorskip('implicit.nearest_neighbours')

# Weights on a grid of 24 bits are as good as float32.
EXACT = 24
MEASURES = ['cosine', 'tfidf', 'bm25']


def similarity(rated, measure):
    """Dense similarities of items, float64."""
    num_users, num_items = rated.shape
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


@pytest.mark.parametrize('measure', MEASURES)
def test_scores_are_those_of_the_dense_formula(measure, small, others):
    method = ItemKNN(4, measure, weight_bits=EXACT)
    stored = method.fit(small)
    size = small.num_items
    rated = small.rows(torch.arange(small.num_users)).double()
    full = similarity(rated, measure).fill_diagonal_(0)
    matrix = unpack_matrix(stored, size, size)
    row = torch.repeat_interleave(matrix.rowptr.diff()).long()
    kept = torch.zeros(size, size).double()
    kept[row, matrix.col.long()] = matrix.weight.double()
    # Of equal similarities any may be kept.
    best = full.topk(4, dim=1).values
    assert torch.allclose(kept.sort(descending=True).values[:, :4], best, rtol=1e-5)
    assert torch.equal(kept != 0, (kept != 0) & torch.isclose(kept, full, rtol=1e-5))
    assert len(matrix.col) == 4 * size
    users = torch.arange(others.num_users)
    want = others.rows(users).double() @ kept
    got = method.scorer(stored, others)(users)
    assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings('ignore:Method expects CSR input')
@pytest.mark.parametrize('measure', ['cosine', 'tfidf'])
def test_lists_are_those_of_implicit(measure, small, others):
    method = ItemKNN(4, measure, weight_bits=EXACT)
    score = method.scorer(method.fit(small), others)
    name = {'cosine': 'CosineRecommender', 'tfidf': 'TFIDFRecommender'}[measure]
    model = getattr(nearest_neighbours, name)(K=5)
    model.fit(as_scipy(small.matrix(), small.num_items).tocsr(), show_progress=False)
    for user in range(others.num_users):
        one = torch.tensor([user])
        asks = as_scipy(others.matrix(), others.num_items)[user]
        ids, values = model.recommend(user, asks, N=small.num_items)
        alive = torch.from_numpy(ids[ids >= 0]).long()
        got = score(one)[0].masked_fill(others.rows(one)[0] != 0, 0)
        want = torch.zeros(small.num_items)
        want[alive] = torch.from_numpy(values[ids >= 0]).float()
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)


def test_item_power_scales_what_is_stored(small, others):
    users = torch.arange(others.num_users)
    plain = ItemKNN(4, weight_bits=EXACT)
    scaled = ItemKNN(4, item_power=0.5, weight_bits=EXACT)
    degree = torch.bincount(small.col, minlength=small.num_items)
    want = plain.scorer(plain.fit(small), others)(users) * degree.sqrt()
    got = scaled.scorer(scaled.fit(small), others)(users)
    assert torch.allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('measure', MEASURES)
def test_lists_need_histories_only(measure, small, check_served):
    method = ItemKNN(4, measure)
    stored = method.fit(small)
    check_served(method, stored, small)
    assert file_bytes(stored) == file_bytes(method.fit(small))


def test_more_neighbors_than_items_and_items_without_users(small):
    more = Histories(small.rowptr, small.col, small.num_items + 2)
    method = ItemKNN(100)
    scores = method.scorer(method.fit(more), more)(torch.arange(more.num_users))
    assert scores.isfinite().all()
    assert not scores[:, small.num_items :].any()


def test_users_of_all_items_but_one_weigh_nothing_by_tfidf():
    # Item 3 has no other user; the idf of the first one is log(4) - log(1 + 3) = 0.
    pairs = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 3, 0, 1, 1, 2]])
    train, method = histories_of(pairs, 3, 4), ItemKNN(2, 'tfidf', weight_bits=EXACT)
    rated = train.rows(torch.arange(3)).double()
    want = similarity(rated, 'tfidf').fill_diagonal_(0)
    got = method.scorer(method.fit(train), train)(torch.arange(3))
    assert torch.allclose(got.double(), rated @ want, atol=1e-6)
    assert not got[:, 3].any()


def test_no_entries_score_nothing(small):
    matrix = small.matrix()._replace(
        rowptr=torch.zeros(small.num_items + 1, dtype=torch.int),
        col=torch.empty(0, dtype=torch.int),
        weight=torch.empty(0),
    )
    assert not sparse_scorer(matrix, small)(torch.arange(5)).any()


def test_unknown_measure():
    with pytest.raises(InputError, match="got 'jaccard'"):
        ItemKNN(measure='jaccard')


def test_missing_library_names_the_extra(small, monkeypatch):
    monkeypatch.setitem(sys.modules, 'implicit', None)
    with pytest.raises(ImportError, match=r'pyg-c2f\[bench\]'):
        ItemKNN().fit(small)


@pytest.mark.parametrize('wrong', [{'num_neighbors': 0}, {'weight_bits': 1}])
def test_nothing_kept(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        ItemKNN(**wrong)
