"""What holds for every method: the file is the method, and one seed is one file."""

from dataclasses import FrozenInstanceError, is_dataclass
from functools import partial

import methods
import pytest
import torch
from methods import (
    EASE,
    GFCF,
    IALS,
    Baseline,
    CompressedLightGCN,
    DHEmbedding,
    Fast,
    Half,
    HashEmbedding,
    ItemKNN,
    LightGCN,
    LightGCNFromItems,
    LinkProp,
    LowPass,
    Paper,
    PEPEmbedding,
    Popularity,
    ProductCodes,
    QREmbedding,
    TTEmbedding,
    TurboCF,
    file_bytes,
    histories_of,
)
from safetensors.torch import load_file

from pyg_c2f.config import FastRecipe, Recipe
from pyg_c2f.evaluate import rank_items

TRAINING = {
    'embedding_dim': 6,
    'num_neg_samples': 8,
    'batch_size': 64,
    'epochs': 2,
}
FAST = {'embedding_dim': 8, 'coarse_links': 3.0, 'num_fine': 8}
PAPER = Recipe(
    num_coarse=5,
    num_fine=3,
    embedding_dim=6,
    num_layers=2,
    fine_per_coarse=2,
    anchors='random',
    pca_components=3,
)
EMBEDDINGS = {
    'hash': partial(HashEmbedding, num_buckets=9),
    'quotient remainder': partial(QREmbedding, num_remainders=7),
    'tensor train': partial(TTEmbedding, rank=2),
    'deep hash': partial(DHEmbedding, num_hashes=6, hidden=(5,)),
    'pruned': partial(PEPEmbedding, init_threshold=-3.0),
}
METHODS = {
    'popularity': Popularity(),
    'item neighbours': ItemKNN(4),
    'ease': EASE(l2=5),
    'ease pruned': EASE(l2=5, num_neighbors=6),
    'link prop': LinkProp(0.8, 1.1, 0.2),
    'two hops': LinkProp(1, 1, 0.5),
    'low pass': LowPass(6),
    'gf-cf': GFCF(6, codec=Half()),
    'turbo-cf': TurboCF(),
    'turbo-cf dense': TurboCF(power=0.7, filter='third'),
    'ials': IALS(5, epochs=3),
    'lightgcn': LightGCN(**TRAINING),
    'lightgcn softmax': LightGCN(loss='softmax', num_layers=2, **TRAINING),
    'lightgcn bpr': LightGCN(loss='bpr', start='random', num_layers=2, **TRAINING),
    'matrix factorisation': LightGCN(num_layers=0, **TRAINING),
    'lightgcn product codes': LightGCN(codec=ProductCodes(3, bits=3), **TRAINING),
    'lightgcn from items': LightGCNFromItems(codec=Half(), **TRAINING),
    'fast': Fast(FastRecipe(**FAST)),
    'fast diffusion': Fast(FastRecipe(diffusion=0.5, **FAST)),
    'paper coarse': Paper(PAPER, (1, 2)),
    'paper': Paper(PAPER, (1, 2), (1, 2)),
} | {
    f'lightgcn {name} {num_layers}': CompressedLightGCN(
        embedding=embedding, num_layers=num_layers, **TRAINING
    )
    for name, embedding in EMBEDDINGS.items()
    for num_layers in (0, 2)
}
SERVING = [name for name, method in METHODS.items() if method.serves_anyone]
LIBRARIES = {'item neighbours': 'implicit', 'ials': 'implicit'}
LIBRARIES['lightgcn product codes'] = 'faiss'


@pytest.fixture(params=METHODS)
def method(request):
    if request.param in LIBRARIES:
        pytest.importorskip(LIBRARIES[request.param])
    return METHODS[request.param]


def fit(method, histories, seed=0):
    return method.fit(histories, torch.Generator().manual_seed(seed))


def scores_of(method, stored, histories):
    return method.scorer(stored, histories)(torch.arange(histories.num_users))


def test_no_method_is_left_out():
    names = (getattr(methods, name) for name in methods.__all__)
    kinds = {x for x in names if isinstance(x, type) and issubclass(x, Baseline)}
    assert {type(x) for x in METHODS.values()} == kinds - {Baseline}


def test_settings_are_frozen(method):
    assert is_dataclass(method) and method == type(method)(**vars(method))
    with pytest.raises(FrozenInstanceError):
        method.serves_anyone = None


def test_scores_come_from_the_file(method, small, tmp_path):
    stored = fit(method, small)
    path = tmp_path / 'method.safetensors'
    path.write_bytes(file_bytes(stored))
    assert path.stat().st_size == len(file_bytes(stored))
    loaded = load_file(path)
    assert loaded.keys() == stored.keys()
    got = scores_of(method, loaded, small)
    assert got.equal(scores_of(method, stored, small))
    assert not any(x.requires_grad for x in (got, *stored.values()))


def test_scores_are_finite_float32(method, small):
    score = method.scorer(fit(method, small), small)
    users = torch.tensor([29, 3, 3, 0])
    got = score(users)
    assert got.shape == (4, small.num_items) and got.dtype == torch.float
    assert got.isfinite().all()
    assert torch.allclose(got[1], got[2])
    whole = score(torch.arange(small.num_users))
    assert torch.allclose(got, whole[users], rtol=1e-5, atol=1e-5)
    assert score(users[:0]).shape == (0, small.num_items)


def test_the_scorer_leaves_all_as_it_was(method, small):
    stored = fit(method, small)
    before, keys = file_bytes(stored), list(stored)
    histories = small._replace(rowptr=small.rowptr.clone(), col=small.col.clone())
    score, users = method.scorer(stored, histories), torch.arange(small.num_users)
    first = score(users).clone()
    assert score(users).equal(first)
    assert file_bytes(stored) == before and list(stored) == keys
    assert histories.rowptr.equal(small.rowptr) and histories.col.equal(small.col)


def test_one_seed_is_one_file(method, small):
    first, again = fit(method, small), fit(method, small)
    assert first.keys() == again.keys()
    for name, x in first.items():
        assert x.dtype == again[name].dtype and x.equal(again[name])
    assert file_bytes(first) == file_bytes(again)


def test_who_is_served(method, small, check_served):
    stored = fit(method, small)
    if method.serves_anyone:
        check_served(method, stored, small)
        return
    # A user is his id, whatever he is said to have.
    want = scores_of(method, stored, small)
    nobody = histories_of(small.edge_index[:, :0], small.num_users, small.num_items)
    shifted = histories_of(
        torch.stack([small.edge_index[0], small.num_items - 1 - small.edge_index[1]]),
        small.num_users,
        small.num_items,
    )
    for histories in (nobody, shifted):
        assert scores_of(method, stored, histories).equal(want)
    assert not torch.allclose(want[3], want[8])


@pytest.mark.parametrize('method', SERVING, indirect=True)
def test_other_people_are_served(method, small, others):
    stored = fit(method, small)
    got = scores_of(method, stored, others)
    assert got.shape == (others.num_users, small.num_items) and got.isfinite().all()
    # One at a time, too, with ids of their own.
    for user in range(others.num_users):
        item = others.col[others.rowptr[user] : others.rowptr[user + 1]]
        alone = histories_of(torch.stack([item * 0, item]), 1, small.num_items)
        one = scores_of(method, stored, alone)[0]
        assert torch.allclose(one, got[user], rtol=1e-4, atol=1e-5)


def test_items_are_ranked(method, small):
    score, users = method.scorer(fit(method, small), small), torch.tensor([4, 17])
    ranking = rank_items(score, users, small.num_items, small.edge_index, 5, 1)
    assert ranking.shape == (2, 5)
    rated = small.rows(users) != 0
    assert not rated.gather(1, ranking).any()
    left = score(users).masked_fill(rated, -torch.inf)
    best = left.topk(5, dim=1).values
    assert torch.allclose(left.gather(1, ranking), best, rtol=1e-4, atol=1e-5)


def test_users_without_items_are_ranked(method, small):
    """Users of the training who have nothing, the last one among them."""
    pairs = small.edge_index[:, small.edge_index[0] % 10 != 9]
    histories = histories_of(pairs, small.num_users, small.num_items + 1)
    got = scores_of(method, fit(method, histories), histories)
    assert got.shape == (30, 21) and got.isfinite().all()


def test_all_that_is_drawn_comes_from_the_generator(method, small):
    torch.manual_seed(1)
    stored = fit(method, small)
    torch.manual_seed(99)
    assert file_bytes(fit(method, small)) == file_bytes(stored)
