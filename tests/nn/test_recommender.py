"""Lists from all models: for whom, from what, and what is refused."""

import numpy as np
import pytest
import torch

from pyg_c2f.nn import C2F, LinearC2F
from tests.models import HISTORIES, MODELS, make_model

every_model = pytest.mark.parametrize('name', MODELS)


def best(scores, k, choice=None, without=()):
    """The list for one row of scores, by sorting in Python."""
    choice = range(len(scores)) if choice is None else sorted(set(choice))
    left = sorted((-float(scores[i]), i) for i in choice if i not in without)[:k]
    lost = min(k, len(choice)) - len(left)
    ids = [i for _, i in left] + [-1] * lost
    return ids, [-score for score, _ in left] + [-np.inf] * lost


def assert_list(ours, expected):
    ids, scores = map(torch.as_tensor, expected)
    assert ours[0].equal(ids)
    torch.testing.assert_close(ours[1], scores.float(), atol=1e-5, rtol=1e-5)


@every_model
@pytest.mark.parametrize('choice', [None, [6], [7, 2, 0, 2, 5, 3]])
@pytest.mark.parametrize(('exclude_seen', 'k'), [(True, 1), (True, 100), (False, 4)])
def test_lists(toy, name, exclude_seen, choice, k):
    model = make_model(toy, name)
    options = {'exclude_seen': exclude_seen, 'candidates': choice}
    everyone = torch.arange(toy.num_users)
    ids, scores = model.recommend(everyone, k, **options)
    table = model.scorer()(everyone)
    for user in range(toy.num_users):
        seen = toy.rated[user].nonzero()[0] if exclude_seen else ()
        expected = best(table[user], k, choice, seen)
        assert_list((ids[user], scores[user]), expected)
        assert_list(model.recommend(user, k, **options), expected)
    if choice is not None:
        options['candidates'] = torch.tensor(choice, dtype=torch.uint8)
        assert model.recommend(everyone, k, **options)[0].equal(ids)


@every_model
@pytest.mark.parametrize('exclude_seen', [True, False])
@pytest.mark.parametrize('choice', [None, [0, 6, 7]])
def test_each_of_several_histories_has_its_own_list(toy, name, exclude_seen, choice):
    model = make_model(toy, name)
    options = {'k': 5, 'exclude_seen': exclude_seen, 'candidates': choice}
    ids, scores = model.recommend(history=HISTORIES, **options)
    assert ids.shape == scores.shape == (4, 5 if choice is None else 3)
    for place, history in enumerate(HISTORIES):
        ours = model.recommend(history=history, **options)
        assert_list(ours, (ids[place], scores[place]))
        assert bool(set(history) & set(ours[0].tolist())) <= (not exclude_seen)
    if exclude_seen:  # The last history holds all items.
        assert (ids[3] == -1).all() and (scores[3] == -torch.inf).all()
    # Other forms of histories; their order and repetition do not matter.
    for same, expected in (
        ([torch.tensor(x) for x in HISTORIES], ids),
        ([np.array(x) for x in HISTORIES], ids),
        (tuple(x[::-1] + x for x in HISTORIES), ids),
        (torch.tensor([[4, 0, 4], [7, 7, 7]]), ids[:2]),
        ([[7]], ids[1:2]),
        (range(8), ids[3]),
    ):
        assert model.recommend(history=same, **options)[0].equal(expected)


@every_model
def test_block_sizes_do_not_matter(toy, name, monkeypatch):
    model = make_model(toy, name)
    users = torch.arange(60) % toy.num_users
    histories = [HISTORIES[i % 4] for i in range(30)]

    def lists():
        return (
            *model.recommend(users, k=3),
            *model.recommend(history=histories, k=3),
            *model.similar_items(range(8), k=3),
        )

    whole = lists()
    monkeypatch.setattr('pyg_c2f.nn.recommender.BLOCK_SCORES', 3 * toy.num_items)
    monkeypatch.setattr('pyg_c2f.nn.linear.SCORE_BLOCK', 4)
    for ours, theirs in zip(lists(), whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('name', ['linear', 'diffusion'])
def test_a_known_user_and_a_newcomer_with_that_history_are_equal(toy, name):
    model = make_model(toy, name)
    for user in range(toy.num_users):
        history = toy.rated[user].nonzero()[0]
        if len(history):
            assert_list(model.recommend(history=history), model.recommend(user))


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({}, 'either users or a history'),
        ({'users': 6}, r'user ids in \[0, 6\) \(got 6\)'),
        ({'history': []}, 'at least one item id'),
        ({'history': 'a'}, "give a list .got 'a'"),
        ({'users': [[0, 1]]}, r'flat list of user ids \(got shape \[1, 2\]\)'),
        ({'users': torch.tensor([True, False])}, 'whole numbers as user ids'),
        ({'users': {0, 1}}, 'user ids, whole numbers'),
        ({'users': [10**30]}, 'user ids, whole numbers'),
        ({'users': 0, 'k': '3'}, "whole number k >= 1 .got '3'"),
        ({'users': torch.tensor(200, dtype=torch.uint8)}, r'\[0, 6\) \(got 200\)'),
        ({'history': 3}, r'give a list \(got 3\)'),
        ({'history': [[1], 2]}, 'both ids and lists'),
        ({'history': [[1], [2], [], [3]]}, r'each history \(history 2 is empty\)'),
        ({'history': torch.zeros(0, 2, dtype=torch.long)}, 'at least one item id'),
        ({'history': [[1], [8]]}, r'item ids in \[0, 8\) \(got \[8\]\)'),
        ({'users': 0, 'candidates': []}, 'at least one candidate'),
        ({'users': 0, 'candidates': 3}, 'a list of item ids'),
        ({'users': 0, 'k': 0}, r'k >= 1 \(got 0\)'),
    ],
)
def test_wrong_arguments_of_recommend(toy, kwargs, match):
    with pytest.raises(ValueError, match=match):
        make_model(toy, 'fine').recommend(**kwargs)


@every_model
def test_similar_items(toy, name):
    model = make_model(toy, name)
    has_zeros = name == 'linear'
    if has_zeros:  # Take the features of two items away; no graph does that.
        for table in (model.coarse, model.fine):
            table.assignment_weight[-toy.num_items :][[2, 6]] = 0
    x = model.item_features().detach().double().numpy()
    zero = ~x.any(axis=1)
    assert zero.sum() == 2 or not has_zeros
    length = np.where(zero, 1, np.linalg.norm(x, axis=1))
    cosine = (x @ x.T) / length[:, None] / length
    for k in (3, 100):
        ids, cosines = model.similar_items(range(8), k)
        assert ids.shape == cosines.shape == (8, min(k, 7))
        for item in range(8):
            others = {*range(8)} - {item}
            score = {i: (zero[i], -round(cosine[item, i], 5), i) for i in others}
            order = sorted(others, key=score.get)[:k]
            assert_list((ids[item], cosines[item]), (order, cosine[item, order]))
            assert_list(model.similar_items(item, k), (ids[item], cosines[item]))


def test_item_features_are_the_propagated_ones(toy):
    for name in MODELS:
        model = make_model(toy, name)
        h = model.propagate()
        expected = h[6:14] if MODELS[name] is None else h[1]
        torch.testing.assert_close(model.item_features(), expected)


@pytest.mark.parametrize(
    ('items', 'k', 'match'),
    [
        (8, 3, r'item ids in \[0, 8\)'),
        ([], 3, 'at least one item id'),
        ('g', 3, 'item ids, whole numbers'),
        (0, 0, r"'similar_items' expected a whole number k >= 1 \(got 0\)"),
    ],
)
def test_wrong_arguments_of_similar_items(toy, items, k, match):
    with pytest.raises(ValueError, match=match):
        make_model(toy, 'fine').similar_items(items, k)


@every_model
def test_loading_a_state_replaces_the_graph(toy, name):
    given, users = toy.edge_index.clone(), torch.arange(toy.num_users)
    model, other = make_model(toy, name), make_model(toy, name)
    with torch.no_grad():
        # A graph of as many edges: the items are numbered from the other end.
        other.edge_index[1] = toy.num_items - 1 - other.edge_index[1]
    expected = other.scorer()(users)
    assert not model.scorer()(users).allclose(expected)
    model.load_state_dict(other.state_dict())
    assert model.scorer()(users).equal(expected)
    # The tensors that the model was made from are still the caller's.
    assert toy.edge_index.equal(given)


def test_a_wrong_stage_and_a_wrong_number_of_layers(toy):
    model = toy.model('fine')
    with pytest.raises(ValueError, match='corse'):
        model.set_stage('corse')
    assert model.stage == 'fine'
    with pytest.raises(ValueError, match='num_layers=-1'):
        make_blank(C2F, [[], []], num_layers=-1)


def make_blank(cls, edges, **changes):
    sizes = {'num_users': 3, 'num_items': 4, 'num_coarse': 5, 'num_fine': 4}
    sizes |= {'embedding_dim': 4}
    if cls is LinearC2F:
        sizes['max_coarse_per_item'] = 2
    edge_index = torch.tensor(edges, dtype=torch.long)
    return cls(edge_index, **(sizes | changes))


both_classes = pytest.mark.parametrize('cls', [C2F, LinearC2F])


@both_classes
@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'num_users': 0}, 'num_users=0'),
        ({'num_users': 2}, 'users below 2 and items below 4'),
        ({'num_items': 3}, 'users below 3 and items below 3'),
        ({'num_coarse': 1}, 'at least anchors_per_entity anchors'),
        ({'num_fine': 1}, 'at least anchors_per_entity anchors'),
        ({'embedding_dim': 0}, 'positive sizes'),
        ({'threshold': -1.0}, 'threshold >= 0'),
    ],
)
def test_sizes_that_do_not_fit(cls, changes, match):
    with pytest.raises(ValueError, match=match):
        make_blank(cls, [[0, 1, 2], [0, 1, 3]], **changes)


@both_classes
def test_without_interactions(cls):
    model = make_blank(cls, [[], []])
    ids, scores = model.recommend([0, 2], k=2)
    assert ids.shape == (2, 2) and scores.isfinite().all()
    assert model.recommend(history=[0], k=2)[1].isfinite().all()


def test_equal_scores_are_in_the_order_of_the_items(toy):
    model = make_model(toy, 'linear')
    with torch.no_grad():
        model.coarse.codebook.zero_()
        model.fine.codebook.zero_()
        model.bias.copy_(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1.0]))
    for k in range(1, 9):
        ids, _ = model.recommend(1, k)  # who has no items
        assert ids.tolist() == [1, 3, 5, 7, 0, 2, 4, 6][:k]
