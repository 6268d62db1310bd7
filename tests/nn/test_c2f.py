import copy

import numpy as np
import pytest
import torch

from pyg_c2f.recipes import PaperRecipe, TrainingOptions
from pyg_c2f.recipes.paper import C2FTrainer
from pyg_c2f.typing import Assignment

both_stages = pytest.mark.parametrize('stage', ['coarse', 'fine'])


def layers(toy, model):
    """The features of all layers, as sections 2 and 3 of the SPEC define them."""
    s1, s2 = toy.s1, toy.s2
    codebook = model.coarse.codebook.detach().double().numpy()
    fine = model.fine.codebook.detach().double().numpy()
    fine = np.sign(fine) * np.clip(np.abs(fine) - model.threshold, 0, None)
    if model.stage == 'coarse':
        mixed, fine = codebook, np.zeros_like(fine)
    else:
        mixed = model.gate * s2 @ fine + (1 - model.gate) * codebook
    out = [np.concatenate([np.tanh(s1 @ codebook), mixed, np.tanh(fine)])]
    for _ in range(model.num_layers):
        out.append(toy.layer(out[-1], model.stage, model.gate))
    return out


def all_scores(toy, model):
    h = np.mean(layers(toy, model), axis=0)
    h_user, h_item = h[: toy.num_users], h[toy.num_users : toy.num_entities]
    b = model.bias.detach().double().numpy()
    b_user, b_item = b[: toy.num_users], b[toy.num_users :]
    return h_user @ h_item.T + b_user[:, None] + b_item + model.global_bias.item()


@both_stages
@pytest.mark.parametrize(
    ('num_layers', 'gate'), [(0, 0.2), (1, 1.0), (3, 0.0), (3, 0.2)]
)
def test_propagate(toy, stage, num_layers, gate, monkeypatch):
    model = toy.model(stage, embedding_dim=70, num_layers=num_layers, gate=gate)
    if num_layers == 1:  # The columns take several blocks.
        monkeypatch.setattr('pyg_c2f.nn.fused.CACHE_BYTES', 0)
    expected = layers(toy, model)
    ego = expected[0][: toy.num_entities]
    np.testing.assert_allclose(model.ego().detach(), ego, atol=1e-6)
    tables = [model.coarse.codebook, model.fine.codebook]
    tables = [x.requires_grad_() for x in tables[: 1 if stage == 'coarse' else 2]]
    pull = torch.randn(toy.num_nodes, model.embedding_dim)
    grads = []
    for fused in (True, False):
        h = model.propagate(fused=fused)
        np.testing.assert_allclose(h.detach(), np.mean(expected, axis=0), atol=1e-5)
        # The gradient of a plain sum is one expanded number, a layout that kernels do
        # not expect.
        for loss in ((h * pull).sum(), h.sum()):
            grads.append(torch.autograd.grad(loss, tables, retain_graph=True))
    torch.testing.assert_close(grads[:2], grads[2:], atol=1e-5, rtol=1e-5)
    assert all(grad.isfinite().all() and grad.any() for grad in grads[0])


@both_stages
def test_scores(toy, stage):
    model = toy.model(stage)
    assert str(model).startswith(f"C2F(\n  6, 8, stage='{stage}'")
    expected = all_scores(toy, model)
    users = torch.tensor([5, 0, 1, 0])
    np.testing.assert_allclose(model.scorer()(users), expected[users], atol=1e-5)
    items = torch.tensor([[0, 1, 2, 7], [3, 3, 4, 4]])
    with torch.no_grad():
        np.testing.assert_allclose(
            model(users, items), expected[users, items], atol=1e-5
        )
        one_row = model(users, items[0], model.propagate())
    np.testing.assert_allclose(one_row, expected[users, items[0]], atol=1e-5)


def scores_of_a_newcomer(toy, model, history):
    """The scores for a new user node without anchors, which sends nothing to items."""
    num_rated = toy.rated.sum(axis=0).clip(min=1)
    a = np.zeros(toy.num_nodes)
    for item in history:
        a[toy.num_users + item] = 1 / np.sqrt(len(history) * num_rated[item])
    deg = toy.sums(model.stage).sum(axis=1)
    scale = np.array([1 / np.sqrt(d) if d > 0 else 0 for d in deg])
    x_hat = np.zeros((toy.num_nodes + 1, toy.num_nodes + 1))
    x_hat[:-1, :-1] = toy.x_hat(model.stage)
    x_hat[-1, :-1] = a / np.sqrt(a.sum()) * scale

    h = np.concatenate([layers(toy, model)[0], np.zeros((1, model.embedding_dim))])
    total = h.copy()
    for _ in range(model.num_layers):
        z = x_hat @ h
        if model.stage == 'fine':
            z[:-1] = toy.correct(z[:-1], model.gate)
        h = z
        total += h
    mean = total / (model.num_layers + 1)
    b = model.bias.detach().double().numpy()[toy.num_users :]
    h_item = mean[toy.num_users : toy.num_entities]
    return h_item @ mean[-1] + b + model.global_bias.item()


@both_stages
@pytest.mark.parametrize(
    ('num_layers', 'history'), [(0, [3]), (1, [7, 0]), (3, [7, 0])]
)
def test_recommend_for_a_history(toy, stage, num_layers, history):
    model = toy.model(stage, num_layers=num_layers)
    expected = scores_of_a_newcomer(toy, model, history)
    expected[history] = -np.inf
    ids, scores = model.recommend(history=history, k=toy.num_items - len(history))
    assert ids.shape == scores.shape == (toy.num_items - len(history),)
    assert not set(history) & set(ids.tolist())
    np.testing.assert_allclose(scores, expected[ids], atol=1e-5)
    np.testing.assert_allclose(scores, -np.sort(-expected)[: len(ids)], atol=1e-5)
    # Order and repetition of the history do not matter.
    again = model.recommend(history=torch.tensor(history[::-1] * 2), k=len(ids))
    torch.testing.assert_close(again, (ids, scores))


def test_set_stage_freezes(toy):
    model = toy.model('coarse')

    def trained():
        return {name for name, p in model.named_parameters() if p.requires_grad}

    assert trained() == {'coarse.codebook', 'bias', 'global_bias'}
    model.set_stage('fine')
    assert trained() == {'fine.codebook', 'bias', 'global_bias'}
    before = copy.deepcopy(model.state_dict())
    batch = (torch.tensor([0, 5]), torch.tensor([0, 7]), torch.tensor([2, 3]))
    C2FTrainer(model, None, PaperRecipe(), TrainingOptions()).step(batch)
    assert model.coarse.codebook.equal(before['coarse.codebook'])
    assert not model.fine.codebook.equal(before['fine.codebook'])
    model.reset_parameters()
    assert model.stage == 'coarse' and 'coarse.codebook' in trained()


@both_stages
def test_a_new_stage_or_assignment_changes_the_graph(toy, stage):
    model = toy.model('coarse' if stage == 'fine' else 'fine')
    model.propagate()
    model.set_stage(stage)
    expected = np.mean(layers(toy, model), axis=0)
    np.testing.assert_allclose(model.propagate().detach(), expected, atol=1e-5)
    toy.coarse = Assignment(toy.coarse.index.flip(0), toy.coarse.weight)
    toy.fine = Assignment(toy.fine.index.flip(0), toy.fine.weight)
    model.set_assignment(toy.coarse, toy.fine)
    expected = np.mean(layers(toy, model), axis=0)
    np.testing.assert_allclose(model.propagate().detach(), expected, atol=1e-5)


def links(assignment):
    return {
        (node, anchor)
        for node, row in enumerate(zip(*assignment, strict=True))
        for anchor, weight in zip(*(x.tolist() for x in row), strict=True)
        if weight != 0
    }


@both_stages
def test_update_assignment(toy, stage):
    model = toy.model(stage)
    table = model.coarse if stage == 'coarse' else model.fine
    other = model.fine if stage == 'coarse' else model.coarse
    old, untouched = table.assignment, other.assignment
    h = model.propagate()
    result = model.update_assignment(h)
    new = links(table.assignment)
    assert result['changed'] == pytest.approx(len(new - links(old)) / len(new))
    assert result['anchors_in_use'] == len({anchor for _, anchor in new})
    assert model.anchors_in_use() == result['anchors_in_use']
    assert other.assignment.index.equal(untouched.index)
    assert other.assignment.weight.equal(untouched.weight)
    # The new graph replaces the cached one.
    setattr(toy, stage, table.assignment)
    expected = np.mean(layers(toy, model), axis=0)
    np.testing.assert_allclose(model.propagate().detach(), expected, atol=1e-5)
    # The same features give the same assignment.
    assert model.update_assignment(h)['changed'] == 0
