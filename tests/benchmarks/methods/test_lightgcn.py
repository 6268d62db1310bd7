"""LightGCN against PyG and dense formulas: layers, losses, files, the watch."""

from dataclasses import replace
from math import inf

import pytest
import torch
import torch.nn.functional as F
from methods import (
    CompressedLightGCN,
    LightGCN,
    LightGCNFromItems,
    file_bytes,
)
from methods.lightgcn import adjacency, pyg_lightgcn
from safetensors.torch import load
from torch_geometric.nn import LightGCN as PyGLightGCN

from pyg_c2f.graph import interaction_weight
from pyg_c2f.nn import C2F
from pyg_c2f.recipes.sampler import TripletSampler
from pyg_c2f.typing import Assignment
from tests.benchmarks.methods.conftest import generator, scores_of
from tests.benchmarks.methods.test_methods import EMBEDDINGS

LOSSES = ['whole', 'softmax', 'bpr']
SMALL = {
    'embedding_dim': 8,
    'num_neg_samples': 12,
    'batch_size': 50,
    'epochs': 4,
    'eval_every': 2,
}


def make(name, **settings):
    """A small method by the name of its embedding, LightGCN itself by none."""
    settings = SMALL | settings
    if name is None:
        return LightGCN(**settings)
    return CompressedLightGCN(embedding=EMBEDDINGS[name], **settings)


def started(method, histories, seed=0):
    """The model before training, and the losses of one epoch, anew with each call."""
    model, adj = method._model(histories, generator(seed)), adjacency(histories)

    def losses():
        return method._losses(model, adj, histories, generator(seed + 1))()

    return model, losses


def both_ways(histories):
    """The edges as PyG wants them: items behind the users, both directions."""
    pairs = histories.edge_index + torch.tensor([[0], [histories.num_users]])
    return torch.cat([pairs, pairs.flip(0)], dim=1)


def dense_adjacency(histories):
    """The normalised graph of users, then items, float64."""
    num_users, num_nodes = histories.num_users, 50
    out = torch.zeros(num_nodes, num_nodes).double()
    out[tuple(both_ways(histories))] = 1
    scale = out.sum(1).rsqrt()
    assert num_nodes == num_users + histories.num_items
    return scale[:, None] * out * scale


def propagated(x, adj, num_layers):
    layers = [x]
    for _ in range(num_layers):
        layers.append(adj @ layers[-1])
    return sum(layers) / (num_layers + 1)


@pytest.mark.parametrize('num_layers', [0, 3])
def test_the_fast_layers_are_those_of_pyg(num_layers, small):
    torch.manual_seed(0)
    ours, plain = pyg_lightgcn(50, 6, num_layers), PyGLightGCN(50, 6, num_layers)
    plain.load_state_dict(ours.state_dict())
    got = ours.get_embedding(adjacency(small))
    want = plain.get_embedding(both_ways(small))
    torch.testing.assert_close(got, want)
    weight = torch.randn(50, 6)
    (grad,) = torch.autograd.grad((got * weight).sum(), ours.embedding.weight)
    (want,) = torch.autograd.grad((want * weight).sum(), plain.embedding.weight)
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize('num_layers', [0, 2])
def test_spectral_start(num_layers, small):
    model = make(None, num_layers=num_layers)._model(small, generator())
    x, adj = model.embedding.weight.detach().double(), dense_adjacency(small)
    block = adj[:30, 30:]
    left, value, right = torch.linalg.svd(block, full_matrices=False)
    degree = small.col.bincount()
    # Up to one factor and the signs: the scores of layer 0 tell.
    want = (left[:, :8] * value[:8]) @ right[:8] * degree.sqrt().sqrt()
    got = x[:30] @ x[30:].T
    got, want = got / got.norm(), want / want.norm()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    user, item = propagated(x, adj, num_layers).split([30, 20])
    users, items = small.edge_index
    assert float((user[users] * item[items]).sum(1).mean()) == pytest.approx(0.5)


@pytest.mark.parametrize('user_power', [0.5, -0.3])
@pytest.mark.parametrize('num_layers', [0, 2])
def test_the_whole_loss_is_its_dense_definition(num_layers, user_power, small):
    settings = {'alpha': 0.2, 'lambda_reg': 0.03, 'num_layers': num_layers}
    method = make(None, start='random', user_power=user_power, **settings)
    model, losses = started(method, small)
    (got,) = losses()
    h = propagated(model.embedding.weight.double(), dense_adjacency(small), num_layers)
    user, item = h.split([30, 20])
    rated = small.rows(torch.arange(30)).double()
    d_u, d_i, score = rated.sum(1), rated.sum(0), user @ item.T
    weight = d_u**-user_power
    weight = (weight / weight.mean())[:, None]
    want = (weight * rated * (1 - score).square()).sum()
    want = want + 0.2 * (weight * score.square()).sum()
    penalty = ((d_u + 0.2 * 20) * user.square().sum(1)).sum()
    penalty = penalty + ((d_i + 0.2 * 30) * item.square().sum(1)).sum()
    want = (want + 0.03 * penalty) / rated.sum()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(got, model.embedding.weight)
    (want,) = torch.autograd.grad(want, model.embedding.weight)
    torch.testing.assert_close(grad, want, rtol=1e-3, atol=1e-6)


def test_sampled_softmax_step_by_step(small):
    method = make(None, loss='softmax', num_neg_samples=7, batch_size=1000)
    model, losses = started(method, small)
    (got,) = losses()
    draws = generator(1)
    order = torch.randperm(len(small.col), generator=draws)
    negative = torch.randint(20, (7,), generator=draws)
    h = F.normalize(model.get_embedding(adjacency(small)), dim=1)
    want = []
    for user, item in small.edge_index[:, order].T.tolist():
        own = (h[user] @ h[30 + item] / 0.1).exp()
        others = [(h[user] @ h[30 + n] / 0.1).exp() for n in negative if n != item]
        # Each of 7 draws stands for 20 / 7 items.
        want.append(-(own / (own + 20 / 7 * sum(others))).log())
    torch.testing.assert_close(got, torch.stack(want).mean())


@pytest.mark.parametrize('name', [None, 'quotient remainder'])
def test_bpr_step_by_step(name, small):
    method = make(name, loss='bpr', lambda_reg=0.02, start='random', num_layers=2)
    model, losses = started(method, small)
    got = list(losses())
    sampler = TripletSampler(small.edge_index, 30, 20, 1, generator(1))
    triples = torch.stack(sampler.sample_epoch())
    h = propagated(model.embedding.weight.double(), dense_adjacency(small), 2)
    ego, rated = model.embedding.weight, small.rows(torch.arange(30)) != 0
    assert len(got) == -(-triples.size(1) // 50)
    for value, batch in zip(got, triples.split(50, dim=1), strict=True):
        want = 0
        for user, positive, negative in batch.T.tolist():
            assert rated[user, positive] and not rated[user, negative]
            difference = h[user] @ (h[30 + positive] - h[30 + negative])
            want = want - difference.sigmoid().log()
            for node in (user, 30 + positive, 30 + negative):
                want = want + 0.02 * ego[node].square().sum()
        want = want / batch.size(1)
        torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize('num_layers', [0, 2])
@pytest.mark.parametrize('loss', LOSSES)
def test_train_items_end_up_above_others(loss, num_layers, small):
    settings = {'start': 'random', 'epochs': 60, 'lr': 0.03, 'alpha': 0.3}
    method = make(None, loss=loss, num_layers=num_layers, **settings)
    score = scores_of(method, method.fit(small, generator()), small)
    rated = small.rows(torch.arange(30)) != 0
    above = score[:, :, None] > score[:, None, :]
    pairs = rated[:, :, None] & ~rated[:, None, :]
    assert float(above[pairs].float().mean()) > 0.8


@pytest.mark.parametrize('loss', LOSSES)
def test_what_is_stored_are_the_propagated_tables(loss, small):
    method = make(None, loss=loss, num_layers=2, epochs=0)
    stored = method.fit(small, generator())
    assert sorted(stored) == ['item.table', 'user.table']
    x = method._model(small, generator()).embedding.weight.detach().double()
    h = propagated(x, dense_adjacency(small), 2)
    if loss == 'softmax':
        h = F.normalize(h, dim=1)
    user, item = h.split([30, 20])
    torch.testing.assert_close(stored['user.table'].double(), user, rtol=0, atol=1e-5)
    torch.testing.assert_close(stored['item.table'].double(), item, rtol=0, atol=1e-5)
    got = scores_of(method, stored, small)
    torch.testing.assert_close(got.double(), user @ item.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize('loss', LOSSES)
def test_users_from_their_items(loss, small, others):
    method = LightGCNFromItems(**SMALL | {'loss': loss, 'num_layers': 2})
    stored = method.fit(small, generator())
    whole = LightGCN(**SMALL | {'loss': loss, 'num_layers': 2}).fit(small, generator())
    assert stored.keys() == {'item.table', 'degree'}
    assert stored['item.table'].equal(whole['item.table'])
    item, degree = stored['item.table'].double(), small.col.bincount().double()
    for asks in (small, others):
        rows = asks.rows(torch.arange(asks.num_users)).double()
        want = (rows * degree.rsqrt()) @ item @ item.T
        got = scores_of(method, stored, asks)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize('num_layers', [0, 2])
@pytest.mark.parametrize('name', EMBEDDINGS)
def test_compressed_tables(name, num_layers, small):
    """Scores are those of the propagated table, and no whole table is stored."""
    method, last = make(name, num_layers=num_layers), {}

    def watch(epoch, score):
        last[epoch] = score(torch.arange(small.num_users))
        return False

    stored = load(file_bytes(method.fit(small, generator(), watch)))
    got = scores_of(method, stored, small)
    torch.testing.assert_close(got, last[SMALL['epochs']], rtol=0, atol=2e-3)

    kept = {'table': {}, 'graph': {}}
    for key, x in stored.items():
        part, _, tensor = key.partition('.')
        kept[part][tensor] = x
    assert bool(kept['graph']) == (num_layers > 0)
    # The whole table would be 50 rows of 8 numbers, float16.
    assert sum(x.nbytes for x in kept['table'].values()) < 0.8 * 50 * 8 * 2
    table = method.embedding(50, 8)
    table.load(kept['table'])
    h = propagated(table.weight.double(), dense_adjacency(small), num_layers)
    torch.testing.assert_close(got.double(), h[:30] @ h[30:].T, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('loss', 'kind'),
    [('whole', LightGCN), ('bpr', LightGCNFromItems), ('softmax', 'tensor train')],
)
def test_watch(loss, kind, small):
    settings = SMALL | {'loss': loss, 'epochs': 7, 'eval_every': 3, 'lr': 0.05}
    method = make(kind, **settings) if isinstance(kind, str) else kind(**settings)
    seen = {}

    def until(epoch, score):
        seen[epoch] = score(torch.arange(small.num_users))
        return epoch >= stop

    stop = inf
    watched = method.fit(small, generator(), until)
    assert list(seen) == [3, 6]
    # Watching changes nothing.
    assert file_bytes(watched) == file_bytes(method.fit(small, generator()))
    assert not torch.allclose(seen[3], seen[6], atol=1e-3)

    stop = 3
    seen.clear()
    stored = method.fit(small, generator(), until)
    assert list(seen) == [3]
    shorter = replace(method, epochs=3).fit(small, generator())
    assert file_bytes(stored) == file_bytes(shorter)
    got = scores_of(method, stored, small)
    torch.testing.assert_close(got, seen[3], rtol=0, atol=5e-3)


def without_anchors(histories, stage, num_layers):
    """A C2F model whose links all weigh nothing."""
    sizes = histories.num_users, histories.num_items
    model = C2F(
        histories.edge_index,
        *sizes,
        num_coarse=4,
        num_fine=3,
        embedding_dim=6,
        num_layers=num_layers,
        fine_per_coarse=2,
    )
    none = torch.zeros(sum(sizes), 2), torch.zeros(4, 2)
    model.set_assignment(*(Assignment(x.long(), x) for x in none))
    model.set_stage(stage)
    return model


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('stage', ['coarse', 'fine'])
def test_c2f_without_anchors_is_lightgcn_on_its_weighted_graph(stage, fused, small):
    """C2F normalises twice: what is normalised with the links is normalised already."""
    model, plain = without_anchors(small, stage, 3), PyGLightGCN(50, 6, 3)
    _, coarse, fine = model.layer0()
    got = model.propagate((plain.embedding.weight, coarse, fine), fused=fused)[:50]
    weight = interaction_weight(small.edge_index, 30, 20).repeat(2)
    want = plain.get_embedding(both_ways(small), weight)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    once = plain.get_embedding(both_ways(small))
    assert not torch.allclose(got, once, atol=1e-3)
