"""Codes of rows: which links are kept, and which centroids are found."""

import pytest
import torch

from pyg_c2f.anchors.codes import kmeans, residual_codes, threshold_assignment
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.typing import Assignment
from tests.hard import HARD, weights


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(num=60, dim=8, seed=0):
    return torch.randn(num, dim, generator=generator(seed))


def importances(num=60):
    return torch.rand(num, generator=generator(9)) * 3


def weighted_error(x, links, codebook, importance):
    left = x - weighted_sum(links, codebook)
    return float((importance * left.square().sum(dim=1)).sum())


@pytest.mark.parametrize('num_links', [1, 2.5, 20])
def test_threshold_assignment(num_links, dense):
    x, importance = rows(), importances()
    links = threshold_assignment(x, num_links, importance)
    num = min(round(num_links * len(x)), x.numel())
    assert int((links.weight != 0).sum()) == num
    # The table is as wide as the row with the most links.
    assert int((links.weight != 0).sum(dim=1).max()) == links.index.size(1)
    kept = torch.from_numpy(dense(links, 8)).float()
    assert kept[kept != 0].equal(x[kept != 0])
    # The largest weighted entries are kept, so that the least is left out.
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
    # No row has more links than allowed, and it keeps its largest.
    full = threshold_assignment(x, 2, importance)
    assert full.index.size(1) > 3
    largest = full.weight.abs().sort(dim=1, descending=True).values[:, :3]
    assert links.weight.abs().sort(dim=1, descending=True).values.equal(largest)
    nothing = threshold_assignment(torch.zeros(5, 4), 2, torch.ones(5))
    assert nothing.index.shape == (5, 1) and not nothing.weight.any()


@pytest.mark.parametrize('x', HARD.values(), ids=HARD)
def test_threshold_assignment_of_hard_rows(x, dense):
    importance = weights(len(x), 1e6)
    links = threshold_assignment(x, 3, importance)
    # All entries as large as the last one are kept.
    size, num = x.abs() * importance.sqrt().unsqueeze(1), int((links.weight != 0).sum())
    last = size.flatten().sort(descending=True).values[3 * len(x) - 1]
    assert num == int((size >= last).sum())
    size = x.double().square() * importance.double().unsqueeze(1)
    least = size.flatten().sort().values[: x.numel() - num].sum()
    left = x.double() - torch.from_numpy(dense(links, 16))
    error = (left.square() * importance.double().unsqueeze(1)).sum()
    torch.testing.assert_close(error, least, rtol=1e-6, atol=0)


def kmeans_error(x, centroids, label, importance):
    return float((importance * (x - centroids[label]).square().sum(dim=1)).sum())


@pytest.mark.parametrize('num_centroids', [1, 7, 40])
def test_kmeans(num_centroids):
    x, importance = rows(), importances()
    centroids, label = kmeans(x, num_centroids, importance, generator())
    assert centroids.shape == (num_centroids, 8) and label.shape == (60,)
    assert label.unique().numel() == num_centroids
    assert label.equal(torch.cdist(x, centroids).argmin(dim=1))
    again = kmeans(x, num_centroids, importance, generator())
    assert again[0].equal(centroids) and again[1].equal(label)
    error = kmeans_error(x, centroids, label, importance)
    fewer = kmeans(x, num_centroids, importance, generator(), num_iterations=1)
    assert error <= kmeans_error(x, *fewer, importance)


@pytest.mark.parametrize('x', HARD.values(), ids=HARD)
def test_kmeans_of_hard_rows(x):
    importance = weights(len(x), 1e6)
    centroids, label = kmeans(x, 12, importance, generator(), num_iterations=60)
    exact, largest = x.double(), float(x.abs().max())
    # The centroids are the nearest in double precision too.
    rest = exact.unsqueeze(1) - centroids.double()
    distance = rest.square().sum(dim=2)
    least = distance.min(dim=1).values
    own = distance.gather(1, label.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(own, least, rtol=1e-6, atol=1e-13 * largest**2)
    # They are the weighted means of their rows.
    weight = importance.double().unsqueeze(1)
    for c in label.unique():
        mine = label == c
        mean = (weight * exact)[mine].sum(dim=0) / weight[mine].sum()
        torch.testing.assert_close(
            centroids[c].double(), mean, rtol=3e-7, atol=3e-7 * largest
        )
    # The result is as good as in double precision, up to the rounding of centroids.
    other = kmeans(exact, 12, weight.squeeze(1), generator(), num_iterations=60)
    best = kmeans_error(exact, *other, weight.squeeze(1))
    rounding = float(weight.sum()) * 16 * (1e-7 * largest) ** 2
    error = kmeans_error(exact, centroids.double(), label, weight.squeeze(1))
    assert error <= 1.001 * best + rounding


@pytest.mark.parametrize('scale', [2.0**-50, 2.0**50])
def test_the_scale_of_rows_and_weights_does_not_matter(scale):
    x, importance = rows(), importances()
    centroids, label = kmeans(x, 7, importance, generator(), 2)
    more, same = kmeans(scale * x, 7, scale * importance, generator(), 2)
    assert same.equal(label) and more.equal(scale * centroids)
    links = threshold_assignment(x, 3, importance)
    scaled = threshold_assignment(scale * x, 3, scale * importance)
    assert scaled.index.equal(links.index)
    assert scaled.weight.equal(scale * links.weight)


def test_kmeans_of_few_distinct_rows():
    # All starts are among the heavy rows; the others get their centroids later.
    few = torch.cat([torch.zeros(50, 3), 10 * rows(6, 3)])
    heavy = torch.cat([torch.ones(50), torch.full((6,), 1e-9)])
    repeated, alone = rows(3).repeat(4, 1), torch.zeros(3)
    for x, num, importance in (
        (few, 7, heavy),
        (repeated, 9, torch.ones(12)),
        (repeated[:3], 9, alone),
    ):
        centroids, label = kmeans(x, num, importance, generator())
        assert len(centroids) == num and centroids.isfinite().all()
        assert label.unique().numel() == len(x.unique(dim=0))
        assert kmeans_error(x, centroids, label, torch.ones(len(x))) < 1e-4


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


def test_residual_codes_choose_by_shrunk_centroids():
    x, ones = rows(), torch.ones(60)
    shrink = torch.nn.Softshrink(0.3)
    links, codebook = residual_codes(x, 3, 5, ones, generator(), shrink=shrink)
    # The codebook is not shrunk, but its anchors are chosen as if it were.
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
