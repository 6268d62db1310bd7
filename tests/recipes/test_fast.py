"""Recipe fast from interactions to a model, on small planted data."""

import copy
from dataclasses import replace

import pytest
import torch

from pyg_c2f import fast as module
from pyg_c2f.anchors.spectral import shared_interactions
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.recipes import FastRecipe
from pyg_c2f.recipes.base import check_data
from pyg_c2f.recipes.fast import build_fast, check_fast
from pyg_c2f.shards import Group
from pyg_c2f.typing import ITEM, RATED_BY, RATES, SELECTION, USER, InputError

SMALL = FastRecipe(embedding_dim=24, num_fine=32, coarse_per_item=4.0)
BOTH = ('coarse', 'fine')


@pytest.fixture(scope='module')
def data():
    return SyntheticHierarchy(200, 150, 5000, 5, 20)[0]


@pytest.fixture(scope='module')
def popular(data):
    """What the most popular items reach on validation."""
    degree = torch.bincount(data[RATES].edge_index[1], minlength=150).float()
    val = evaluate_split(lambda users: degree.expand(len(users), -1), data, 'val')
    return val[SELECTION]


def small(**changes):
    return replace(SMALL, **changes)


def assert_same_model(one, other):
    ours, theirs = one.to_tensors(), other.to_tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'diffusion': 0.5},
        {'dtype': 'float32'},
        {'fine_per_item': 1},
        {'fine_per_item': 4},
    ],
    ids=str,
)
def test_every_setting_runs(data, popular, changes):
    recipe = small(**changes)
    lines, kept = [], {}
    model, results, clock = train_fast(
        data,
        recipe,
        0,
        BOTH,
        on_evaluation=lines.append,
        keep=lambda model, stage: kept.update({stage: copy.deepcopy(model)}),
    )
    assert list(results) == list(kept) == list(BOTH) and model.stage == 'fine'
    assert all(kept[stage].stage == stage for stage in BOTH)
    assert_same_model(kept['fine'], model)
    assert clock['anchors'] > 0 and clock['evaluate'] > 0 and clock['train'] == 0
    assert [(line['stage'], line['epoch']) for line in lines] == [(x, 0) for x in BOTH]
    for stage, line in zip(BOTH, lines, strict=True):
        result = results[stage][1]
        assert (result['best_epoch'], result['last_epoch']) == (0, 0)
        # What is kept is what was evaluated.
        val = evaluate_split(kept[stage].scorer(), data, 'val')
        assert val == result['val'] == line['val']
        assert val[SELECTION] > 1.5 * popular
    assert model.diffusion == recipe.diffusion
    assert model.fine_per_item == recipe.fine_per_item


def test_sizes(data):
    model = build_fast(data, SMALL, torch.Generator().manual_seed(0))
    links = (model.coarse.assignment_weight != 0).sum()
    assert int(links) == 4 * 150
    assert (model.num_coarse, model.num_fine, model.embedding_dim) == (24, 32, 24)
    assert model.coarse.codebook.equal(torch.eye(24))
    # An eighth of the fine codebook is let through, or near it.
    alive = (model.soft_threshold(model.fine.codebook) != 0).float().mean()
    assert 0.06 < alive < 0.25


def test_the_parts_are_close_to_the_spectrum(data):
    recipe = small(dtype='float32')
    group = Group(recipe.num_shards)
    edge_index, sharers, _ = module.share_pairs(data, group)
    degree = torch.bincount(edge_index[1], minlength=150)
    norms = recipe.user_norm, recipe.item_norm
    interactions = shared_interactions(
        edge_index, sharers, group.rows(150), *norms, degree
    )
    x, basis = module.spectral_features(
        interactions, degree, recipe, torch.Generator().manual_seed(0)
    )
    model = build_fast(data, recipe, torch.Generator().manual_seed(0))
    assert model.basis == basis and basis['residual'] <= 1e-3 and basis['rounds'] >= 1
    weight = (degree**recipe.importance_power).unsqueeze(1)

    def error():
        ego = model.ego().detach()
        return float((weight * (x - ego).square()).sum() / (weight * x**2).sum())

    model.set_stage('coarse')
    coarse = error()
    model.set_stage('fine')
    assert error() < 0.95 * coarse and coarse < 0.3


def test_the_seed_decides(data):
    ours, again, other = (train_fast(data, SMALL, seed, BOTH) for seed in (0, 0, 1))
    assert_same_model(ours[0], again[0])
    assert ours[1] == again[1] != other[1]


def test_order_and_repetition_of_pairs_do_not_matter(data):
    other = copy.deepcopy(data)
    edges = data[RATES].edge_index.flip(1)
    other[RATES].edge_index = torch.cat([edges, edges[:, :20]], dim=1)
    ours, theirs = (train_fast(d, SMALL, 0, BOTH)[0] for d in (data, other))
    assert_same_model(ours, theirs)


def test_test_items_are_never_seen(data):
    expected = train_fast(data, SMALL, 0, BOTH)
    for poison in (None, torch.full((2, 7), -1), 'not even pairs'):
        other = copy.deepcopy(data)
        del other[RATES].test_edge_label_index
        if poison is not None:
            other[RATES].test_edge_label_index = poison
        model, results, _ = train_fast(other, SMALL, 0, BOTH)
        assert_same_model(model, expected[0])
        assert results == expected[1]


def test_a_refit_looks_at_no_validation_item(data):
    expected, results, _ = train_fast(data, SMALL, 0, BOTH, is_refit=True)
    assert results == {}
    assert_same_model(expected, train_fast(data, SMALL, 0, BOTH)[0])
    other = copy.deepcopy(data)
    del other[RATES].val_edge_label_index
    assert_same_model(expected, train_fast(other, SMALL, 0, BOTH, is_refit=True)[0])


def isolated(data):
    """The data without the train pairs of item 3 and user 7."""
    data = copy.deepcopy(data)
    edges = data[RATES].edge_index
    edges = edges[:, (edges[0] != 7) & (edges[1] != 3)]
    data[RATES].edge_index, data[RATED_BY].edge_index = edges, edges.flip(0)
    return data


def test_nodes_without_train_pairs(data):
    model, _, _ = train_fast(isolated(data), SMALL, 0, BOTH)
    assert model.scorer()(torch.arange(200)).isfinite().all()


def test_without_fine_anchors(data):
    model, results, _ = train_fast(data, small(fine_per_item=0), 0, BOTH)
    assert model.stage == 'coarse' and list(results) == ['coarse']
    assert_same_model(
        train_fast(data, small(fine_per_item=0), 0, BOTH)[0],
        train_fast(data, SMALL, 0, ('coarse',))[0],
    )


def test_the_fine_stage_of_a_coarse_model(data):
    coarse = train_fast(data, SMALL, 0, ('coarse',))[0]
    expected, results, _ = train_fast(data, SMALL, 0, BOTH)
    model, mine, _ = train_fast(data, SMALL, 0, ('fine',), init=coarse)
    assert_same_model(model, expected)
    assert mine == {'fine': results['fine']}
    for recipe, seed in ((SMALL, 1), (small(coarse_per_item=3.0), 0)):
        with pytest.raises(InputError, match='other anchors'):
            train_fast(data, recipe, seed, ('fine',), init=coarse)


def test_small_data_have_few_directions(data):
    recipe = small(embedding_dim=512, num_fine=512)
    model = build_fast(data, recipe, torch.Generator().manual_seed(0))
    assert (model.num_coarse, model.embedding_dim) == (150, 150)
    assert model.num_fine <= 2 * 150
    assert model.scorer()(torch.arange(200)).isfinite().all()


def test_check_fast(data):
    check_fast(data, SMALL)
    other = copy.deepcopy(data)
    other[RATES].edge_index = other[RATES].edge_index[:, :0]
    for check in (check_fast, lambda *args: train_fast(*args, 0, BOTH)):
        with pytest.raises(InputError, match='no train pairs'):
            check(other, SMALL)


@pytest.mark.filterwarnings('ignore:Unable to accurately infer')
def test_check_data(data):
    check_data(data)
    for node_type in (USER, ITEM):
        other = copy.deepcopy(data)
        del other[node_type].num_nodes
        for key in list(other[node_type].keys()):
            del other[node_type][key]
        for relation in (RATES, RATED_BY):
            for key in list(other[relation].keys()):
                if key != 'edge_index':
                    del other[relation][key]
        with pytest.raises(InputError, match='how many users and items'):
            check_data(other)
    other = copy.deepcopy(data)
    other[RATES].edge_index = other[RATES].edge_index.int()
    with pytest.raises(InputError, match='int32: convert the pairs to int64'):
        check_data(other)


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'fine_per_item': 3}, 'num_fine=512 does not share out over fine_per_item=3'),
        ({'dtype': 'int8'}, 'expected one of packed, float32'),
        ({'coarse_per_item': 0.5}, 'expected a number from 1 to 512'),
        ({'popularity': float('nan')}, 'popularity=nan'),
        ({'embedding_dim': 0}, 'a whole number from 1'),
        ({'num_shards': 1.5}, 'num_shards=1.5: expected a whole number'),
    ],
    ids=str,
)
def test_refused_settings(settings, says):
    with pytest.raises(InputError, match=says):
        FastRecipe(**settings)


def test_settings_that_are_taken():
    FastRecipe(fine_per_item=0, num_fine=511)
