"""Compressed tables against their definitions, one id at a time."""

import math

import numpy as np
import pytest
import torch
from methods.base import file_bytes
from methods.embedding import (
    FACTOR,
    HASH_SEED,
    HASH_VALUES,
    OFFSET,
    PRIME,
    CompressedEmbedding,
    DHEmbedding,
    HashEmbedding,
    PEPEmbedding,
    QREmbedding,
    TTEmbedding,
)
from torch_geometric.nn import LightGCN

from pyg_c2f.typing import InputError

N, D = 23, 12
MAKERS = {
    'hash': lambda n, d: HashEmbedding(n, d, max(n // 4, 1)),
    'qr': lambda n, d: QREmbedding(n, d, math.isqrt(n)),
    'tt': lambda n, d: TTEmbedding(n, d, 3),
    'dhe': lambda n, d: DHEmbedding(n, d, num_hashes=16, hidden=(8, 6)),
    'pep_global': lambda n, d: PEPEmbedding(n, d, -3.0, 'global'),
    'pep_dimension': lambda n, d: PEPEmbedding(n, d, -3.0),
    'pep_feature': lambda n, d: PEPEmbedding(n, d, -3.0, 'feature'),
}
every = pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(make, n=N, d=D, seed=0):
    emb = make(n, d)
    emb.reset_parameters(generator(seed))
    return emb


def num_bytes(stored):
    return {name: x.numel() * x.element_size() for name, x in stored.items()}


def by_definition(emb, row):
    return torch.stack([row(i) for i in range(emb.num_embeddings)])


def test_hash():
    emb = HashEmbedding(N, D, 5)
    order = sorted(range(N), key=lambda i: (FACTOR * i + OFFSET) % PRIME)
    assert emb.weight.equal(by_definition(emb, lambda i: emb.table[order[i] % 5]))


@pytest.mark.parametrize('num_buckets', [1, 64, 1000, 7083, 35_420, 70_839])
def test_hash_fills_buckets_evenly(num_buckets):
    n = 70_839
    count = torch.bincount(HashEmbedding(n, 1, num_buckets).bucket)
    assert count.min() == n // num_buckets
    assert count.max() == math.ceil(n / num_buckets)


@pytest.mark.parametrize('num_remainders', [1, 4, 5, 22, 23])
def test_quotient_remainder(num_remainders):
    emb = QREmbedding(N, D, num_remainders)
    expected = by_definition(
        emb,
        lambda i: emb.quotient[i // num_remainders] * emb.remainder[i % num_remainders],
    )
    assert emb.weight.equal(expected)
    assert len(emb.quotient) == (N - 1) // num_remainders + 1
    assert len(emb.weight.unique(dim=0)) == N


@pytest.mark.parametrize(('n', 'd', 'rank'), [(23, 12, 3), (27, 7, 1), (1, 1, 2)])
def test_tensor_train(n, d, rank):
    emb = TTEmbedding(n, d, rank)
    (_, n2, n3), (_, d2, d3) = emb.row_factors, emb.col_factors

    def entry(i, j):
        a = emb.first[i // (n2 * n3), j // (d2 * d3)]
        b = emb.middle[:, i // n3 % n2, j // d3 % d2]
        return a @ b @ emb.last[:, i % n3, j % d3]

    expected = [[entry(i, j).item() for j in range(d)] for i in range(n)]
    assert torch.allclose(emb.weight, torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize('n', [1, 2, 7, 8, 9, 64, 125, 1000, 1001, 70_839, 10**6])
def test_row_factors(n):
    factors = TTEmbedding(n, 1, 1).row_factors
    assert n <= math.prod(factors) <= n + max(factors) ** 2
    assert max(factors) <= math.ceil(round(n ** (1 / 3), 6))
    assert min(factors) == factors[1]
    if n > 1000:
        assert max(factors) - min(factors) <= 2


@pytest.mark.parametrize(
    ('d', 'factors'),
    [(64, [4, 4, 4]), (128, [4, 4, 8]), (12, [2, 2, 3]), (7, [1, 1, 7])],
)
def test_col_factors(d, factors):
    got = TTEmbedding(N, d, 1).col_factors
    assert sorted(got) == factors
    assert got[1] == factors[0]


@pytest.mark.parametrize('hidden', [(), (5,), (8, 6)])
def test_deep_hash(hidden):
    emb = DHEmbedding(N, D, num_hashes=16, hidden=hidden)
    draw = np.random.RandomState(HASH_SEED).randint
    factor = draw(1, PRIME, 16, np.int64).tolist()
    offset = draw(0, PRIME, 16, np.int64).tolist()

    def row(i):
        x = torch.tensor(
            [
                2 * ((a * i + b) % PRIME % HASH_VALUES) / (HASH_VALUES - 1) - 1
                for a, b in zip(factor, offset, strict=True)
            ]
        )
        *inner, last = emb.layers[::2]
        for layer in inner:
            x = layer.weight @ x + layer.bias
            x = x * (1 + x.exp()).log().tanh()
        return last.weight @ x + last.bias

    assert torch.allclose(emb.weight, by_definition(emb, row), atol=1e-6)
    assert [layer.out_features for layer in emb.layers[::2]] == [*hidden, D]
    assert 'encoding' not in emb.state_dict()


def test_deep_hash_encoding_is_uniform():
    x = DHEmbedding(5000, 1, num_hashes=64).encoding
    assert x.dtype == torch.float32
    assert -1 <= x.min() < -0.99 and 0.99 < x.max() <= 1
    assert torch.allclose(x.mean(dim=0), torch.zeros(64), atol=0.05)
    assert torch.allclose(x.var(dim=0), torch.full((64,), 1 / 3), atol=0.03)
    # A few pairs of affine hashes go together, most do not.
    assert x.T.corrcoef().fill_diagonal_(0).abs().mean() < 0.02


@pytest.mark.parametrize('granularity', ['global', 'dimension', 'feature'])
def test_pep(granularity):
    emb = PEPEmbedding(N, D, granularity=granularity)
    with torch.no_grad():
        emb.threshold.copy_(torch.randn(emb.threshold.shape) - 2)

    def entry(i, j):
        v = emb.value[i, j].item()
        place = {'global': (0, 0), 'dimension': (0, j), 'feature': (i, 0)}[granularity]
        threshold = 1 / (1 + math.exp(-emb.threshold[place].item()))
        return math.copysign(max(abs(v) - threshold, 0), v)

    expected = [[entry(i, j) for j in range(D)] for i in range(N)]
    assert torch.allclose(emb.weight, torch.tensor(expected), atol=1e-6)
    size = {'global': 1, 'dimension': D, 'feature': N}[granularity]
    assert emb.threshold.numel() == size


def test_pep_penalised_size_raises_thresholds():
    emb = PEPEmbedding(N, D)
    emb.weight.square().sum().backward()
    assert (emb.threshold.grad < 0).all()


def test_pep_trains_on_among_its_entries():
    stored = drawn(MAKERS['pep_dimension']).stored()
    emb = PEPEmbedding(N, D)
    emb.load(stored)
    alive = emb.weight != 0
    assert 0 < alive.sum() < N * D
    emb.weight.sum().backward()
    assert emb.value.grad.equal(alive.float())
    assert emb.threshold.grad.eq(0).all()


def test_pep_of_zeros():
    emb = PEPEmbedding(N, D, init_threshold=20.0)
    stored = emb.stored()
    assert len(stored['value']) == 0
    fresh = PEPEmbedding(N, D)
    fresh.load(stored)
    assert fresh.weight.eq(0).all()


@every
def test_forward_gives_rows(make):
    emb = make(N, D)
    ids = torch.tensor([[0, 22, 5], [5, 1, 0]])
    assert emb(ids).equal(emb.weight[ids])
    assert emb.weight.shape == (N, D)
    with pytest.raises(IndexError):
        emb(torch.tensor([-1]))


@every
def test_gradients(make):
    emb = drawn(make)
    (emb.weight * torch.randn(N, D, generator=generator(1))).sum().backward()
    for name, parameter in emb.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@every
def test_start(make):
    weight = drawn(make, 3000, 32).weight.detach()
    # The least threshold of the PEP tables here takes .047 from each size.
    std = 0.064 if isinstance(make(2, 1), PEPEmbedding) else CompressedEmbedding.std
    assert float(weight.std()) == pytest.approx(std, rel=0.1)
    assert float(weight.mean()) == pytest.approx(0, abs=0.01)


@every
def test_generator(make):
    assert drawn(make, seed=3).weight.equal(drawn(make, seed=3).weight)
    assert not drawn(make, seed=3).weight.equal(drawn(make, seed=4).weight)
    emb = make(N, D)
    before = torch.get_rng_state()
    emb.reset_parameters(generator())
    assert torch.get_rng_state().equal(before)


@every
def test_stored_and_loaded(make):
    emb = drawn(make)
    stored = emb.stored()
    fresh, again = make(N, D), make(N, D)
    fresh.load(stored)
    again.load(stored)
    again.load(again.stored())
    assert torch.allclose(fresh.weight, emb.weight, rtol=3e-3, atol=1e-3)
    assert fresh.weight.equal(again.weight)
    assert file_bytes(fresh.stored()) == file_bytes(stored)
    assert all(x.requires_grad for x in fresh.parameters())


@every
def test_load_refuses_others(make):
    emb = make(N, D)
    with pytest.raises(InputError, match=type(emb).__name__):
        emb.load({'other': torch.zeros(3)})
    with pytest.raises(InputError, match=type(emb).__name__):
        # DHE looks the same with any number of rows.
        emb.load(make(100, 13 if isinstance(emb, DHEmbedding) else D).stored())


def test_stored_sizes():
    assert num_bytes(HashEmbedding(N, D, 5).stored()) == {'table': 2 * 5 * D}
    qr = num_bytes(QREmbedding(N, D, 4).stored())
    assert qr == {'quotient': 2 * 6 * D, 'remainder': 2 * 4 * D}
    emb = TTEmbedding(N, D, 5)
    (n1, n2, n3), (d1, d2, d3) = emb.row_factors, emb.col_factors
    assert num_bytes(emb.stored()) == {
        'first': 2 * n1 * d1 * 5,
        'middle': 2 * 25 * n2 * d2,
        'last': 2 * 5 * n3 * d3,
    }
    dhe = num_bytes(DHEmbedding(N, D, 16, (8,)).stored())
    assert sum(dhe.values()) == 2 * (16 * 8 + 8 + 8 * D + D)


def test_stored_size_of_pep():
    emb = drawn(MAKERS['pep_dimension'])
    alive = (emb.weight.flatten() != 0).nonzero().flatten()
    most = int(alive[-1]) + 1
    width = int(math.log2(most // len(alive)))
    assert num_bytes(emb.stored()) == {
        'low': math.ceil(len(alive) * width / 8),
        'high': math.ceil(((most >> width) + len(alive) + 1) / 8),
        'width': 1,
        'value': 2 * len(alive),
    }


@pytest.mark.parametrize(
    'make',
    [
        lambda: HashEmbedding(0, D, 1),
        lambda: HashEmbedding(N, 0, 1),
        lambda: HashEmbedding(N, D, 0),
        lambda: HashEmbedding(N, D, N + 1),
        lambda: QREmbedding(N, D, 0),
        lambda: QREmbedding(N, D, N + 1),
        lambda: TTEmbedding(N, D, 0),
        lambda: TTEmbedding(N, -1, 2),
        lambda: DHEmbedding(1, D),
        lambda: DHEmbedding(N, D, 0),
        lambda: DHEmbedding(N, D, 16, (4, 0)),
        lambda: PEPEmbedding(0, D),
        lambda: PEPEmbedding(N, D, granularity='row'),
    ],
)
def test_impossible_sizes(make):
    with pytest.raises(InputError, match=r"'\w+Embedding' expected .* \(got .*\)"):
        make()


@every
def test_in_lightgcn(make):
    model = LightGCN(N, D, num_layers=2)
    model.embedding = drawn(make)
    before = model.embedding.weight
    edge_index = torch.randint(N, (2, 80), generator=generator())
    out = model.get_embedding(edge_index)
    plain = LightGCN(N, D, num_layers=2)
    plain.embedding.weight.data = before.detach()
    assert torch.allclose(out, plain.get_embedding(edge_index), atol=1e-6)
    rank = model(edge_index)
    model.recommendation_loss(rank[:40], rank[40:]).backward()
    for name, parameter in model.embedding.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
