"""Codecs of tables: what is kept, how large it is, and that it comes back."""

import math
import sys

import pytest
import torch
from methods import file_bytes
from methods.codec import (
    ColumnWise,
    Half,
    Plain,
    ProductCodes,
    Pruned,
    RowWise,
)
from safetensors.torch import load

from pyg_c2f.packing import unpack_bits
from pyg_c2f.typing import InputError

DIRECT = 'donot_use_mm_for_euclid_dist'
PRODUCT = [
    ProductCodes(4, bits=8),
    ProductCodes(4, bits=4),
    ProductCodes(3, bits=5),
    ProductCodes(12, bits=1),
    ProductCodes(4, bits=4, optimised=True),
    ProductCodes(3, bits=5, optimised=True),
]
OTHERS = [
    Plain(),
    Half(),
    RowWise(8),
    RowWise(4),
    ColumnWise(8),
    ColumnWise(4),
    ColumnWise(2),
    Pruned(0.2),
    Pruned(1.0),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(num=300, dim=12):
    x = torch.randn(num, dim, generator=generator(3))
    return x * torch.linspace(0.1, 2, dim) + torch.linspace(-1, 1, dim)


def size(stored):
    return sum(x.numel() * x.element_size() for x in stored.values())


def error(codec, x):
    decoded = codec.decode(codec.encode(x, generator()))
    return float((decoded - x).square().mean())


@pytest.fixture
def faiss():
    return pytest.importorskip('faiss')


def check_file(codec, x):
    stored = codec.encode(x, generator())
    decoded = codec.decode(load(file_bytes(stored)))
    assert decoded.dtype == torch.float and decoded.shape == x.shape
    assert decoded.equal(codec.decode(stored))
    again = codec.encode(x.clone(), generator())
    assert again.keys() == stored.keys()
    assert all(again[name].equal(stored[name]) for name in stored)
    # No setting is needed but what lies in the file.
    assert type(codec)().decode(stored).equal(decoded)
    assert not decoded.requires_grad


@pytest.mark.parametrize('codec', OTHERS, ids=repr)
@pytest.mark.parametrize('dim', [12, 7])
def test_file(codec, dim):
    check_file(codec, rows(dim=dim))


@pytest.mark.parametrize('codec', PRODUCT, ids=repr)
def test_file_of_product_codes(codec, faiss):
    check_file(codec, rows())


@pytest.mark.parametrize('codec', OTHERS, ids=repr)
def test_one_entry(codec):
    x = torch.tensor([[0.75]])
    assert codec.decode(codec.encode(x)).allclose(x)


@pytest.mark.parametrize('codec', OTHERS[1:], ids=repr)
def test_tables_as_they_come_from_training(codec):
    x = rows(12, 12)
    odd = torch.nn.Parameter(x.T.double())
    expected = codec.decode(codec.encode(x.T.contiguous()))
    assert codec.decode(codec.encode(odd)).equal(expected)


def test_half():
    x = rows()
    stored = Half().encode(x)
    assert Half().decode(stored).allclose(x, rtol=1e-3)
    assert size(stored) == 2 * x.numel()


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize('dim', [12, 7, 1])
def test_row_wise(bits, dim):
    x = rows(dim=dim)
    stored = RowWise(bits).encode(x)
    decoded = RowWise(bits).decode(stored)
    low, high = x.aminmax(dim=1, keepdim=True)
    # Half a step; with 4 bits scale and zero are themselves rounded, to float16.
    slack = 1e-6 if bits == 8 else 2**-10 * x.abs().amax(dim=1, keepdim=True)
    bound = (high - low) / (2**bits - 1) / 2 + slack
    assert bool(((decoded - x).abs() <= bound).all())
    per_row = dim + 8 if bits == 8 else math.ceil(dim / 2) + 4
    assert size(stored) == len(x) * per_row + (bits == 4)


@pytest.mark.parametrize('bits', [8, 4, 2])
@pytest.mark.parametrize('dim', [12, 7, 1])
def test_column_wise(bits, dim):
    x = rows(dim=dim)
    stored = ColumnWise(bits).encode(x)
    decoded = ColumnWise(bits).decode(stored)
    # A few values a column, and each entry has the nearest of them.
    for col, kept in zip(x.T, decoded.T, strict=True):
        grid = kept.unique()
        assert len(grid) <= 2**bits
        nearest = (col.unsqueeze(1) - grid).abs().min(dim=1).values
        assert (col - kept).abs().allclose(nearest, atol=1e-6)
    # No worse than the whole range.
    low, high = x.aminmax(dim=0)
    step = (high - low) / (2**bits - 1)
    plain = low + ((x - low) / step).round() * step
    left, right = (decoded - x).square().sum(dim=0), (plain - x).square().sum(dim=0)
    assert bool((left <= right * (1 + 1e-3)).all())
    assert bits == 8 or float(left.sum()) < 0.95 * float(right.sum())
    assert size(stored) == math.ceil(x.numel() * bits / 8) + 8 * dim + 5


@pytest.mark.parametrize('bits', [8, 4, 2])
def test_column_wise_constants(bits):
    x = torch.tensor([0.0, -3.3, 1e4]).expand(50, 3)
    assert ColumnWise(bits).decode(ColumnWise(bits).encode(x)).allclose(x, rtol=1e-6)


@pytest.mark.parametrize('bits', [8, 4, 2])
def test_column_wise_packs_by_blocks(bits, monkeypatch):
    whole = ColumnWise(bits).encode(rows(dim=7))
    decoded = ColumnWise(bits).decode(whole)
    monkeypatch.setattr('methods.codec.BLOCK', 64)
    assert ColumnWise(bits).encode(rows(dim=7))['codes'].equal(whole['codes'])
    assert ColumnWise(bits).decode(whole).equal(decoded)


@pytest.mark.parametrize('kind', [RowWise, ColumnWise])
def test_more_bits_less_error(kind):
    assert error(kind(8), rows()) < error(kind(4), rows()) / 10


def library(codec, stored, faiss):
    """The quantiser and the rotation of faiss that what is stored stands for."""
    dim = stored['centroids'].size(0) * stored['centroids'].size(2)
    pq = faiss.ProductQuantizer(dim, codec.num_blocks, codec.bits)
    centroids = stored['centroids'].float().flatten().numpy()
    faiss.copy_array_to_vector(centroids, pq.centroids)
    rotation = faiss.LinearTransform(dim, dim)
    matrix = stored.get('rotation', torch.eye(dim)).float().flatten().numpy()
    faiss.copy_array_to_vector(matrix, rotation.A)
    rotation.is_trained = rotation.is_orthonormal = True
    return pq, rotation


@pytest.mark.parametrize('codec', PRODUCT, ids=repr)
def test_product_codes(codec, faiss):
    x = rows()
    stored = codec.encode(x, generator())
    decoded = codec.decode(stored)
    pq, rotation = library(codec, stored, faiss)
    theirs = rotation.reverse_transform(pq.decode(stored['codes'].numpy()))
    assert decoded.allclose(torch.from_numpy(theirs), atol=1e-5)
    # Each code is the nearest centroid, in the columns of the rotation.
    turned = torch.from_numpy(rotation.apply(x.numpy()))
    kept = torch.from_numpy(pq.decode(stored['codes'].numpy()))
    parts = turned.view(len(x), codec.num_blocks, -1).transpose(0, 1)
    nearest = torch.cdist(
        parts.double(), stored['centroids'].double(), compute_mode=DIRECT
    )
    distance = (kept.view(len(x), codec.num_blocks, -1).transpose(0, 1) - parts).norm(
        dim=2
    )
    assert distance.double().allclose(nearest.min(dim=2).values, atol=1e-5)
    assert codec.optimised == ('rotation' in stored)
    if codec.optimised:
        matrix = stored['rotation'].float()
        assert (matrix @ matrix.T).allclose(torch.eye(12), atol=2e-3)
    per_row = math.ceil(codec.num_blocks * codec.bits / 8)
    floats = 2**codec.bits * 12 + 144 * codec.optimised
    assert size(stored) == len(x) * per_row + 2 * floats


def test_product_codes_of_as_many_rows_as_centroids(faiss):
    x = rows(16)
    assert error(ProductCodes(4, bits=4), x) < 1e-6


def test_rotation_helps_and_seeds_tell(faiss):
    x = rows(1000) @ torch.randn(12, 12, generator=generator(5))
    plain, turned = ProductCodes(4, 4), ProductCodes(4, 4, optimised=True)
    assert error(turned, x) < error(plain, x)
    a, b = (plain.encode(x, generator(seed))['centroids'] for seed in (0, 1))
    assert not a.equal(b)


def test_product_codes_say_nothing(faiss, capfd):
    ProductCodes(3, bits=8, optimised=True).encode(rows())
    assert capfd.readouterr() == ('', '')


def test_product_codes_decode_without_faiss(faiss, monkeypatch):
    stored = ProductCodes(4, 4).encode(rows(), generator())
    expected = ProductCodes(4, 4).decode(stored)
    monkeypatch.setitem(sys.modules, 'faiss', None)
    assert ProductCodes(4, 4).decode(stored).equal(expected)
    with pytest.raises(ImportError, match=r'pip install pyg-c2f\[bench\]'):
        ProductCodes(4, 4).encode(rows())


@pytest.mark.parametrize('keep', [0.001, 0.2, 0.5, 1.0])
def test_pruned(keep):
    x = rows()
    stored = Pruned(keep).encode(x)
    decoded = Pruned(keep).decode(stored)
    alive = decoded != 0
    assert int(alive.sum()) == round(keep * x.numel())
    assert decoded[alive].equal(x[alive].half().float())
    if keep < 1:
        assert float(x[alive].abs().min()) >= float(x[~alive].abs().max())
    count = int(alive.sum())
    place = stored['low'].numel() + stored['high'].numel()
    assert size(stored) == 2 * count + place + 1 + 8
    # Places take about their entropy.
    assert 8 * place <= count * (2 + math.log2(1 / keep)) + count + 32
    high = unpack_bits(stored['high'], 1, 8 * stored['high'].numel())
    assert int(high.sum()) == count


def test_pruned_keeps_one_and_zeros():
    assert int((Pruned(0.01).decode(Pruned(0.01).encode(rows(3, 3))) != 0).sum()) == 1
    assert (
        Pruned(0.5)
        .decode(Pruned(0.5).encode(torch.zeros(3, 4)))
        .equal(torch.zeros(3, 4))
    )


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: RowWise(2), r'RowWise: bits=2; choose from 8, 4$'),
        (lambda: ColumnWise(3), r'ColumnWise: bits=3; choose from 8, 4, 2$'),
        (lambda: ProductCodes(bits=9), r'ProductCodes: bits=9; choose from 1, 2, .*8$'),
        (lambda: ProductCodes(num_blocks=0), r'num_blocks=0; set at least 1'),
        (lambda: Pruned(0), r'Pruned: keep=0 .* set it above 0 and at most 1'),
        (lambda: Pruned(1.5), r'Pruned: keep=1.5 '),
        (lambda: ProductCodes(5).encode(rows()), r'num_blocks=5 .* 12 columns'),
        (
            lambda: ProductCodes(4).encode(rows(255)),
            r'bits=8 needs 256 rows.*has 255; set fewer bits',
        ),
        (lambda: Half().encode(torch.zeros(3)), r'Half: a table of shape \[3\]'),
        (lambda: Pruned().encode(torch.zeros(0, 3)), r'at least one of each'),
        (lambda: RowWise().encode(rows() / 0), r'RowWise: .* not finite'),
        (lambda: Half().encode(rows() * 1e6), r'do not fit float16; .*below 65504'),
        (lambda: RowWise(4).encode(rows() * 1e6), r'RowWise: .*float16'),
        (lambda: Pruned().encode(rows() * 1e6), r'Pruned: .*float16'),
    ],
)
def test_messages(make, message):
    with pytest.raises(InputError, match=message):
        make()
