"""Recipe fast from interactions to a model, on small planted data."""

import copy
import itertools
import sys
from dataclasses import replace

import pytest
import torch

from pyg_c2f import fast as module
from pyg_c2f.checkpoint import model_tensors
from pyg_c2f.config import FastRecipe
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.distributed import Group
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.fast import FastTrainer, build_fast, check_data, check_fast, train_fast
from pyg_c2f.spectral import shared_interactions
from pyg_c2f.typing import ITEM, RATED_BY, RATES, SELECTION, USER, InputError

SMALL = FastRecipe(embedding_dim=24, num_fine=32, coarse_links=4.0, user_links=4.0)
BOTH = ('coarse', 'fine')
CODES = {'num_coarse': 16}
PARTS = {'num_coarse': 16, 'coarse_links': 1.0}


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
    ours, theirs = model_tensors(one), model_tensors(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'anchors': 'residual'} | CODES,
        {'anchors': 'opq'} | CODES,
        {'anchors': 'product'} | CODES,
        {'anchors': 'metis'} | PARTS,
        {'anchors': 'random'} | PARTS,
        {'users': 'assigned'},
        {'users': 'assigned', 'num_layers': 0},
        {'users': 'assigned', 'user_links': 2.0, 'refine': 1},
        {'num_layers': 2},
        {'num_layers': 3, 'diffusion': 0.5, 'users': 'assigned'},
        {'diffusion': 0.5},
        {'dtype': 'float16'},
        {'dtype': 'float32'},
        {'density': 1.0},
        {'fine_links': 1},
        {'fine_links': 4, 'restarts': 2},
        {'refine': 2},
        {'refine': 1, 'anchors': 'residual', 'dtype': 'float16'} | CODES,
        {'refine': 1, 'anchors': 'opq', 'num_coarse': 48},
        {'refine': 1, 'anchors': 'random'} | PARTS,
        {'loss': 'whole', 'epochs': 2},
        {'loss': 'softmax', 'epochs': 1, 'num_neg_samples': 64},
        {'loss': 'bpr', 'epochs': 1},
        {'loss': 'whole', 'epochs': 2, 'users': 'assigned', 'num_layers': 2},
        {'loss': 'whole', 'epochs': 2, 'diffusion': 0.5},
        {'loss': 'whole', 'epochs': 2, 'lambda_reg': 0.1},
    ],
    ids=str,
)
def test_every_setting_runs(data, popular, changes):
    if changes.get('anchors') == 'metis':
        pytest.importorskip('pymetis')
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
    assert clock['anchors'] > 0 and clock['evaluate'] > 0
    assert (clock['train'] > 0) == (recipe.loss != 'none')
    for stage in BOTH:
        result = results[stage][1]
        mine = [line for line in lines if line['stage'] == stage]
        assert [line['epoch'] for line in mine][0] == 0
        assert result['last_epoch'] == mine[-1]['epoch']
        best = max(line['val'][SELECTION] for line in mine)
        assert result['val'][SELECTION] == best
        # What is kept is what was looked at, up to the rounding of what is trained.
        val = evaluate_split(kept[stage].scorer(), data, 'val')
        assert val[SELECTION] == pytest.approx(best, abs=0.01)
    trained = recipe.epochs if recipe.loss != 'none' else 0
    assert results['fine'][1]['last_epoch'] == trained
    assert results['coarse'][1]['last_epoch'] == 0

    # On average, as many links as asked for, and of each kind.
    assert model.diffusion == 0 or recipe.diffusion
    assert (model.users, model.num_layers) == (recipe.users, recipe.num_layers)
    assert model.fine_links == recipe.fine_links
    val = results['fine'][1]['val'][SELECTION]
    assert val > 1.5 * popular
    if recipe.anchors not in ('random', 'product'):
        # Unrotated blocks of singular vectors say little, random parts nothing.
        assert results['coarse'][1]['val'][SELECTION] > 1.5 * popular


def test_sizes(data):
    model = build_fast(data, SMALL, torch.Generator().manual_seed(0))
    links = (model.coarse.assignment_weight != 0).sum()
    assert int(links) == 4 * 150
    assert (model.num_coarse, model.num_fine, model.embedding_dim) == (24, 32, 24)
    assert model.coarse.codebook.equal(torch.eye(24))
    # An eighth of the fine codebook is let through, or near it.
    alive = (model.soft_threshold(model.fine.codebook) != 0).float().mean()
    assert 0.06 < alive < 0.25
    assigned = build_fast(
        data,
        small(users='assigned', user_links=2.0),
        torch.Generator().manual_seed(0),
    )
    links = (assigned.coarse.assignment_weight != 0).sum(dim=1)
    assert int(links[:200].sum()) == 2 * 200 and int(links[200:].sum()) == 4 * 150


@pytest.mark.parametrize('users', ['inductive', 'assigned'])
@pytest.mark.parametrize('refine', [0, 1])
def test_the_parts_are_close_to_the_spectrum(data, users, refine):
    recipe = small(users=users, dtype='float32', refine=refine)
    group = Group(recipe.partitions)
    edge_index, sharers, _ = module.share_pairs(data, group)
    degree = torch.bincount(edge_index[1], minlength=150)
    norms = recipe.user_norm, recipe.item_norm
    interactions = shared_interactions(
        edge_index, sharers, group.rows(150), *norms, degree
    )
    spectrum = module.spectral_features(
        interactions, degree, recipe, torch.Generator().manual_seed(0)
    )
    model = build_fast(data, recipe, torch.Generator().manual_seed(0))
    # Users first, where they have a row; weighted as the anchors weigh them.
    x = torch.cat([part for part in reversed(spectrum) if part is not None])
    weight = (degree**recipe.popularity).unsqueeze(1)
    weight = torch.cat([torch.ones(len(x) - 150, 1), weight])

    def error():
        ego = torch.cat(model.ego())[-len(x) :].detach()
        return float((weight * (x - ego).square()).sum() / (weight * x**2).sum())

    model.set_stage('coarse')
    coarse = error()
    model.set_stage('fine')
    assert error() < 0.95 * coarse and coarse < 0.3


@pytest.mark.parametrize('loss', ['none', 'whole', 'softmax', 'bpr'])
def test_the_seed_decides(data, loss):
    recipe = small(loss=loss, epochs=2, eval_every=1)
    ours, again, other = (train_fast(data, recipe, seed, BOTH) for seed in (0, 0, 1))
    assert_same_model(ours[0], again[0])
    assert ours[1] == again[1] != other[1]


@pytest.mark.parametrize('loss', ['none', 'whole'])
def test_order_and_repetition_of_pairs_do_not_matter(data, loss):
    recipe = small(loss=loss, epochs=2, eval_every=1)
    other = copy.deepcopy(data)
    edges = data[RATES].edge_index.flip(1)
    other[RATES].edge_index = torch.cat([edges, edges[:, :20]], dim=1)
    ours, theirs = (train_fast(d, recipe, 0, BOTH)[0] for d in (data, other))
    assert_same_model(ours, theirs)


@pytest.mark.parametrize('loss', ['none', 'whole', 'softmax', 'bpr'])
def test_test_items_are_never_seen(data, loss):
    recipe = small(loss=loss, epochs=2, eval_every=1)
    expected = train_fast(data, recipe, 0, BOTH)
    for poison in (None, torch.full((2, 7), -1), 'not even pairs'):
        other = copy.deepcopy(data)
        del other[RATES].test_edge_label_index
        if poison is not None:
            other[RATES].test_edge_label_index = poison
        model, results, _ = train_fast(other, recipe, 0, BOTH)
        assert_same_model(model, expected[0])
        assert results == expected[1]


@pytest.mark.parametrize('loss', ['none', 'whole', 'bpr'])
def test_validation_chooses_and_does_not_train(data, loss):
    recipe = small(loss=loss, epochs=3)
    trained, results, _ = train_fast(data, recipe, 0, BOTH, fixed_epochs=3)
    assert results == {}
    other = copy.deepcopy(data)
    del other[RATES].val_edge_label_index
    again, _, _ = train_fast(other, recipe, 0, BOTH, fixed_epochs=3)
    assert_same_model(trained, again)
    if loss != 'none':
        start, _, _ = train_fast(data, recipe, 0, BOTH, fixed_epochs=0)
        assert_same_model(start, train_fast(data, SMALL, 0, BOTH)[0])
        assert trained.bias.any() and not start.bias.any()


@pytest.mark.parametrize('loss', ['whole', 'softmax', 'bpr'])
@pytest.mark.parametrize('lr', [3e-3, 3.0])
def test_training_never_ends_below_its_start(data, loss, lr):
    recipe = small(loss=loss, lr=lr, epochs=6, eval_every=1, patience=2)
    recipe = replace(recipe, num_neg_samples=64)
    lines = []
    model, results, _ = train_fast(data, recipe, 0, BOTH, on_evaluation=lines.append)
    values = [line['val'][SELECTION] for line in lines if line['stage'] == 'fine']
    result = results['fine'][1]
    assert result['val'][SELECTION] == max(values) >= values[0]
    assert values[result['best_epoch']] == max(values)
    # It ends after two looks without a better one, or in the last epoch.
    best = result['best_epoch']
    assert result['last_epoch'] == len(values) - 1
    assert result['last_epoch'] == 6 or result['last_epoch'] == best + 2
    if lr == 3.0:
        # Steps as large as that help nobody: the start is what is left.
        assert best == 0
        assert_same_model(model, train_fast(data, small(), 0, BOTH)[0])


def test_training_lowers_the_loss_and_helps(data):
    norms = {'user_norm': 0.5, 'item_norm': 0.5, 'item_power': 0.6}
    for loss in ('whole', 'bpr'):
        recipe = small(loss=loss, lr=1e-2, epochs=15, embedding_dim=16, **norms)
        lines = []
        _, results, _ = train_fast(data, recipe, 0, BOTH, on_evaluation=lines.append)
        losses = [line['loss'] for line in lines if line['loss'] is not None]
        assert len(losses) == 3 and losses[2] < 0.99 * losses[0]
    # The start is hard to beat on data as small as these; here sampled pairs do.
    result = results['fine'][1]
    start = next(x for x in lines if x['stage'] == 'fine')['val'][SELECTION]
    assert result['best_epoch'] > 0 and result['val'][SELECTION] > start


@pytest.mark.parametrize('loss', ['whole', 'softmax', 'bpr'])
def test_the_cache_changes_nothing(data, loss, monkeypatch):
    # Histories need no cache.
    users = 'assigned' if loss == 'whole' else 'inductive'
    recipe = small(loss=loss, users=users, dtype='float32', num_neg_samples=64)
    runs = []
    for cache in (module.CACHE_BYTES, 0):
        monkeypatch.setattr(module, 'CACHE_BYTES', cache)
        model = build_fast(data, recipe, torch.Generator().manual_seed(0))
        model.set_stage('fine')
        trainer = FastTrainer(model, recipe, torch.Generator().manual_seed(0))
        assert (trainer.mixtures is None) == (cache == 0)
        runs.append([trainer.epoch() for _ in range(3)])
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


def test_the_trainer_changes_no_list_at_its_start(data):
    for loss in ('whole', 'softmax'):
        recipe = small(loss=loss, dtype='float32', diffusion=0.0)
        model = build_fast(data, recipe, torch.Generator().manual_seed(0))
        model.set_stage('fine')
        model.diffusion = 0.5
        users = torch.arange(200)
        before = model.scorer()(users)
        FastTrainer(model, recipe, torch.Generator().manual_seed(0))
        after = model.scorer()(users)
        gain = (after / before)[before > 1e-3]
        torch.testing.assert_close(gain, gain[:1].expand_as(gain), rtol=1e-3, atol=0)
        user, item = model.edge_index
        model.diffusion = 0.0
        mean = float(model.scorer()(users)[user, item].mean())
        assert mean == pytest.approx(0.5 if loss == 'whole' else 4.0, rel=1e-3)


def isolated(data):
    """The data without the train pairs of item 3 and user 7."""
    data = copy.deepcopy(data)
    edges = data[RATES].edge_index
    edges = edges[:, (edges[0] != 7) & (edges[1] != 3)]
    data[RATES].edge_index, data[RATED_BY].edge_index = edges, edges.flip(0)
    return data


@pytest.mark.parametrize('loss', ['none', 'whole', 'softmax', 'bpr'])
@pytest.mark.parametrize('users', ['inductive', 'assigned'])
def test_nodes_without_train_pairs(data, loss, users):
    recipe = small(loss=loss, users=users, epochs=2, eval_every=1)
    model, results, _ = train_fast(isolated(data), recipe, 0, BOTH)
    assert model.scorer()(torch.arange(200)).isfinite().all()
    trained = loss != 'none'
    assert results['fine'][1]['last_epoch'] == (2 if trained else 0)


def test_without_fine_anchors(data):
    lines = []
    recipe = small(fine_links=0, loss='whole', epochs=2, eval_every=1)
    model, results, _ = train_fast(data, recipe, 0, BOTH, on_evaluation=lines.append)
    assert model.stage == 'coarse' and list(results) == ['coarse']
    # The last stage that there is, is the one that is trained.
    assert [line['epoch'] for line in lines] == [0, 1, 2]
    assert_same_model(
        train_fast(data, small(fine_links=0), 0, BOTH)[0],
        train_fast(data, SMALL, 0, ('coarse',))[0],
    )


def test_the_fine_stage_of_a_coarse_model(data):
    coarse = train_fast(data, SMALL, 0, ('coarse',))[0]
    expected, results, _ = train_fast(data, SMALL, 0, BOTH)
    model, mine, _ = train_fast(data, SMALL, 0, ('fine',), init=coarse)
    assert_same_model(model, expected)
    assert mine == {'fine': results['fine']}
    for recipe, seed in ((SMALL, 1), (small(coarse_links=3.0), 0)):
        with pytest.raises(InputError, match='other anchors'):
            train_fast(data, recipe, seed, ('fine',), init=coarse)


def test_small_data_have_few_directions(data):
    recipe = small(embedding_dim=512, num_fine=512, epochs=1)
    model = build_fast(data, recipe, torch.Generator().manual_seed(0))
    assert (model.num_coarse, model.embedding_dim) == (150, 150)
    assert model.num_fine <= 2 * 150
    assert model.scorer()(torch.arange(200)).isfinite().all()


@pytest.mark.parametrize('loss', ['whole', 'softmax', 'bpr'])
@pytest.mark.parametrize('what', ['the loss', 'the gradient of coarse.codebook'])
def test_a_step_that_goes_wrong(what, loss, data, monkeypatch):
    step, count = FastTrainer._step, itertools.count()

    def wrong_step(trainer, value):
        if next(count) == 1:  # The second step, of the first epoch or the second.
            if what == 'the loss':
                value = value * float('inf')
            else:
                trainer.model.coarse.codebook.register_hook(lambda x: x * float('nan'))
        return step(trainer, value)

    monkeypatch.setattr(FastTrainer, '_step', wrong_step)
    where = 'in step 1 of epoch 2' if loss == 'whole' else 'in step 2 of epoch 1'
    says = f'{what} holds (inf|nan) {where}: lower --set lr=0.003'
    with pytest.raises(InputError, match=says):
        train_fast(data, small(loss=loss, batch_size=256), 0, BOTH)


def test_check_fast(data, monkeypatch):
    check_fast(data, SMALL)
    check_fast(data, small(anchors='residual', num_coarse=148))
    with pytest.raises(InputError, match='num_coarse=152: more anchors than the 150'):
        check_fast(data, small(anchors='residual', num_coarse=152))
    for anchors in ('product', 'opq'):
        recipe = small(anchors=anchors, embedding_dim=160, **CODES)
        with pytest.raises(InputError, match='hold 150 columns only.*coarse_links=4'):
            check_fast(data, recipe)
    other = copy.deepcopy(data)
    other[RATES].edge_index = other[RATES].edge_index[:, :0]
    for check in (check_fast, lambda *args: train_fast(*args, 0, BOTH)):
        with pytest.raises(InputError, match='no train pairs'):
            check(other, SMALL)
    monkeypatch.setitem(sys.modules, 'pymetis', None)
    check_fast(data, SMALL)
    with pytest.raises(ImportError, match='pymetis'):
        check_fast(data, small(anchors='metis', **PARTS))


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
        ({'num_coarse': 8}, 'anchors=spectral has one for each column'),
        ({'anchors': 'residual'}, 'anchors=residual needs their number'),
        ({'anchors': 'metis', 'coarse_links': 1.0}, 'metis needs their number'),
        ({'anchors': 'opq', 'coarse_links': 2.5} | CODES, 'the same whole number'),
        ({'anchors': 'residual', 'coarse_links': 3.0} | CODES, 'over coarse_links=3 '),
        ({'anchors': 'product', 'embedding_dim': 30} | CODES, 'embedding_dim=30 does'),
        ({'anchors': 'opq', 'embedding_dim': 30} | CODES, 'embedding_dim=30 does'),
        ({'anchors': 'metis'} | CODES, 'set coarse_links=1'),
        ({'anchors': 'random'} | CODES, 'set coarse_links=1'),
        ({'fine_links': 3}, 'num_fine=512 does not share out over fine_links=3'),
        ({'num_layers': 0}, 'leaves inductive users without features'),
        ({'users': 'assigned', 'anchors': 'residual'} | CODES, 'set anchors=spectral'),
        ({'loss': 'bpr', 'diffusion': 0.1}, 'does not see the diffusion channel'),
        ({'loss': 'softmax', 'diffusion': 0.1}, 'does not see the diffusion'),
        ({'anchors': 'kmeans'}, 'expected one of spectral, residual'),
        ({'loss': 'hinge'}, 'expected one of none, whole'),
        ({'users': 'all'}, 'expected one of inductive, assigned'),
        ({'dtype': 'int8'}, 'expected one of packed, float16'),
        ({'coarse_links': 0.5}, 'expected a number from 1 to 512'),
        ({'density': 0.0}, 'density=0.0: expected a number from 0.001 to 1'),
        ({'popularity': float('nan')}, 'popularity=nan'),
        ({'embedding_dim': 0}, 'a whole number from 1'),
        ({'epochs': 1.5}, 'epochs=1.5: expected a whole number'),
    ],
    ids=str,
)
def test_refused_settings(settings, says):
    with pytest.raises(InputError, match=says):
        FastRecipe(**settings)


def test_settings_that_are_taken():
    FastRecipe(num_layers=0, users='assigned')
    FastRecipe(fine_links=0, num_fine=511)
    FastRecipe(loss='whole', diffusion=0.1)
    FastRecipe(anchors='residual', embedding_dim=30, **CODES)
