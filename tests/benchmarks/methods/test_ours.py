"""Recipe fast as a method against the model itself."""

import json
from dataclasses import replace

import pytest
import torch
from methods import Fast, LinkProp, LowPass, file_bytes
from methods.base import pack_graph
from safetensors.torch import load
from torch_geometric.data import HeteroData

from pyg_c2f.checkpoint import LINEAR_SIZES, model_tensors
from pyg_c2f.config import FastRecipe
from pyg_c2f.fast import build_fast
from pyg_c2f.typing import ITEM, RATES, USER

SMALL = FastRecipe(embedding_dim=10, coarse_links=3.0, num_fine=8, fine_links=2)
RECIPES = {
    'fine': SMALL,
    'coarse': replace(SMALL, fine_links=0),
    'norms': replace(SMALL, user_norm=0.2, item_norm=0.7),
    'roots': replace(SMALL, user_norm=0.5, item_norm=0.5),
}

every = pytest.mark.parametrize('name', RECIPES)
stored_as = pytest.mark.parametrize('dtype', ['packed', 'float32'])
diffused = pytest.mark.parametrize('diffusion', [0.0, 0.7])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(recipe, histories, seed=0):
    data = HeteroData()
    data[USER].num_nodes = histories.num_users
    data[ITEM].num_nodes = histories.num_items
    data[RATES].edge_index = histories.edge_index
    model = build_fast(data, recipe, generator(seed))
    model.set_stage('fine' if recipe.fine_links else 'coarse')
    return model


@diffused
@stored_as
@every
def test_scores_are_those_of_the_model(name, dtype, diffusion, small):
    recipe = replace(RECIPES[name], dtype=dtype, diffusion=diffusion)
    method = Fast(recipe)
    stored = load(file_bytes(method.fit(small, generator())))
    users = torch.arange(small.num_users)
    count = small.rowptr.diff().float().unsqueeze(1)
    # The model divides by a power of a user's number of items, and both sides by two.
    factor = count**-recipe.user_norm * (1.0 if diffusion else 0.25)
    want = build(recipe, small).scorer()(users)
    got = method.scorer(stored, small)(users)
    torch.testing.assert_close(got * factor, want, rtol=1e-4, atol=1e-5)


@diffused
@every
def test_lists_of_others_are_those_of_the_model(name, diffusion, small, others):
    recipe = replace(RECIPES[name], diffusion=diffusion)
    method, model = Fast(recipe), build(recipe, small)
    score = method.scorer(method.fit(small, generator()), others)
    for user in range(others.num_users):
        history = others.col[others.rowptr[user] : others.rowptr[user + 1]]
        item, want = model.recommend(history=history, k=20)
        item, want = item[item >= 0], want[item >= 0]
        assert len(item) == 20 - len(history)
        got = score(torch.tensor([user]))[0, item]
        factor = len(history) ** -recipe.user_norm * (1.0 if diffusion else 0.25)
        torch.testing.assert_close(got * factor, want, rtol=1e-4, atol=1e-5)


@diffused
@stored_as
@every
def test_bytes_are_those_of_the_checkpoint(name, dtype, diffusion, small):
    recipe = replace(RECIPES[name], dtype=dtype, diffusion=diffusion)
    stored = Fast(recipe).fit(small, generator())
    want = model_tensors(build(recipe, small))
    for key in ('graph.rowptr', 'graph.col'):
        del want[key]
    assert 'bias' not in want
    if diffusion:
        # The packed graph says how many users an item has.
        del want['degree']
        want |= {f'graph.{key}': x for key, x in pack_graph(small).items()}
    meta = json.loads(bytes(stored.pop('meta').tolist()))
    assert stored.keys() == want.keys()
    assert all(stored[key].equal(x) for key, x in want.items())
    assert set(LINEAR_SIZES) < set(meta)
    assert meta['stage'] == ('fine' if recipe.fine_links else 'coarse')


def test_packed_is_smallest(small):
    sizes = [
        len(file_bytes(Fast(replace(SMALL, dtype=dtype)).fit(small, generator())))
        for dtype in ('packed', 'float32')
    ]
    assert sizes[0] < sizes[1]


def test_all_links_in_float32_are_a_low_pass(small, others):
    """Nothing is left out: the spectral features themselves, rotated."""
    same = {'power': 0.3, 'item_power': 0.6, 'user_norm': 0.3, 'item_norm': 0.4}
    same['embedding_dim'] = 6
    recipe = FastRecipe(coarse_links=6.0, fine_links=0, dtype='float32', **same)
    low = LowPass(**same)
    users = torch.arange(others.num_users)
    got, want = (
        method.scorer(method.fit(small, generator()), others)(users)
        for method in (Fast(recipe), low)
    )
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_diffusion_is_two_hops_beside(small, others):
    users = torch.arange(others.num_users)
    recipe = RECIPES['roots']
    plain, both = Fast(recipe), Fast(replace(recipe, diffusion=0.7))
    low, score = (
        method.scorer(method.fit(small, generator()), others)(users)
        for method in (plain, both)
    )
    two = LinkProp(1, 1, 0.5)
    hop = two.scorer(two.fit(small), others)(users)
    scale = small.col.bincount().float() ** recipe.item_power
    torch.testing.assert_close(score, 0.25 * low + 0.7 * scale * hop)


def test_without_a_generator_the_seed_is_zero(small):
    fits = [file_bytes(Fast(SMALL).fit(small)) for _ in range(2)]
    assert fits[0] == fits[1] == file_bytes(Fast(SMALL).fit(small, generator()))
