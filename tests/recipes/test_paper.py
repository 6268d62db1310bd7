"""Recipe paper: its trainer, and what it refuses."""

import copy
import re
from dataclasses import replace

import pytest
import torch

import pyg_c2f
from pyg_c2f.anchors.paper import pinv_assignment
from pyg_c2f.checkpoint import phase_file
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.recipes import TrainingOptions, base
from pyg_c2f.recipes.paper import C2FTrainer
from pyg_c2f.recipes.resume import read_resume
from pyg_c2f.typing import InputError
from tests.tiny import TINY, run_of


@pytest.mark.parametrize('stage', ['coarse', 'fine'])
def test_epochs_of_phase_2_assign_anew_in_their_first_step(stage, data, whole):
    options = TrainingOptions(seed=1)
    init = whole[0].model if stage == 'fine' else None
    model = TINY.start(data, stage, init, options)
    trainer = TINY.trainer(model, data, options)
    tables = model.coarse, model.fine
    own, other = tables if stage == 'coarse' else tables[::-1]
    old, others, seen, step = own.index, other.index, [], trainer.step

    def watched(triples):
        seen.append(own.index is old)
        return step(triples)

    trainer.step = watched
    trainer.train_epoch(1, list)
    assert all(seen)
    seen.clear()
    h = model.propagate().detach()
    trainer.train_epoch(2, list)
    # The first batch still used the old assignment.
    assert len(seen) > 1 and seen == [True] + [False] * (len(seen) - 1)
    assert other.index is others
    if stage == 'coarse':
        # The new one is computed from the features before the step, not after it.
        new = pinv_assignment(*model.split(h)[:2], TINY.anchors_per_entity)
        assert own.index.equal(new.index)


class Spoil(torch.autograd.Function):
    """Adds something to all entries of a tensor, or of its gradient."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward = backward
        return x + forward

    @staticmethod
    def backward(ctx, grad):
        return grad + ctx.backward, None, None


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
    ('stage', 'forward', 'backward', 'says'),
    [
        ('coarse', NAN, 0, 'the loss holds nan'),
        ('coarse', 0, -INF, 'the gradient of coarse.codebook holds -inf'),
        ('fine', INF, 0, 'the loss holds (inf|nan)'),
        ('fine', 0, NAN, 'the gradient of fine.codebook holds nan'),
    ],
)
def test_a_step_that_goes_wrong(
    stage, forward, backward, says, data, whole, tmp_path, monkeypatch
):
    """In step 2 of the fourth epoch of a stage."""
    calls, step, epoch = [], C2FTrainer.step, C2FTrainer.train_epoch

    def counted_epoch(trainer, *args):
        calls.append([])
        return epoch(trainer, *args)

    def spoiled_step(trainer, triples):
        calls[-1].append(triples)
        if (len(calls), len(calls[-1])) == (4, 2):
            model = trainer.model
            blocks = [Spoil.apply(x, forward, backward) for x in model.layer0()]
            monkeypatch.setattr(model, 'layer0', lambda columns: blocks)
        return step(trainer, triples)

    monkeypatch.setattr(C2FTrainer, 'train_epoch', counted_epoch)
    monkeypatch.setattr(C2FTrainer, 'step', spoiled_step)
    recipe = replace(TINY, batch_size_fine=TINY.batch_size_coarse)
    init = whole[0].model if stage == 'fine' else None
    with pytest.raises(InputError) as error:
        run_of(data, recipe, out=tmp_path, stages=(stage,), init=init)
    message = str(error.value)
    assert re.match(f'{says} in step 2 of epoch 3 of the {stage} stage: lower', message)
    assert f'lower lr_{stage}={getattr(TINY, f"lr_{stage}")}' in message
    last = message.rpartition(' is ')[2]
    assert last in [str(phase_file(tmp_path, stage, phase)) for phase in (1, 2)]
    assert pyg_c2f.load(last).stage == stage
    assert read_resume(tmp_path)[1]['progress']['epoch'] == 3


@pytest.mark.parametrize(
    ('wrong', 'what'),
    [(NAN, 'the pseudo-inverse of the anchors'), (1e300, 'the new assignment')],
)
def test_a_new_assignment_that_goes_wrong(wrong, what, data, monkeypatch):
    """In the pseudo-inverse of the anchors, or in the product with it."""
    pinv = torch.linalg.pinv
    monkeypatch.setattr(
        torch.linalg, 'pinv', lambda *x, **y: pinv(*x, **y).fill_(wrong)
    )
    val = {'ndcg@5': 0.1, 'recall@20': 0.1}
    monkeypatch.setattr(base, 'evaluate_split', lambda *_, **__: val)
    with pytest.raises(InputError, match=f'{what} holds (nan|inf) in step 1 of epoch'):
        run_of(data)


def test_a_parameter_that_becomes_nan(data, monkeypatch):
    step = torch.optim.Adam.step

    def wrong_step(optimizer, *args):
        step(optimizer, *args)
        optimizer.param_groups[0]['params'][-1].data[0] = NAN

    monkeypatch.setattr(torch.optim.Adam, 'step', wrong_step)
    says = 'holds nan in step 1 of epoch 0 .* checkpoint is none$'
    with pytest.raises(InputError, match=says):
        run_of(data)


def test_coarse_models_that_do_not_fit(data, whole):
    init = whole[0].model
    other = SyntheticHierarchy(50, 80, 900, 4, 8, protocol='c2f')[0]
    spoiled = copy.deepcopy(init)
    spoiled.bias.data[-1] = NAN
    for graph, changes, start, says in (
        (data, {}, None, 'give init'),
        (data, {}, spoiled, 'NaN'),
        (data, {'num_coarse': 7}, init, f'num_coarse={TINY.num_coarse}.*7'),
        (data, {'anchors_per_entity': 1}, init, 'anchors_per_entity=.*1'),
        (other, {}, init, 'num_users=60, this run 50'),
    ):
        with pytest.raises(InputError, match=says):
            run_of(graph, replace(TINY, **changes), stages=('fine',), init=start)


def test_more_anchors_than_nodes(data):
    for name in ('num_coarse', 'num_fine'):
        with pytest.raises(InputError, match=f'{name}=141.*60 users and 80 items'):
            run_of(data, replace(TINY, **{name: 141}))


def test_random_anchors(data, whole):
    run = run_of(data, replace(TINY, anchors='random', max_epochs=1))
    assert not run.model.coarse.index.equal(whole[0].model.coarse.index)
