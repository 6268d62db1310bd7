"""Codes of rows: which links, which centroids, which bits."""

import math

import pytest
import torch

from pyg_c2f.codes import (
    kmeans,
    num_bits,
    pack_bits,
    pack_sorted,
    residual_codes,
    round_weights,
    threshold_assignment,
    unpack_bits,
    unpack_sorted,
    weights_of,
)
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.typing import Assignment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(num=60, dim=8, seed=0):
    return torch.randn(num, dim, generator=generator(seed))


def importances(num=60):
    return torch.rand(num, generator=generator(9)) * 3


def weighted_error(x, links, codebook, importance):
    left = x - weighted_sum(links, codebook)
    return float((importance * left.square().sum(dim=1)).sum())


@pytest.mark.parametrize('num_links', [1, 2.5, 7.9, 8, 20])
def test_threshold_assignment(num_links, dense):
    x, importance = rows(), importances()
    links = threshold_assignment(x, num_links, importance)
    num = min(round(num_links * len(x)), x.numel())
    assert int((links.weight != 0).sum()) == num
    # As wide as the row with most links, and no wider.
    assert int((links.weight != 0).sum(dim=1).max()) == links.index.size(1)
    kept = torch.from_numpy(dense(links, 8)).float()
    assert kept[kept != 0].equal(x[kept != 0])
    # What is left out is least: the largest weighted entries are in.
    size = x.square() * importance.unsqueeze(1)
    least = size.flatten().sort().values[: x.numel() - num].sum()
    error = weighted_error(x, links, torch.eye(8), importance)
    assert error == pytest.approx(float(least), rel=1e-5, abs=1e-6)


def test_threshold_assignment_of_zeros_and_few_links():
    x, importance = rows(), torch.ones(60)
    x[3] = 0
    importance[4] = 0
    links = threshold_assignment(x, 2, importance, max_links=3)
    assert links.index.size(1) == 3
    assert not links.weight[[3, 4]].any()
    # No row has more links than allowed; those it has are its largest.
    full = threshold_assignment(x, 2, importance)
    assert full.index.size(1) > 3
    largest = full.weight.abs().sort(dim=1, descending=True).values[:, :3]
    assert links.weight.abs().sort(dim=1, descending=True).values.equal(largest)
    nothing = threshold_assignment(torch.zeros(5, 4), 2, torch.ones(5))
    assert nothing.index.shape == (5, 1) and not nothing.weight.any()


def kmeans_error(x, centroids, label, importance):
    return float((importance * (x - centroids[label]).square().sum(dim=1)).sum())


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('num_centroids', [1, 7, 40])
def test_kmeans(seed, num_centroids):
    x, importance = rows(seed=seed), importances()
    centroids, label = kmeans(x, num_centroids, importance, generator(seed))
    assert centroids.shape == (num_centroids, 8) and label.shape == (60,)
    assert label.unique().numel() == num_centroids
    assert label.equal(torch.cdist(x, centroids).argmin(dim=1))
    again = kmeans(x, num_centroids, importance, generator(seed))
    assert again[0].equal(centroids) and again[1].equal(label)
    error = kmeans_error(x, centroids, label, importance)
    more = kmeans(x, num_centroids, importance, generator(seed), num_restarts=5)
    assert kmeans_error(x, *more, importance) <= error
    fewer = kmeans(x, num_centroids, importance, generator(seed), num_iterations=1)
    assert error <= kmeans_error(x, *fewer, importance)


def test_kmeans_restarts_help():
    # Five far groups: some starts miss one.
    x = rows(100, 2) + 30 * rows(5, 2, 1).repeat(20, 1)
    ones = torch.ones(100)

    def errors(num_restarts):
        return [
            kmeans_error(x, *kmeans(x, 5, ones, generator(s), num_restarts), ones)
            for s in range(10)
        ]

    assert max(errors(10)) < 0.5 * max(errors(1))


def test_centroids_are_weighted_means():
    x, importance = rows(), importances()
    centroids, label = kmeans(x, 4, importance, generator(), num_iterations=50)
    for c in range(4):
        w = importance[label == c].unsqueeze(1)
        mean = (w * x[label == c]).sum(dim=0) / w.sum()
        torch.testing.assert_close(centroids[c], mean)
    assert not torch.stack([x[label == c].mean(dim=0) for c in range(4)]).allclose(
        centroids, atol=1e-2
    )


def test_no_centroid_is_empty():
    # All starts are among the rows that weigh: the others get their centroids later.
    x = torch.cat([torch.zeros(50, 3), 10 * rows(6, 3)])
    importance = torch.cat([torch.ones(50), torch.full((6,), 1e-9)])
    centroids, label = kmeans(x, 7, importance, generator())
    assert label.unique().numel() == 7
    assert kmeans_error(x, centroids, label, torch.ones(56)) < 1e-4


def test_fewer_distinct_rows_than_centroids():
    x = rows(3).repeat(4, 1)
    centroids, label = kmeans(x, 9, torch.ones(12), generator())
    assert centroids.shape == (9, 8) and centroids.isfinite().all()
    assert kmeans_error(x, centroids, label, torch.ones(12)) < 1e-4
    centroids, label = kmeans(x[:3], 9, torch.zeros(3), generator())
    assert centroids.isfinite().all()
    assert kmeans_error(x[:3], centroids, label, torch.ones(3)) < 1e-4


def test_residual_codes():
    x, importance = rows(), importances()
    last = weighted_error(
        x, Assignment(torch.zeros(60, 1).long(), torch.zeros(60, 1)), x, importance
    )
    for num_levels in (1, 2, 3, 4):
        links, codebook = residual_codes(x, num_levels, 5, importance, generator())
        assert links.index.shape == (60, num_levels)
        assert codebook.shape == (5 * num_levels, 8)
        level = torch.arange(num_levels).expand(60, -1)
        assert links.index.div(5, rounding_mode='floor').equal(level)
        assert (links.weight == 1).all()
        decoded = weighted_sum(links, codebook)
        torch.testing.assert_close(decoded, codebook[links.index].sum(dim=1))
        error = weighted_error(x, links, codebook, importance)
        assert error < 0.95 * last
        last = error


def test_residual_codes_look_at_shrunk_centroids():
    x, ones = rows(), torch.ones(60)
    shrink = torch.nn.Softshrink(0.3)
    links, codebook = residual_codes(x, 3, 5, ones, generator(), shrink=shrink)
    # The codebook is the one before, the choice the one behind the threshold.
    rest = x.clone()
    for level in range(3):
        kept = shrink(codebook[5 * level : 5 * level + 5])
        label = torch.cdist(rest, kept).argmin(dim=1)
        assert links.index[:, level].equal(label + 5 * level)
        rest -= kept[label]
    shrunk = weighted_error(x, links, shrink(codebook), ones)
    blind, other = residual_codes(x, 3, 5, ones, generator())
    assert shrunk < weighted_error(x, blind, shrink(other), ones)
    assert not x.allclose(rest) and x.equal(rows())


@pytest.mark.parametrize('bits', [2, 4, 6, 8])
def test_round_weights(bits, dense):
    x = rows() ** 3
    weight = threshold_assignment(x, 3, importances()).weight
    codes, grid = round_weights(weight, bits)
    links = weight[weight != 0]
    assert codes.shape == links.shape and codes.dtype == torch.long
    assert 0 <= int(codes.min()) and int(codes.max()) < 2**bits
    rounded = weights_of(codes, bits, grid)
    assert rounded.dtype == torch.float and rounded.sign().equal(links.sign())
    # Half a step of the grid, and the ends stay.
    step = (grid[1] - grid[0]) / (2 ** (bits - 1) - 1)
    ratio = (rounded / links).double().log().abs()
    assert float(ratio.max()) <= step / 2 + 1e-6
    assert float(rounded.abs().max()) == pytest.approx(float(links.abs().max()))
    assert float(rounded.abs().min()) == pytest.approx(float(links.abs().min()))

    again = torch.zeros_like(weight)
    again[weight != 0] = rounded
    twice, same = round_weights(again, bits)
    assert twice.equal(codes)
    assert same == pytest.approx(grid)
    torch.testing.assert_close(weights_of(twice, bits, same), rounded)


@pytest.mark.parametrize('value', [1.0, -0.25, 1e-20])
def test_round_weights_that_are_all_alike(value):
    weight = torch.full((4, 2), value)
    weight[1, 1] = 0
    codes, grid = round_weights(weight, 6)
    torch.testing.assert_close(weights_of(codes, 6, grid), torch.full((7,), value))


def test_round_weights_of_nothing():
    codes, grid = round_weights(torch.zeros(3, 2), 6)
    assert codes.numel() == 0 and weights_of(codes, 6, grid).numel() == 0


@pytest.mark.parametrize('width', [1, 2, 3, 5, 6, 7, 8, 9, 13, 16, 31])
@pytest.mark.parametrize('num', [0, 1, 2, 7, 8, 9, 100])
def test_pack_bits(width, num):
    values = torch.randint(2**width, (num,), generator=generator())
    values[: num // 3] = 2**width - 1
    packed = pack_bits(values, width)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(num * width / 8)
    assert unpack_bits(packed, width, num).equal(values)
    # Lowest bit first, one number after the other.
    whole = sum(value << (width * at) for at, value in enumerate(values.tolist()))
    assert bytes(packed.tolist()) == whole.to_bytes(packed.numel(), 'little')


def test_num_bits():
    for num in (1, 2, 3, 4, 5, 255, 256, 257, 512, 513):
        assert num_bits(num) == max((num - 1).bit_length(), 1)


def bits_of(packed):
    return unpack_bits(packed, 1, 8 * packed.numel())


@pytest.mark.parametrize(
    'values',
    [
        [],
        [0],
        [1],
        [7],
        [2**20],
        [2**40 + 5],
        [0, 1],
        [0, 2**33],
        [2**33, 2**33 + 1],
        list(range(100)),
        list(range(1000, 1100)),
        list(range(0, 4096, 64)),
        [x * x for x in range(200)],
        [2**x for x in range(45)],
    ],
    ids=lambda values: f'{len(values)} to {max(values, default=0)}',
)
def test_pack_sorted(values):
    values = torch.tensor(values, dtype=torch.long)
    packed = pack_sorted(values)
    assert all(x.dtype == torch.uint8 for x in packed)
    assert packed[2].shape == (1,)
    got = unpack_sorted(*packed)
    assert got.dtype == torch.long and got.equal(values)


@pytest.mark.parametrize('most', [1, 5, 64, 1000, 10**6, 3 * 10**9])
@pytest.mark.parametrize('share', [1e-9, 0.01, 0.1, 0.4, 0.5, 0.9, 1.0])
def test_pack_sorted_numbers_at_random(most, share):
    num = max(min(round(share * most), 800), 1)
    values = torch.randint(most, (num,), generator=generator()).unique()
    if share == 1 and most <= 1000:
        values = torch.arange(most)
    low, high, width = pack_sorted(values)
    assert unpack_sorted(low, high, width).equal(values)

    # Below the bound of Elias and Fano, and of any plain list of such numbers.
    size, top = len(values), int(values[-1]) + 1
    bits = 8 * (low.numel() + high.numel())
    assert bits <= size * (2 + max(math.log2(top / size), 0)) + 16
    assert low.numel() == math.ceil(size * int(width) / 8)
    assert bits >= math.log2(math.comb(top, size)) - 1


def test_pack_sorted_by_definition():
    values = torch.tensor([3, 4, 7, 13, 14, 15, 21, 43])
    low, high, width = pack_sorted(values)
    assert int(width) == 2  # of 44 numbers 8, so that log2(5.5) goes down to 2
    assert unpack_bits(low, 2, 8).tolist() == [x % 4 for x in values.tolist()]
    ones = bits_of(high).nonzero().flatten()
    assert ones.tolist() == [x // 4 + n for n, x in enumerate(values.tolist())]


def test_pack_sorted_dense_numbers_have_no_low_bits():
    values = torch.tensor([0, 1, 3, 4, 6])
    low, high, width = pack_sorted(values)
    assert low.numel() == 0 and int(width) == 0
    assert int(bits_of(high).sum()) == 5
