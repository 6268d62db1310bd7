"""The schedule: phases, stages, what is kept, and interrupted runs."""

import copy
import json
import re
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from torch_geometric.typing import WITH_TORCH_SPARSE

import pyg_c2f
from pyg_c2f import train as module
from pyg_c2f.checkpoint import phase_file, write_tensors
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.datasets.interactions import Labels
from pyg_c2f.nn import C2F
from pyg_c2f.recipes import FastRecipe, PaperRecipe, fit, get_recipe, train
from pyg_c2f.recipes.base import Trainer
from pyg_c2f.recipes.paper import build_model, start_coarse
from pyg_c2f.recipes.resume import delete_resume, read_resume, resume_files
from pyg_c2f.typing import RATES, InputError

TINY = PaperRecipe(
    num_coarse=6,
    num_fine=4,
    embedding_dim=8,
    num_layers=2,
    fine_per_coarse=2,
    pca_components=4,
    lr_coarse=0.3,
    lr_fine=0.3,
    batch_size_coarse=1024,
    batch_size_fine=2048,
    eval_every=1,
    patience=2,
    max_epochs=12,
)


@pytest.fixture(scope='module')
def data():
    return SyntheticHierarchy(60, 80, 900, 4, 8, protocol='c2f')[0]


@pytest.fixture(scope='module')
def whole(data):
    """The uninterrupted run of both stages, and its history."""
    lines = []
    return train(data, TINY, on_evaluation=lines.append), lines


def make_trainer(data, recipe, **kwargs):
    generator = torch.Generator().manual_seed(0)
    model = build_model(data, recipe)
    start_coarse(model, recipe, generator)
    return Trainer(model, data, recipe, generator, **kwargs)


def assert_same_model(one, other):
    ours, theirs = one.to_tensors(), other.to_tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def without_seconds(lines):
    return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines]


# The schedule, with scores and epochs that are made up --------------------------------


class Script:
    """Stands in for evaluation and training, and writes down what it saw.

    An epoch adds one to the coarse codebook, so that its first entry counts them.
    """

    def __init__(self, monkeypatch, score):
        self.score, self.epochs, self.updates = score, [], []
        monkeypatch.setattr(module, 'evaluate_split', self.evaluate)
        monkeypatch.setattr(module, 'train_epoch', self.train_epoch)

    def evaluate(self, *_):
        self.epochs.append(round(self.model.coarse.codebook[0, 0].item()))
        return {'ndcg@5': self.score(self.epochs[-1]), 'recall@20': 0.0}

    def train_epoch(self, model, *_, update_assignment):
        model.coarse.codebook.data += 1
        self.updates.append(update_assignment)
        return 0.5

    def run(self, data, recipe):
        trainer = make_trainer(data, recipe)
        self.model = trainer.model
        self.model.coarse.codebook.data.zero_()
        return trainer.run()


def epochs_of(results):
    return {k: (v['best_epoch'], v['last_epoch']) for k, v in results.items()}


def test_published_pattern(data, monkeypatch):
    # The published log: best at 65, phase 2 from 90 on, best at 195, end at 220. The
    # first evaluation of phase 2 is far worse than all of phase 1, and the ones after
    # each best are equal to it.
    def score(epoch):
        return min(epoch, 65) / 100 if epoch <= 90 else min(epoch, 195) / 1000

    script = Script(monkeypatch, score)
    results = script.run(data, replace(TINY, eval_every=5, patience=5, max_epochs=900))
    assert epochs_of(results) == {1: (65, 90), 2: (195, 220)}
    assert script.epochs == list(range(0, 225, 5))
    assert script.updates == [epoch >= 90 for epoch in range(220)]
    assert results[1]['val']['ndcg@5'] == 0.65
    assert results[2]['val']['ndcg@5'] == 0.195


def naive_schedule(scores, every, patience, max_epochs):
    """The best and the last epoch of each phase, looking back over the whole list."""
    due = [e for e in range(max_epochs + 1) if e % every == 0 or e == max_epochs]
    out, seen = {}, []
    for epoch in due:
        phase = 1 if 1 not in out or not out[1][2] else 2
        seen.append(epoch)
        best = max(seen, key=lambda e: (scores[e], -e))
        over = len(seen) - 1 - seen.index(best) == patience
        out[phase] = (best, epoch, over)
        if over and phase == 2:
            break
        if over:
            seen = []
    return {phase: row[:2] for phase, row in out.items()}


@pytest.mark.parametrize('seed', range(12))
def test_schedule_like_a_naive_one(seed, data, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    every, patience, max_epochs = (
        int(torch.randint(1, high, (), generator=generator)) for high in (4, 4, 40)
    )
    # Few values, so that many evaluations are equal to the best one.
    scores = torch.randint(6, (max_epochs + 1,), generator=generator).tolist()
    script = Script(monkeypatch, lambda epoch: scores[epoch] / 10)
    recipe = replace(TINY, eval_every=every, patience=patience, max_epochs=max_epochs)
    results = script.run(data, recipe)

    expected = naive_schedule(scores, every, patience, max_epochs)
    assert epochs_of(results) == expected
    switch = expected[1][1] if 2 in expected else None
    end = expected[max(expected)][1]
    switched = [switch is not None and epoch >= switch for epoch in range(end)]
    # The last evaluation may end phase 1 where there is no epoch left to train.
    assert script.updates == switched
    # Each evaluation saw as many epochs as had been trained: nothing was rewound. What
    # is returned is the best of the last phase.
    assert script.epochs == sorted(set(script.epochs))
    assert script.model.coarse.codebook[0, 0].item() == expected[max(expected)][0]


def test_max_epochs_ends_with_an_evaluation(data, monkeypatch):
    script = Script(monkeypatch, lambda epoch: epoch / 100)
    recipe = replace(TINY, eval_every=5, patience=5, max_epochs=13)
    assert epochs_of(script.run(data, recipe)) == {1: (13, 13)}
    assert script.epochs == [0, 5, 10, 13] and len(script.updates) == 13


# Real epochs -------------------------------------------------------------------------


def test_history_tells_the_schedule(whole):
    run, lines = whole
    for stage, phases in run.phases.items():
        of_stage = [line for line in lines if line['stage'] == stage]
        scores = [line['val']['ndcg@5'] for line in of_stage]
        expected = naive_schedule(
            dict(enumerate(scores)), 1, TINY.patience, TINY.max_epochs
        )
        assert epochs_of(phases) == expected
        for phase, result in phases.items():
            best = of_stage[result['best_epoch']]
            assert (best['phase'], best['val']) == (phase, result['val'])
        assert of_stage[0]['loss'] is None
        assert all(0 < line['loss'] < 20 for line in of_stage[1:])
    assert set(run.phases) == {'coarse', 'fine'}
    assert all(seconds > 0 for seconds in run.seconds.values())


def test_it_learns(whole):
    first, *_, last = [x for x in whole[1] if x['stage'] == 'coarse']
    assert last['val']['recall@20'] > first['val']['recall@20']


@pytest.mark.parametrize('stage', ['coarse', 'fine'])
def test_assignments_change_once_an_epoch_of_phase_2(stage, data, whole, monkeypatch):
    recipe = replace(TINY, patience=1)
    init = whole[0].model if stage == 'fine' else None
    log, update = [], C2F.update_assignment
    monkeypatch.setattr(
        C2F,
        'update_assignment',
        lambda model, h: log.append(f'update {model.stage}') or update(model, h),
    )
    epoch = module.train_epoch

    def watched(model, *args, **kwargs):
        before = [model.coarse.index.clone(), model.fine.index.clone()]
        weights = [model.coarse.assignment_weight, model.fine.assignment_weight]
        log.append('epoch')
        out = epoch(model, *args, **kwargs)
        table = int(model.stage == 'fine')
        new = [model.coarse.index, model.fine.index]
        assert new[1 - table].equal(before[1 - table])
        assert [model.coarse, model.fine][1 - table].assignment_weight is (
            weights[1 - table]
        )
        log.append('changed' if not new[table].equal(before[table]) else 'same')
        return out

    monkeypatch.setattr(module, 'train_epoch', watched)
    # A score that never gets better: each phase ends at its first chance.
    monkeypatch.setattr(
        module, 'evaluate_split', lambda *_: {'ndcg@5': 0.1, 'recall@20': 0.1}
    )
    run = train(data, recipe, stages=(stage,), init=init)
    assert epochs_of(run.phases[stage]) == {1: (0, 1), 2: (2, 3)}
    assert log[:2] == ['epoch', 'same']
    assert [x for x in log[2:] if x not in ('changed', 'same')] == [
        *('epoch', f'update {stage}') * 2
    ]
    assert stage == 'fine' or log.count('changed') == 2


def test_first_batch_of_phase_2_used_the_old_assignment(data, whole):
    model = pyg_c2f.train.build_model(data, TINY)
    start_coarse(model, TINY, torch.Generator().manual_seed(1))
    optimizer = module.make_optimizer(model, TINY)
    old, seen = model.coarse.index.clone(), []
    triples = tuple(torch.tensor([0, 1, 2]) for _ in range(3))

    def batches():
        for _ in range(3):
            seen.append(model.coarse.index.equal(old))
            yield triples
        seen.append(model.coarse.index.equal(old))

    h = model.propagate().detach()
    module.train_epoch(model, optimizer, module.BPRLoss(0.0), batches(), 3.0, True)
    assert seen == [True, False, False, False]
    # From the features before the step, not after.
    new = module.build_model(data, TINY)
    new.set_assignment(
        coarse=pyg_c2f.anchors.pinv_assignment(
            *new.split(h)[:2], TINY.anchors_per_entity
        )
    )
    assert model.coarse.index.equal(new.coarse.index)


def test_coarse_codebook_is_frozen_in_the_fine_stage(data, tmp_path):
    run = train(data, TINY, out=tmp_path)
    phase = max(run.phases['coarse'])
    coarse = pyg_c2f.load(phase_file(tmp_path, 'coarse', phase))
    for name in ('codebook', 'index', 'assignment_weight'):
        assert getattr(run.model.coarse, name).equal(getattr(coarse.coarse, name))
    assert not run.model.bias.equal(coarse.bias)
    assert coarse.stage == 'coarse' and run.model.stage == 'fine'


def test_two_runs_are_one(data, whole, tmp_path):
    lines = []
    first = train(data, TINY, stages=('coarse',), on_evaluation=lines.append)
    pyg_c2f.save(first.model, tmp_path)
    init = pyg_c2f.load(tmp_path)
    second = train(data, TINY, stages=('fine',), init=init, on_evaluation=lines.append)
    assert first.phases | second.phases == whole[0].phases
    assert without_seconds(lines) == without_seconds(whole[1])
    assert_same_model(second.model, whole[0].model)


def test_global_randomness_changes_nothing(data, whole):
    torch.manual_seed(99)
    torch.rand(7)
    assert_same_model(fit(data, TINY), whole[0].model)


def test_the_seed_changes_everything(data, whole):
    run = train(data, replace(TINY, max_epochs=1), seed=1, stages=('coarse',))
    assert run.phases['coarse'][1]['val'] != whole[0].phases['coarse'][1]['val']


# Interrupted runs --------------------------------------------------------------------


def interrupt_at(number):
    """A function that interrupts the run at its call of that number."""
    calls = count()

    def call(*_):
        if next(calls) == number:
            raise KeyboardInterrupt

    return call


def resumed_is_whole(data, whole, out):
    lines = []
    run = train(data, TINY, out=out, resume=True, on_evaluation=lines.append)
    assert run.phases == whole[0].phases
    assert_same_model(run.model, whole[0].model)
    expected = without_seconds(whole[1])
    assert without_seconds(lines) == expected[len(expected) - len(lines) :]
    for stage, phases in run.phases.items():
        for phase in phases:
            assert phase_file(out, stage, phase).exists()
    assert not list(out.glob('*.part'))


def stage_starts(whole):
    return [i for i, line in enumerate(whole[1]) if line['epoch'] == 0]


@pytest.mark.parametrize('where', ['untrained', 'coarse', 'switch', 'fine', 'end'])
def test_interrupted_in_an_evaluation(where, data, whole, tmp_path):
    lines = whole[1]
    fine = stage_starts(whole)[1]
    switch = whole[0].phases['coarse'][1]['last_epoch']
    at = {
        'untrained': 0,
        'coarse': 2,
        'switch': switch,
        'fine': fine,
        'end': len(lines) - 1,
    }
    with pytest.raises(KeyboardInterrupt):
        train(data, TINY, out=tmp_path, on_evaluation=interrupt_at(at[where]))
    resumed_is_whole(data, whole, tmp_path)


@pytest.mark.parametrize('where', [0, 1, 5, -2])
def test_interrupted_in_a_batch(where, data, whole, tmp_path, monkeypatch):
    num_batches = len(list(make_trainer(data, TINY)._batches()))
    assert num_batches > 1
    num_epochs = [p[max(p)]['last_epoch'] for p in whole[0].phases.values()]
    calls, step = count(), module.train_step
    at = (where % sum(num_epochs)) * num_batches + 1
    if where < 0:  # batches of the fine stage are fewer
        at = num_epochs[0] * num_batches + 1

    def train_step(*args):
        if next(calls) == at:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, 'train_step', train_step)
        train(data, TINY, out=tmp_path)
    resumed_is_whole(data, whole, tmp_path)


def test_interrupted_again_and_again(data, whole, tmp_path):
    at = stage_starts(whole)[1] + 2
    for number in (3, at - 3, 2):
        with pytest.raises(KeyboardInterrupt):
            train(
                data,
                TINY,
                out=tmp_path,
                resume=True,
                on_evaluation=interrupt_at(number),
            )
    resumed_is_whole(data, whole, tmp_path)


def interrupted(data, out):
    with pytest.raises(KeyboardInterrupt):
        train(data, TINY, out=out, on_evaluation=interrupt_at(2))


def test_a_resumed_run_must_fit(data, tmp_path):
    interrupted(data, tmp_path)
    with pytest.raises(InputError, match='does not fit'):
        train(data, replace(TINY, num_coarse=7), out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('context', None),
        ('context', {}),
        ('context', {'phases': [], 'seconds': {}}),
        ('results', []),
        ('progress', {'stage': 'fine'} | {'epoch': 'two'}),
        ('progress', {'stage': 'fine', 'epoch': 4.5}),
        ('progress', {'stage': 'fine', 'phase': '1'}),
        ('progress', {'stage': 'fine', 'more': 1}),
        ('progress', [[]]),
    ],
)
def test_states_that_are_none(key, value, data, tmp_path):
    interrupted(data, tmp_path)
    (path,) = resume_files(tmp_path)[:1]
    delete_resume(tmp_path)
    good = {
        'progress': {'stage': 'coarse', 'epoch': 2},
        'results': {},
        'context': {'phases': {}, 'seconds': {}},
    }
    write_tensors(path, {}, {'resume': json.dumps(good | {key: value})})
    with pytest.raises(InputError, match='holds no interrupted run'):
        train(data, TINY, out=tmp_path, resume=True)
    write_tensors(path, {}, {'resume': '[' * 200_000})
    with pytest.raises(InputError, match='holds no interrupted run'):
        train(data, TINY, out=tmp_path, resume=True)


def test_a_stage_that_was_not_interrupted(data, tmp_path, whole):
    interrupted(data, tmp_path)
    init = whole[0].model
    with pytest.raises(InputError, match='a stage that is not to be trained'):
        train(data, TINY, stages=('fine',), init=init, out=tmp_path, resume=True)


def test_a_new_run_forgets_the_state_of_an_old_one(data, whole, tmp_path):
    for at in (stage_starts(whole)[1] + 3, 2):  # The old one came further.
        with pytest.raises(KeyboardInterrupt):
            train(data, TINY, out=tmp_path, on_evaluation=interrupt_at(at))
    assert read_resume(tmp_path)[1]['progress']['stage'] == 'coarse'
    resumed_is_whole(data, whole, tmp_path)


def test_damaged_resume_files(data, whole, tmp_path, caplog):
    def interrupt(line):
        if line['stage'] == 'fine' and line['epoch'] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, TINY, out=tmp_path, on_evaluation=interrupt)
    before, last = (tmp_path / name for name in ('resume-1', 'resume-0'))
    before, last = (x.with_suffix('.safetensors') for x in (before, last))
    content = {path: path.read_bytes() for path in (before, last)}
    for spoiled in (content[last][:-9], b'', content[last].replace(b'fine', b'fond')):
        last.write_bytes(spoiled)
        before.write_bytes(content[before])
        caplog.clear()
        run = train(data, TINY, out=tmp_path, resume=True)
        assert_same_model(run.model, whole[0].model)
        (message,) = (x.message for x in caplog.records if 'damaged' in x.message)
        assert str(last) in message
        assert 'going on from resume-1.safetensors, epoch 3 of stage fine' in message
    for path in (before, last):
        path.write_bytes(content[path][:-9])
    with pytest.raises(InputError, match='resume-0.*damaged'):
        train(data, TINY, out=tmp_path, resume=True)
    for path in (before, last):
        path.write_bytes(phase_file(tmp_path, 'coarse', 1).read_bytes())
    with pytest.raises(InputError, match='no interrupted run'):
        train(data, TINY, out=tmp_path, resume=True)


# Refits, and what is refused ---------------------------------------------------------


def test_fixed_epochs(data, whole, monkeypatch):
    """On the same data a refit to the best epochs gives the best model."""

    def refuse(*_):
        raise AssertionError('a refit has nothing to evaluate on')

    epochs = {
        stage: (phases[1]['last_epoch'], phases[max(phases)]['best_epoch'])
        for stage, phases in whole[0].phases.items()
    }
    monkeypatch.setattr(module, 'evaluate_split', refuse)
    run = train(data, TINY, fixed_epochs=epochs, on_evaluation=refuse)
    assert_same_model(run.model, whole[0].model)
    assert run.phases == {'coarse': {}, 'fine': {}}


class Spoil(torch.autograd.Function):
    """Puts something else into one entry, of what comes or of its gradient."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward = backward
        out = x.clone()
        out.view(-1)[0] += forward
        return out

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad.view(-1)[0] += ctx.backward
        return grad, None, None


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize('stage', ['coarse', 'fine'])
@pytest.mark.parametrize(
    ('forward', 'backward', 'says'),
    [
        (NAN, 0, 'the loss holds nan'),
        (INF, 0, 'the loss holds (inf|nan)'),
        (0, NAN, 'the gradient of {stage}.codebook holds nan'),
        (0, -INF, 'the gradient of {stage}.codebook holds -inf'),
    ],
)
def test_a_step_that_goes_wrong(
    stage, forward, backward, says, data, tmp_path, monkeypatch
):
    """In step 2 of the fourth epoch of a stage."""
    count = {'coarse': 0, 'fine': 0}
    step = module.train_step
    recipe = replace(TINY, batch_size_fine=TINY.batch_size_coarse)
    batches = len(list(make_trainer(data, recipe)._batches()))

    def train_step(model, optimizer, criterion, triples, clip):
        count[model.stage] += 1
        if count[stage] == 3 * batches + 2 and model.stage == stage:
            blocks = [Spoil.apply(x, forward, backward) for x in model.layer0()]
            monkeypatch.setattr(model, 'layer0', lambda: blocks)
        return step(model, optimizer, criterion, triples, clip)

    monkeypatch.setattr(module, 'train_step', train_step)
    says = says.format(stage=stage)
    with pytest.raises(InputError) as error:
        train(data, recipe, out=tmp_path)
    message = str(error.value)
    assert re.match(f'{says} in step 2 of epoch 3 of the {stage} stage: lower', message)
    assert f'lower --set lr_{stage}={getattr(TINY, f"lr_{stage}")}' in message
    last = message.rpartition(' is ')[2]
    assert last in [str(phase_file(tmp_path, stage, phase)) for phase in (1, 2)]
    assert pyg_c2f.load(last).stage == stage
    assert read_resume(tmp_path)[1]['progress']['epoch'] == 3


@pytest.mark.parametrize('phase', [1, 2])
def test_features_and_weights_that_are_no_numbers(phase, data, monkeypatch):
    """Of the anchors, before and after the pseudo-inverse."""
    pinv = torch.linalg.pinv
    what = {1: 'the pseudo-inverse of the anchors', 2: 'the new assignment'}[phase]
    wrong = {1: NAN, 2: 1e300}[phase]
    monkeypatch.setattr(
        torch.linalg, 'pinv', lambda *x, **y: pinv(*x, **y).fill_(wrong)
    )
    val = {'ndcg@5': 0.1, 'recall@20': 0.1}
    monkeypatch.setattr(module, 'evaluate_split', lambda *_: val)
    with pytest.raises(InputError, match=f'{what} holds (nan|inf) in step 1 of epoch'):
        train(data, TINY)


def test_what_was_learned_is_no_number(data, monkeypatch):
    step = torch.optim.Adam.step

    def wrong_step(optimizer, *args):
        step(optimizer, *args)
        optimizer.param_groups[0]['params'][-1].data[0] = NAN

    monkeypatch.setattr(torch.optim.Adam, 'step', wrong_step)
    says = 'holds nan in step 1 of epoch 0 .* checkpoint is none$'
    with pytest.raises(InputError, match=says):
        train(data, TINY)


def test_scores_that_are_no_numbers(data, whole):
    init = copy.deepcopy(whole[0].model)
    init.bias.data[-1] = torch.nan
    with pytest.raises(InputError, match='NaN'):
        train(data, TINY, stages=('fine',), init=init)


def test_fine_needs_a_coarse_model(data):
    with pytest.raises(InputError, match='--init'):
        train(data, TINY, stages=('fine',))


@pytest.mark.parametrize(
    ('name', 'value'),
    [('num_coarse', 7), ('embedding_dim', 9), ('anchors_per_entity', 1)],
)
def test_coarse_model_of_another_size(name, value, data, whole):
    recipe = replace(TINY, **{name: value})
    with pytest.raises(InputError, match=f'{name}={getattr(TINY, name)}.*{value}'):
        train(data, recipe, stages=('fine',), init=whole[0].model)


def test_coarse_model_of_another_data_set(whole):
    other = SyntheticHierarchy(50, 80, 900, 4, 8, protocol='c2f')[0]
    with pytest.raises(InputError, match='num_users=60, this run 50'):
        train(other, TINY, stages=('fine',), init=whole[0].model)


@pytest.mark.parametrize('name', ['num_coarse', 'num_fine'])
def test_more_anchors_than_nodes(name, data):
    with pytest.raises(InputError, match=f'{name}=141.*60 users and 80 items'):
        train(data, replace(TINY, **{name: 141}))


def test_as_many_anchors_as_nodes(data):
    run = train(data, replace(TINY, num_coarse=140, num_fine=140, max_epochs=1))
    assert run.model.num_coarse == 140


def test_random_anchors(data, whole):
    run = train(data, replace(TINY, anchors='random', max_epochs=1))
    assert not run.model.coarse.index.equal(whole[0].model.coarse.index)


def test_fit(data, whole, tmp_path):
    model = fit(data, TINY, out=tmp_path / 'new')
    assert_same_model(pyg_c2f.load(tmp_path / 'new'), whole[0].model)
    items, scores = model.recommend([0, 1], k=5)
    assert items.shape == scores.shape == (2, 5)
    rated = data[RATES].edge_index
    assert not set(items[0].tolist()) & set(rated[1, rated[0] == 0].tolist())


def test_fit_on_a_graph_of_ones_own(data, tmp_path):
    model = fit(data, TINY)
    own = copy.copy(data)
    # Pairs twice and in another order, and sizes as NumPy gives them.
    pairs = data[RATES].edge_index
    own[RATES].edge_index = torch.cat([pairs[:, :50], pairs], dim=1).flip(1)
    own['user'].num_nodes = np.int64(data['user'].num_nodes)
    assert_same_model(fit(own, TINY, out=tmp_path), model)
    assert_same_model(pyg_c2f.load(tmp_path), model)
    assert not resume_files(tmp_path)


@pytest.mark.parametrize(
    'recipe', [TINY, FastRecipe(embedding_dim=16, coarse_per_item=3.0, num_fine=16)]
)
def test_fit_takes_over_the_ids(data, recipe, tmp_path):
    assert fit(data, recipe).user_ids is None
    own = copy.copy(data)
    own['user'].raw_id = Labels([f'u{i}' for i in range(60)])
    own['item'].raw_id = torch.arange(80) + 1000
    own['item'].title = Labels([f'The item {i}' for i in range(80)])
    model = fit(own, recipe, out=tmp_path)
    assert model.user_ids == list(own['user'].raw_id)
    assert model.item_ids[0] == '1000' and model.item_titles == list(own['item'].title)
    items, _ = model.recommend('u7', k=3)
    assert items == [str(1000 + x) for x in model.recommend(7, k=3)[0].tolist()]
    # Every file of a model has them.
    paths = [x for x in tmp_path.glob('*.safetensors') if 'resume' not in x.name]
    assert len(paths) >= 3
    for path in paths:
        again = pyg_c2f.load(path)
        assert again.user_ids == model.user_ids and again.item_ids == model.item_ids
        assert again.item_titles == model.item_titles
    # Ids that do not fit are refused.
    own['item'].raw_id = Labels(['same'] * 80)
    with pytest.raises(InputError, match="items 0 and 79 have the same id 'same'"):
        fit(own, recipe)


@pytest.mark.filterwarnings('ignore:Unable to accurately infer')
def test_fit_refuses_what_it_cannot_read(data):
    own = copy.copy(data)
    own[RATES].edge_index = data[RATES].edge_index.int()
    with pytest.raises(InputError, match='int32: convert'):
        fit(own, TINY)
    own = copy.copy(data)
    del own['item']['num_nodes']
    with pytest.raises(InputError, match='num_nodes'):
        fit(own, TINY)


def test_a_recipe_by_name_has_the_settings_of_the_data_set(data, monkeypatch):
    seen = []

    def stop(data, recipe, *_, **__):
        seen.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, 'train', stop)
    with pytest.raises(KeyboardInterrupt):
        fit(data, 'paper')
    assert seen == [get_recipe('paper', 'synthetic')]


@pytest.mark.skipif(not WITH_TORCH_SPARSE, reason='needs torch-sparse')
def test_with_and_without_the_extensions(data, whole, monkeypatch):
    for name in ('WITH_TORCH_SPARSE', 'WITH_TORCH_SCATTER', 'WITH_PYG_LIB'):
        monkeypatch.setattr(f'torch_geometric.typing.{name}', False)
    lines = []
    run = train(data, TINY, on_evaluation=lines.append)
    for ours, theirs in zip(lines, whole[1], strict=True):
        assert ours['val'] == pytest.approx(theirs['val'], rel=1e-5)
    h, other = run.model.propagate(), whole[0].model.propagate()
    torch.testing.assert_close(h, other, rtol=1e-5, atol=1e-6)
