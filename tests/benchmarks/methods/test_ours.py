"""Both recipes as methods against the models themselves."""

import json
from dataclasses import replace

import pytest
import torch
from methods import Fast, Paper, file_bytes, ours
from methods.base import pack_graph
from safetensors.torch import load
from torch_geometric.data import HeteroData

from pyg_c2f.nn import C2F
from pyg_c2f.recipes import FastRecipe, PaperRecipe
from pyg_c2f.recipes.fast import build_fast
from pyg_c2f.typing import ITEM, RATES, USER
from tests.benchmarks.methods.conftest import generator, scores_of

FAST = FastRecipe(embedding_dim=10, coarse_per_item=3.0, num_fine=8, fine_per_item=2)
RECIPES = {
    'fine': FAST,
    'coarse': replace(FAST, fine_per_item=0, dtype='float32'),
    'diffusion': replace(FAST, user_norm=0.2, item_norm=0.7, diffusion=0.7),
    'diffusion in float32': replace(FAST, diffusion=0.7, dtype='float32'),
}
PAPER = PaperRecipe(
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
every = pytest.mark.parametrize('name', RECIPES)


def meta_of(stored):
    return json.loads(bytes(stored.pop('meta').tolist()))


@pytest.fixture(scope='module')
def models(small):
    """Of each recipe the model, and what the method stores."""
    data, found = HeteroData(), {}
    data[USER].num_nodes, data[ITEM].num_nodes = 30, 20
    data[RATES].edge_index = small.edge_index
    for name, recipe in RECIPES.items():
        model = build_fast(data, recipe, generator())
        model.set_stage('fine' if recipe.fine_per_item else 'coarse')
        found[name] = model, load(file_bytes(Fast(recipe).fit(small, generator())))
    return found


@every
def test_scores_are_those_of_the_model(name, models, small, others):
    recipe, (model, stored) = RECIPES[name], models[name]
    for asks in (small, others):
        # The model divides by a power of the number of items, and both sides by two.
        count = asks.rowptr.diff().float().unsqueeze(1)
        factor = count**-recipe.user_norm * (1.0 if recipe.diffusion else 0.25)
        users = torch.arange(asks.num_users)
        want = model.history_scorer(asks.rowptr, asks.col)(users)
        got = scores_of(Fast(recipe), stored, asks) * factor
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@every
def test_bytes_are_those_of_the_checkpoint(name, models, small):
    recipe, (model, stored) = RECIPES[name], models[name]
    want, stored = model.to_tensors(), dict(stored)
    graph = {f'graph.{key}': x for key, x in pack_graph(small).items()}
    for key, x in graph.items():
        assert want.pop(key).equal(x)
    if recipe.diffusion:
        # The packed graph says how many users an item has.
        del want['degree']
        want |= graph
    meta = meta_of(stored)
    assert stored.keys() == want.keys()
    assert all(stored[key].equal(x) for key, x in want.items())
    assert meta.keys() == {*model.settings(), 'stage', 'model'}
    stage = 'fine' if recipe.fine_per_item else 'coarse'
    assert json.loads(meta['stage']) == stage


@pytest.mark.parametrize('fine_epochs', [None, (1, 2)])
def test_recipe_paper_is_the_trained_model(fine_epochs, small, monkeypatch):
    """The scores, and what is stored in place of a checkpoint."""
    runs, train = [], ours.train

    def watched(*args):
        runs.append((train(*args), args[2]))
        return runs[-1][0]

    monkeypatch.setattr(ours, 'train', watched)
    method = Paper(PAPER, (2, 3), fine_epochs)
    stored = load(file_bytes(method.fit(small, generator())))
    ((run, options),) = runs
    assert options.stages == (('coarse', 'fine') if fine_epochs else ('coarse',))
    assert options.fixed_epochs.get('fine') == fine_epochs
    want = run.model.scorer()(torch.arange(30))
    torch.testing.assert_close(scores_of(method, stored, small), want)
    names = {'coarse.codebook', 'coarse.index', 'coarse.weight', 'bias', 'global_bias'}
    if fine_epochs:
        names |= {f'fine.{x}' for x in ('rowptr', 'col', 'value', 'index', 'weight')}
        assert 0 < len(stored['fine.value']) < 4 * 8
    graph = {f'graph.{key}': x for key, x in pack_graph(small).items()}
    assert stored.keys() == names | graph.keys() | {'meta'}
    assert all(stored[key].equal(x) for key, x in graph.items())
    assert meta_of(stored).keys() == {*C2F.setting_kinds(), 'stage', 'model'}
