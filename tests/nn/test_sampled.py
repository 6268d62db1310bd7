import pytest
import torch

from pyg_c2f.nn import build_pairs, sampled, sampled_dot

U, V, E = 7, 9, 20  # The last user and the last item are in no pair.


def random_pairs():
    torch.manual_seed(0)
    place = torch.randperm((U - 1) * (V - 1))[:E]
    return torch.stack([place // (V - 1), place % (V - 1)])


def test_build_pairs():
    edge_index = random_pairs()
    out = build_pairs(edge_index, U, V)
    assert (out.num_users, out.num_items) == (U, V)
    assert all(field.dtype == torch.int32 for field in out)
    row, col = out.row.tolist(), out.col.tolist()
    assert list(zip(row, col, strict=True)) == sorted(
        map(tuple, edge_index.t().tolist())
    )
    assert edge_index[:, out.perm].tolist() == [row, col]
    for users, rowptr in ((out.row, out.rowptr), (out.col[out.perm_t], out.colptr)):
        first, last = rowptr[users], rowptr[users + 1]
        place = torch.arange(E)
        assert ((first <= place) & (place < last)).all()
    assert (int(out.rowptr[-1]), int(out.colptr[-1])) == (E, E)
    assert out.row_t.equal(out.row[out.perm_t])


@pytest.mark.parametrize(
    'edge_index, message',
    [
        ([[0, 1], [0, 3]], 'item ids 0 to 3 .* do not fit num_items=3'),
        ([[0, 2], [0, 0]], 'user ids 0 to 2 .* do not fit num_users=2'),
        ([[1, 0, 1], [2, 0, 2]], 'a pair more than once'),
    ],
)
def test_build_pairs_refuses(edge_index, message):
    with pytest.raises(ValueError, match=f"'build_pairs'.*{message}"):
        build_pairs(torch.tensor(edge_index), 2, 3)


@pytest.mark.parametrize('block', [2, 64])
def test_sampled_dot(block, monkeypatch):
    monkeypatch.setattr(sampled, 'BLOCK', block)
    some = build_pairs(random_pairs(), U, V)
    a, b = torch.randn(U, 5), torch.randn(V, 5)
    torch.testing.assert_close(sampled_dot(some, a, b), (a @ b.t())[some.row, some.col])


def test_sampled_dot_of_strided_tables_and_gradients():
    some = build_pairs(random_pairs(), U, V)
    a = torch.randn(3, U).double().t().requires_grad_()
    b = torch.randn(V, 6).double()[:, ::2].requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: sampled_dot(some, a, b), (a, b))
    # The gradient of a plain sum is one number, expanded.
    (grad,) = torch.autograd.grad(sampled_dot(some, a.float(), b.float()).sum(), a)
    expected = torch.zeros(U, 3).double().index_add_(0, some.row, b.detach()[some.col])
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


def test_sampled_dot_of_no_pairs():
    none = build_pairs(torch.empty(2, 0, dtype=torch.long), 2, 3)
    a, b = torch.randn(2, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    out = sampled_dot(none, a, b)
    assert out.shape == (0,)
    out.sum().backward()
    assert not a.grad.any() and not b.grad.any()


@pytest.mark.parametrize(
    'shapes', [((U, 3), (U, 3)), ((V, 3), (V, 3)), ((U, 3), (V, 4))]
)
def test_sampled_dot_shapes(shapes):
    some = build_pairs(random_pairs(), U, V)
    with pytest.raises(
        ValueError, match=f'expected features of {U} users and {V} items'
    ):
        sampled_dot(some, *map(torch.randn, shapes))
