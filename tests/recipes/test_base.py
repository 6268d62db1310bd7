"""The driver of all recipes: phases, what is kept, interrupted runs, and refits."""

import copy
import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

import pyg_c2f
from pyg_c2f.checkpoint import phase_file, write_tensors
from pyg_c2f.datasets.interactions import Labels
from pyg_c2f.recipes import (
    FastRecipe,
    Schedule,
    Trainer,
    TrainingOptions,
    base,
    fit,
    get_recipe,
)
from pyg_c2f.recipes.paper import C2FTrainer
from pyg_c2f.recipes.resume import delete_resume, read_resume, resume_files
from pyg_c2f.typing import RATES, InputError
from tests.tiny import TINY, assert_same_model, epochs_of, run_of


def without_seconds(lines):
    return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines]


# The schedule, with scores and epochs that are made up --------------------------------


class Script(Trainer):
    """A trainer that counts its epochs in the model, which are scored by a function."""

    def __init__(self, data, schedule, score, monkeypatch):
        self.schedule, self.score = schedule, score
        self.epochs, self.phases = [], []
        self.model = TINY.blank(data)
        self.model.coarse.codebook.data.zero_()
        monkeypatch.setattr(base, 'evaluate_split', self.evaluate)
        self.results = base.StageRun(self.model, data, self, TrainingOptions()).run()

    @property
    def epoch(self):
        return round(self.model.coarse.codebook[0, 0].item())

    def evaluate(self, *_, **__):
        self.epochs.append(self.epoch)
        return {'ndcg@5': self.score(self.epoch), 'recall@20': 0.0}

    def train_epoch(self, phase, bar):
        self.model.coarse.codebook.data += 1
        self.phases.append(phase)
        return 0.5

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_published_pattern(data, monkeypatch):
    # The published log: best at 65, phase 2 from 90 on, best at 195, end at 220. The
    # first evaluation of phase 2 is far worse than all of phase 1, and the ones after
    # each best are equal to it.
    def score(epoch):
        return min(epoch, 65) / 100 if epoch <= 90 else min(epoch, 195) / 1000

    script = Script(data, Schedule(900, 5, 5, num_phases=2), score, monkeypatch)
    assert epochs_of(script.results) == {1: (65, 90), 2: (195, 220)}
    assert script.epochs == list(range(0, 225, 5))
    assert script.phases == [1 + (epoch >= 90) for epoch in range(220)]
    assert script.results[1]['val']['ndcg@5'] == 0.65
    assert script.results[2]['val']['ndcg@5'] == 0.195


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


@pytest.mark.parametrize('seed', range(8))
def test_schedule_like_a_naive_one(seed, data, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    every, patience, max_epochs = (
        int(torch.randint(1, high, (), generator=generator)) for high in (4, 4, 40)
    )
    # Few values, so that many evaluations are equal to the best one.
    scores = torch.randint(6, (max_epochs + 1,), generator=generator).tolist()
    schedule = Schedule(max_epochs, every, patience, num_phases=2)
    script = Script(data, schedule, lambda epoch: scores[epoch] / 10, monkeypatch)

    expected = naive_schedule(scores, every, patience, max_epochs)
    assert epochs_of(script.results) == expected
    switch = expected[1][1] if 2 in expected else max_epochs
    end = expected[max(expected)][1]
    # The last evaluation may end phase 1 where there is no epoch left to train.
    assert script.phases == [1 + (epoch >= switch) for epoch in range(end)]
    # Each evaluation saw as many epochs as had been trained: nothing was rewound. What
    # is returned is the best of the last phase.
    assert script.epochs == sorted(set(script.epochs))
    assert script.epoch == expected[max(expected)][0]


def test_max_epochs_ends_with_an_evaluation(data, monkeypatch):
    schedule = Schedule(13, 5, 5, num_phases=2)
    script = Script(data, schedule, lambda epoch: epoch / 100, monkeypatch)
    assert epochs_of(script.results) == {1: (13, 13)}
    assert script.epochs == [0, 5, 10, 13] and len(script.phases) == 13


# Real epochs -------------------------------------------------------------------------


def test_the_log_tells_the_schedule(whole):
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


def test_coarse_codebook_is_frozen_in_the_fine_stage(data, tmp_path):
    run = run_of(data, out=tmp_path)
    phase = max(run.phases['coarse'])
    coarse = pyg_c2f.load(phase_file(tmp_path, 'coarse', phase))
    for name in ('codebook', 'index', 'assignment_weight'):
        assert getattr(run.model.coarse, name).equal(getattr(coarse.coarse, name))
    assert not run.model.bias.equal(coarse.bias)
    assert coarse.stage == 'coarse' and run.model.stage == 'fine'


def test_two_runs_are_one(data, whole, tmp_path):
    lines = []
    first = run_of(data, stages=('coarse',), on_evaluation=lines.append)
    pyg_c2f.save(first.model, tmp_path)
    init = pyg_c2f.load(tmp_path)
    second = run_of(data, stages=('fine',), init=init, on_evaluation=lines.append)
    assert first.phases | second.phases == whole[0].phases
    assert without_seconds(lines) == without_seconds(whole[1])
    assert_same_model(second.model, whole[0].model)


def test_global_randomness_changes_nothing(data, whole):
    torch.manual_seed(99)
    torch.rand(7)
    assert_same_model(fit(data, TINY), whole[0].model)


def test_the_seed_changes_everything(data, whole):
    run = run_of(data, replace(TINY, max_epochs=1), seed=1, stages=('coarse',))
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
    run = run_of(data, out=out, resume=True, on_evaluation=lines.append)
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
        run_of(data, out=tmp_path, on_evaluation=interrupt_at(at[where]))
    resumed_is_whole(data, whole, tmp_path)


@pytest.mark.parametrize('where', [0, 1, 5, -2])
def test_interrupted_in_a_batch(where, data, whole, tmp_path, monkeypatch):
    num_batches = -(-900 * TINY.num_neg_samples // TINY.batch_size_coarse) - 1
    num_epochs = [p[max(p)]['last_epoch'] for p in whole[0].phases.values()]
    calls, step = count(), C2FTrainer.step
    at = (where % sum(num_epochs)) * num_batches + 1
    if where < 0:  # batches of the fine stage are fewer
        at = num_epochs[0] * num_batches + 1

    def interrupted_step(*args):
        if next(calls) == at:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(C2FTrainer, 'step', interrupted_step)
        run_of(data, out=tmp_path)
    resumed_is_whole(data, whole, tmp_path)


def test_interrupted_again_and_again(data, whole, tmp_path):
    at = stage_starts(whole)[1] + 2
    for number in (3, at - 3, 2):
        with pytest.raises(KeyboardInterrupt):
            run_of(
                data,
                out=tmp_path,
                resume=True,
                on_evaluation=interrupt_at(number),
            )
    resumed_is_whole(data, whole, tmp_path)


def interrupted(data, out):
    with pytest.raises(KeyboardInterrupt):
        run_of(data, out=out, on_evaluation=interrupt_at(2))


def test_a_resumed_run_must_fit(data, tmp_path):
    interrupted(data, tmp_path)
    with pytest.raises(InputError, match='does not fit'):
        run_of(data, replace(TINY, num_coarse=7), out=tmp_path, resume=True)


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
        run_of(data, out=tmp_path, resume=True)
    write_tensors(path, {}, {'resume': '[' * 200_000})
    with pytest.raises(InputError, match='holds no interrupted run'):
        run_of(data, out=tmp_path, resume=True)


def test_a_stage_that_was_not_interrupted(data, tmp_path, whole):
    interrupted(data, tmp_path)
    init = whole[0].model
    with pytest.raises(InputError, match='a stage that is not to be trained'):
        run_of(data, stages=('fine',), init=init, out=tmp_path, resume=True)


def test_a_new_run_forgets_the_state_of_an_old_one(data, whole, tmp_path):
    for at in (stage_starts(whole)[1] + 3, 2):  # The old one came further.
        with pytest.raises(KeyboardInterrupt):
            run_of(data, out=tmp_path, on_evaluation=interrupt_at(at))
    assert read_resume(tmp_path)[1]['progress']['stage'] == 'coarse'
    resumed_is_whole(data, whole, tmp_path)


def test_damaged_resume_files(data, whole, tmp_path, caplog):
    def interrupt(line):
        if line['stage'] == 'fine' and line['epoch'] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(data, out=tmp_path, on_evaluation=interrupt)
    before, last = (tmp_path / name for name in ('resume-1', 'resume-0'))
    before, last = (x.with_suffix('.safetensors') for x in (before, last))
    content = {path: path.read_bytes() for path in (before, last)}
    for spoiled in (content[last][:-9], b'', content[last].replace(b'fine', b'fond')):
        last.write_bytes(spoiled)
        before.write_bytes(content[before])
        caplog.clear()
        run = run_of(data, out=tmp_path, resume=True)
        assert_same_model(run.model, whole[0].model)
        (message,) = (x.message for x in caplog.records if 'damaged' in x.message)
        assert str(last) in message
        assert 'going on from resume-1.safetensors, epoch 3 of stage fine' in message
    for path in (before, last):
        path.write_bytes(content[path][:-9])
    with pytest.raises(InputError, match='resume-0.*damaged'):
        run_of(data, out=tmp_path, resume=True)
    for path in (before, last):
        path.write_bytes(phase_file(tmp_path, 'coarse', 1).read_bytes())
    with pytest.raises(InputError, match='no interrupted run'):
        run_of(data, out=tmp_path, resume=True)


# Refits, and what is refused ---------------------------------------------------------


def test_fixed_epochs(data, whole, monkeypatch):
    """On the same data a refit to the best epochs gives the best model."""

    def refuse(*_, **__):
        raise AssertionError('a refit has nothing to evaluate on')

    epochs = {
        stage: (phases[1]['last_epoch'], phases[max(phases)]['best_epoch'])
        for stage, phases in whole[0].phases.items()
    }
    monkeypatch.setattr(base, 'evaluate_split', refuse)
    run = run_of(data, fixed_epochs=epochs, on_evaluation=refuse)
    assert_same_model(run.model, whole[0].model)
    assert run.phases == {'coarse': {}, 'fine': {}}


def test_scores_that_are_no_numbers(data, whole):
    init = copy.deepcopy(whole[0].model)
    init.bias.data[-1] = torch.nan
    with pytest.raises(InputError, match='NaN'):
        run_of(data, stages=('fine',), init=init)


def test_fine_needs_a_coarse_model(data):
    with pytest.raises(InputError, match='give init'):
        run_of(data, stages=('fine',))


# One call ----------------------------------------------------------------------------


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
    assert fit(data, recipe).vocabulary.user_ids is None
    own = copy.copy(data)
    own['user'].raw_id = Labels([f'u{i}' for i in range(60)])
    own['item'].raw_id = torch.arange(80) + 1000
    own['item'].title = Labels([f'The item {i}' for i in range(80)])
    model = fit(own, recipe, out=tmp_path)
    names = vars(model.vocabulary)
    assert names['user_ids'] == list(own['user'].raw_id)
    assert names['item_ids'][0] == '1000'
    assert names['item_titles'] == list(own['item'].title)
    items, _ = model.recommend('u7', k=3)
    assert items == [str(1000 + x) for x in model.recommend(7, k=3)[0].tolist()]
    # Every file of a model has them.
    paths = [x for x in tmp_path.glob('*.safetensors') if 'resume' not in x.name]
    assert len(paths) >= 3
    for path in paths:
        assert vars(pyg_c2f.load(path).vocabulary) == names
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

    monkeypatch.setattr('pyg_c2f.recipes.presets.train', stop)
    with pytest.raises(KeyboardInterrupt):
        fit(data, 'paper')
    assert seen == [get_recipe('paper', 'synthetic')]
