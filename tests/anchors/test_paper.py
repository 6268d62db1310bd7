import sys

import numpy as np
import pytest
import torch

from pyg_c2f.anchors import paper
from pyg_c2f.anchors.paper import (
    bridge_scores,
    metis_partition,
    partition_assignment,
    partition_scores,
    pinv_assignment,
    random_assignment,
    softmax_assignment,
    sparse_pca_codebook,
    sparse_pca_codes,
)
from tests.hard import tables


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_distinct(index):
    assert all(len(set(row)) == len(row) for row in index.tolist())


@pytest.mark.parametrize('num_links', [1, 2, 6])
def test_partition_assignment(num_links):
    labels = torch.arange(600) % 6
    index, weight = partition_assignment(labels, 6, num_links, 0.6, seeded())
    assert index[:, 0].equal(labels)
    if num_links == 1:
        assert index.size(1) == 1 and weight.equal(torch.ones(600, 1))
        return
    assert_distinct(index)
    assert 0 <= int(index.min()) and int(index.max()) < 6
    assert weight[:, 0].eq(0.6).all()
    rest = torch.tensor((1 - 0.6) / (num_links - 1))
    assert weight[:, 1:].eq(rest).all()
    # All other anchors are drawn about equally often.
    for label in range(6):
        count = index[labels == label, 1:].flatten().bincount(minlength=6)
        mean = 100 * (num_links - 1) / 5
        assert count[label] == 0
        others = count[torch.arange(6) != label]
        assert (others - mean).abs().max() <= 5 * mean**0.5


def test_random_assignment():
    first = random_assignment(50, 7, 3, seeded(1))
    again = random_assignment(50, 7, 3, seeded(1))
    other = random_assignment(50, 7, 3, seeded(2))
    assert first.index.equal(again.index) and first.weight.equal(again.weight)
    assert not first.index.equal(other.index)
    assert_distinct(first.index)
    assert first.index[:, 0].unique().numel() == 7
    torch.testing.assert_close(first.weight.sum(dim=1), torch.ones(50))


def test_metis_partition(toy):
    pytest.importorskip('pymetis')
    users, items = 30, 20
    group = torch.arange(users) % 2
    pairs = (group.unsqueeze(1) == torch.arange(items) % 2).nonzero().T
    labels = metis_partition(pairs, users, items, 2)
    assert labels.dtype == torch.long and labels.shape == (users + items,)
    ours = torch.cat([group, torch.arange(items) % 2])
    assert labels.equal(ours) or labels.equal(1 - ours)
    for num_parts in (1, 5):
        labels = metis_partition(toy.edge_index, 6, 8, num_parts)
        assert labels.shape == (14,)
        assert 0 <= int(labels.min()) and int(labels.max()) < num_parts


def test_metis_partition_without_pymetis(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pymetis', None)
    with pytest.raises(ImportError) as error:
        metis_partition(toy.edge_index, toy.num_users, toy.num_items, 2)
    assert 'pip install "pyg-c2f[metis]"' in str(error.value)
    assert 'anchors=random' in str(error.value)


@pytest.fixture
def features():
    """Features of entities, coarse and fine anchors, 6 columns each."""
    torch.manual_seed(0)
    return torch.randn(40, 6), torch.randn(5, 6), torch.randn(4, 6)


@pytest.fixture(params=[7, 1000], ids=lambda rows: f'block{rows}')
def block(request, monkeypatch):
    """Blocks of a few rows, or one block of them all."""
    monkeypatch.setattr(paper, 'BLOCK', request.param)


@pytest.mark.usefixtures('block')
@pytest.mark.parametrize('num_links', [1, 5])
def test_pinv_assignment(features, num_links):
    nodes, coarse, fine = features
    product = exact_product(nodes, coarse)
    order = np.argsort(-product, axis=1)[:, :num_links]
    index, weight = pinv_assignment(nodes, coarse, num_links)
    np.testing.assert_array_equal(index, order)
    theirs = np.take_along_axis(product, order, axis=1)
    if num_links == 5:
        assert (theirs < 0).any()
    np.testing.assert_allclose(weight, theirs.clip(min=0), atol=1e-5)
    theirs = product.T @ exact_product(nodes, fine)
    np.testing.assert_allclose(bridge_scores(nodes, coarse, fine), theirs, rtol=1e-4)


HARD = {
    f'{num} anchors, {name}': anchors
    for num in (48, 12)
    for name, anchors in tables(num, 12).items()
}


def hard_nodes(h_anchors):
    """Mixtures of the anchors plus a little noise, in float32."""
    mixed = torch.rand(300, len(h_anchors), generator=seeded(1)) @ h_anchors
    own = torch.randn(300, h_anchors.size(1), generator=seeded(2))
    return mixed + 1e-3 * mixed.square().mean().sqrt() * own


def exact_product(nodes, other):
    """The product in double precision, with the rank that single precision sees."""
    rounding = max(other.shape) * torch.finfo(other.dtype).eps
    other = other.double().numpy()
    return nodes.double().numpy() @ np.linalg.pinv(other, rcond=rounding)


@pytest.mark.parametrize('h_anchors', HARD.values(), ids=HARD)
def test_hard_anchors(h_anchors):
    nodes = hard_nodes(h_anchors)
    product = exact_product(nodes, h_anchors)
    index, weight = pinv_assignment(nodes, h_anchors, 3)
    assert weight.dtype == torch.float
    # Anchors that are alike may stand for each other.
    size = np.abs(product).max()
    largest = np.sort(product, axis=1)[:, :-4:-1].clip(min=0)
    at_index = np.take_along_axis(product, index.numpy(), axis=1).clip(min=0)
    for theirs in (largest, at_index):
        np.testing.assert_allclose(weight, theirs, rtol=1e-6, atol=1e-7 * size)
    h_fine = h_anchors[::2] + h_anchors[1::2]
    theirs = product.T @ exact_product(nodes, h_fine)
    ours = bridge_scores(nodes, h_anchors, h_fine)
    atol = 1e-7 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=atol)


@pytest.mark.parametrize('num_fine', [1, 4])
def test_partition_scores(toy, num_fine):
    labels = torch.randint(num_fine, (toy.num_entities,), generator=seeded())
    parts = np.full((toy.num_entities, num_fine), 0.5 / max(num_fine - 1, 1))
    parts[np.arange(toy.num_entities), labels] = 0.5
    ours = partition_scores(toy.coarse, toy.num_coarse, labels, num_fine)
    np.testing.assert_allclose(ours, toy.s1.T @ parts, atol=1e-6)


def test_softmax_assignment(features):
    scores = features[0].double().numpy()
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    order = np.argsort(-softmax, axis=1)[:, :2]
    index, weight = softmax_assignment(features[0], 2)
    np.testing.assert_array_equal(index, order)
    expected = np.take_along_axis(softmax, order, axis=1)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


@pytest.fixture
def codebook():
    return torch.randn(12, 10, generator=seeded(3))


def expected_codes(codebook, num_fine, num_components):
    """The codes of the rows that the seeded generator draws."""
    generator = seeded()
    rows = torch.randint(len(codebook), (num_fine,), generator=generator)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    return sparse_pca_codes(codebook[rows], num_components, random_state=seed)


def test_sparse_pca_codebook(codebook):
    out, again, other = (
        sparse_pca_codebook(codebook, 15, 4, generator=seeded(x)) for x in (0, 0, 1)
    )
    assert out.shape == (15, 10) and out.dtype == codebook.dtype
    assert out.equal(again) and not out.equal(other)
    codes = expected_codes(codebook, 15, 4)
    assert codes.count_nonzero() > 0
    for placed, code in zip(out, codes, strict=True):
        # The codes keep their order; the other columns are zero.
        assert placed[placed != 0].equal(code[code != 0])
    assert (out != 0).sum(dim=1).max() <= 4
    # The rows have different columns.
    assert (out != 0).any(dim=0).sum() > 4


def test_sparse_pca_codebook_of_few_columns_or_rows(codebook):
    expected = expected_codes(codebook, 15, 10)
    for num_components in (10, 11):
        out = sparse_pca_codebook(codebook, 15, num_components, generator=seeded())
        assert out.equal(expected)
    out = sparse_pca_codebook(codebook, 3, 6, generator=seeded())
    assert out.shape == (3, 10) and out.isfinite().all()
