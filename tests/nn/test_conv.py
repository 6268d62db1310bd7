import numpy as np
import pytest
import torch
import torch_geometric.typing
from torch_geometric import EdgeIndex
from torch_geometric.nn import HeteroConv
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import to_torch_csr_tensor

from pyg_c2f.graph import joint_norm
from pyg_c2f.nn import AnchorConv, C2FConv

FORMS = [
    'tensor',
    'edge_index',
    'edge_index_by_row',
    'edge_index_of_unknown_size',
    'csr',
    'csc',
    'coo',
    pytest.param(
        'sparse_tensor',
        marks=pytest.mark.skipif(
            not torch_geometric.typing.WITH_TORCH_SPARSE, reason='needs torch-sparse'
        ),
    ),
]


def in_form(form, edge_index, weight, size):
    """A graph in one of its forms, and the weights if they are not inside it."""
    if form == 'tensor':
        return edge_index, weight
    if form.startswith('edge_index'):
        order = 'row' if form.endswith('row') else 'col'
        perm = edge_index[0 if order == 'row' else 1].argsort(stable=True)
        known = {} if form.endswith('size') else {'sparse_size': size}
        index = EdgeIndex(edge_index[:, perm], sort_order=order, **known)
        return index, None if weight is None else weight[perm]
    if form == 'sparse_tensor':
        return SparseTensor.from_edge_index(edge_index, weight, size).t(), None
    adj_t = to_torch_csr_tensor(edge_index.flip(0), weight, size=size[::-1])
    if form == 'csc':
        adj_t = adj_t.to_sparse_csc()
    return adj_t.to_sparse_coo() if form == 'coo' else adj_t, None


def dense(edge_index, weight, size):
    weight = torch.ones(edge_index.size(1)) if weight is None else weight
    return weight.new_zeros(size).index_put(tuple(edge_index), weight)


@pytest.fixture
def graph():
    """Distinct edges from 6 to 4 nodes; the last node of each side has none."""
    torch.manual_seed(0)
    rated = torch.rand(6, 4) < 0.5
    rated[5] = False
    rated[:, 3] = False
    edge_index = rated.nonzero().T
    edge_index = edge_index[:, torch.randperm(edge_index.size(1))]
    return edge_index, torch.rand(edge_index.size(1)), torch.randn(6, 5)


every_form = pytest.mark.parametrize('form', FORMS)


def test_str():
    assert str(AnchorConv()) == 'AnchorConv()'
    assert str(C2FConv()) == 'C2FConv(gate=0.2)'


@pytest.mark.parametrize('weighted', [True, False])
@every_form
def test_anchor_conv(graph, form, weighted):
    edge_index, weight, x = graph
    weight = weight if weighted else None
    conv, target = AnchorConv(), torch.randn(4, 5)
    for fuse in (True, False):
        conv.fuse = fuse or form == 'csc'  # PyG takes CSC on the fused way only.
        out = conv(x, *in_form(form, edge_index, weight, (6, 6)))
        expected = dense(edge_index, weight, (6, 6)).T @ x
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        adj = in_form(form, edge_index, weight, (6, 4))
        for out in (conv((x, target), *adj), conv((x, None), *adj, size=(6, 4))):
            torch.testing.assert_close(out, expected[:4], atol=1e-6, rtol=0)


@pytest.mark.parametrize('form', FORMS[:4])
def test_anchor_conv_reversed(graph, form):
    edge_index, weight, x = graph
    conv = AnchorConv(flow='target_to_source')
    out = conv(x, *in_form(form, edge_index, weight, (6, 6)))
    expected = dense(edge_index, weight, (6, 6)) @ x
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize('form', FORMS[4:])
def test_anchor_conv_refuses_weights_beside_a_sparse_matrix(graph, form):
    edge_index, weight, x = graph
    adj_t, _ = in_form(form, edge_index, weight, (6, 6))
    with pytest.raises(ValueError, match="'AnchorConv' takes the weights of a sparse"):
        AnchorConv()(x, adj_t, weight)


@pytest.mark.parametrize('form', ['tensor', 'edge_index', *FORMS[4:]])
@pytest.mark.parametrize(
    ('inside', 'low'), [(True, False), (True, True), (False, True)]
)
def test_anchor_conv_in_low_precision(graph, form, inside, low):
    """Inside autocast, with bfloat16 features, and both."""
    edge_index, weight, x = graph
    expected = dense(edge_index, weight, (6, 4))
    leaf = (x.bfloat16() if low else x).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=inside):
        adj = in_form(form, edge_index, weight, (6, 4))
        out = AnchorConv()((leaf, None), *adj, (6, 4))
    assert form == 'tensor' or out.dtype == leaf.dtype
    theirs = expected.T @ x
    torch.testing.assert_close(out.float(), theirs, atol=0.03, rtol=0.03)
    out.float().sum().backward()
    send = expected.sum(dim=1)
    torch.testing.assert_close(leaf.grad[:, 0].float(), send, atol=0.03, rtol=0.03)


def test_anchor_conv_inside_hetero_conv(toy):
    data = toy.model('fine').to_hetero_data()
    x_dict = {name: torch.randn(num, 5) for name, num in data.num_nodes_dict.items()}
    conv = HeteroConv({rel: AnchorConv() for rel in data.edge_types}, aggr='sum')
    out = conv(x_dict, data.edge_index_dict, edge_weight_dict=data.edge_weight_dict)
    expected = toy.sums('fine') @ stacked(toy, x_dict)
    np.testing.assert_allclose(stacked(toy, out), expected, atol=1e-5)


def hetero_in_form(toy, stage, form):
    """Features, graph (in a form) and weights of each relation."""
    torch.manual_seed(1)
    data = toy.model(stage).to_hetero_data()
    num_nodes = data.num_nodes_dict
    x_dict = {name: torch.randn(num, 5) for name, num in num_nodes.items()}
    edges, weights = {}, {}
    for rel, edge_index in data.edge_index_dict.items():
        size = (num_nodes[rel[0]], num_nodes[rel[2]])
        adj, weight = in_form(form, edge_index, data[rel].edge_weight, size)
        edges[rel] = adj
        if weight is not None:
            weights[rel] = weight
    return x_dict, edges, weights


def stacked(toy, x_dict):
    h = torch.cat(
        [x_dict[k] for k in ('user', 'item', 'coarse', 'fine') if k in x_dict]
    )
    rest = toy.num_nodes - len(h)
    return np.pad(h.numpy(), ((0, rest), (0, 0)))


@pytest.mark.parametrize('gate', [0, 0.2, 1])
@every_form
def test_c2f_conv_fine(toy, form, gate):
    x_dict, edges, weights = hetero_in_form(toy, 'fine', form)
    conv = C2FConv(gate)
    out = conv(x_dict, edges, weights or None)
    for name, x in x_dict.items():
        assert out[name].shape == x.shape
    expected = toy.layer(stacked(toy, x_dict), 'fine', gate)
    np.testing.assert_allclose(stacked(toy, out), expected, atol=2e-6)
    norm = joint_norm(edges, weights, {name: len(x) for name, x in x_dict.items()})
    given = conv(x_dict, edges, weights, norm)
    assert all(given[name].equal(out[name]) for name in x_dict)


@pytest.mark.parametrize('form', ['tensor', 'csr'])
def test_c2f_conv_coarse(toy, form):
    x_dict, edges, weights = hetero_in_form(toy, 'coarse', form)
    assert 'fine' not in x_dict
    out = C2FConv(0.2)(x_dict, edges, weights or None)
    expected = toy.layer(stacked(toy, x_dict), 'coarse', 0.2)
    np.testing.assert_allclose(stacked(toy, out), expected, atol=2e-6)


def test_c2f_conv_refuses_incomplete_input(toy):
    x_dict, edges, weights = hetero_in_form(toy, 'fine', 'tensor')
    conv = C2FConv()
    with pytest.raises(ValueError, match="'edge_weight' is needed"):
        conv(x_dict, edges)
    fine = x_dict.pop('fine')
    with pytest.raises(ValueError, match="'C2FConv' has no features for both ends"):
        conv(x_dict, edges, weights)
    x_dict, edges, weights = hetero_in_form(toy, 'coarse', 'tensor')
    with pytest.raises(ValueError, match="'fine', 'anchors', 'coarse'"):
        conv(x_dict | {'fine': fine}, edges, weights)
