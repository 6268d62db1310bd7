"""The basis of recipe fast against dense linear algebra, and what rotating it does."""

import math

import pytest
import torch

from pyg_c2f.spectral import (
    normalized_interactions,
    orthonormal,
    randomized_svd,
    varimax,
)

U, V = 60, 80


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_edges(share=0.08):
    """Pairs in no order; users 5 and 59 and items 7 and 79 have none."""
    rated = torch.rand(U, V, generator=generator()) < share
    rated[[5, U - 1]] = False
    rated[:, [7, V - 1]] = False
    edges = rated.nonzero().T
    return edges[:, torch.randperm(edges.size(1), generator=generator())]


def dense(edge_index, num_users=U, num_items=V):
    rated = torch.zeros(num_users, num_items, dtype=torch.double)
    rated[tuple(edge_index)] = 1
    degrees = rated.sum(dim=1, keepdim=True) * rated.sum(dim=0)
    return rated / degrees.sqrt().clamp(min=1)


def to_dense(csr, num_cols):
    size = (csr.rowptr.numel() - 1, num_cols)
    return torch.sparse_csr_tensor(csr.rowptr, csr.col, csr.weight, size).to_dense()


@pytest.mark.parametrize('share', [0.08, 0.5, 0])
def test_normalized_interactions(share):
    edges = random_edges(share)
    by_user, by_item = normalized_interactions(edges, U, V)
    expected = dense(edges).float()
    torch.testing.assert_close(to_dense(by_user, V), expected)
    torch.testing.assert_close(to_dense(by_item, U), expected.T)
    for csr in (by_user, by_item):
        assert csr.rowptr.dtype == csr.col.dtype == torch.int32
        row = torch.repeat_interleave(csr.rowptr.diff().long())
        key = row * max(U, V) + csr.col
        assert (key.diff() > 0).all()


def assert_orthonormal(x):
    torch.testing.assert_close(x.T @ x, torch.eye(x.size(1)), atol=3e-5, rtol=0)


@pytest.mark.parametrize('rank', [1, 3, 20, 40, 58])
def test_randomized_svd(rank):
    edges = random_edges()
    left, value, right = randomized_svd(
        normalized_interactions(edges, U, V), rank, generator()
    )
    u, s, vh = torch.linalg.svd(dense(edges))
    assert left.shape == (U, rank) and right.shape == (V, rank)
    torch.testing.assert_close(value.double(), s[:rank], atol=1e-6, rtol=0)
    assert (value.diff() <= 0).all()
    assert_orthonormal(left)
    assert_orthonormal(right)
    # The subspaces are the same: the projections are, where the spectrum has a gap.
    for ours, theirs in ((left, u[:, :rank]), (right, vh[:rank].T)):
        torch.testing.assert_close(
            (ours @ ours.T).double(), theirs @ theirs.T, atol=1e-4, rtol=0
        )
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    torch.testing.assert_close(
        ((left * value) @ right.T).double(), best, atol=1e-5, rtol=0
    )
    assert (left[[5, U - 1]].abs() < 1e-6).all()
    assert (right[[7, V - 1]].abs() < 1e-6).all()


def test_the_last_vectors_of_many_are_right():
    # More users than the subspace is wide: here the filter has to work.
    num = 300
    rated = torch.rand(num, num, generator=generator()) < 0.05
    edges = rated.nonzero().T
    _, value, right = randomized_svd(
        normalized_interactions(edges, num, num), 40, generator()
    )
    _, s, vh = torch.linalg.svd(dense(edges, num, num))
    # Values fall by half a percent from one to the next.
    torch.testing.assert_close(value.double(), s[:40], atol=0, rtol=5e-3)
    inside = (right[:, :30].T.double() @ vh[:30].T).square().sum() / 30
    _, _, plain = torch.svd_lowrank(dense(edges, num, num), 40 + 32, niter=2)
    assert inside > (plain[:, :30].T @ vh[:30].T).square().sum() / 30


def test_full_rank_and_rank_deficient():
    # Four kinds of users: a matrix of rank four.
    kinds = torch.rand(4, V, generator=generator()) < 0.3
    edges = kinds.repeat(U // 4, 1).nonzero().T
    matrix = dense(edges)
    s = torch.linalg.svdvals(matrix)
    for rank in (3, 10, U):
        left, value, right = randomized_svd(
            normalized_interactions(edges, U, V), rank, generator()
        )
        assert all(x.isfinite().all() for x in (left, value, right))
        torch.testing.assert_close(value.double(), s[:rank], atol=1e-3, rtol=0)
        error = matrix - (left * value) @ right.T
        torch.testing.assert_close(
            torch.linalg.vector_norm(error),
            torch.linalg.vector_norm(s[rank:]),
            atol=1e-5,
            rtol=1e-5,
        )
    assert value[:4].min() > 0.1 and value[4:].max() < 1e-3


def test_randomized_svd_is_reproducible():
    interactions = normalized_interactions(random_edges(), U, V)
    ours, again, other = (
        randomized_svd(interactions, 8, generator(seed)) for seed in (1, 1, 2)
    )
    assert all(x.equal(y) for x, y in zip(ours, again, strict=True))
    assert not ours[0].equal(other[0])


@pytest.mark.parametrize('rank', [0, -1, U + 1])
def test_randomized_svd_refuses(rank):
    interactions = normalized_interactions(random_edges(), U, V)
    with pytest.raises(ValueError, match=rf'rank from 1 to {U} \(got {rank}\)'):
        randomized_svd(interactions, rank)


def test_orthonormal():
    x = torch.randn(50, 6, generator=generator()) * torch.tensor(
        [1e3, 1e2, 10, 1, 1, 1]
    )
    q = orthonormal(x)
    assert_orthonormal(q)
    # The columns of x lie in the span.
    torch.testing.assert_close(q @ (q.T @ x), x, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize('rank', [0, 1, 4])
def test_orthonormal_of_dependent_columns(rank):
    x = torch.randn(50, rank, generator=generator()) @ torch.randn(
        rank, 6, generator=generator(1)
    )
    q = orthonormal(x)
    # A direction that is not there comes out as zeros, or as one more of length one
    # that rounding has left.
    alive = torch.linalg.vector_norm(q, dim=0) > 1e-6
    assert rank <= int(alive.sum()) and (rank > 0 or not alive.any())
    assert_orthonormal(q[:, alive])
    torch.testing.assert_close(q @ (q.T @ x), x, atol=1e-4, rtol=1e-4)


def criterion(rows, weight, rotation):
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)
    z = rows / length * weight.unsqueeze(1) @ rotation
    return float(z.square().var(dim=0, unbiased=False).sum())


@pytest.mark.parametrize('num_rows', [12_000, 50])
def test_varimax_is_a_rotation_of_larger_criterion(num_rows):
    rows = torch.randn(400, 6, generator=generator()) ** 3
    rows = rows @ torch.linalg.qr(torch.randn(6, 6, generator=generator(1))).Q
    weight = torch.rand(400, generator=generator(2))
    rows[3], weight[4] = 0, 0
    rotation = varimax(rows, weight, generator(), num_rows)
    assert_orthonormal(rotation)
    last = criterion(rows, weight, torch.eye(6))
    assert criterion(rows, weight, rotation) > 1.5 * last
    if num_rows > 400:
        # Further from one iteration to the next.
        for num_iterations in (1, 2, 4, 8):
            rotation = varimax(rows, weight, num_iterations=num_iterations)
            value = criterion(rows, weight, rotation)
            assert value > last
            last = value


def test_varimax_ends_at_its_own_criterion():
    # One direction that all rows share: fourth powers alone would put an axis there.
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


def test_varimax_looks_at_some_rows_only():
    rows = torch.randn(100, 4, generator=generator())
    weight = torch.ones(100)
    ours, again, other = (
        varimax(rows, weight, generator(seed), num_rows=10) for seed in (0, 0, 1)
    )
    assert ours.equal(again) and not ours.allclose(other, atol=1e-3)
    # At least twelve for each column: all there are, in any order, here.
    wide = torch.randn(30, 4, generator=generator())
    ours, other = (
        varimax(wide, torch.ones(30), generator(seed), num_rows=1) for seed in (0, 1)
    )
    assert ours.equal(other)


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
    _, value, right = randomized_svd(interactions, num, generator())
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
