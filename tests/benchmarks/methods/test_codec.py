"""Codecs against their formulas, and against faiss."""

import math
import sys

import pytest
import torch
from methods import file_bytes
from methods.codec import ColumnWise, Half, Plain, ProductCodes, Pruned, RowWise
from safetensors.torch import load

from tests.benchmarks.methods.conftest import generator

DIRECT = 'donot_use_mm_for_euclid_dist'
PRODUCT = [
    ProductCodes(4, bits=8),
    ProductCodes(3, bits=5),
    ProductCodes(12, bits=1),
    ProductCodes(3, bits=5, optimised=True),
]
OTHERS = [
    Plain(),
    Half(),
    RowWise(8),
    RowWise(4),
    ColumnWise(8),
    ColumnWise(2),
    Pruned(0.2),
]


def rows(num=300, dim=12):
    x = torch.randn(num, dim, generator=generator(3))
    return x * torch.linspace(0.1, 2, dim) + torch.linspace(-1, 1, dim)


def size(stored):
    return sum(x.nbytes for x in stored.values())


@pytest.fixture
def faiss():
    return pytest.importorskip('faiss')


@pytest.mark.parametrize('codec', [*OTHERS, *PRODUCT], ids=repr)
def test_file(codec):
    if isinstance(codec, ProductCodes):
        pytest.importorskip('faiss')
    x = rows()
    stored = codec.encode(x, generator())
    # No setting is needed but what lies in the file.
    decoded = type(codec)().decode(load(file_bytes(stored)))
    assert decoded.dtype == torch.float and decoded.shape == x.shape
    assert decoded.equal(codec.decode(stored)) and not decoded.requires_grad
    # One generator, one file; also of a parameter in double precision.
    odd = torch.nn.Parameter(x.double().T.contiguous().T)
    assert file_bytes(codec.encode(odd, generator())) == file_bytes(stored)


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
def test_product_codes(codec, faiss, capfd):
    x = rows()
    stored = codec.encode(x, generator())
    assert capfd.readouterr() == ('', '')
    pq, rotation = library(codec, stored, faiss)
    kept = pq.decode(stored['codes'].numpy())
    theirs = torch.from_numpy(rotation.reverse_transform(kept))
    assert codec.decode(stored).allclose(theirs, atol=1e-5)
    # Each code is the nearest centroid, in the columns of the rotation.
    turned, kept = (torch.from_numpy(y) for y in (rotation.apply(x.numpy()), kept))
    parts, kept = (
        y.view(len(x), codec.num_blocks, -1).transpose(0, 1) for y in (turned, kept)
    )
    centroids = stored['centroids'].double()
    nearest = torch.cdist(parts.double(), centroids, compute_mode=DIRECT)
    distance = (kept - parts).norm(dim=2).double()
    assert distance.allclose(nearest.min(dim=2).values, atol=1e-5)
    assert codec.optimised == ('rotation' in stored)
    if codec.optimised:
        matrix = stored['rotation'].float()
        assert (matrix @ matrix.T).allclose(torch.eye(12), atol=2e-3)
    per_row = math.ceil(codec.num_blocks * codec.bits / 8)
    floats = 2**codec.bits * 12 + 144 * codec.optimised
    assert size(stored) == len(x) * per_row + 2 * floats


def test_product_codes_decode_without_faiss(faiss, monkeypatch):
    stored = ProductCodes(4, 4).encode(rows(), generator())
    expected = ProductCodes(4, 4).decode(stored)
    monkeypatch.setitem(sys.modules, 'faiss', None)
    assert ProductCodes(4, 4).decode(stored).equal(expected)
    with pytest.raises(ImportError, match=r'pip install pyg-c2f\[bench\]'):
        ProductCodes(4, 4).encode(rows())


@pytest.mark.parametrize('keep', [1e-9, 0.2, 1.0])
def test_pruned(keep):
    x = rows()
    stored = Pruned(keep).encode(x)
    decoded = Pruned(keep).decode(stored)
    mask, count = decoded != 0, max(round(keep * x.numel()), 1)
    assert int(mask.sum()) == count
    assert decoded[mask].equal(x[mask].half().float())
    if keep < 1:
        assert float(x[mask].abs().min()) >= float(x[~mask].abs().max())
    place = stored['low'].numel() + stored['high'].numel()
    assert size(stored) == 2 * count + place + 1 + 8
    # Places take about their entropy.
    assert 8 * place <= count * (2 + math.log2(x.numel() / count)) + count + 32
