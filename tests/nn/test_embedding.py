import numpy as np
import pytest
import torch
from torch_geometric.nn import LightGCN

from pyg_c2f.nn import MetaEmbedding, SoftThreshold
from pyg_c2f.typing import Assignment

N, C, D, T = 12, 5, 4, 3


@pytest.mark.parametrize('threshold', [0.0, 0.5])
def test_soft_threshold(threshold):
    x = torch.linspace(-2, 2, 41, requires_grad=True)
    out = SoftThreshold(threshold)(x)
    expected = x.sign() * (x.abs() - threshold).clamp(min=0)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    inside = x.abs() <= threshold
    assert not out[inside].any() and not x.grad[inside].any()
    assert x.grad[~inside].eq(1).all()


@pytest.fixture
def emb():
    torch.manual_seed(0)
    return MetaEmbedding(N, C, D, anchors_per_entity=T)


def test_weight_is_the_product(emb, dense):
    s, codebook = dense(emb.assignment, C), emb.codebook.detach().numpy()
    np.testing.assert_allclose(emb.weight.detach(), s @ codebook, atol=1e-6)
    assert emb().equal(emb.weight)
    assert str(emb) == 'MetaEmbedding(12, 5, 4, anchors_per_entity=3)'
    assert str(SoftThreshold(0.5)) == 'SoftThreshold(threshold=0.5)'


@pytest.mark.parametrize('shape', [(), (2, 3, 4), (3, 0)])
@pytest.mark.parametrize('dtype', [torch.long, torch.int32])
def test_ids_of_any_shape(emb, shape, dtype):
    ids = torch.randint(N, shape, dtype=dtype)
    out = emb(ids)
    assert out.shape == (*shape, D)
    torch.testing.assert_close(out, emb.weight[ids])


def test_gradient(emb, dense):
    ids = torch.tensor([[0, 3, 3], [11, 0, 5]])
    pull = torch.randn(3, 2, D).transpose(0, 1)
    (emb(ids) * pull).sum().backward()
    g = np.zeros((N, D))
    np.add.at(g, ids.numpy(), pull.numpy())
    expected = dense(emb.assignment, C).T @ g
    np.testing.assert_allclose(emb.codebook.grad, expected, atol=1e-6)


def test_it_replaces_the_embedding_of_a_pyg_model():
    torch.manual_seed(0)
    edge_index = torch.tensor([[0, 1, 2, 3, 6, 7], [6, 7, 8, 9, 0, 1]])
    model = LightGCN(N, D, num_layers=2)
    model.embedding = emb = MetaEmbedding(N, C, D)
    assert [name for name, _ in model.named_parameters()] == ['embedding.codebook']
    before, index = emb.codebook.detach().clone(), emb.index.clone()
    positive = model(edge_index, torch.tensor([[0, 1, 2], [6, 7, 9]]))
    model.recommendation_loss(positive, 0 * positive).backward()
    torch.optim.Adam(model.parameters(), lr=0.1).step()
    assert (emb.codebook != before).all(dim=1).any()
    assert emb.index.equal(index)
    top = model.recommend(edge_index, src_index=torch.tensor([0, 1]), k=3)
    assert top.shape == (2, 3)


@pytest.mark.parametrize(
    'sizes', [(0, 5, 4, 2), (3, 0, 4, 1), (3, 5, 0, 2), (3, 5, 4, 0), (3, 5, 4, 6)]
)
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match="'MetaEmbedding' expected positive sizes"):
        MetaEmbedding(*sizes)
    with pytest.raises(ValueError, match=r'expected threshold >= 0 \(got -1\)'):
        SoftThreshold(-1)


def test_set_assignment(emb, dense):
    index, weight = torch.randint(C, (N, T)), torch.rand(N, T).double()
    emb.set_assignment(Assignment(index, weight))
    expected = dense(Assignment(index, weight), C) @ emb.codebook.detach().numpy()
    # It is a copy.
    index += 1
    weight += 1
    np.testing.assert_allclose(emb.weight.detach(), expected, atol=1e-6)
    assert emb.assignment_weight.dtype == emb.codebook.dtype
    assert {'index', 'assignment_weight'} <= set(emb.state_dict())


def test_a_backward_pass_survives_a_new_assignment(emb, dense):
    s = dense(emb.assignment, C)
    out = emb.weight
    emb.set_assignment(Assignment(torch.zeros(N, T).long(), torch.ones(N, T)))
    out.sum().backward()
    np.testing.assert_allclose(emb.codebook.grad, s.T @ np.ones((N, D)), atol=1e-6)


@pytest.mark.parametrize(
    ('index', 'weight', 'match'),
    [
        (torch.zeros(N, 2).long(), torch.ones(N, 2), r'shape \(12, 3\) \(got \(12, 2'),
        (torch.zeros(N, T).long(), torch.ones(N, 2), r'shape \(12, 3\) \(got \(12, 3'),
        (torch.full((N, T), C), torch.ones(N, T), r'anchors in \[0, 5\) \(got 5 to 5'),
        (torch.full((N, T), -1), torch.ones(N, T), r'anchors in \[0, 5\) \(got -1'),
        (torch.full((N, T), 0.5), torch.ones(N, T), r'anchors in \[0, 5\) \(got 0.5'),
    ],
)
def test_assignments_that_do_not_fit(emb, index, weight, match):
    before = emb.weight
    with pytest.raises(ValueError, match=match):
        emb.set_assignment(Assignment(index, weight))
    assert emb.weight.equal(before)


@pytest.mark.parametrize('number', [-1, N])
def test_ids_out_of_range(emb, number):
    with pytest.raises(IndexError):
        emb(torch.tensor([0, number]))
