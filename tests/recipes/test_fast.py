"""Recipe fast from interactions to a model, on small planted data."""

import copy
from dataclasses import replace

import pytest
import torch
from torch_geometric.data import HeteroData

import pyg_c2f
from pyg_c2f.checkpoint import phase_file
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split, popularity_score
from pyg_c2f.recipes import FastRecipe, TrainingOptions, train
from pyg_c2f.recipes.base import check_data
from pyg_c2f.recipes.fast import build_fast, share_pairs, spectral_features
from pyg_c2f.shards import Group
from pyg_c2f.typing import ITEM, RATES, SELECTION, USER, InputError
from tests.tiny import assert_same_model

SMALL = FastRecipe(embedding_dim=24, num_fine=32, coarse_per_item=4.0)
BOTH = ('coarse', 'fine')


@pytest.fixture(scope='module')
def data():
    return SyntheticHierarchy(200, 150, 5000, 5, 20)[0]


def run_of(data, recipe=SMALL, **options):
    return train(data, recipe, TrainingOptions(**({'seed': 0} | options)))


def built(data, recipe=SMALL):
    return build_fast(data, recipe, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    'changes',
    [{}, {'diffusion': 0.5, 'dtype': 'float32'}, {'fine_per_item': 4}],
    ids=str,
)
def test_a_run(data, changes, tmp_path):
    recipe, lines = replace(SMALL, **changes), []
    run = run_of(data, recipe, out=tmp_path, on_evaluation=lines.append)
    kept = {x: pyg_c2f.load(phase_file(tmp_path, x, 1)) for x in BOTH}
    assert list(run.phases) == list(BOTH) and run.model.stage == 'fine'
    assert all(kept[stage].stage == stage for stage in BOTH)
    assert_same_model(kept['fine'], run.model)
    assert run.seconds['anchors'] > 0 and run.seconds['evaluate'] > 0
    assert run.seconds['train'] == 0
    assert [(line['stage'], line['epoch']) for line in lines] == [(x, 0) for x in BOTH]
    popular = popularity_score(data[RATES].edge_index, 150)
    popular = evaluate_split(popular, data, 'val')[SELECTION]
    for stage, line in zip(BOTH, lines, strict=True):
        result = run.phases[stage][1]
        assert (result['best_epoch'], result['last_epoch']) == (0, 0)
        assert result['basis']['residual'] <= 1e-3
        # The kept model is the evaluated one.
        val = evaluate_split(kept[stage].scorer(), data, 'val')
        assert val == result['val'] == line['val']
        assert val[SELECTION] > 1.5 * popular
    assert run.model.diffusion == recipe.diffusion
    assert run.model.fine_per_item == recipe.fine_per_item


def test_sizes(data):
    model = built(data)
    links = (model.coarse.assignment_weight != 0).sum()
    assert int(links) == 4 * 150
    assert (model.num_coarse, model.num_fine, model.embedding_dim) == (24, 32, 24)
    assert model.coarse.codebook.equal(torch.eye(24))
    assert model.diagnostics['basis']['rounds'] >= 1
    # About an eighth of the fine codebook is kept.
    alive = (model.soft_threshold(model.fine.codebook) != 0).float().mean()
    assert 0.06 < alive < 0.25


@pytest.fixture(scope='module')
def whole(data):
    return run_of(data)


def test_one_seed_gives_one_model(data, whole):
    shuffled = copy.deepcopy(data)
    edges = data[RATES].edge_index.flip(1)
    # The order of pairs, and pairs that are there twice, do not matter.
    shuffled[RATES].edge_index = torch.cat([edges, edges[:, :20]], dim=1)
    again, other = run_of(shuffled), run_of(data, seed=1)
    assert_same_model(whole.model, again.model)
    assert whole.phases == again.phases != other.phases
    # The fine stage goes on from a coarse model of the same anchors.
    coarse = run_of(data, stages=('coarse',)).model
    run = run_of(data, stages=('fine',), init=coarse)
    assert_same_model(run.model, whole.model)
    assert run.phases == {'fine': whole.phases['fine']}
    for recipe, seed in ((SMALL, 1), (replace(SMALL, coarse_per_item=3.0), 0)):
        with pytest.raises(InputError, match='other anchors'):
            run_of(data, recipe, seed=seed, stages=('fine',), init=coarse)


def test_held_out_items_are_never_used(data, whole):
    other = copy.deepcopy(data)
    other[RATES].test_edge_label_index = 'not even pairs'
    run = run_of(other)
    assert_same_model(run.model, whole.model)
    assert run.phases == whole.phases
    # A refit does without the validation items as well.
    del other[RATES].test_edge_label_index, other[RATES].val_edge_label_index
    run = run_of(other, fixed_epochs={stage: (0, 0) for stage in BOTH})
    assert run.phases == {stage: {} for stage in BOTH}
    assert_same_model(run.model, whole.model)


def test_without_fine_anchors(data):
    recipe = replace(SMALL, fine_per_item=0, num_fine=511)  # No multiple is needed.
    run = run_of(data, recipe)
    assert run.model.stage == 'coarse' and list(run.phases) == ['coarse']
    with pytest.raises(InputError, match='fine_per_item=0: there is no fine stage'):
        run_of(data, recipe, stages=('fine',), init=run.model)


def test_small_data_have_few_directions(data):
    # Item 3 and user 7 have no train pairs.
    data = copy.deepcopy(data)
    edges = data[RATES].edge_index
    data[RATES].edge_index = edges[:, (edges[0] != 7) & (edges[1] != 3)]
    model = built(data, replace(SMALL, embedding_dim=512, num_fine=512))
    assert (model.num_coarse, model.embedding_dim) == (150, 150)
    assert model.num_fine <= 2 * 150
    assert model.scorer()(torch.arange(200)).isfinite().all()


@pytest.mark.filterwarnings('ignore:Unable to accurately infer')
def test_check_data(data):
    edge_index = data[RATES].edge_index
    other = HeteroData()
    for node_type in (ITEM, USER):
        other[RATES].edge_index = edge_index
        with pytest.raises(InputError, match='how many users and items'):
            check_data(other)
        other = HeteroData()
        other[node_type].num_nodes = 200
    other = copy.deepcopy(data)
    for edges, says in (
        (edge_index.int(), 'int32: convert the pairs to int64'),
        (edge_index[:, :0], 'no train pairs'),
    ):
        other[RATES].edge_index = edges
        with pytest.raises(InputError, match=says):
            run_of(other)


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'fine_per_item': 3}, 'num_fine=512 cannot be divided into fine_per_item=3'),
        ({'dtype': 'int8'}, 'expected one of packed, float32'),
        ({'coarse_per_item': 0.5}, 'expected a number from 1 to 512'),
        ({'importance_power': float('nan')}, 'importance_power=nan'),
        ({'embedding_dim': 0}, 'a whole number from 1'),
        ({'num_shards': 1.5}, 'num_shards=1.5: expected a whole number'),
    ],
    ids=str,
)
def test_refused_settings(settings, says):
    with pytest.raises(InputError, match=says):
        FastRecipe(**settings)


def test_codebooks_and_links_approximate_the_basis(data):
    recipe = replace(SMALL, dtype='float32')
    group = Group(recipe.num_shards)
    edge_index, sharers, _ = share_pairs(data, group)
    degree = torch.bincount(edge_index[1], minlength=150)
    shared = edge_index, sharers, group.rows(150), degree
    x, basis = spectral_features(*shared, recipe, torch.Generator().manual_seed(0))
    model = built(data, recipe)
    assert model.diagnostics['basis'] == basis and basis['rounds'] >= 1
    weight = (degree**recipe.importance_power).unsqueeze(1)

    def error():
        ego = model.ego().detach()
        return float((weight * (x - ego).square()).sum() / (weight * x**2).sum())

    model.set_stage('coarse')
    coarse = error()
    model.set_stage('fine')
    assert error() < 0.95 * coarse and coarse < 0.3
