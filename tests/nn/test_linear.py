import copy

import numpy as np
import pytest
import torch

from pyg_c2f.nn import LinearC2F
from pyg_c2f.nn.linear import _Histories
from pyg_c2f.typing import Assignment

both_stages = pytest.mark.parametrize('stage', ['coarse', 'fine'])
diffusions = pytest.mark.parametrize('diffusion', [0.0, 0.7])
THRESHOLD, POWER = 0.4, 0.6
USER_NORM, ITEM_NORM = 0.3, 0.6
NUM_COARSE, NUM_FINE, DIM = 5, 4, 6


def make_model(toy, stage='fine', **kwargs):
    """A model on the graph of ``toy`` with random tables, links and biases."""
    settings = {
        'max_coarse_per_item': 3,
        'fine_per_item': 2,
        'threshold': THRESHOLD,
        'score_power': POWER,
        'user_norm': USER_NORM,
        'item_norm': ITEM_NORM,
    } | kwargs
    model = LinearC2F(
        toy.edge_index,
        toy.num_users,
        toy.num_items,
        NUM_COARSE,
        NUM_FINE,
        DIM,
        **settings,
    )
    weight = torch.randn(model.coarse.index.shape)
    weight[torch.rand(weight.shape) < 0.2] = 0
    model.set_assignment(Assignment(model.coarse.index, weight))
    with torch.no_grad():
        model.bias.normal_()
    model.set_stage(stage)
    return model


def adjacency(toy):
    """The normalised interactions in both directions, users first."""
    rated = toy.rated
    scale = rated.sum(axis=1, keepdims=True).clip(min=1) ** USER_NORM
    scale = scale * rated.sum(axis=0).clip(min=1) ** ITEM_NORM
    out = np.zeros((toy.num_entities, toy.num_entities))
    out[: toy.num_users, toy.num_users :] = rated / scale
    return out + out.T


def features(toy, model, dense):
    """The propagated features, the definition written out."""
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
def test_propagate(toy, stage, dense):
    model = make_model(toy, stage)
    ours = torch.cat(model.propagate()).detach()
    np.testing.assert_allclose(ours, features(toy, model, dense), atol=1e-5)


@both_stages
@diffusions
def test_scores(toy, stage, diffusion, dense):
    model = make_model(toy, stage, diffusion=diffusion)
    expected = all_scores(toy, model, dense)
    ids = torch.tensor([5, 0, 1, 0])
    scores = model.scorer()(ids)
    assert not scores.requires_grad
    np.testing.assert_allclose(scores, expected[ids], atol=1e-5)
    items = torch.tensor([7, 3, 2, 0])
    pairs = model(ids, items)
    assert pairs.requires_grad
    np.testing.assert_allclose(pairs.detach(), expected[ids, items], atol=1e-5)


def test_scorer_in_blocks(toy, monkeypatch):
    model = make_model(toy, diffusion=0.5)
    users = torch.arange(6).repeat(3)
    whole = model.scorer()(users)
    monkeypatch.setattr('pyg_c2f.nn.linear.SCORE_BLOCK', 4)
    torch.testing.assert_close(model.scorer()(users), whole)
    torch.testing.assert_close(whole[6:12], whole[:6])


@both_stages
@diffusions
def test_the_history_of_a_known_user(toy, stage, diffusion):
    model = make_model(toy, stage, diffusion=diffusion)
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
@pytest.mark.parametrize('history', [[0], [7, 0], [4, 2, 5]])
def test_a_history(toy, stage, diffusion, history, dense):
    model = make_model(toy, stage, diffusion=diffusion)
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


@both_stages
def test_recommend(toy, stage, dense):
    model = make_model(toy, stage, diffusion=0.3)
    expected = np.where(toy.rated, -np.inf, all_scores(toy, model, dense))
    ids, scores = model.recommend(range(toy.num_users), k=3)
    np.testing.assert_array_equal(ids, np.argsort(-expected, axis=1)[:, :3])
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :3], atol=1e-5)
    one, _ = model.recommend(4, k=3)
    assert one.equal(ids[4])
    everything = model.recommend(history=range(toy.num_items))
    assert (everything[0] == -1).all() and (everything[1] == -torch.inf).all()


def test_only_diffusion_needs_the_graph(toy):
    assert not make_model(toy).needs_graph()
    assert make_model(toy, diffusion=0.1).needs_graph()


def test_gradient_of_histories(toy):
    model = make_model(toy)
    both = model.by_user(), model.by_item()
    a = torch.from_numpy(adjacency(toy)).float()[:6, 6:]
    x, pull = torch.randn(toy.num_items, 4), torch.randn(toy.num_users, 4)
    grads = []
    for product in (lambda x: _Histories.apply(x, *both), lambda x: a @ x):
        leaf = x.clone().requires_grad_()
        (product(leaf) * pull).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)
    # A plain sum: its gradient is one number, expanded.
    leaf = x.clone().requires_grad_()
    _Histories.apply(leaf, *both).sum().backward()
    torch.testing.assert_close(leaf.grad, a.sum(dim=0).unsqueeze(1).expand(-1, 4))


@both_stages
def test_gradients_of_scores(toy, stage):
    model = make_model(toy, stage, diffusion=0.2)
    ids, items = torch.tensor([5, 0, 1, 0]), torch.tensor([7, 3, 2, 0])
    pull = torch.randn(4)
    (model(ids, items) * pull).sum().backward()
    ours = [p.grad for p in model.parameters()]
    model.zero_grad()
    index, weight = model.assignment()
    x = (model.codebook()[index] * weight.unsqueeze(2)).sum(dim=1) / 2
    h_user = torch.from_numpy(adjacency(toy)).float()[:6, 6:] @ x
    h_item = x
    score = (h_user[ids] * h_item[items]).sum(dim=1) * model.item_scale()[items]
    ((score + model.bias[items]) * pull).sum().backward()
    theirs = [p.grad for p in model.parameters()]
    assert sum(grad is None for grad in theirs) == (stage == 'coarse')
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, check_stride=False)


@both_stages
def test_hetero_data(toy, stage, dense):
    model = make_model(toy, stage)
    data = model.to_hetero_data()
    assert data.validate()
    assert data['coarse'].x.equal(model.coarse.codebook)
    assert ('fine' in data.node_types) == (stage == 'fine')
    if stage == 'fine':
        assert data['fine'].x.equal(model.soft_threshold(model.fine.codebook))
    assert ('user', 'assigned_to', 'coarse') not in data.edge_types
    # Its relations make up the features: links, then one pass.
    num = {'user': toy.num_users, 'item': toy.num_items}
    x = {side: torch.zeros(size, DIM) for side, size in num.items()}
    for (source, name, target), store in data.edge_items():
        src, dst = store.edge_index
        other = data[target, 'anchors', source] if name == 'assigned_to' else None
        if name == 'anchors':
            values = data[source].x[src] * store.edge_weight.unsqueeze(1)
            x[target].index_add_(0, dst, values)
        if other is not None:
            assert other.edge_index.equal(store.edge_index.flip(0))
            assert (store.edge_weight != 0).all()
    h = {side: features.clone() for side, features in x.items()}
    src, dst = data['item', 'rated_by', 'user'].edge_index
    weight = data['item', 'rated_by', 'user'].edge_weight.unsqueeze(1)
    h['user'].index_add_(0, dst, x['item'][src] * weight)
    ours = torch.cat([h['user'], h['item']]) / 2
    np.testing.assert_allclose(ours.detach(), features(toy, model, dense), atol=1e-5)


@both_stages
def test_copies_and_states(toy, stage):
    model = make_model(toy, stage, diffusion=0.4)
    ids = torch.arange(toy.num_users)
    scores = model.scorer()(ids)
    twin = copy.deepcopy(model)
    assert twin.scorer()(ids).equal(scores)
    assert twin.to(torch.device('cpu')).scorer()(ids).equal(scores)
    with torch.no_grad():
        twin.coarse.codebook.zero_()
    assert model.scorer()(ids).equal(scores)

    other = make_model(toy, 'coarse', diffusion=0.4)
    with torch.no_grad():
        # Another graph of as many edges: each item numbered from the other end.
        other.edge_index[1] = toy.num_items - 1 - other.edge_index[1]
    assert not other.scorer()(ids).allclose(scores)
    other.load_state_dict(model.state_dict())
    assert other.stage == stage
    assert other.scorer()(ids).equal(scores)


@both_stages
def test_stages_and_anchors_in_use(toy, stage):
    model = make_model(toy, stage)
    assert model.stage == stage
    weight = torch.zeros(toy.num_items, 3)
    weight[:, 0] = 1
    index = torch.tensor([1, 2, 3]).repeat(toy.num_items, 1)
    fine = Assignment(torch.tensor([[0, 3]]).repeat(8, 1), torch.ones(8, 2))
    model.set_assignment(Assignment(index, weight), fine)
    assert model.anchors_in_use() == (1 if stage == 'coarse' else 3)
    with pytest.raises(ValueError, match='corse'):
        model.set_stage('corse')
    assert model.stage == stage


@pytest.mark.parametrize('dtype', ['packed', 'float32'])
def test_round(toy, dtype):
    model = make_model(toy, dtype=dtype)
    before = copy.deepcopy(model)
    model.round_()
    for name, parameter in model.named_parameters():
        old = before.get_parameter(name)
        if dtype == 'float32':
            assert parameter.equal(old)
        else:
            assert parameter.equal(old.half().float()) and not parameter.equal(old)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'num_users': 0}, "'LinearC2F'.*num_users=0"),
        ({'num_users': 2}, 'users below 2 and items below 4'),
        ({'num_items': 3}, 'users below 3 and items below 3'),
        ({'num_coarse': 1}, 'at least anchors_per_entity anchors'),
        ({'num_fine': 1}, 'at least anchors_per_entity anchors'),
        ({'embedding_dim': 0}, 'positive sizes'),
        ({'threshold': -1.0}, 'threshold >= 0'),
    ],
)
def test_arguments(kwargs, match):
    edge_index = torch.tensor([[0, 1, 2], [0, 1, 3]])
    sizes = {'num_users': 3, 'num_items': 4, 'num_coarse': 5, 'num_fine': 4}
    sizes |= {'embedding_dim': 4, 'max_coarse_per_item': 2}
    LinearC2F(edge_index, **sizes)
    with pytest.raises(ValueError, match=match):
        LinearC2F(edge_index, **(sizes | kwargs))


def test_without_interactions():
    edge_index = torch.empty(2, 0, dtype=torch.long)
    model = LinearC2F(edge_index, 3, 4, 4, 4, 4, 2, diffusion=0.5)
    ids, scores = model.recommend([0, 2], k=2)
    assert ids.shape == (2, 2) and not scores.any()
    assert model.recommend(history=[0], k=2)[1].isfinite().all()
