"""Recipe paper as a method against the model that was trained."""

import json

import pytest
import torch
from methods import Paper, file_bytes, histories_of, ours
from methods.base import pack_graph
from safetensors.torch import load

from pyg_c2f.checkpoint import KINDS, SIZES
from pyg_c2f.config import Recipe
from pyg_c2f.nn import C2F

SMALL = Recipe(
    num_coarse=6,
    num_fine=4,
    embedding_dim=8,
    num_layers=2,
    fine_per_coarse=2,
    threshold=0.3,
    anchors='random',
    pca_components=4,
    lr_coarse=0.02,
    lr_fine=0.02,
    batch_size_coarse=100,
    batch_size_fine=200,
    num_neg_samples=2,
)
STAGES = {'coarse': None, 'both': (1, 2)}

every = pytest.mark.parametrize('stages', STAGES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(stages, **settings):
    return Paper(SMALL, coarse_epochs=(2, 3), fine_epochs=STAGES[stages], **settings)


@pytest.fixture
def runs(monkeypatch):
    """The runs of the training and how they were called, in order."""
    seen, train = [], ours.train

    def watched(*args, **kwargs):
        seen.append((train(*args, **kwargs), args, kwargs))
        return seen[-1][0]

    monkeypatch.setattr(ours, 'train', watched)
    return seen


@every
def test_scores_are_those_of_the_trained_model(stages, small, runs):
    method = make(stages)
    stored = load(file_bytes(method.fit(small, generator())))
    (run, (data, recipe, seed, order), kwargs), users = runs[0], torch.arange(30)
    assert data.num_nodes == 50 and recipe is SMALL
    assert order == (('coarse',) if stages == 'coarse' else ('coarse', 'fine'))
    assert kwargs['fixed_epochs'].get('fine') == STAGES[stages]
    assert isinstance(run.model, C2F)
    assert run.model.stage == ('coarse' if stages == 'coarse' else 'fine')
    want = run.model.scorer()(users)
    torch.testing.assert_close(method.scorer(stored, small)(users), want)
    other = method.scorer(method.fit(small, generator(1)), small)(users)
    assert runs[1][1][2] != seed
    assert not torch.allclose(other, want, atol=1e-2)


@every
def test_training_goes_on_from_the_start(stages, small):
    """More epochs, other tables; the fine stage keeps the coarse codebook."""
    short, long = Paper(SMALL, (0, 1)), make(stages)
    before, after = (x.fit(small, generator()) for x in (short, long))
    assert not before['coarse.codebook'].equal(after['coarse.codebook'])
    if stages == 'both':
        coarse = make('coarse').fit(small, generator())
        assert after['coarse.codebook'].equal(coarse['coarse.codebook'])


@every
def test_what_is_stored(stages, small):
    stored = make(stages).fit(small, generator())
    want = {'coarse.codebook', 'coarse.index', 'coarse.weight', 'bias', 'global_bias'}
    want |= {'graph.low', 'graph.high', 'graph.width', 'meta'}
    fine = {'fine.rowptr', 'fine.col', 'fine.value', 'fine.index', 'fine.weight'}
    assert stored.keys() == want | (fine if stages == 'both' else set())
    assert stored['coarse.codebook'].shape == (6, 8)
    assert stored['coarse.index'].shape == (50, 2)
    assert stored['coarse.index'].dtype == torch.uint8
    if stages == 'both':
        assert 0 < len(stored['fine.value']) < 4 * 8
    for key, x in pack_graph(small).items():
        assert stored[f'graph.{key}'].equal(x)
    meta = json.loads(bytes(stored['meta'].tolist()))
    assert meta.keys() == {*SIZES, 'stage'}
    assert not set(KINDS['inference_extra']) & set(stored)


@every
def test_the_graph_is_that_of_the_file(stages, small):
    method = make(stages)
    stored = method.fit(small, generator())
    nobody, users = histories_of(torch.empty(2, 0).long(), 30, 20), torch.arange(30)
    got = method.scorer(stored, nobody)(users)
    assert got.equal(method.scorer(stored, small)(users))


def test_users_and_items_without_pairs(runs):
    pairs = torch.tensor([[0, 0, 1, 3, 3], [0, 1, 1, 4, 2]])
    histories = histories_of(pairs, 6, 9)
    method = Paper(
        Recipe(
            num_coarse=3,
            num_fine=2,
            embedding_dim=4,
            fine_per_coarse=2,
            anchors='random',
            pca_components=2,
        ),
        (1, 1),
        (1, 1),
    )
    score = method.scorer(method.fit(histories, generator()), histories)
    got, want = (x(torch.arange(6)) for x in (score, runs[0][0].model.scorer()))
    assert got.shape == (6, 9)
    torch.testing.assert_close(got, want)
