"""The search for settings on validation items."""

import copy
from dataclasses import asdict, replace

import pytest
import torch
from torch_geometric.data import HeteroData

import pyg_c2f
from pyg_c2f.checkpoint import model_meta, write_tensors
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.recipes import FastRecipe, PaperRecipe
from pyg_c2f.recipes import search as module
from pyg_c2f.recipes.search import Sample, parse_size, search, stored_bytes
from pyg_c2f.typing import ITEM, RATES, USER, InputError

# Far too wide for the data, and item degrees count for too much.
START = FastRecipe(embedding_dim=128, item_norm=0.0, score_power=0.6)


@pytest.fixture(scope='module')
def data():
    return SyntheticHierarchy(300, 200, 6000, 5, 20)[0]


def low_pass(data, recipe):
    """The scores of a recipe's singular vectors, by products of whole matrices."""
    pairs = data[RATES].edge_index
    rated = torch.zeros(300, 200, dtype=torch.double)
    rated[pairs[0], pairs[1]] = 1
    deg_u, deg_i = rated.sum(1).clamp(min=1), rated.sum(0).clamp(min=1)
    matrix = deg_u[:, None] ** -recipe.user_norm * rated * deg_i**-recipe.item_norm
    _, value, right = torch.linalg.svd(matrix)
    width = recipe.embedding_dim
    x = right[:width].T * value[:width] ** recipe.spectral_power
    scores = (rated * deg_i**-recipe.item_norm) @ x @ x.T * deg_i**recipe.score_power
    return lambda users: scores[users].float()


def test_scores_of_the_sample_are_those_of_dense_matrices(data):
    """NDCG of a width and two powers, against products of whole matrices."""
    state = module._Search(data, START, frozenset(), None, 0)
    assert (
        len(state.sample.users) == data[RATES].val_edge_label_index[0].unique().numel()
    )
    recipe = replace(
        START, item_norm=0.3, embedding_dim=16, spectral_power=0.25, score_power=0.2
    )
    ((_, table),) = state.tables(state.spectrum(recipe), 0.3, 0.25, [16])
    ours = float(state.ndcg(table, 0.2).mean())

    val = evaluate_split(low_pass(data, recipe), data, 'val', ks=(20,))
    assert ours == pytest.approx(val['ndcg@20'], abs=2e-3)


def test_it_finds_better_settings(data):
    found = search(data, START, num_trials=8)
    assert len(found.trials) == 8
    assert found.ndcg == max(x['ndcg'] for x in found.trials) > found.default
    start = evaluate_split(low_pass(data, START), data, 'val', ks=(20,))
    assert found.default == pytest.approx(start['ndcg@20'], abs=2e-3)
    assert found.recipe.embedding_dim < 128
    before, after = (
        evaluate_split(pyg_c2f.fit(data, r, 0).scorer(), data, 'val')['ndcg@20']
        for r in (START, found.recipe)
    )
    assert after > 1.1 * before
    again = search(data, START, num_trials=8)
    assert again.recipe == found.recipe and again.ndcg == found.ndcg


def test_a_size_is_kept_and_filled(data):
    for size in (1500, '2kB'):
        found = search(data, START, size=size, num_trials=6)
        model = pyg_c2f.fit(data, found.recipe, 0)
        most = parse_size(size)
        assert 0.9 * most < stored_bytes(model.model) <= most
        assert found.ndcg >= found.default


def test_given_settings_stay(data):
    fixed = {'embedding_dim': 24, 'user_norm': 0.5, 'coarse_per_item': 2.0}
    start = replace(START, **fixed)
    found = search(data, start, fixed=fixed, size=3000, num_trials=6).recipe
    assert fixed.items() <= asdict(found).items()
    assert found.item_norm != START.item_norm or found.score_power != START.score_power


def test_it_stops_in_time_with_the_best_so_far(data):
    found = search(data, START, seconds=0.0)
    assert len(found.trials) == 1 and found.ndcg >= found.default > 0
    # A model of the defaults, of the size, is there from the beginning.
    found = search(data, START, size=3000, seconds=0.0)
    assert [x['is_model'] for x in found.trials] == [True, False, True]
    assert stored_bytes(pyg_c2f.fit(data, found.recipe).model) <= 3000


def test_a_gain_that_chance_gives_is_none(data, monkeypatch):
    """Settings that are hardly better than the defaults are not taken."""
    start = search(data, START, num_trials=8).recipe
    found = search(data, start, num_trials=8)
    assert found.recipe == start and 'the defaults stay' in found.why
    assert found.ndcg == found.default < max(x['ndcg'] for x in found.trials)
    monkeypatch.setattr(module, 'ERRORS', 0.0)
    assert search(data, start, num_trials=8).recipe != start


def test_the_graph_takes_the_place_of_links_where_it_is_better():
    """Of data with neighbours and no larger groups, under a size."""
    user = torch.arange(400).repeat_interleave(6)
    generator = torch.Generator().manual_seed(0)
    # Users and items on a circle: nobody shares taste with more than a few.
    item = (user + torch.randint(12, user.shape, generator=generator)) % 400
    pairs = torch.unique(torch.stack([user, item]), dim=1)
    part = torch.rand(pairs.size(1), generator=generator)
    other = HeteroData()
    other[USER].num_nodes = other[ITEM].num_nodes = 400
    other[RATES].edge_index = pairs[:, part < 0.8]
    other[RATES].val_edge_label_index = pairs[:, part >= 0.8]
    other.protocol = 'standard'
    size = 8000
    found = search(other, FastRecipe(), size=size, num_trials=12)
    trials = [x for x in found.trials if x['is_model']]
    best = {
        has_graph: max(
            x['ndcg'] for x in trials if has_graph == (x['settings']['diffusion'] > 0)
        )
        for has_graph in (True, False)
    }
    assert best[True] > 1.05 * best[False] and found.recipe.diffusion > 0
    model = pyg_c2f.fit(other, found.recipe).model
    assert model.needs_graph() and stored_bytes(model) <= size
    # What the sample was judged by is what the model gives.
    val = evaluate_split(model.scorer(), other, 'val')['ndcg@20']
    assert val == pytest.approx(found.ndcg, abs=0.02)
    without = search(other, FastRecipe(), {'diffusion'}, size=size, num_trials=12)
    assert without.recipe.diffusion == 0


def test_the_size_is_that_of_the_file(data, tmp_path):
    """The file has the train pairs, and names, beside it."""
    model = pyg_c2f.fit(data, START, 0).model
    tensors = {k: x for k, x in model.to_tensors().items() if 'graph' not in k}
    write_tensors(tmp_path / 'file', tensors, model_meta(model))
    assert (tmp_path / 'file').stat().st_size == stored_bytes(model)
    model.diffusion = 1.0
    pyg_c2f.save(model, tmp_path / 'file')
    assert (tmp_path / 'file').stat().st_size == stored_bytes(model)


def test_test_items_are_never_seen(data):
    expected = search(data, START, size=3000, num_trials=4)
    other = copy.deepcopy(data)
    other[RATES].test_edge_label_index = 'not even pairs'
    assert search(other, START, size=3000, num_trials=4).recipe == expected.recipe


def test_few_users_are_nothing_to_choose_by(data):
    other = copy.deepcopy(data)
    label = other[RATES].val_edge_label_index
    other[RATES].val_edge_label_index = label[:, label[0] < 20]
    assert len(Sample(other, torch.Generator()).users) < module.FEW_USERS
    found = search(other, START)
    assert found.recipe == START and 'too few' in found.why
    del other[RATES].val_edge_label_index
    assert search(other, START).why.startswith('0 users')
    small = search(other, START, size=2000).recipe
    assert stored_bytes(pyg_c2f.fit(data, small).model) <= 2000


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'size': 300}, 'size=300 bytes: a model of 200 items takes at least about'),
        ({'size': 'big'}, 'size=big: expected bytes, as 500000, 250kB or 0.5MB'),
        ({'recipe': PaperRecipe()}, 'recipe=fast only'),
    ],
    ids=str,
)
def test_refused(data, changes, match):
    with pytest.raises(InputError, match=match):
        search(data, changes.pop('recipe', START), num_trials=2, **changes)


@pytest.mark.parametrize(
    ('text', 'size'),
    [('500000', 500_000), ('0.5MB', 500_000), ('25 kB', 25_000), ('1g', 10**9), (7, 7)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_fit_with_a_size(data):
    model = pyg_c2f.fit(data, size='3kB', seconds=1)
    assert stored_bytes(model.model) <= 3000
    assert len(model.recommend(0, k=5)[0]) == 5
