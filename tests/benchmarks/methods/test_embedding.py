"""Compressed tables against their definitions, one id at a time."""

import math
from functools import partial

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
    DHEmbedding,
    HashEmbedding,
    PEPEmbedding,
    QREmbedding,
    TTEmbedding,
)

from pyg_c2f.typing import InputError
from tests.benchmarks.methods.conftest import generator

N, D = 23, 12
MAKERS = {
    'hash': lambda n, d: HashEmbedding(n, d, max(n // 4, 1)),
    'qr': lambda n, d: QREmbedding(n, d, math.isqrt(n)),
    'tt': lambda n, d: TTEmbedding(n, d, 3),
    'dhe': lambda n, d: DHEmbedding(n, d, num_hashes=16, hidden=(8, 6)),
    'pep': lambda n, d: PEPEmbedding(n, d, -3.0),
}
every = pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)


def drawn(make, n=N, d=D, seed=0):
    emb = make(n, d)
    emb.reset_parameters(generator(seed))
    return emb


def by_definition(emb, row):
    return torch.stack([row(i) for i in range(emb.num_embeddings)])


def test_hash():
    emb = HashEmbedding(N, D, 5)
    order = sorted(range(N), key=lambda i: (FACTOR * i + OFFSET) % PRIME)
    assert emb.weight.equal(by_definition(emb, lambda i: emb.table[order[i] % 5]))
    count = torch.bincount(HashEmbedding(70_839, 1, 7083).bucket)
    assert (count.min(), count.max()) == (10, 11)


@pytest.mark.parametrize('num_remainders', [1, 5, 23])
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


@pytest.mark.parametrize('n', [1, 2, 7, 64, 1001, 70_839, 10**6])
def test_factors_of_a_tensor_train(n):
    factors = TTEmbedding(n, 1, 1).row_factors
    assert n <= math.prod(factors) <= n + max(factors) ** 2
    assert max(factors) <= math.ceil(round(n ** (1 / 3), 6))
    assert min(factors) == factors[1]
    for d, expected in ((128, [4, 4, 8]), (12, [2, 2, 3]), (7, [1, 1, 7])):
        assert sorted(TTEmbedding(N, d, 1).col_factors) == expected


@pytest.mark.parametrize('hidden', [(), (8, 6)])
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


@pytest.mark.parametrize('granularity', ['global', 'dimension', 'feature'])
def test_pep(granularity):
    emb = drawn(partial(PEPEmbedding, granularity=granularity))
    with torch.no_grad():
        emb.threshold.copy_(torch.randn(emb.threshold.shape, generator=generator()) - 3)

    def entry(i, j):
        v = emb.value[i, j].item()
        place = {'global': (0, 0), 'dimension': (0, j), 'feature': (i, 0)}[granularity]
        threshold = 1 / (1 + math.exp(-emb.threshold[place].item()))
        return math.copysign(max(abs(v) - threshold, 0), v)

    expected = [[entry(i, j) for j in range(D)] for i in range(N)]
    assert torch.allclose(emb.weight, torch.tensor(expected), atol=1e-6)
    size = {'global': 1, 'dimension': D, 'feature': N}[granularity]
    assert emb.threshold.numel() == size
    # A penalty on the size of the table raises the thresholds.
    emb.weight.square().sum().backward()
    assert (emb.threshold.grad <= 0).all() and emb.threshold.grad.any()


@every
def test_stands_for_an_embedding(make):
    """Rows, their gradients, and parameters from one generator."""
    emb, ids = drawn(make), torch.tensor([[0, 22, 5], [5, 1, 0]])
    assert emb(ids).equal(emb.weight[ids]) and emb.weight.shape == (N, D)
    with pytest.raises(IndexError):
        emb(torch.tensor([-1]))
    (emb.weight * torch.randn(N, D, generator=generator(1))).sum().backward()
    for name, parameter in emb.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    before = torch.get_rng_state()
    assert drawn(make).weight.equal(emb.weight)
    emb.reset_parameters(generator(4))
    assert not drawn(make).weight.equal(emb.weight)
    torch.set_rng_state(before)
    emb.reset_parameters(generator())
    assert torch.get_rng_state().equal(before)


@every
def test_stored_and_loaded(make):
    emb = drawn(make)
    stored = emb.stored()
    fresh, again = make(N, D), make(N, D)
    fresh.load(stored)
    again.load(fresh.stored())
    assert torch.allclose(fresh.weight, emb.weight, rtol=3e-3, atol=1e-3)
    assert fresh.weight.equal(again.weight)
    assert file_bytes(fresh.stored()) == file_bytes(stored)
    if not isinstance(emb, PEPEmbedding):
        parameters = sum(x.numel() for x in emb.parameters())
        assert sum(x.nbytes for x in stored.values()) == 2 * parameters
    with pytest.raises(InputError, match=type(emb).__name__):
        emb.load({'other': torch.zeros(3)})
    with pytest.raises(InputError, match=type(emb).__name__):
        # DHE looks the same with any number of rows.
        emb.load(make(100, 13 if isinstance(emb, DHEmbedding) else D).stored())
