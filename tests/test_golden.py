"""The numbers of the published program, array by array, through the public classes.

The file comes from the environment variable ``C2F_GOLDEN`` (an .npz with its .json
beside it), or from ``tests/data``. Plain keys are float32, ``f64.`` twins float64: each
test runs in both, to 1e-5 and 1e-9 of the largest entry.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyg_c2f.anchors.paper import (
    bridge_scores,
    partition_assignment,
    partition_scores,
    pinv_assignment,
    place_codes,
    softmax_assignment,
    sparse_pca_codes,
)
from pyg_c2f.evaluate import evaluate, rank_items
from pyg_c2f.graph import entity_csr, joint_norm
from pyg_c2f.nn import C2F, BPRLoss
from pyg_c2f.nn.fused import fused_layer
from pyg_c2f.recipes import PaperRecipe, TrainingOptions
from pyg_c2f.recipes.paper import C2FTrainer
from pyg_c2f.recipes.sampler import TripletSampler
from pyg_c2f.typing import Assignment

FILE = Path(os.environ.get('C2F_GOLDEN', Path(__file__).parent / 'data' / 'tiny.npz'))
ARRAYS = np.load(FILE)
INFO = json.loads(FILE.with_suffix('.json').read_text())
N, C, R = INFO['N'], INFO['c1'], INFO['c2']
USERS, ITEMS = INFO['n_users'], INFO['n_items']
STAGES = ['coarse', 'fine']
LAMBDA = INFO['l2_penalty_factor'] * INFO['reg_decay']
RECIPE = PaperRecipe(
    lr_coarse=INFO['lr_coarse'],
    lr_fine=INFO['lr_fine'],
    lambda_reg=LAMBDA,
    clip=INFO['max_grad_value'],
)

both_stages = pytest.mark.parametrize('stage', STAGES)
both_ways = pytest.mark.parametrize('fused', [True, False])


@pytest.fixture(autouse=True, params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    old = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(old)


def get(key):
    """An array in the precision of the running test."""
    twin = f'f64.{key}'
    if torch.get_default_dtype() == torch.float64 and twin in ARRAYS:
        key = twin
    value = torch.from_numpy(ARRAYS[key])
    return value.to(torch.get_default_dtype()) if value.is_floating_point() else value


def dense(key):
    out = torch.zeros(*ARRAYS[f'{key}.shape'].tolist())
    row, col = (
        torch.from_numpy(ARRAYS[f'{key}.row']),
        torch.from_numpy(ARRAYS[f'{key}.col']),
    )
    out[row, col] = get(f'{key}.val')
    return out


def close(ours, key, exact=False):
    theirs = get(key) if isinstance(key, str) else key
    ours = torch.as_tensor(ours, dtype=theirs.dtype).detach()
    single = torch.get_default_dtype() == torch.float32
    tol = 0 if exact else 1e-5 if single else 1e-9
    torch.testing.assert_close(
        ours, theirs, rtol=tol, atol=tol * float(theirs.abs().max())
    )


def to_assignment(matrix, num_links):
    """The rows' non-zeros of a dense matrix; missing ones have weight zero."""
    top = matrix.topk(num_links)
    return Assignment(top.indices, top.values)


def from_assignment(assignment, num_anchors):
    out = torch.zeros(len(assignment.index), num_anchors)
    return out.scatter_(1, assignment.index, assignment.weight)


def from_csr(csr, num_cols):
    csr = torch.sparse_csr_tensor(csr.rowptr, csr.col, csr.weight)
    out = torch.zeros(csr.size(0), num_cols)
    out[:, : csr.size(1)] = csr.to_dense()
    return out


def edges(key):
    return torch.from_numpy(ARRAYS[key]).T.contiguous()


def make_model(stage):
    model = C2F(
        edges('in.train_edges'),
        USERS,
        ITEMS,
        num_coarse=C,
        num_fine=R,
        embedding_dim=INFO['latent_dim'],
        num_layers=INFO['num_layers'],
        anchors_per_entity=INFO['t'],
        fine_per_coarse=INFO['ft'],
        gate=INFO['gate'],
        threshold=INFO['threshold_ft'],
    )
    with torch.no_grad():
        model.coarse.codebook.copy_(get('in.E_c'))
        model.fine.codebook.copy_(get('in.F'))
        model.bias.copy_(get('in.lin_w'))
        model.global_bias.copy_(get('in.lin_b'))
    model.set_assignment(
        to_assignment(dense('in.S1'), INFO['t']),
        to_assignment(dense('in.S2'), INFO['ft']),
    )
    model.set_stage(stage)
    return model


def batches(count):
    size = INFO['batch_triples']
    triples = torch.from_numpy(ARRAYS['in.triples'])[: count * size]
    return [tuple(part.T) for part in triples.split(size)]


def block_matrix(model):
    """The propagation matrix in the readable way: relations placed into blocks."""
    data = model.to_hetero_data()
    num_nodes = {kind: data[kind].num_nodes for kind in data.node_types}
    norm = joint_norm(data.edge_index_dict, data.edge_weight_dict, num_nodes)
    offset = {'user': 0, 'item': USERS, 'coarse': N, 'fine': N + C}
    out = torch.zeros(N + C + R, N + C + R)
    for rel, (src, dst) in data.edge_index_dict.items():
        out[dst + offset[rel[2]], src + offset[rel[0]]] = norm[rel]
    return out


def expanded(model, fused):
    if fused:
        return from_csr(model.block_graph().adj, N + C + R)
    return block_matrix(model)


def test_adjacency():
    csr = entity_csr(edges('in.train_edges'), USERS, ITEMS)
    ours = torch.zeros(N, N)
    ours[csr.row, csr.col] = csr.weight
    close(ours, dense('adj.A'))


@both_stages
@both_ways
def test_expanded_graph(stage, fused):
    close(expanded(make_model(stage), fused), dense(f'{stage}.expanded'))


@both_stages
def test_layer_zero(stage):
    model = make_model(stage)
    ego, coarse, fine = model.layer0()
    close(model.coarse.weight, f'{stage}.full_embs.entity_raw')
    close(coarse, f'{stage}.full_embs.coarse')
    close(ego, f'{stage}.ego')
    close(torch.cat([ego, coarse, fine]), f'{stage}.layer0')
    if stage == 'fine':
        raw = model.soft_threshold(model.fine.codebook)
        close(raw, 'fine.full_embs.fine')
        close(model.to_hetero_data()['fine'].x, 'fine.full_embs.fine')
    else:
        close(fine, get('coarse.layer0')[N + C :], exact=True)


@both_stages
@both_ways
def test_layers(stage, fused):
    model = make_model(stage)
    if fused:
        layers = [torch.cat(model.layer0())]
        for _ in range(model.num_layers):
            layers.append(fused_layer(layers[-1], model.block_graph(), model.gate))
    else:
        layers = [torch.cat(list(x.values())) for x in model.layers()]
    for number, layer in enumerate(layers):
        close(layer, get(f'{stage}.layer{number}')[: len(layer)])


@both_stages
@both_ways
def test_read_out(stage, fused):
    model = make_model(stage)
    h_n, h_c, h_f = model.split(model.propagate(fused=fused))
    close(h_n, f'{stage}.h_full')
    close(h_c, f'{stage}.h_coarse')
    close(h_f, f'{stage}.h_fine')
    with torch.no_grad():
        close(model.eval().propagate(fused=fused)[:N], f'{stage}.h_full_testmode')


def batch_loss(model, fused, lambda_reg):
    users, positives, negatives = batches(1)[0]
    h = model.propagate(fused=fused)
    positive, negative = model(users, torch.stack([positives, negatives]), h)
    ids = torch.cat([users, positives + USERS, negatives + USERS])
    ego = model.ego()[ids]
    return BPRLoss(lambda_reg)(positive, negative, ego)


@both_stages
@both_ways
def test_loss_and_gradients(stage, fused):
    model = make_model(stage)
    bpr, total = batch_loss(model, fused, 0), batch_loss(model, fused, LAMBDA)
    penalised = batch_loss(model, fused, INFO['l2_penalty_factor'])
    close(bpr, f'{stage}.loss.bpr')
    close(penalised - bpr, f'{stage}.loss.reg_raw')
    close(total, f'{stage}.loss.total')
    total.backward()
    close(model.bias.grad, f'{stage}.grad.lin_w')
    close(model.global_bias.grad, f'{stage}.grad.lin_b')
    if stage == 'coarse':
        close(model.coarse.codebook.grad, 'coarse.grad.E_c')
        assert model.fine.codebook.grad is None
    else:
        close(model.fine.codebook.grad, 'fine.grad.F')
        assert model.coarse.codebook.grad is None


@both_ways
def test_gradient_of_the_frozen_codebook(fused):
    model = make_model('fine')
    model.coarse.codebook.requires_grad_()
    batch_loss(model, fused, LAMBDA).backward()
    close(model.coarse.codebook.grad, 'fine.grad.E_c')


def dense_pinv(nodes, anchors):
    # All links kept, once for the positive and once for the negative entries.
    num = len(anchors)
    plus, minus = (
        pinv_assignment(nodes, anchors, num),
        pinv_assignment(-nodes, anchors, num),
    )
    return from_assignment(plus, num) - from_assignment(minus, num)


def test_coarse_assignment():
    h, h_c = get('coarse.h_full'), get('coarse.h_coarse')
    close(dense_pinv(h, h_c), 'coarse.assign.dense')
    model = make_model('coarse')
    new = pinv_assignment(h, h_c, INFO['t'])
    assert new.index.equal(get('coarse.assign.topt_idx'))
    close(new.weight, 'coarse.assign.topt_val')
    close(from_assignment(new, C), dense('coarse.assign.S1_new'))
    model.set_assignment(new)
    assert model.anchors_in_use() == int(get('coarse.assign.unique'))


def test_fine_assignment():
    h, h_c, h_f = (get(f'fine.h_{part}') for part in ('full', 'coarse', 'fine'))
    scores = bridge_scores(h, h_c, h_f)
    close(scores, 'fine.assign.attn_scores')
    softmax = from_assignment(softmax_assignment(scores, R), R)
    close(softmax, 'fine.assign.attn_softmax')
    new = softmax_assignment(scores, INFO['ft'])
    assert new.index.equal(get('fine.assign.topft_idx'))
    close(new.weight, 'fine.assign.topft_val')
    close(from_assignment(new, R), dense('fine.assign.S2_new'))
    close(dense_pinv(h, h_c), 'fine.assign.dense_coarse_unused')
    links = pinv_assignment(h, h_c, INFO['t'])
    assert links.index.unique().numel() == int(get('fine.assign.unique_coarse'))
    assert new.index.unique().numel() == int(get('fine.assign.unique_fine'))


def test_assignment_with_more_anchors_than_columns():
    h, h_c = get('extra.pinv_wide.H_full'), get('extra.pinv_wide.H_coarse')
    new = pinv_assignment(h, h_c, get('extra.pinv_wide.topt_idx').size(1))
    close(dense_pinv(h, h_c), 'extra.pinv_wide.dense')
    assert new.index.equal(get('extra.pinv_wide.topt_idx'))
    close(new.weight, 'extra.pinv_wide.topt_val')
    assert new.index.unique().numel() == int(get('extra.pinv_wide.unique'))


@both_stages
@both_ways
def test_after_update(stage, fused):
    model = make_model(stage)
    with torch.no_grad():
        model.update_assignment(model.propagate(fused=fused))
        h = model.propagate(fused=fused)
    close(
        from_assignment(model.coarse.assignment, C), dense(f'{stage}.after_update.S1')
    )
    close(from_assignment(model.fine.assignment, R), dense(f'{stage}.after_update.S2'))
    close(expanded(model, fused), dense(f'{stage}.after_update.expanded'))
    close(h[:N], f'{stage}.after_update.h_full')


@both_stages
@pytest.mark.parametrize('group', ['step1', 'step3', 'step3_clip1e-3'])
def test_optimiser_steps(stage, group):
    model = make_model(stage)
    clip = 1e-3 if group.endswith('clip1e-3') else RECIPE.clip
    trainer = make_trainer(model, replace(RECIPE, clip=clip))
    logged = get(f'{stage}.{group}.batch_bpr_reg')
    for triples, (bpr, reg) in zip(batches(len(logged)), logged, strict=True):
        loss, _ = trainer.step(triples)
        close(loss, bpr + INFO['reg_decay'] * reg)
    check_step(model, trainer.optimizer, f'{stage}.{group}')


@both_stages
def test_epoch_with_update(stage):
    model, key = make_model(stage), f'{stage}.epoch_with_update'
    trainer = make_trainer(model, RECIPE)
    loss = trainer.train_epoch(2, lambda _: batches(3))
    bpr, reg = get(f'{key}.batch_bpr_reg').T
    close(loss, (bpr + INFO['reg_decay'] * reg).mean())
    check_step(model, trainer.optimizer, key)
    close(from_assignment(model.coarse.assignment, C), dense(f'{key}.S1_after'))
    close(from_assignment(model.fine.assignment, R), dense(f'{key}.S2_after'))
    close(expanded(model, True), dense(f'{key}.expanded_after'))


def make_trainer(model, recipe):
    sampler = TripletSampler(edges('in.train_edges'), USERS, ITEMS, 1)
    return C2FTrainer(model, sampler, recipe, TrainingOptions())


def check_step(model, optimizer, key):
    """Parameters and moments; a frozen codebook has none and does not move."""
    tables = {'lin_w': model.bias, 'lin_b': model.global_bias}
    tables |= {'E_c': model.coarse.codebook, 'F': model.fine.codebook}
    for name, table in tables.items():
        close(table, f'{key}.{name}')
        if f'{key}.adam_m.{name}' in ARRAYS and table.requires_grad:
            moments = optimizer.state[table]
            close(moments['exp_avg'], f'{key}.adam_m.{name}')
            close(moments['exp_avg_sq'], f'{key}.adam_v.{name}')
        if not table.requires_grad:
            assert table not in optimizer.state
            close(table, f'in.{name}', exact=True)


@both_stages
def test_ratings(stage):
    model = make_model(stage)
    close(model.scorer()(torch.arange(USERS)), f'{stage}.eval.ratings')


def check_ranking(score, key):
    ks = INFO['ks']
    for split in ('valid', 'test'):
        labels = edges(f'in.{split}_edges')
        ours = evaluate(score, labels, edges('in.train_edges'), USERS, ITEMS, ks)
        for name in ('ndcg', 'recall'):
            close([ours[f'{name}@{k}'] for k in ks], f'{key}.{split}.{name}')
        active = labels[0].unique().numel()
        assert active == int(get(f'{key}.{split}.n_users_denominator'))


@both_stages
def test_evaluation_of_the_model(stage):
    check_ranking(make_model(stage).scorer(), f'{stage}.eval')


@pytest.mark.parametrize('name', ['eval.scores0', 'eval.scores1'])
def test_evaluation_of_fixed_scores(name):
    scores = get(name)
    check_ranking(lambda users: scores[users], f'{name}.res')
    top = rank_items(
        lambda users: scores[users],
        torch.arange(USERS),
        ITEMS,
        edges('in.train_edges'),
        max(INFO['ks']),
    )
    theirs = get(f'{name}.topk_items')
    masked = torch.zeros(USERS, ITEMS, dtype=torch.bool)
    masked[tuple(edges('in.train_edges'))] = True
    # Masked items tie at the end of the list, where their order has no meaning.
    open_places = ~masked.gather(1, theirs)
    assert top[open_places].equal(theirs[open_places])


def test_evaluation_user_by_user():
    scores, ks = get('eval.scores0'), INFO['ks']
    for split in ('valid', 'test'):
        labels = edges(f'in.{split}_edges')
        for name in ('ndcg', 'recall'):
            theirs = get(f'eval.scores0.peruser.{split}.{name}')
            for user in range(USERS):
                own = labels[:, labels[0] == user]
                if own.size(1) == 0:
                    assert not theirs[user].any()
                    continue
                ours = evaluate(
                    lambda users: scores[users],
                    own,
                    edges('in.train_edges'),
                    USERS,
                    ITEMS,
                    ks,
                )
                close([ours[f'{name}@{k}'] for k in ks], theirs[user])


def test_coarse_start():
    labels = get('in.partition_c1')
    start = partition_assignment(labels, C, INFO['t'])
    theirs = dense('init_coarse.S1_from_partition')
    own = theirs.gather(1, labels.unsqueeze(1)).squeeze(1)
    close(start.weight[:, 0], own)
    assert start.index[:, 0].equal(labels)
    ours = from_assignment(start, C)
    close(ours.sum(dim=1), theirs.sum(dim=1))
    assert (ours > 0).sum(dim=1).equal((theirs > 0).sum(dim=1))
    close(ours[ours > 0].sort().values, theirs[theirs > 0].sort().values)


@pytest.mark.parametrize('case', ['pad', 'nopad'])
def test_fine_start_assignment(case):
    key, labels = f'init_ft.{case}', get('in.partition_c2')
    # S1' P, with P written out on the other side.
    scores = partition_scores(to_assignment(dense('in.S1'), INFO['t']), C, labels, R)
    parts = get(f'{key}.A2_dense')
    close(dense('in.S1').T @ parts, scores)
    close(scores, f'{key}.attn')
    softmax = from_assignment(softmax_assignment(scores, R), R)
    close(softmax, f'{key}.attn_softmax')
    new = softmax_assignment(scores, INFO['ft'])
    close(new.weight, f'{key}.topft_val')
    # Parts that none of an anchor's entities are in tie, and which ones stay is open.
    best = softmax.sort(dim=1, descending=True).values[:, : INFO['ft'] + 1]
    clear = (best[:, :-1] - best[:, 1:] > 1e-6).all(dim=1)
    assert new.index[clear].equal(get(f'{key}.topft_idx')[clear])
    close(from_assignment(new, R)[clear], dense(f'{key}.S2')[clear])
    model = make_model('fine')
    model.set_assignment(fine=to_assignment(dense(f'{key}.S2'), INFO['ft']))
    close(expanded(model, True), dense(f'{key}.expanded'))


def test_fine_start_codebook():
    key, dim = 'init_ft.pad', INFO['latent_dim']
    rows = get('in.E_c')[get(f'{key}.row_indices')]
    close(rows, f'{key}.pca_input', exact=True)
    placed = place_codes(get(f'{key}.pca_output'), get(f'{key}.pad_positions'), dim)
    close(placed, f'{key}.F_init', exact=True)
    close(get('init_ft.nopad.pca_output').to(placed), 'init_ft.nopad.F_init')


def test_sparse_pca_codes():
    # In float64 only: the solver's last float32 digits depend on the processor.
    codes = torch.from_numpy(ARRAYS['f64.init_ft.pad.pca_output_random_state0'])
    rows = torch.from_numpy(ARRAYS['f64.init_ft.pad.pca_input'])
    ours = sparse_pca_codes(rows, codes.size(1), random_state=0)
    torch.testing.assert_close(ours, codes, rtol=1e-9, atol=1e-9)
