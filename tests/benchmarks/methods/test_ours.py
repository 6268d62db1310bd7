"""Both recipes as methods against the models themselves."""

import json
from dataclasses import replace

import pytest
import torch
from methods import Fast, LinkProp, LowPass, Paper, file_bytes, ours
from methods.base import pack_graph
from safetensors.torch import load
from torch_geometric.data import HeteroData

from pyg_c2f.checkpoint import KINDS
from pyg_c2f.nn import C2F
from pyg_c2f.recipes import FastRecipe, PaperRecipe
from pyg_c2f.recipes.fast import build_fast
from pyg_c2f.typing import ITEM, RATES, USER

FAST = FastRecipe(embedding_dim=10, coarse_per_item=3.0, num_fine=8, fine_per_item=2)
RECIPES = {
    'fine': FAST,
    'coarse': replace(FAST, fine_per_item=0, dtype='float32'),
    'norms': replace(FAST, user_norm=0.2, item_norm=0.7),
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
STAGES = {'coarse': None, 'both': (1, 2)}

every = pytest.mark.parametrize('name', RECIPES)
both = pytest.mark.parametrize('stages', STAGES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def meta_of(stored):
    return json.loads(bytes(stored.pop('meta').tolist()))


# Recipe fast --------------------------------------------------------------------------


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
def test_scores_are_those_of_the_model(name, models, small):
    recipe, (model, stored) = RECIPES[name], models[name]
    # The model divides by a power of a user's number of items, and both sides by two.
    count = small.rowptr.diff().float().unsqueeze(1)
    factor = count**-recipe.user_norm * (1.0 if recipe.diffusion else 0.25)
    users = torch.arange(small.num_users)
    got = Fast(recipe).scorer(stored, small)(users) * factor
    torch.testing.assert_close(got, model.scorer()(users), rtol=1e-4, atol=1e-5)


@every
def test_lists_of_others_are_those_of_the_model(name, models, others):
    recipe, (model, stored) = RECIPES[name], models[name]
    score = Fast(recipe).scorer(stored, others)
    for user in range(others.num_users):
        history = others.col[others.rowptr[user] : others.rowptr[user + 1]]
        item, want = model.recommend(history=history, k=20)
        item, want = item[item >= 0], want[item >= 0]
        assert len(item) == 20 - len(history)
        got = score(torch.tensor([user]))[0, item]
        factor = len(history) ** -recipe.user_norm
        factor *= 1.0 if recipe.diffusion else 0.25
        torch.testing.assert_close(got * factor, want, rtol=1e-4, atol=1e-5)


@every
def test_bytes_are_those_of_the_checkpoint(name, models, small):
    recipe, (model, stored) = RECIPES[name], models[name]
    want, stored = model.to_tensors(), dict(stored)
    for key in ('graph.rowptr', 'graph.col'):
        del want[key]
    if recipe.diffusion:
        # The packed graph says how many users an item has.
        del want['degree']
        want |= {f'graph.{key}': x for key, x in pack_graph(small).items()}
    meta = meta_of(stored)
    assert stored.keys() == want.keys()
    assert all(stored[key].equal(x) for key, x in want.items())
    assert meta.keys() == {*model.settings(), 'stage', 'model'}
    stage = 'fine' if recipe.fine_per_item else 'coarse'
    assert json.loads(meta['stage']) == stage


def test_all_links_in_float32_are_a_low_pass(small, others):
    """Nothing is left out: the spectral features themselves, rotated."""
    same = {'embedding_dim': 6, 'user_norm': 0.3, 'item_norm': 0.4}
    recipe = FastRecipe(
        coarse_per_item=6.0,
        fine_per_item=0,
        dtype='float32',
        spectral_power=0.3,
        score_power=0.6,
        **same,
    )
    users = torch.arange(others.num_users)
    got, want = (
        method.scorer(method.fit(small, generator()), others)(users)
        for method in (Fast(recipe), LowPass(power=0.3, item_power=0.6, **same))
    )
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_diffusion_is_two_hops_beside(small, others):
    users = torch.arange(others.num_users)
    recipe = replace(FAST, user_norm=0.5, item_norm=0.5)
    low, score, hop = (
        method.scorer(method.fit(small, generator()), others)(users)
        for method in (
            Fast(recipe),
            Fast(replace(recipe, diffusion=0.7)),
            LinkProp(1, 1, 0.5),
        )
    )
    scale = small.col.bincount().float() ** recipe.score_power
    torch.testing.assert_close(score, 0.25 * low + 0.7 * scale * hop)


# Recipe paper -------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch):
    """The runs of the training and how they were called, in order."""
    seen, train = [], ours.train

    def watched(*args):
        seen.append((train(*args), args))
        return seen[-1][0]

    monkeypatch.setattr(ours, 'train', watched)
    return seen


@both
def test_scores_are_those_of_the_trained_model(stages, small, runs):
    method = Paper(PAPER, (2, 3), STAGES[stages])
    stored = load(file_bytes(method.fit(small, generator())))
    (run, (_, recipe, options)), users = runs[0], torch.arange(30)
    assert recipe is PAPER
    both = ('coarse',) if stages == 'coarse' else ('coarse', 'fine')
    assert options.stages == both
    assert options.fixed_epochs.get('fine') == STAGES[stages]
    want = run.model.scorer()(users)
    torch.testing.assert_close(method.scorer(stored, small)(users), want)
    method.fit(small, generator(1))
    assert runs[1][1][2].seed != options.seed


@both
def test_what_is_stored_of_recipe_paper(stages, small):
    stored = Paper(PAPER, (2, 3), STAGES[stages]).fit(small, generator())
    want = {'coarse.codebook', 'coarse.index', 'coarse.weight', 'bias', 'global_bias'}
    want |= {'graph.low', 'graph.high', 'graph.width', 'meta'}
    fine = {'fine.rowptr', 'fine.col', 'fine.value', 'fine.index', 'fine.weight'}
    assert stored.keys() == want | (fine if stages == 'both' else set())
    assert stored['coarse.index'].dtype == torch.uint8
    if stages == 'both':
        assert 0 < len(stored['fine.value']) < 4 * 8
    for key, x in pack_graph(small).items():
        assert stored[f'graph.{key}'].equal(x)
    assert meta_of(stored).keys() == {*C2F.setting_kinds(), 'stage', 'model'}
    assert not set(KINDS['inference_extra']) & set(stored)
