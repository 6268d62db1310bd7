"""The driver of all recipes: phases, kept models, interrupted runs, and refits."""

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
    get_recipe,
)
from pyg_c2f.recipes.paper import C2FTrainer
from pyg_c2f.recipes.registry import fit
from pyg_c2f.recipes.resume import RESUME_FILES, read_resume, resume_files
from pyg_c2f.typing import RATES, InputError
from tests.tiny import TINY, assert_same_model, epochs_of, run_of


def without_seconds(lines):
    return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines]


class Script(Trainer):
    """A trainer whose model counts epochs, each of which has a score."""

    def __init__(self, data, schedule, scores, monkeypatch):
        self.schedule, self.scores = schedule, scores
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
        return {'ndcg@5': self.scores[self.epoch], 'recall@20': 0.0}

    def train_epoch(self, phase, bar):
        self.model.coarse.codebook.data += 1
        self.phases.append(phase)
        return 0.5

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


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


def random_case(seed):
    """Scores of few values, so that many are equal to the best, and a schedule."""
    generator = torch.Generator().manual_seed(seed)
    every, patience, max_epochs = (
        int(torch.randint(1, high, (), generator=generator)) for high in (4, 4, 40)
    )
    scores = torch.randint(6, (max_epochs + 1,), generator=generator) / 10
    return scores.tolist(), every, patience, max_epochs


# The published log. The first evaluation of phase 2 is far worse than all of phase 1,
# and the ones after each best are equal to it.
PUBLISHED = [min(x, 65) / 100 if x <= 90 else min(x, 195) / 1000 for x in range(901)]


@pytest.mark.parametrize('seed', [*range(4), 'published'])
def test_schedule_matches_a_naive_one(seed, data, monkeypatch):
    is_published = seed == 'published'
    case = (PUBLISHED, 5, 5, 900) if is_published else random_case(seed)
    scores, every, patience, max_epochs = case
    schedule = Schedule(max_epochs, every, patience, num_phases=2)
    script = Script(data, schedule, scores, monkeypatch)

    expected = naive_schedule(*case)
    assert epochs_of(script.results) == expected
    assert not is_published or expected == {1: (65, 90), 2: (195, 220)}
    switch = expected[1][1] if 2 in expected else max_epochs
    best, end = expected[max(expected)]
    # The last evaluation may end phase 1 when no epoch is left to train.
    assert script.phases == [1 + (epoch >= switch) for epoch in range(end)]
    # Each evaluation saw all epochs so far, so nothing was rewound. The best epoch of
    # the last phase is returned.
    assert script.epochs == sorted(set(script.epochs))
    assert script.epoch == best


def test_the_log_matches_the_results(whole):
    run, lines = whole
    for stage, phases in run.phases.items():
        of_stage = [line for line in lines if line['stage'] == stage]
        for phase, result in phases.items():
            best = of_stage[result['best_epoch']]
            assert (best['phase'], best['val']) == (phase, result['val'])
        assert of_stage[0]['loss'] is None
        assert all(0 < line['loss'] < 20 for line in of_stage[1:])
        if stage == 'coarse':
            val = [of_stage[i]['val']['recall@20'] for i in (0, -1)]
            assert val[1] > val[0]
    assert set(run.phases) == {'coarse', 'fine'}
    assert all(seconds > 0 for seconds in run.seconds.values())


def assert_resumed_is_whole(data, whole, out):
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


def fine_start(whole):
    return [line['stage'] for line in whole[1]].index('fine')


def interrupted_run(data, out, at, **options):
    """A run that is interrupted in that evaluation, counted from zero."""
    calls = count()

    def interrupt(*_):
        if next(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(data, out=out, on_evaluation=interrupt, **options)


@pytest.mark.parametrize('where', ['untrained', 'switch', 'fine', 'end'])
def test_interrupted_in_an_evaluation(where, data, whole, tmp_path):
    run, lines = whole
    at = {
        'untrained': 0,
        'switch': run.phases['coarse'][1]['last_epoch'],
        'fine': fine_start(whole),
        'end': len(lines) - 1,
    }
    interrupted_run(data, tmp_path, at[where])
    assert_resumed_is_whole(data, whole, tmp_path)


@pytest.mark.parametrize('stage', ['coarse', 'fine'])
def test_interrupted_in_a_batch(stage, data, whole, tmp_path, monkeypatch):
    num_batches = -(-900 * TINY.num_neg_samples // TINY.batch_size_coarse) - 1
    phases = whole[0].phases['coarse']
    num_epochs = 1 if stage == 'coarse' else phases[max(phases)]['last_epoch']
    calls, step = count(), C2FTrainer.step

    def interrupted_step(*args):
        if next(calls) == num_epochs * num_batches + 1:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(C2FTrainer, 'step', interrupted_step)
        run_of(data, out=tmp_path)
    assert_resumed_is_whole(data, whole, tmp_path)


def test_a_run_that_does_not_fit_the_interrupted_one(data, whole, tmp_path):
    interrupted_run(data, tmp_path, 2)
    options = {'out': tmp_path, 'resume': True}
    with pytest.raises(InputError, match='does not fit'):
        run_of(data, replace(TINY, num_coarse=7), **options)
    with pytest.raises(InputError, match='a stage that is not to be trained'):
        run_of(data, init=whole[0].model, stages=('fine',), **options)


GOOD_STATE = {
    'progress': {'stage': 'coarse', 'epoch': 2},
    'results': {},
    'context': {'phases': {}, 'seconds': {}},
}


@pytest.mark.parametrize(
    'changes',
    [
        {'context': {}},
        {'context': {'phases': [], 'seconds': {}}},
        {'results': []},
        {'progress': {'stage': 'fine', 'epoch': 4.5}},
        {'progress': {'stage': 'fine', 'more': 1}},
        {'progress': [[]]},
        None,
    ],
    ids=str,
)
def test_wrong_resume_states(changes, data, tmp_path):
    text = json.dumps(GOOD_STATE | changes) if changes else '[' * 200_000
    write_tensors(tmp_path / RESUME_FILES[0], {}, {'resume': text})
    with pytest.raises(InputError, match='holds no interrupted run'):
        run_of(data, out=tmp_path, resume=True)


def test_a_new_run_forgets_the_state_of_an_old_one(data, whole, tmp_path):
    for at in (fine_start(whole) + 3, 2):  # The old run got further.
        interrupted_run(data, tmp_path, at)
    assert read_resume(tmp_path)[1]['progress']['stage'] == 'coarse'
    assert_resumed_is_whole(data, whole, tmp_path)


def test_damaged_resume_files(data, whole, tmp_path, caplog):
    interrupted_run(data, tmp_path, fine_start(whole) + 4)
    last, before = (tmp_path / name for name in RESUME_FILES)
    content = {path: path.read_bytes() for path in (last, before)}
    for spoiled in (content[last][:-9], content[last].replace(b'fine', b'fond')):
        last.write_bytes(spoiled)
        before.write_bytes(content[before])
        caplog.clear()
        run = run_of(data, out=tmp_path, resume=True)
        assert_same_model(run.model, whole[0].model)
        (message,) = (x.message for x in caplog.records if 'damaged' in x.message)
        assert str(last) in message
        assert 'going on from resume-1.safetensors, epoch 3 of stage fine' in message
    other = phase_file(tmp_path, 'coarse', 1).read_bytes()
    for spoiled, says in (
        (content[last][:-9], 'resume-0.*damaged'),
        (other, 'no interrupted run'),
    ):
        last.write_bytes(spoiled)
        before.write_bytes(spoiled)
        with pytest.raises(InputError, match=says):
            run_of(data, out=tmp_path, resume=True)


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


def test_fit(data, whole, tmp_path):
    own = copy.copy(data)
    # Some pairs twice, another order, sizes from NumPy, and another global seed.
    pairs = data[RATES].edge_index
    own[RATES].edge_index = torch.cat([pairs[:, :50], pairs], dim=1).flip(1)
    own['user'].num_nodes = np.int64(data['user'].num_nodes)
    torch.manual_seed(99)
    model = fit(own, TINY, out=tmp_path)
    assert_same_model(model, whole[0].model)
    assert_same_model(pyg_c2f.load(tmp_path), model)
    assert not resume_files(tmp_path)
    items, scores = model.recommend([0, 1], k=5)
    assert items.shape == scores.shape == (2, 5)
    assert not set(items[0].tolist()) & set(pairs[1, pairs[0] == 0].tolist())


@pytest.mark.parametrize(
    'recipe',
    [
        replace(TINY, max_epochs=1),
        FastRecipe(embedding_dim=16, coarse_per_item=3.0, num_fine=16),
    ],
)
def test_fit_keeps_the_original_ids(data, recipe, tmp_path):
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
    # They are in every file of a model.
    paths = [x for x in tmp_path.glob('*.safetensors') if 'resume' not in x.name]
    assert len(paths) >= 3
    for path in paths:
        assert vars(pyg_c2f.load(path).vocabulary) == names
    # Ids that do not fit are refused.
    own['item'].raw_id = Labels(['same'] * 80)
    with pytest.raises(InputError, match="items 0 and 79 have the same id 'same'"):
        fit(own, recipe)


def test_a_recipe_by_name(data, monkeypatch):
    def stop(data, recipe, *_, **__):
        assert recipe == get_recipe('paper')
        raise KeyboardInterrupt

    monkeypatch.setattr('pyg_c2f.recipes.registry.train', stop)
    with pytest.raises(KeyboardInterrupt):
        fit(data, 'paper')
