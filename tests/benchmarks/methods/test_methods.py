"""What holds for every method: the file is the method, and one seed is one file."""

from functools import cache, partial

import methods
import pytest
import torch
from methods import (
    EASE,
    FSAI,
    GFCF,
    IALS,
    Baseline,
    ChebyCF,
    ColumnWise,
    CompressedLightGCN,
    DHEmbedding,
    Fast,
    Half,
    HashEmbedding,
    Histories,
    ItemKNN,
    LightGCN,
    LightGCNFromItems,
    LinkProp,
    LowPass,
    Paper,
    PEPEmbedding,
    Popularity,
    ProductCodes,
    Pruned,
    QREmbedding,
    RowWise,
    TTEmbedding,
    TurboCF,
    file_bytes,
    histories_of,
)
from safetensors.torch import load

from pyg_c2f.recipes import FastRecipe, PaperRecipe
from pyg_c2f.typing import InputError
from tests.benchmarks.methods.conftest import generator, scores_of

TRAINING = {'embedding_dim': 4, 'num_neg_samples': 3, 'batch_size': 16, 'epochs': 2}
PAPER = PaperRecipe(
    num_coarse=2,
    num_fine=2,
    embedding_dim=4,
    num_layers=1,
    fine_per_coarse=2,
    anchors='random',
    pca_components=2,
    num_neg_samples=1,
)
EMBEDDINGS = {
    'hash': partial(HashEmbedding, num_buckets=2),
    'quotient remainder': partial(QREmbedding, num_remainders=2),
    'tensor train': partial(TTEmbedding, rank=2),
    'deep hash': partial(DHEmbedding, num_hashes=3, hidden=(3,)),
    'pruned': partial(PEPEmbedding, init_threshold=-2.0),
}
METHODS = {
    'popularity': Popularity(),
    'item neighbours': ItemKNN(2),
    'item neighbours tfidf': ItemKNN(2, 'tfidf'),
    'item neighbours bm25': ItemKNN(2, 'bm25', item_power=0.5),
    'ease': EASE(l2=5),
    'edlae': EASE(5, 0.5, 0.3, 0.2, 0.1),
    'edlae pruned': EASE(5, 0.5, 0.3, 0.2, 0.1, num_neighbors=1.5),
    'sparse inverse': FSAI(5, 0.5, 0.3, 0.2, 0.1, num_candidates=4),
    'sparse inverse pruned': FSAI(5, num_neighbors=1.5, popular_first=False),
    'link prop': LinkProp(0.8, 1.1, 0.2),
    'two hops': LinkProp(1, 1, 0.5),
    'low pass': LowPass(4, power=0.5),
    'low pass by rows': LowPass(4, codec=RowWise(4)),
    'low pass by columns': LowPass(4, codec=ColumnWise(4)),
    'low pass pruned': LowPass(4, codec=Pruned(0.3)),
    'low pass product codes': LowPass(2, codec=ProductCodes(1, bits=1)),
    'gf-cf': GFCF(4, codec=Half()),
    'chebycf': ChebyCF(4, codec=Half()),
    'chebycf without low pass': ChebyCF(0),
    'turbo-cf': TurboCF(),
    'turbo-cf dense': TurboCF(power=0.7, filter='third'),
    'turbo-cf second': TurboCF(alpha=0.2, filter='second'),
    'ials': IALS(3, epochs=2),
    'lightgcn': LightGCN(**TRAINING),
    'lightgcn softmax': LightGCN(loss='softmax', num_layers=2, **TRAINING),
    'lightgcn bpr': LightGCN(loss='bpr', start='random', num_layers=2, **TRAINING),
    'matrix factorisation': LightGCN(num_layers=0, **TRAINING),
    'lightgcn from items': LightGCNFromItems(codec=Half(), **TRAINING),
    'fast': Fast(FastRecipe(embedding_dim=8, coarse_per_item=3.0, num_fine=8)),
    'fast diffusion': Fast(FastRecipe(embedding_dim=4, num_fine=4, diffusion=0.5)),
    'paper coarse': Paper(PAPER, (1, 2)),
    'paper': Paper(PAPER, (1, 2), (1, 2)),
} | {
    f'lightgcn {name}': CompressedLightGCN(embedding=embedding, **TRAINING)
    for name, embedding in EMBEDDINGS.items()
}


def find_libraries(name: str) -> None:
    """Skips the test where the library that a method is made of is missing."""
    if isinstance(METHODS[name], IALS | ItemKNN):
        pytest.importorskip('implicit')
    if 'product codes' in name:
        pytest.importorskip('faiss')


@pytest.fixture(params=METHODS)
def name(request):
    find_libraries(request.param)
    return request.param


@pytest.fixture(scope='session')
def fitted(small):
    """The tensors that a method stores, fitted once."""
    return cache(lambda name: fit(METHODS[name], small))


def fit(method, histories, seed=0):
    return method.fit(histories, generator(seed))


def test_no_method_is_left_out():
    names = (getattr(methods, name) for name in methods.__all__)
    kinds = {x for x in names if isinstance(x, type) and issubclass(x, Baseline)}
    assert {type(x) for x in METHODS.values()} == kinds - {Baseline}


def test_scores_come_from_the_file(name, small, fitted):
    method, stored = METHODS[name], fitted(name)
    before, rows = file_bytes(stored), (small.rowptr.clone(), small.col.clone())
    score, whole = method.scorer(stored, small), scores_of(method, stored, small)
    assert whole.shape == (small.num_users, small.num_items)
    assert whole.dtype == torch.float and whole.isfinite().all()
    assert not any(x.requires_grad for x in (whole, *stored.values()))
    assert scores_of(method, load(before), small).equal(whole)
    users = torch.tensor([29, 3, 3, 0])
    torch.testing.assert_close(score(users), whole[users], rtol=1e-5, atol=1e-5)
    assert score(users[:0]).shape == (0, small.num_items)
    # Asking changes nothing.
    assert file_bytes(stored) == before
    assert small.rowptr.equal(rows[0]) and small.col.equal(rows[1])


def test_one_seed_is_one_file(name, small, fitted):
    """All that is drawn comes from the generator."""
    torch.manual_seed(99)
    assert file_bytes(fit(METHODS[name], small)) == file_bytes(fitted(name))


def test_who_is_served(name, small, others, fitted):
    """Scores follow the histories, or belong to the users of the training."""
    method, stored = METHODS[name], fitted(name)
    want, order = scores_of(method, stored, small), torch.arange(29, -1, -1)
    user, item = small.edge_index
    turned = histories_of(torch.stack([order[user], item]), 30, small.num_items)
    got = scores_of(method, stored, turned)
    if not method.serves_anyone:
        assert got.equal(want) and not torch.allclose(want[3], want[8])
        if type(method) is LightGCN:
            with pytest.raises(InputError, match='serves anyone'):
                method.scorer(stored, others)
        return
    torch.testing.assert_close(got, want[order], rtol=0, atol=1e-6)
    got = scores_of(method, stored, others)
    for user in range(others.num_users):  # one at a time
        item = others.col[others.rowptr[user] : others.rowptr[user + 1]]
        alone = histories_of(torch.stack([item * 0, item]), 1, small.num_items)
        one = scores_of(method, stored, alone)[0]
        torch.testing.assert_close(one, got[user], rtol=1e-4, atol=1e-5)
    nobody = Histories(torch.zeros(3, dtype=torch.long), item[:0], small.num_items)
    empty = scores_of(method, stored, nobody)
    assert empty.isfinite().all() and empty[0].equal(empty[1])


def test_users_and_items_without_interactions(name, small):
    """The last user and the last item are among them."""
    pairs = small.edge_index[:, small.edge_index[0] % 10 != 9]
    histories = histories_of(pairs, small.num_users, small.num_items + 1)
    method = METHODS[name]
    got = scores_of(method, fit(method, histories), histories)
    assert got.shape == (30, 21) and got.isfinite().all()


MANY = Histories(torch.tensor([0, 1]), torch.tensor([0]), 30_000)
TABLE = torch.arange(60.0).view(5, 12)
WRONG = [
    (lambda: histories_of(torch.tensor([[0, 5], [1, 0]]), 5, 6), 'user ids'),
    (lambda: histories_of(torch.tensor([[0, 1], [1, -2]]), 5, 6), 'item ids'),
    (lambda: histories_of(torch.zeros(3, 4).long(), 5, 6), 'pairs of shape'),
    (lambda: histories_of(torch.zeros(2, 4), 5, 6), 'pairs of shape'),
    (lambda: TurboCF(filter='fourth'), "got 'fourth'"),
    (lambda: TurboCF(power=0.5).fit(MANY), 'GB.*use power=1'),
    (lambda: EASE().fit(MANY), r"3.6 GB.*'FSAI'"),
    (lambda: EASE(l2=0.0), 'l2'),
    (lambda: EASE(dropout=1.0), r"'EASE' expected dropout .* \(got 1.0\)"),
    (lambda: EASE(num_neighbors=-1), 'num_neighbors'),
    (lambda: FSAI(l2=-1.0), "'FSAI' expected l2"),
    (lambda: FSAI(num_candidates=0), 'num_candidates'),
    (lambda: EASE(num_neighbors=3, weight_bits=1), 'weight_bits'),
    (lambda: ItemKNN(num_neighbors=0), 'num_neighbors'),
    (lambda: ItemKNN(measure='jaccard'), "got 'jaccard'"),
    (lambda: LightGCN(loss='bce'), "got 'bce'"),
    (lambda: LightGCN(start='zero'), "got 'zero'"),
    (lambda: LightGCN(num_layers=-1), 'num_layers'),
    (lambda: LightGCN(eval_every=0), 'eval_every'),
    (
        lambda: CompressedLightGCN(embedding=EMBEDDINGS['hash'], codec=RowWise(8)),
        'random start and no codec',
    ),
    (
        lambda: CompressedLightGCN(embedding=EMBEDDINGS['hash'], start='spectral'),
        'random start and no codec',
    ),
    (lambda: HashEmbedding(5, 4, 6), r"'HashEmbedding' expected .* \(got .*\)"),
    (lambda: QREmbedding(5, 4, 0), r"'QREmbedding' expected .* \(got .*\)"),
    (lambda: DHEmbedding(5, 4, 16, (4, 0)), r"'DHEmbedding' expected .* \(got .*\)"),
    (lambda: PEPEmbedding(5, 4, granularity='row'), "'PEPEmbedding' expected .*got"),
    (lambda: RowWise(2), r'RowWise: bits=2; choose from 8, 4$'),
    (lambda: ProductCodes(bits=9), r'ProductCodes: bits=9; choose from 1, 2, .*8$'),
    (lambda: Pruned(0), r'Pruned: keep=0 .* set it above 0 and at most 1'),
    (lambda: ProductCodes(5).encode(TABLE), r'num_blocks=5 .* 12 columns'),
    (lambda: ProductCodes(4).encode(TABLE), r'bits=8 needs 256 .* fewer bits'),
    (lambda: Half().encode(torch.zeros(3)), r'Half: a table of shape \[3\]'),
    (lambda: RowWise().encode(TABLE / 0), r'RowWise: .* not finite'),
    (lambda: Half().encode(TABLE * 1e6), r'do not fit float16; .*below 65504'),
]


@pytest.mark.parametrize(('make', 'says'), WRONG, ids=[says for _, says in WRONG])
def test_what_is_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
