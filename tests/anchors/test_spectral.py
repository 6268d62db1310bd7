"""The basis of recipe fast against dense linear algebra, and its rotation."""

import logging
import math

import pytest
import torch

from pyg_c2f.anchors.spectral import (
    SharedInteractions,
    chance_level,
    randomized_svd,
    right_vectors,
    shared_interactions,
    varimax,
)
from pyg_c2f.graph import normalized_interactions
from pyg_c2f.shards import Group
from pyg_c2f.sparse import CSR
from tests.hard import HARD, weights

U, V = 60, 80


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_edges():
    """Shuffled pairs; users 5 and 59 and items 7 and 79 have none."""
    rated = torch.rand(U, V, generator=generator()) < 0.08
    rated[[5, U - 1]] = False
    rated[:, [7, V - 1]] = False
    edges = rated.nonzero().T
    return edges[:, torch.randperm(edges.size(1), generator=generator())]


def dense(edge_index, num_users=U, num_items=V):
    rated = torch.zeros(num_users, num_items, dtype=torch.double)
    rated[tuple(edge_index)] = 1
    degrees = rated.sum(dim=1, keepdim=True) * rated.sum(dim=0)
    return rated / degrees.sqrt().clamp(min=1)


def assert_orthonormal(x, atol=3e-5):
    torch.testing.assert_close(x.T @ x, torch.eye(x.size(1)), atol=atol, rtol=0)


@pytest.mark.parametrize('rank', [1, 20, 58])
def test_randomized_svd(rank):
    edges = random_edges()
    interactions = normalized_interactions(edges, U, V)
    left, value, right = randomized_svd(interactions, V, rank, generator())
    u, s, vh = torch.linalg.svd(dense(edges))
    assert left.shape == (U, rank) and right.shape == (V, rank)
    torch.testing.assert_close(value.double(), s[:rank], atol=1e-6, rtol=0)
    assert (value.diff() <= 0).all()
    # The subspaces are the same if the projections are; the spectrum has gaps here.
    for ours, theirs in ((left, u[:, :rank]), (right, vh[:rank].T)):
        assert_orthonormal(ours)
        projection = (ours @ ours.T).double()
        torch.testing.assert_close(projection, theirs @ theirs.T, atol=1e-4, rtol=0)
    best, ours = (u[:, :rank] * s[:rank]) @ vh[:rank], (left * value) @ right.T
    torch.testing.assert_close(ours.double(), best, atol=2e-4, rtol=0)
    assert (left[[5, U - 1]].abs() < 1e-6).all()
    assert (right[[7, V - 1]].abs() < 1e-6).all()


def test_randomized_svd_with_a_seed_and_a_wrong_rank():
    interactions = normalized_interactions(random_edges(), U, V)
    ours, again, other = (
        randomized_svd(interactions, V, 8, generator(seed)) for seed in (1, 1, 2)
    )
    assert all(x.equal(y) for x, y in zip(ours, again, strict=True))
    assert not ours[0].equal(other[0])
    for rank in (0, U + 1):
        with pytest.raises(ValueError, match=rf'rank from 1 to {U} \(got {rank}\)'):
            randomized_svd(interactions, V, rank)


def csr(matrix):
    """A dense matrix as CSR, zeros included."""
    num_rows, num_cols = matrix.shape
    rowptr = torch.arange(0, matrix.numel() + 1, num_cols, dtype=torch.int32)
    col = torch.arange(num_cols, dtype=torch.int32).repeat(num_rows)
    return CSR(rowptr, col, matrix.flatten().float())


def spectrum_of(matrix, rank, seed=0, **kwargs):
    rows = (Group().rows(size) for size in matrix.shape)
    interactions = SharedInteractions(csr(matrix), csr(matrix.T.contiguous()), *rows)
    return right_vectors(interactions, rank, generator(seed), **kwargs)


def planted(values, num_rows=240, num_cols=200, seed=0):
    """A matrix with these singular values, rounded to single precision."""
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=draw).double()).Q
        for size, draw in ((num_rows, generator(seed)), (num_cols, generator(seed + 1)))
    )
    return ((left * torch.as_tensor(values).double()) @ right.T).float().double()


def captured(spectrum, vectors):
    """The mean squared cosine between orthonormal vectors and the subspace found."""
    inside = spectrum.right.double().T @ vectors.double()
    return float(inside.square().sum() / vectors.size(1))


def assert_leading(spectrum, matrix, rank, true_rank=None):
    """The leading vectors are those of a dense decomposition."""
    true_rank = rank if true_rank is None else true_rank
    _, s, vh = torch.linalg.svd(matrix)
    assert spectrum.right.shape == (matrix.size(1), rank)
    assert spectrum.residual <= 1e-3
    value, right = spectrum.value[:true_rank], spectrum.right[:, :true_rank].double()
    assert captured(spectrum, vh[:true_rank].T) >= 0.999
    torch.testing.assert_close(
        right.T @ right, torch.eye(true_rank).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(value.double(), s[:true_rank], atol=0, rtol=1e-4)
    # Values and vectors beyond the rank are zero.
    assert (spectrum.value[true_rank:] == 0).all()
    assert (spectrum.right[:, true_rank:] == 0).all()
    # The residual is as reported, up to single precision.
    gram = matrix.T @ matrix
    value = value.double().square()
    rest = torch.linalg.vector_norm(gram @ right - right * value, dim=0)
    noise = 1e-6 * value[0]
    assert rest.max() <= 1.1 * spectrum.residual * value[-1] + noise


HIGH, LOW = torch.full((20,), 3.0), torch.full((20,), 2.0)
BELOW, REST = torch.linspace(2, 1, 39), torch.linspace(0.9, 0.1, 150)
AFTER_CLUSTERS = torch.linspace(1.8, 0.1, 140)
# The 40 leading singular values, and the rest.
SPECTRA = {
    'one value of 1e2': [torch.tensor([1e2]), BELOW, REST],
    'one value of 1e5': [torch.tensor([1e5]), BELOW, REST],
    'values from 1e2': [torch.logspace(2, 0, 40), REST],
    'values from 1e5': [torch.logspace(5, 0, 40), REST],
    'two multiplicities': [HIGH, LOW, AFTER_CLUSTERS],
    'a cluster': [HIGH, LOW - torch.arange(20) * 1e-5, AFTER_CLUSTERS],
}


@pytest.mark.parametrize('values', SPECTRA.values(), ids=SPECTRA)
def test_leading_vectors(values):
    matrix = planted(torch.cat(values))
    assert_leading(spectrum_of(matrix, 40), matrix, 40)


@pytest.mark.parametrize('scale', [0, 1e-12, 1e12])
def test_leading_vectors_at_any_scale(scale):
    matrix = scale * planted(torch.linspace(3, 0.1, 150))
    found = spectrum_of(matrix, 30)
    if scale:
        assert_leading(found, matrix, 30)
    else:
        assert not (found.value.any() or found.right.any() or found.residual)


@pytest.mark.parametrize(
    ('size', 'rank', 'num'),
    [
        ((50, 200), 50, 50),
        ((200, 50), 50, 49),
        ((50, 50), 50, 1),
        ((90, 200), 30, 30),
        ((90, 200), 30, 31),
        ((90, 200), 30, 90),
    ],
)
def test_leading_vectors_at_any_rank(size, rank, num):
    matrix = planted(torch.logspace(2, 0, rank), *size)
    if rank < min(size):
        # Three identical blocks of users, so that rounding keeps the rank.
        matrix = torch.cat([planted(torch.logspace(5, 0, rank), rank, 200)] * 3)
    assert_leading(spectrum_of(matrix, num), matrix, num, min(num, rank))


def test_leading_vectors_within_a_multiplicity():
    # Any vectors of the eigenspace will do.
    matrix = planted([3.0] * 100 + [1.0] * 50)
    found = spectrum_of(matrix, 40)
    torch.testing.assert_close(found.value, torch.full((40,), 3.0))
    _, _, vh = torch.linalg.svd(matrix)
    inside = vh[:100] @ found.right.double()
    assert float(inside.square().sum()) / 40 >= 0.999


def test_the_log_says_whether_it_converged(caplog):
    caplog.set_level(logging.INFO)
    matrix = torch.randn(240, 200, generator=generator()).double()
    found = spectrum_of(matrix, 40)
    assert found.residual <= 1e-3 and found.num_rounds < 40
    assert not caplog.records
    stopped = spectrum_of(matrix, 40, max_rounds=2)
    assert stopped.num_rounds == 2 and stopped.residual > 1e-3
    assert f'{stopped.residual:.1e} after 2 rounds' in caplog.records[-1].message
    assert caplog.records[-1].levelname == 'WARNING'
    # A smaller tolerance is reached too.
    closer = spectrum_of(matrix, 40, tolerance=1e-5)
    assert closer.residual <= 1e-5 and closer.num_rounds > found.num_rounds


def criterion(rows, weight, rotation):
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)
    z = rows / length * weight.unsqueeze(1) @ rotation
    return float(z.square().var(dim=0, unbiased=False).sum())


def test_varimax_rotates_to_a_larger_criterion():
    rows = torch.randn(400, 6, generator=generator()) ** 3
    rows = rows @ torch.linalg.qr(torch.randn(6, 6, generator=generator(1))).Q
    weight = torch.rand(400, generator=generator(2))
    rows[3], weight[4] = 0, 0
    last = criterion(rows, weight, torch.eye(6))
    for num_iterations in (1, 2, 4, 8):
        rotation = varimax(rows, weight, num_iterations=num_iterations)
        assert_orthonormal(rotation)
        value = criterion(rows, weight, rotation)
        assert value > last
        last = value
    assert last > 1.5 * criterion(rows, weight, torch.eye(6))


def test_varimax_ends_at_a_maximum():
    # All rows share a direction, where fourth powers alone would put an axis.
    rows = torch.rand(300, 4, generator=generator()) ** 2 + 0.2
    rows = rows.double() * torch.tensor([1.0, 1.0, 2.0, 3.0])
    weight = torch.rand(300, generator=generator(1)).double() + 0.5
    rotation = varimax(rows, weight, num_iterations=500)
    best = criterion(rows, weight, rotation)
    for one in range(4):
        for other in range(one):
            for angle in (-0.01, 0.01):
                turn = torch.eye(4, dtype=torch.double)
                turn[one, one] = turn[other, other] = math.cos(angle)
                turn[one, other], turn[other, one] = math.sin(angle), -math.sin(angle)
                assert criterion(rows, weight, rotation @ turn) < best


@pytest.mark.parametrize('rows', HARD.values(), ids=HARD)
def test_varimax_of_hard_rows(rows):
    weight = weights(len(rows), 1e6)
    exact = rows.double(), weight.double()
    ours, theirs = varimax(rows, weight), varimax(*exact)
    assert_orthonormal(ours, atol=1e-5)
    # The criterion is a difference of fourth powers and squared squares. It cancels
    # in any rotation if all rows point the same way.
    length = torch.linalg.vector_norm(exact[0], dim=1, keepdim=True)
    z = exact[1].unsqueeze(1) * exact[0] / length @ theirs
    fourth = float(z.pow(4).mean(dim=0).sum())
    reached, best = (criterion(*exact, x.double()) for x in (ours, theirs))
    assert reached >= best - 1e-5 * fourth


def test_varimax_samples_rows():
    rows, weight = HARD['clusters'], weights(600, 1e3)
    ours, again, other = (
        varimax(rows, weight, generator(seed), num_rows=200) for seed in (0, 0, 1)
    )
    assert ours.equal(again) and not ours.allclose(other, atol=1e-3)
    # It takes at least twelve rows for each column, so all of these, in any order.
    few = rows[:190], weight[:190]
    ours, other = (varimax(*few, generator(seed), num_rows=1) for seed in (0, 1))
    assert ours.equal(other)


def test_varimax_of_nearly_parallel_rows():
    # A thousandth of a row is its own: some digits of the criterion are left.
    lost = []
    for seed in range(4):
        centre = torch.randn(12, 16, generator=generator(seed))
        near = torch.randn(600, 16, generator=generator(seed + 4)) / 10
        exact = (centre[torch.arange(600) % 12] + near + 1000).double(), torch.ones(600)
        ours, theirs = varimax(exact[0].float(), exact[1]), varimax(*exact)
        reached, best = (criterion(*exact, x.double()) for x in (ours, theirs))
        lost.append(1 - reached / best)
    assert sum(lost) / 4 < 0.02


def top_two_share(x):
    energy = x.square().sort(dim=1, descending=True).values
    return float(energy[:, :2].sum() / energy.sum())


def test_rotated_axes_are_communities():
    num, size = 12, 20
    group = torch.arange(num * size) // size
    chance = torch.where(group[:, None] == group, 0.5, 0.01)
    rated = torch.rand(len(group), len(group), generator=generator()) < chance
    edges = rated.nonzero().T
    interactions = normalized_interactions(edges, len(group), len(group))
    _, value, right = randomized_svd(interactions, len(group), num, generator())
    x = right * value.sqrt()
    rotated = x @ varimax(x, torch.ones(len(group)), generator())
    torch.testing.assert_close(
        torch.linalg.vector_norm(rotated, dim=1), torch.linalg.vector_norm(x, dim=1)
    )
    assert top_two_share(rotated) > 0.9 > top_two_share(x) + 0.2
    # An axis is one community, for nearly all items.
    axis = rotated.abs().argmax(dim=1)
    names = axis.view(num, size).mode(dim=1).values
    assert names.unique().numel() == num
    assert (axis == names[group]).float().mean() > 0.95


def planted_pairs(num_users=300, num_items=200, num_groups=5, own=0.3, other=0.02):
    """Users who have many items of their group and few others, sorted."""
    user, item = torch.arange(num_users), torch.arange(num_items)
    same = (user % num_groups).unsqueeze(1) == item % num_groups
    chance = torch.where(same, own, other)
    drawn = torch.rand(num_users, num_items, generator=generator(3)) < chance
    return drawn.nonzero().T


@pytest.mark.parametrize('num_blocks', [1, 3])
def test_what_stands_out_of_chance(num_blocks):
    """As many singular values as groups, by dense matrices."""
    pairs = planted_pairs()
    group = Group(num_blocks)
    users, items = group.rows(300), group.rows(200)
    degree = torch.bincount(pairs[1], minlength=200)
    shared = shared_interactions(pairs, users, items, 0.4, 0.3, degree)
    level = chance_level(pairs, shared, (0.4, 0.3), degree, generator())
    dense = torch.zeros(300, 200)
    dense[pairs[0], pairs[1]] = 1

    def values(matrix):
        of_user, of_item = matrix.sum(1), matrix.sum(0)
        scaled = matrix * of_user[:, None] ** -0.4 * of_item**-0.3
        return torch.linalg.svdvals(scaled.nan_to_num(posinf=0))

    shuffled = torch.zeros(300, 200)
    order = torch.randperm(pairs.size(1), generator=generator(5))
    shuffled.index_put_(
        (pairs[0], pairs[1, order]), torch.ones(pairs.size(1)), accumulate=True
    )
    assert level == pytest.approx(float(values(shuffled)[1]), rel=0.06)
    true = values(dense)
    assert int((true > level).sum()) == 5
    found = right_vectors(shared, 100, generator(), floor=level)
    assert found.residual <= 1e-3
    torch.testing.assert_close(found.value, true[:5], rtol=1e-4, atol=0)


def test_a_floor_above_all_values_leaves_one():
    shared = spectrum_of(torch.eye(20).double(), 5, floor=10.0)
    assert shared.value.shape == (1,) and shared.right.shape == (20, 1)
