import numpy as np
import pytest
import torch
from torch_geometric.nn import LightGCN

from pyg_c2f.nn import MetaEmbedding, SoftThreshold
from pyg_c2f.typing import Assignment

N, C, D, T = 12, 5, 4, 3


@pytest.mark.parametrize('threshold', [0.0, 0.5, 1.0])
def test_soft_threshold(threshold):
    x = torch.linspace(-2, 2, 41, requires_grad=True)
    out = SoftThreshold(threshold)(x)
    expected = x.sign() * (x.abs() - threshold).clamp(min=0)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    inside = x.abs() <= threshold
    assert not out[inside].any() and not x.grad[inside].any()
    assert x.grad[~inside].eq(1).all()


def test_soft_threshold_arguments():
    assert str(SoftThreshold(0.5)) == 'SoftThreshold(threshold=0.5)'
    with pytest.raises(ValueError, match=r'expected threshold >= 0 \(got -1\)'):
        SoftThreshold(-1)


@pytest.fixture
def emb():
    torch.manual_seed(0)
    return MetaEmbedding(N, C, D, anchors_per_entity=T)


def test_meta_embedding_str(emb):
    assert str(emb) == 'MetaEmbedding(12, 5, 4, anchors_per_entity=3)'


def test_weight_is_the_product(emb, dense):
    s, codebook = dense(emb.assignment, C), emb.codebook.detach().numpy()
    np.testing.assert_allclose(emb.weight.detach(), s @ codebook, atol=1e-6)
    assert emb().equal(emb.weight)


@pytest.mark.parametrize('shape', [(), (1,), (7,), (2, 3), (2, 3, 4), (0,), (3, 0)])
def test_ids_of_any_shape(emb, shape):
    ids = torch.randint(N, shape)
    out = emb(ids)
    assert out.shape == (*shape, D)
    torch.testing.assert_close(out, emb.weight[ids])


def test_ids_of_32_bits(emb):
    ids = torch.tensor([3, 0], dtype=torch.int32)
    torch.testing.assert_close(emb(ids), emb.weight[ids])


@pytest.mark.parametrize('transposed', [False, True])
def test_gradient(emb, dense, transposed):
    ids = torch.tensor([[0, 3, 3], [11, 0, 5]])
    pull = torch.randn(3, 2, D).transpose(0, 1) if transposed else torch.randn(2, 3, D)
    (emb(ids) * pull).sum().backward()
    g = np.zeros((N, D))
    np.add.at(g, ids.numpy(), pull.numpy())
    expected = dense(emb.assignment, C).T @ g
    np.testing.assert_allclose(emb.codebook.grad, expected, atol=1e-6)

    emb.codebook.grad = None
    emb.weight.sum().backward()
    expected = dense(emb.assignment, C).T @ np.ones((N, D))
    np.testing.assert_allclose(emb.codebook.grad, expected, atol=1e-6)


def test_drop_in_for_a_table():
    torch.manual_seed(0)
    edge_index = torch.tensor([[0, 1, 2, 3, 6, 7], [6, 7, 8, 9, 0, 1]])
    model = LightGCN(N, D, num_layers=2)
    model.embedding = emb = MetaEmbedding(N, C, D)
    assert [name for name, _ in model.named_parameters()] == ['embedding.codebook']
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before, index = emb.codebook.detach().clone(), emb.index.clone()
    labels = torch.tensor([[0, 1, 2], [6, 7, 9]])
    positive, negative = model(edge_index, labels), model(edge_index, labels.flip(1))
    loss = model.recommendation_loss(positive, negative, labels.unique())
    loss.backward()
    optimizer.step()
    assert (emb.codebook != before).all(dim=1).any()
    assert emb.index.equal(index)
    top = model.recommend(edge_index, src_index=torch.tensor([0, 1]), k=3)
    assert top.shape == (2, 3)


def test_state_dict_round_trip(emb):
    torch.manual_seed(1)
    other = MetaEmbedding(N, C, D, anchors_per_entity=T)
    assert not other.weight.equal(emb.weight)
    other.load_state_dict(emb.state_dict())
    assert other.weight.equal(emb.weight)


def test_reset_parameters(emb):
    before = emb.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    emb.reset_parameters()
    assert not emb.codebook.equal(before['codebook'])
    assert not emb.index.equal(before['index'])


def test_to_double(emb):
    single = emb.weight
    out = emb.to(torch.double)(torch.tensor([0, 1]))
    assert out.dtype == torch.double
    torch.testing.assert_close(out, single[:2].double())
    assert emb.index.dtype == torch.long


@pytest.mark.parametrize('sizes', [(0, 5, 4, 2), (3, 0, 4, 1), (3, 5, 0, 2)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="'MetaEmbedding' expected positive sizes"):
        MetaEmbedding(*sizes)


@pytest.mark.parametrize('anchors_per_entity', [0, 6])
def test_anchors_per_entity_must_fit(anchors_per_entity):
    with pytest.raises(ValueError, match=f'anchors_per_entity={anchors_per_entity}'):
        MetaEmbedding(3, 5, 4, anchors_per_entity)


def test_one_anchor():
    emb = MetaEmbedding(3, 1, 4, anchors_per_entity=1)
    assert emb.weight.equal(emb.codebook.expand(3, 4))


def test_set_assignment(emb, dense):
    index, weight = torch.randint(C, (N, T)), torch.rand(N, T).double()
    emb.set_assignment(Assignment(index, weight))
    expected = dense(Assignment(index, weight), C) @ emb.codebook.detach().numpy()
    np.testing.assert_allclose(emb.weight.detach(), expected, atol=1e-6)
    assert emb.assignment_weight.dtype == emb.codebook.dtype
    assert {'index', 'assignment_weight'} <= set(emb.state_dict())


def test_the_assignment_is_a_copy(emb):
    index, weight = torch.zeros(N, T, dtype=torch.long), torch.ones(N, T)
    emb.set_assignment(Assignment(index, weight))
    before = emb.weight
    index += 1
    weight += 1
    assert emb.weight.equal(before)


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
def test_set_assignment_errors(emb, index, weight, match):
    before = emb.weight
    with pytest.raises(ValueError, match=match):
        emb.set_assignment(Assignment(index, weight))
    assert emb.weight.equal(before)


@pytest.mark.parametrize('number', [-1, N])
def test_ids_out_of_range(emb, number):
    with pytest.raises(IndexError):
        emb(torch.tensor([0, number]))
