"""The loss in blocks of users against the loss of all pairs at once."""

import pytest
import torch

from pyg_c2f.distributed import Group
from pyg_c2f.graph import power, unique_pairs
from pyg_c2f.nn import LinearC2F, WholeDataLoss, build_pairs
from pyg_c2f.whole import HistoryLoss, Mixtures

U, V, D = 30, 20, 5


def draw(seed=0):
    """Pairs, and a model of random anchors; user 4 and item 6 have no pair."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(U * V, (150,), generator=generator)
    edges = torch.stack([edges // V, edges % V])
    edges = unique_pairs(edges[:, (edges[0] != 4) & (edges[1] != 6)], V)
    torch.manual_seed(seed)
    model = LinearC2F(
        edges, U, V, 8, 4, D, 3, 2, user_norm=0.3, item_norm=0.4, item_power=0.7
    )
    model.set_stage('fine')
    torch.nn.init.normal_(model.bias)
    return model


def shared(model, num_blocks, alpha=0.1, lambda_reg=0.0):
    users = Group(num_blocks).rows(U)
    norms = model.user_norm, model.item_norm
    degree = torch.bincount(model.edge_index[1], minlength=V)
    return HistoryLoss(model.edge_index, users, degree, norms, alpha, lambda_reg)


def at_once(model, alpha, lambda_reg):
    h_user, h_item = model.propagate()
    h_item = h_item * model.item_scale().unsqueeze(1)
    pairs = build_pairs(model.edge_index, U, V)
    own = h_item.square().sum(dim=1) / model.item_scale()
    offset = model.interactions().by_user.weight * own[pairs.col.long()]
    loss = WholeDataLoss(alpha, lambda_reg)
    return loss(h_user, h_item, pairs, model.bias, offset)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize('num_blocks', [1, 4, 30, 50])
@pytest.mark.parametrize('lambda_reg', [0.0, 0.05])
def test_blocks_are_the_whole(num_blocks, lambda_reg):
    model = draw()
    expected = at_once(model, 0.1, lambda_reg)
    loss = shared(model, num_blocks, 0.1, lambda_reg)
    actual = loss(model.ego()[1], model.item_scale(), model.bias)
    torch.testing.assert_close(actual, expected)
    theirs, ours = gradients(model, expected), gradients(model, actual)
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_mixtures_are_the_ego_features():
    model = draw()
    weight = model.coarse.assignment_weight
    weight[weight.abs() < weight.abs().median()] = 0  # no links
    mix = Mixtures(model.assignment(), len(model.codebook()))
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(V, D, generator=generator)
    ours, theirs = mix(model.codebook()), model.ego()[1]
    torch.testing.assert_close(ours, theirs)
    gradient = [gradients(model, (x * grad).sum()) for x in (ours, theirs)]
    for one, other in zip(*gradient, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_a_multiple():
    model = draw()
    loss = shared(model, 3)
    once, thrice = (
        gradients(model, times * loss(model.ego()[1], model.item_scale(), model.bias))
        for times in (1, 3)
    )
    for one, other in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * one, other)


@pytest.mark.parametrize('num_pairs', [1, 7, 40, 10**6])
def test_mean_score_looks_at_every_so_many_th_pair(num_pairs):
    model = draw()
    scale = model.item_scale()
    for num_blocks in (1, 4):
        loss = shared(model, num_blocks)
        h_user, h_item = model.propagate()
        stride = -(-model.edge_index.size(1) // num_pairs)
        user, item = model.edge_index[:, ::stride]
        expected = (h_user[user] * h_item[item]).sum(dim=1) * scale[item]
        actual = loss.mean_score(model.ego()[1], scale, num_pairs)
        assert actual == pytest.approx(float(expected.detach().mean()), rel=1e-4)


def test_powers_do_not_depend_on_the_place():
    degree = torch.randint(0, 500, (3001,))
    for exponent in (-0.4, 0.75, 0.3):
        whole = power(degree.clamp(min=1), exponent)
        part = power(degree.clamp(min=1)[17:1500], exponent)
        assert torch.equal(whole[17:1500], part)
