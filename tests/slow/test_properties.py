"""Properties of any graph with any settings, checked on random ones.

``PYG_C2F_EXAMPLES`` sets the examples of each property, for a long run by hand.
"""

import copy
import math
import os
from contextlib import contextmanager
from dataclasses import fields
from typing import get_args, get_origin
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from methods import file_bytes, histories_of
from torch_geometric.data import HeteroData

import pyg_c2f
from pyg_c2f.bundle import Bundle
from pyg_c2f.checkpoint import model_bytes
from pyg_c2f.evaluate import evaluate, evaluate_split
from pyg_c2f.export import bundle as writer
from pyg_c2f.export import write_bundle
from pyg_c2f.nn import C2F, LinearC2F
from pyg_c2f.nn.conv import AnchorConv
from pyg_c2f.recipes import FastRecipe, PaperRecipe
from pyg_c2f.typing import ITEM, RATED_BY, RATES, USER, Assignment, InputError
from tests.benchmarks.methods.test_methods import METHODS, find_libraries
from tests.test_evaluate import naive_metrics
from tests.tiny import assert_same_model

EXAMPLES = int(os.environ.get('PYG_C2F_EXAMPLES', 60))
MOST = 12  # users, and items
KS = (1, 3, 5, 20)

settings.register_profile(
    'pyg_c2f',
    max_examples=EXAMPLES,
    deadline=None,
    derandomize='PYG_C2F_EXAMPLES' not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
settings.load_profile('pyg_c2f')


# What is drawn -----------------------------------------------------------------------


@st.composite
def graphs(draw):
    """Sizes and distinct pairs: few, most or all of them, in any order."""
    num_users, num_items = draw(st.integers(1, MOST)), draw(st.integers(1, MOST))
    num_pairs = num_users * num_items
    kind = draw(st.sampled_from(['few', 'many', 'all']))
    keys = set(range(num_pairs))
    if kind != 'all':
        some = draw(st.sets(st.integers(0, num_pairs - 1), min_size=1))
        keys = some if kind == 'few' else keys - some or keys
    keys = torch.tensor(draw(st.permutations(sorted(keys))))
    pairs = torch.stack([keys.div(num_items, rounding_mode='floor'), keys % num_items])
    return pairs, num_users, num_items


@st.composite
def data_sets(draw):
    """A graph with some of the other pairs held out, if there are any."""
    pairs, num_users, num_items = draw(graphs())
    if draw(st.integers(0, 3)):
        # A user with all items leaves nothing to rank: mostly there are two more.
        num_items += 2
    others = torch.ones(num_users, num_items, dtype=torch.bool)
    others[tuple(pairs)] = False
    others = others.nonzero()
    held = draw(st.lists(st.booleans(), min_size=len(others), max_size=len(others)))
    held = torch.tensor(held, dtype=torch.bool)
    held[:1] = True
    data = HeteroData()
    data[USER].num_nodes, data[ITEM].num_nodes = num_users, num_items
    data[RATES].edge_index, data[RATED_BY].edge_index = pairs, pairs.flip(0)
    data[RATES].val_edge_label_index = others[held].T
    data[RATES].test_edge_label_index = others[~held].T
    data.protocol = draw(st.sampled_from(['c2f', 'standard']))
    return data


SHARES = st.floats(0, 1)
SMALL = st.integers(1, 6)
EXPONENTS = st.floats(0, 2)
# Learning rates that train, and some that do not.
RATES_OF_LEARNING = st.sampled_from([1e-3, 0.1, 1.0, 1e3, 1e9])

PAPER = {
    'num_coarse': st.one_of(st.integers(1, 3), st.integers(1, 14)),
    'num_fine': st.one_of(st.integers(2, 3), st.integers(2, 14)),
    'embedding_dim': st.integers(1, 16),
    'num_layers': st.integers(0, 3),
    'anchors_per_entity': st.integers(1, 3),
    'fine_per_coarse': st.integers(1, 3),
    'gate': SHARES,
    'threshold': st.floats(0, 3),
    'anchors': st.sampled_from(['metis', 'random']),
    'own_weight': SHARES,
    'pca_components': st.integers(1, 16),
    'lr_coarse': RATES_OF_LEARNING,
    'lr_fine': RATES_OF_LEARNING,
    'batch_size_coarse': st.integers(1, 64).map(lambda x: 8 * x),
    'batch_size_fine': st.integers(1, 64).map(lambda x: 8 * x),
    'num_neg_samples': st.integers(1, 2),
    'lambda_reg': st.sampled_from([0, 1e-4, 1.0]),
    'clip': st.sampled_from([0, 1e-3, 3.0]),
    'eval_every': st.integers(1, 2),
    'patience': st.integers(1, 2),
    'max_epochs': st.integers(1, 3),
}
FAST = {
    'embedding_dim': st.integers(1, 16),
    'num_fine': st.integers(2, 12),
    'coarse_per_item': st.one_of(st.integers(1, 4), st.floats(1, 8)),
    'fine_per_item': st.integers(0, 3),
    'user_norm': EXPONENTS,
    'item_norm': EXPONENTS,
    'spectral_power': EXPONENTS,
    'importance_power': EXPONENTS,
    'score_power': EXPONENTS,
    'num_shards': st.integers(1, 7),
    'diffusion': st.sampled_from([0, 0.5, 1e3]),
    'dtype': st.sampled_from(['packed', 'float32']),
}
# Of a wrong type, out of range, or at a limit; no valid value takes long.
WILD = [None, True, '3', 'spectral', [], -1, 0, 0.5, 1e-30, 17, 2**70, 1e300]
WILD = st.sampled_from([*WILD, math.nan, math.inf, -math.inf])


@st.composite
def recipes(draw, kind, strategies, wild=False):
    """A recipe with consistent settings; with ``wild``, None if it is refused."""
    values = {name: draw(strategy) for name, strategy in strategies.items()}
    if kind is FastRecipe:
        values['num_fine'] -= values['num_fine'] % max(values['fine_per_item'], 1)
        values['num_fine'] = max(values['num_fine'], values['fine_per_item'], 2)
    else:
        values['num_coarse'] = max(values['num_coarse'], values['anchors_per_entity'])
        values['num_fine'] = max(values['num_fine'], values['fine_per_coarse'])
    if wild:
        for name in draw(st.sets(st.sampled_from(sorted(values)), max_size=2)):
            values[name] = draw(st.one_of(WILD, strategies[name]))
    try:
        return kind(**values)
    except InputError:
        assert wild
        return None


def test_all_settings_are_drawn():
    for kind, strategies in ((PaperRecipe, PAPER), (FastRecipe, FAST)):
        assert {field.name for field in fields(kind)} == set(strategies)


@st.composite
def assignments(draw, num_nodes, num_anchors, num_links):
    """Distinct anchors of each node, some links of weight zero."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    order = torch.rand(num_nodes, num_anchors, generator=generator).argsort(dim=1)
    weight = torch.rand(num_nodes, num_links, generator=generator)
    alive = torch.rand(num_nodes, num_links, generator=generator)
    weight = weight * (alive < draw(st.sampled_from([0.0, 0.7, 1.0])))
    return Assignment(order[:, :num_links], weight)


@st.composite
def c2f_models(draw):
    """A model of the paper in either stage, with random parameters."""
    graph = draw(graphs())
    num_coarse, num_fine = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    t = draw(st.integers(1, min(num_coarse, 3)))
    f = draw(st.integers(1, min(num_fine, 3)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    model = C2F(
        *graph,
        num_coarse,
        num_fine,
        embedding_dim=draw(st.integers(1, 16)),
        num_layers=draw(st.integers(0, 3)),
        anchors_per_entity=t,
        fine_per_coarse=f,
        gate=draw(SHARES),
        threshold=draw(st.floats(0, 2)),
    )
    model.set_assignment(
        draw(assignments(graph[1] + graph[2], num_coarse, t)),
        draw(assignments(num_coarse, num_fine, f)),
    )
    model.set_stage(draw(st.sampled_from(['coarse', 'fine'])))
    return model


@st.composite
def linear_models(draw, **fixed):
    """A model of recipe fast in either stage, with random parameters."""
    graph = draw(graphs())
    options = {
        'threshold': draw(st.floats(0, 2)),
        'score_power': draw(EXPONENTS),
        'diffusion': draw(st.sampled_from([0, 0.5])),
        'user_norm': draw(EXPONENTS),
        'item_norm': draw(EXPONENTS),
        'dtype': draw(st.sampled_from(['packed', 'float32'])),
    } | fixed
    per_level, levels = draw(SMALL), draw(st.integers(1, 3))
    num_coarse = draw(st.integers(1, 8))
    links = draw(st.integers(1, min(num_coarse, 4)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    model = LinearC2F(
        *graph,
        num_coarse,
        per_level * levels,
        embedding_dim=draw(st.integers(1, 16)),
        max_coarse_per_item=links,
        fine_per_item=levels,
        **options,
    )
    rows = len(model.coarse.index)
    fine = torch.randint(per_level, (rows, levels)) + per_level * torch.arange(levels)
    model.set_assignment(
        draw(assignments(rows, num_coarse, links)),
        Assignment(fine, torch.ones(rows, levels)),
    )
    if draw(st.booleans()):
        torch.nn.init.normal_(model.bias)
    model.set_stage(draw(st.sampled_from(['coarse', 'fine'])))
    return model


def models():
    return st.one_of(c2f_models(), linear_models())


@contextmanager
def double_precision():
    torch.set_default_dtype(torch.double)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float)


def in_double(model):
    return copy.deepcopy(model).double()


def everyone(model):
    return torch.arange(model.num_users)


def assert_finite(*tensors):
    assert all(bool(x.isfinite().all()) for x in tensors)


# Any settings ------------------------------------------------------------------------


def fitted(data, recipe):
    """The model of a recipe, or None if it is refused."""
    try:
        return pyg_c2f.fit(data, recipe, seed=0)
    except InputError as error:
        assert 10 < len(str(error)) < 300 and '\n' not in str(error)
        return None


def check_model(model, data):
    """All tensors are finite, and all figures are in range."""
    assert_finite(*model.parameters(), *model.buffers())
    scores = model.scorer()(everyone(model))
    assert scores.shape == (model.num_users, model.num_items)
    assert_finite(scores)
    assert all(0 <= x for x in model_bytes(model).values())
    for split in ('val', 'test'):
        if data[RATES][f'{split}_edge_label_index'].numel():
            figures = evaluate_split(model.scorer(), data, split, KS)
            assert all(0 <= x <= 1 for x in figures.values())


@settings(max_examples=max(EXAMPLES // 2, 1))  # They take longest.
@given(data_sets(), recipes(PaperRecipe, PAPER))
def test_fit_with_the_published_recipe(data, recipe):
    model = fitted(data, recipe)
    if model is not None:
        check_model(model, data)


@given(
    data_sets(),
    st.one_of(
        recipes(PaperRecipe, PAPER, wild=True), recipes(FastRecipe, FAST, wild=True)
    ),
)
def test_wild_settings(data, recipe):
    if recipe is None:
        return
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.type == int | None:
            assert value is None or value >= 1
        elif get_origin(field.type) is None:
            assert field.type in (int, float) and math.isfinite(value)
        else:
            assert value in get_args(field.type)
    model = fitted(data, recipe)
    if model is not None:
        check_model(model, data)


@given(data_sets(), st.one_of(recipes(FastRecipe, FAST), recipes(PaperRecipe, PAPER)))
@settings(max_examples=max(EXAMPLES // 3, 1))
def test_order_and_repetition_of_pairs_change_no_model(data, recipe):
    model = fitted(data, recipe)
    pairs = data[RATES].edge_index
    data[RATES].edge_index = torch.cat([pairs.flip(1), pairs[:, ::2]], dim=1)
    twin = fitted(data, recipe)
    assert (model is None) == (twin is None)
    if model is not None:
        assert_same_model(model, twin)


# Two ways, one answer ----------------------------------------------------------------


def gradients(model, out):
    """Those of random sums of the outputs, of all that is trained."""
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.double)).sum()
        for x in out
    )
    parameters = [x for x in model.parameters() if x.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(x) if grad is None else grad
        for x, grad in zip(parameters, grads, strict=True)
    ]


def assert_same(ours, theirs, precision):
    """Equal within a precision relative to the largest entry."""
    for a, b in zip(ours, theirs, strict=True):
        assert_finite(a, b)
        size = max(1.0, float(b.detach().abs().max()) if b.numel() else 0.0)
        torch.testing.assert_close(a, b, rtol=0, atol=precision * size)


@pytest.mark.parametrize(
    ('dtype', 'precision'), [(torch.float, 1e-5), (torch.double, 1e-10)]
)
@given(model=c2f_models())
def test_messages_and_the_fused_way(model, dtype, precision):
    model = copy.deepcopy(model).to(dtype)
    fused, messages = model.propagate(), model.propagate(fused=False)
    assert_same([fused], [messages], precision)
    assert_same(gradients(model, [fused]), gradients(model, [messages]), precision)


def messages_of(model):
    """The propagation of a linear model over its graph, relation by relation."""
    data, conv = model.to_hetero_data(), AnchorConv()
    item = torch.zeros(model.num_items, model.embedding_dim, dtype=model.bias.dtype)
    for anchor, book in (
        ('coarse', model.coarse.codebook),
        ('fine', model.soft_threshold(model.fine.codebook)),
    ):
        if (anchor, 'anchors', ITEM) in data.edge_types:
            store = data[anchor, 'anchors', ITEM]
            size = len(book), model.num_items
            edges = store.edge_index, store.edge_weight
            item = item + conv((book, None), *edges, size=size)
    back = data[RATED_BY]
    size = model.num_items, model.num_users
    user = conv((item, None), back.edge_index, back.edge_weight, size=size)
    return [user / 2, item / 2]


@given(linear_models())
def test_messages_and_propagation(model):
    with double_precision():
        model = in_double(model)
        ways = [model.propagate(), messages_of(model)]
        grads = [gradients(model, way) for way in ways]
    assert_same(*ways, 1e-10)
    assert_same(*grads, 1e-10)


@given(models())
def test_scores_of_pairs_and_of_users(model):
    with double_precision():
        model = in_double(model)
        scores = model.scorer()(everyone(model))
        user, item = torch.ones_like(scores, dtype=torch.bool).nonzero().T
        with torch.no_grad():
            pairs = model(user, item).view_as(scores)
        assert_same([scores], [pairs], 1e-10)
        if not getattr(model, 'diffusion', 0):
            items, user_bias, users, _ = model.inner_products()
            h = users(everyone(model))
            h = torch.cat([h, h.new_ones(len(h), 1)], dim=1)
            products = h @ items.T + user_bias.unsqueeze(1)
            assert_same([scores], [products.detach()], 1e-10)


@given(linear_models())
def test_a_known_user_is_a_history(model):
    with double_precision():
        model = in_double(model)
        rowptr, col = model.train_items()
        active = rowptr.diff().nonzero().flatten()
        scores = model.scorer()(active)
        histories = [col[rowptr[u] : rowptr[u + 1]] for u in active]
        starts = torch.tensor([0] + [len(x) for x in histories]).cumsum(0)
        score = model.history_scorer(starts, torch.cat(histories).long())
        assert_same([scores], [score(torch.arange(len(active)))], 1e-10)


# Evaluation --------------------------------------------------------------------------


@st.composite
def rankings(draw):
    """Scores with ties, held-out pairs that may repeat, and pairs to leave out."""
    exclude, num_users, num_items = draw(graphs())
    values = st.integers(-2, 2) if draw(st.booleans()) else st.floats(width=16)
    score = values.filter(math.isfinite)
    scores = draw(
        st.lists(score, min_size=num_users * num_items, max_size=num_users * num_items)
    )
    user, item = st.integers(0, num_users - 1), st.integers(0, num_items - 1)
    held_out = draw(st.lists(st.tuples(user, item), min_size=1, max_size=20))
    scores = torch.tensor(scores, dtype=torch.float).view(num_users, num_items)
    return scores, torch.tensor(held_out).T, exclude


@given(rankings())
def test_metrics_of_any_scores(ranking):
    scores, held_out, exclude = ranking
    try:
        figures = evaluate(scores.__getitem__, held_out, exclude, *scores.shape, KS)
    except InputError:
        assert not any(naive_metrics(*ranking, KS).values())
        return
    assert all(0 <= x <= 1 for x in figures.values())
    assert figures == pytest.approx(naive_metrics(*ranking, KS), abs=1e-5)


# Numbers of users and items, and the order of pairs, do not matter --------------------


@st.composite
def shuffled(draw, strategy):
    """A model and the same one with users, items and pairs in another order.

    User ``u`` of the one is user ``user[u]`` of the other.
    """
    model = in_double(draw(strategy))
    user = torch.tensor(draw(st.permutations(range(model.num_users))))
    item = torch.tensor(draw(st.permutations(range(model.num_items))))
    edges = model.edge_index[:, draw(st.permutations(range(model.edge_index.size(1))))]
    twin = copy.deepcopy(model)
    twin.edge_index.copy_(torch.stack([user[edges[0]], item[edges[1]]]))
    rows = torch.cat([user, item + model.num_users])
    index, weight = (torch.empty_like(x) for x in model.coarse.assignment)
    of_rows = rows if len(index) == len(rows) else item
    index[of_rows], weight[of_rows] = model.coarse.assignment
    twin.set_assignment(coarse=Assignment(index, weight))
    if isinstance(model, LinearC2F):
        fine = torch.empty_like(model.fine.index)
        fine[of_rows] = model.fine.index
        twin.set_assignment(fine=Assignment(fine, torch.ones_like(fine)))
    of_bias = rows if isinstance(model, C2F) else item
    twin.bias.data[of_bias] = model.bias.data
    # What was made of the order of before.
    twin.double()
    return model, twin, user, item


@given(shuffled(models()))
def test_order_of_users_items_and_pairs(case):
    model, twin, user, item = case
    with double_precision():
        ours, theirs = model.propagate(), twin.propagate()
        if isinstance(model, C2F):
            rows = torch.cat([user, item + model.num_users])
            rows = torch.cat([rows, torch.arange(len(rows), len(ours))])
            assert_same([theirs[rows]], [ours], 1e-10)
        else:
            assert_same([theirs[0][user], theirs[1][item]], ours, 1e-10)
        scores = model.scorer()(everyone(model))
        permuted = twin.scorer()(everyone(model))
        assert_same([permuted[user][:, item]], [scores], 1e-10)

        lists, best = model.recommend(everyone(model), k=4)
        other_lists, other_best = twin.recommend(user, k=4)
    assert torch.equal(lists == -1, other_lists == -1)
    # Items of equal scores may change places.
    gone = lists == -1
    assert_same([other_best.masked_fill(gone, 0)], [best.masked_fill(gone, 0)], 1e-10)
    found = item.argsort()[other_lists.clamp(min=0)]
    assert_same(
        [scores.gather(1, found).masked_fill(gone, 0)],
        [best.masked_fill(gone, 0)],
        1e-10,
    )


# Re-assignment -----------------------------------------------------------------------


@st.composite
def codebooks(draw, num_rows, num_columns):
    """Random rows, most often dependent ones: zero, equal, of few directions."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e3]))
    rank = draw(st.integers(0, num_columns))
    x = torch.randn(num_rows, rank, generator=generator)
    x = x @ torch.randn(rank, num_columns, generator=generator) * scale
    for row in draw(st.sets(st.integers(0, num_rows - 1))):
        x[row] = draw(st.sampled_from([0, 1])) * x[0]
    return x


def check_links(index, weight, num_anchors):
    assert_finite(weight)
    assert bool((weight >= 0).all())
    assert 0 <= int(index.min()) and int(index.max()) < num_anchors
    assert all(len(set(row)) == len(row) for row in index.tolist())


@given(c2f_models(), st.data())
def test_reassignment_from_singular_codebooks(model, data):
    for table in (model.coarse, model.fine):
        book = data.draw(codebooks(*table.codebook.shape))
        table.codebook.data.copy_(book.clamp(-1e6, 1e6))
    for _ in range(3):
        h = model.propagate()
        found = model.update_assignment(h)
        check_links(*model.coarse.assignment, model.num_coarse)
        check_links(*model.fine.assignment, model.num_fine)
        assert 0 <= found['changed'] <= 1
        assert 0 <= found['anchors_in_use'] <= max(model.num_coarse, model.num_fine)
    assert_finite(model.propagate(), model.scorer()(everyone(model)))


# Files and lists ---------------------------------------------------------------------


def check_checkpoint(model, path):
    """A file gives the same scores and the same stored tensors."""
    pyg_c2f.save(model, path)
    loaded = pyg_c2f.load(path)
    assert (loaded.stage, loaded.num_users) == (model.stage, model.num_users)
    scores = model.scorer()(everyone(model))
    assert_same([loaded.scorer()(everyone(model))], [scores], 1e-5)
    assert_same_model(model, loaded)


@given(model=st.one_of(c2f_models(), linear_models(dtype='float32')))
def test_a_checkpoint_is_the_model(model, tmp_path_factory):
    check_checkpoint(model, tmp_path_factory.mktemp('checkpoint'))


@given(models(), st.integers(1, 15), st.booleans(), st.data())
def test_lists(model, k, exclude_seen, data):
    items = st.integers(0, model.num_items - 1)
    candidates = data.draw(st.one_of(st.none(), st.lists(items, min_size=1)))
    options = {'exclude_seen': exclude_seen, 'candidates': candidates}
    scores = model.scorer()(everyone(model)).double()
    seen = [set() for _ in range(model.num_users)]
    for user, item in model.edge_index.T.tolist():
        seen[user].add(item)
    check_lists(*model.recommend(everyone(model), k, **options), scores, seen, options)

    history = st.lists(items, min_size=1)
    histories = data.draw(st.lists(history, min_size=1, max_size=3))
    starts = torch.tensor([0] + [len(set(x)) for x in histories]).cumsum(0)
    col = torch.tensor([item for x in histories for item in sorted(set(x))])
    scores = model.history_scorer(starts, col)(torch.arange(len(histories)))
    found = model.recommend(history=histories, k=k, **options)
    check_lists(*found, scores.double(), [set(x) for x in histories], options)


def check_lists(items, best, scores, seen, options):
    choice = options['candidates']
    choice = set(range(scores.size(1)) if choice is None else choice)
    for row, values, mine, theirs in zip(items, best, scores, seen, strict=True):
        left = choice - theirs if options['exclude_seen'] else choice
        found = row[row >= 0].tolist()
        assert len(found) == min(len(row), len(left)) == len(set(found))
        assert row[: len(found)].tolist() == found  # -1 at the end only
        assert set(found) <= left
        assert values[len(found) :].eq(-math.inf).all()
        values = values[: len(found)].double()
        assert bool((values.diff() <= 0).all())
        assert_same([mine[found]], [values], 1e-6)
        others = [float(mine[x]) for x in left - set(found)]
        if others:
            size = max(1.0, float(mine.abs().max()))
            assert max(others) <= float(values[-1]) + 1e-6 * size


@given(models(), st.integers(1, 15))
def test_items_alike(model, k):
    x = torch.nn.functional.normalize(model.item_features().detach().double(), dim=1)
    nearest, cosines = model.similar_items(torch.arange(model.num_items), k)
    assert nearest.shape == (model.num_items, min(k, model.num_items - 1))
    for item, (row, values) in enumerate(zip(nearest, cosines, strict=True)):
        assert len({*row.tolist(), item}) == len(row) + 1
        assert_same([x[row] @ x[item]], [values.double()], 1e-5)
        # A row of zeros comes last, whatever the others have.
        alive = x[row].any(dim=1)
        assert not (alive.diff() & alive[1:]).any()
        assert bool((values[alive].diff() <= 0).all())


# The other methods -------------------------------------------------------------------


@pytest.mark.parametrize('name', METHODS)
@settings(max_examples=max(EXAMPLES // 6, 1))
@given(graph=graphs())
def test_methods(name, graph):
    find_libraries(name)
    method, train = METHODS[name], histories_of(*graph)
    try:
        stored = method.fit(train, torch.Generator().manual_seed(0))
    except InputError:
        return
    assert len(file_bytes(stored)) > 0
    assert_finite(*(x for x in stored.values() if x.is_floating_point()))
    scores = method.scorer(stored, train)(torch.arange(graph[1]))
    assert scores.shape == graph[1:]
    assert_finite(scores)


# Bundles -----------------------------------------------------------------------------


def check_bundle(model, path):
    """The reader gives the lists of the model."""
    try:
        # Tables of so many values hold all numbers of a small model as they are.
        with patch.multiple(writer, CODEBOOK_BITS=12, OTHER_BITS=12):
            write_bundle(model, path)
    except InputError as error:
        assert '\n' not in str(error)
        return
    bundle = Bundle.load(path)
    assert bundle.num_items == model.num_items
    rowptr, col = model.train_items()
    for user in range(model.num_users):
        history = col[rowptr[user] : rowptr[user + 1]].tolist()
        if not history:
            continue
        items, scores = bundle.recommend(history, k=5)
        ours, best = model.recommend(history=history, k=5)
        ours, best = ours[ours >= 0], best[ours >= 0]
        assert len(items) == len(ours)
        assert not set(items.tolist()) & set(history)
        size = max(1.0, float(best.abs().max()) if len(best) else 0.0)
        torch.testing.assert_close(
            torch.from_numpy(scores), best.double(), rtol=0, atol=1e-5 * size
        )


@given(model=linear_models(diffusion=0))
def test_bundle_of_a_model(model, tmp_path_factory):
    check_bundle(model, tmp_path_factory.mktemp('bundle') / 'model.c2f')


@given(data=data_sets(), recipe=recipes(FastRecipe, FAST))
def test_files_of_a_fitted_model(data, recipe, tmp_path_factory):
    model = fitted(data, recipe)
    assume(model is not None)
    check_model(model, data)
    path = tmp_path_factory.mktemp('files')
    check_checkpoint(model, path)
    check_bundle(model, path / 'model.c2f')
