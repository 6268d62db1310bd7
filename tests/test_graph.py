import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_csr_tensor

from pyg_c2f.graph import (
    adj_to_edges,
    assignment_to_edges,
    build_block_graph,
    build_hetero_data,
    entity_csr,
    interaction_weight,
    joint_norm,
)

both_stages = pytest.mark.parametrize('stage', ['coarse', 'fine'])


def hetero_data(toy, stage):
    fine = (toy.fine, toy.num_fine) if stage == 'fine' else ()
    return build_hetero_data(
        toy.edge_index, toy.num_users, toy.num_items, toy.coarse, toy.num_coarse, *fine
    )


def block_graph(toy, stage):
    entities = entity_csr(toy.edge_index, toy.num_users, toy.num_items)
    fine = toy.fine if stage == 'fine' else None
    return build_block_graph(entities, toy.coarse, toy.num_coarse, fine, toy.num_fine)


def blocks(toy, data, weights):
    """The relations as one matrix, with targets in the rows."""
    first = {
        'user': 0,
        'item': toy.num_users,
        'coarse': toy.num_entities,
        'fine': toy.num_entities + toy.num_coarse,
    }
    out = np.zeros((toy.num_nodes, toy.num_nodes))
    for rel, (src, dst) in data.edge_index_dict.items():
        out[first[rel[2]] + dst, first[rel[0]] + src] = weights[rel]
    return out


def to_dense(csr, num_cols):
    rows = len(csr.rowptr) - 1
    csr = torch.sparse_csr_tensor(*csr, size=(rows, num_cols))
    return csr.to_dense().numpy()


@pytest.mark.parametrize('norms', [{}, {'user_norm': 0.3, 'item_norm': 1}])
def test_interaction_weight(toy, norms):
    user, item = toy.edge_index
    weight = interaction_weight(toy.edge_index, toy.num_users, toy.num_items, **norms)
    scale = toy.rated.sum(axis=1)[user] ** norms.get('user_norm', 0.5)
    scale *= toy.rated.sum(axis=0)[item] ** norms.get('item_norm', 0.5)
    np.testing.assert_allclose(weight, 1 / scale, rtol=1e-6)


def test_assignment_to_edges_omits_zero_weights(toy, dense):
    edge_index, weight = assignment_to_edges(toy.coarse)
    assert (weight != 0).all()
    out = np.zeros((toy.num_entities, toy.num_coarse))
    out[tuple(edge_index)] = weight
    np.testing.assert_array_equal(out, dense(toy.coarse, toy.num_coarse))


@both_stages
def test_hetero_data_and_joint_norm(toy, stage):
    data = hetero_data(toy, stage)
    assert data.validate()
    node_types, relations = data.metadata()
    pairs = {('user', 'item'), ('user', 'coarse'), ('item', 'coarse')}
    if stage == 'fine':
        pairs.add(('coarse', 'fine'))
    assert set(node_types) == {name for pair in pairs for name in pair}
    both_ways = pairs | {(there, here) for here, there in pairs}
    assert sorted((src, dst) for src, _, dst in relations) == sorted(both_ways)
    for here, there in pairs:
        assert data[here, there].edge_index.equal(data[there, here].edge_index.flip(0))
        assert data[here, there].edge_weight.equal(data[there, here].edge_weight)
    ours = blocks(toy, data, data.edge_weight_dict)
    np.testing.assert_allclose(ours, toy.sums(stage), atol=1e-6)
    norm = joint_norm(data.edge_index_dict, data.edge_weight_dict, data.num_nodes_dict)
    np.testing.assert_allclose(blocks(toy, data, norm), toy.x_hat(stage), atol=1e-6)


@both_stages
def test_block_graph(toy, stage):
    graph = block_graph(toy, stage)
    ours, theirs = to_dense(graph.adj, toy.num_nodes), toy.x_hat(stage)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(ours, ours.T, rtol=1e-6)
    isolated = toy.sums(stage).sum(axis=1) == 0
    assert isolated.sum() == (4 if stage == 'fine' else 3 + toy.num_fine)
    assert not graph.scale[torch.from_numpy(isolated)].any()
    s1_t = to_dense(graph.coarse_t, toy.num_entities)
    np.testing.assert_allclose(s1_t, toy.s1.T, atol=1e-7)
    if stage == 'fine':
        s2_t = to_dense(graph.fine_t, toy.num_coarse)
        np.testing.assert_allclose(s2_t, toy.s2.T, atol=1e-7)
    else:
        assert graph.fine_t is None
    toy.edge_index = toy.edge_index[:, :0]
    ours = to_dense(block_graph(toy, stage).adj, toy.num_nodes)
    np.testing.assert_allclose(ours, toy.x_hat(stage), atol=1e-6)


def test_adj_to_edges():
    src, dst = torch.tensor([[2, 0, 1], [0, 1, 1]])
    weight = torch.tensor([0.1, 0.2, 0.3])
    edges = torch.stack([src, dst])
    for form in (edges, EdgeIndex(edges, sparse_size=(3, 2), sort_order='col')):
        out = adj_to_edges(form, weight)
        assert [x.tolist() for x in out] == [x.tolist() for x in (src, dst, weight)]
        assert all(type(x) is torch.Tensor for x in out)
        with pytest.raises(ValueError, match="'edge_weight' is needed"):
            adj_to_edges(form, None)
    adj_t = to_torch_csr_tensor(edges.flip(0), weight, size=(2, 3))
    for form in (adj_t, adj_t.to_sparse_csc(), adj_t.to_sparse_coo()):
        triples = zip(*(x.tolist() for x in adj_to_edges(form, None)), strict=True)
        assert set(triples) == set(
            zip(src.tolist(), dst.tolist(), weight.tolist(), strict=True)
        )
        with pytest.raises(ValueError, match='leave the edge_weight out'):
            adj_to_edges(form, weight)
