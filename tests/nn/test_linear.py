import copy

import numpy as np
import pytest
import torch

from pyg_c2f.nn.linear import _Histories
from pyg_c2f.typing import Assignment
from tests.models import make_linear

both_stages = pytest.mark.parametrize('stage', ['coarse', 'fine'])
diffusions = pytest.mark.parametrize('diffusion', [0.0, 0.7])
POWER, USER_NORM, ITEM_NORM = 0.6, 0.3, 0.6  # As in tests/models.py.
NUM_COARSE, NUM_FINE, DIM = 5, 4, 6


def adjacency(toy):
    """The normalised interactions, both ways, users first."""
    rated = toy.rated
    scale = rated.sum(axis=1, keepdims=True).clip(min=1) ** USER_NORM
    scale = scale * rated.sum(axis=0).clip(min=1) ** ITEM_NORM
    out = np.zeros((toy.num_entities, toy.num_entities))
    out[: toy.num_users, toy.num_users :] = rated / scale
    return out + out.T


def features(toy, model, dense):
    """The propagated features, as they are defined."""
    x = dense(model.coarse.assignment, NUM_COARSE) @ as_double(model.coarse.codebook)
    if model.stage == 'fine':
        fine = as_double(model.fine.codebook)
        fine = np.sign(fine) * np.clip(np.abs(fine) - model.threshold, 0, None)
        x += dense(model.fine.assignment, NUM_FINE) @ fine
    x = np.concatenate([np.zeros((toy.num_users, DIM)), x])
    return (x + adjacency(toy) @ x * (np.arange(len(x)) < toy.num_users)[:, None]) / 2


def as_double(x):
    return x.detach().double().numpy()


def all_scores(toy, model, dense):
    h = features(toy, model, dense)
    out = h[: toy.num_users] @ h[toy.num_users :].T
    cube = np.linalg.matrix_power(adjacency(toy), 3)
    out += model.diffusion * cube[: toy.num_users, toy.num_users :]
    degree = toy.rated.sum(axis=0).clip(min=1)
    return out * degree**model.score_power + as_double(model.bias)


@both_stages
@diffusions
def test_features_and_scores(toy, stage, diffusion, dense):
    model = make_linear(toy, stage, diffusion=diffusion)
    h = torch.cat(model.propagate()).detach()
    np.testing.assert_allclose(h, features(toy, model, dense), atol=1e-5)
    expected = all_scores(toy, model, dense)
    ids = torch.tensor([5, 0, 1, 0])
    scores = model.scorer()(ids)
    assert not scores.requires_grad
    np.testing.assert_allclose(scores, expected[ids], atol=1e-5)
    items = torch.tensor([7, 3, 2, 0])
    pairs = model(ids, items)
    np.testing.assert_allclose(pairs.detach(), expected[ids, items], atol=1e-5)
    pairs.sum().backward()
    assert (model.fine.codebook.grad is None) == (stage == 'coarse')


@both_stages
@diffusions
def test_the_history_of_a_known_user(toy, stage, diffusion):
    model = make_linear(toy, stage, diffusion=diffusion)
    for user in set(toy.edge_index[0].tolist()):
        history = toy.edge_index[1, toy.edge_index[0] == user]
        expected = model.scorer()(torch.tensor([user]))
        rowptr = torch.tensor([0, len(history)])
        scores = model.history_scorer(rowptr, history)(torch.tensor([0]))
        torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-6)
        ids, scores = model.recommend(user, k=8)
        # Order and repetition of the history do not matter.
        again = model.recommend(history=history.flip(0).repeat(2), k=8)
        assert again[0].equal(ids)
        torch.testing.assert_close(again[1], scores, atol=1e-6, rtol=1e-6)
        assert not set(history.tolist()) & set(ids.tolist())


@both_stages
@diffusions
def test_a_history(toy, stage, diffusion, dense):
    history = [4, 2, 5]
    model = make_linear(toy, stage, diffusion=diffusion)
    a = adjacency(toy)
    degree = toy.rated.sum(axis=0).clip(min=1)
    row = np.zeros(toy.num_items)
    row[history] = len(history) ** -USER_NORM * degree[history] ** -ITEM_NORM
    h_item = features(toy, model, dense)[toy.num_users :]
    out = h_item @ (row @ h_item)
    two_steps = (
        a[toy.num_users :, : toy.num_users] @ a[: toy.num_users, toy.num_users :]
    )
    out = (out + diffusion * two_steps @ row) * degree**POWER + as_double(model.bias)
    out[history] = -np.inf
    ids, scores = model.recommend(history=history, k=4)
    np.testing.assert_allclose(scores, np.sort(out)[::-1][:4], atol=1e-5)
    np.testing.assert_allclose(out[ids], scores, atol=1e-5)


def test_gradient_of_a_plain_sum_over_histories(toy):
    # It is one number, expanded. Numerical derivatives are in test_as_pyg_layers.py.
    model = make_linear(toy)
    leaf = torch.randn(toy.num_items, 4, requires_grad=True)
    _Histories.apply(leaf, model.by_user(), model.by_item()).sum().backward()
    a = torch.from_numpy(adjacency(toy)).float()[:6, 6:]
    torch.testing.assert_close(leaf.grad, a.sum(dim=0).unsqueeze(1).expand(-1, 4))


@both_stages
def test_hetero_data(toy, stage, dense):
    model = make_linear(toy, stage)
    data = model.to_hetero_data()
    assert data.validate()
    assert data['coarse'].x.equal(model.coarse.codebook)
    assert ('fine' in data.node_types) == (stage == 'fine')
    if stage == 'fine':
        assert data['fine'].x.equal(model.soft_threshold(model.fine.codebook))
    assert ('user', 'assigned_to', 'coarse') not in data.edge_types

    def product(*relation):
        """What the targets receive from the features of the sources."""
        store = data[relation]
        assert store.edge_weight.all()
        sent = x[relation[0]][store.edge_index[0]] * store.edge_weight.unsqueeze(1)
        out = torch.zeros(data[relation[2]].num_nodes, DIM)
        return out.index_add_(0, store.edge_index[1], sent.detach())

    x = {anchor: data[anchor].x for anchor in ('coarse', 'fine')[: 1 + model.is_fine]}
    for anchor in x:
        there = data['item', 'assigned_to', anchor].edge_index
        assert data[anchor, 'anchors', 'item'].edge_index.equal(there.flip(0))
    x['item'] = sum(product(anchor, 'anchors', 'item') for anchor in x)
    ours = torch.cat([product('item', 'rated_by', 'user'), x['item']]) / 2
    np.testing.assert_allclose(ours, features(toy, model, dense), atol=1e-5)


@both_stages
def test_stages_and_anchors_in_use(toy, stage):
    model = make_linear(toy, stage)
    assert model.stage == stage
    weight = torch.zeros(toy.num_items, 3)
    weight[:, 0] = 1
    index = torch.tensor([1, 2, 3]).repeat(toy.num_items, 1)
    fine = Assignment(torch.tensor([[0, 3]]).repeat(8, 1), torch.ones(8, 2))
    model.set_assignment(Assignment(index, weight), fine)
    assert model.anchors_in_use() == (1 if stage == 'coarse' else 3)


@pytest.mark.parametrize('dtype', ['packed', 'float32'])
def test_round(toy, dtype):
    model = make_linear(toy, dtype=dtype)
    before = copy.deepcopy(model)
    model.round_()
    for name, parameter in model.named_parameters():
        old = before.get_parameter(name)
        if dtype == 'float32':
            assert parameter.equal(old)
        else:
            assert parameter.equal(old.half().float()) and not parameter.equal(old)
