"""Lists out of the models: who asks, and what is chosen from."""

import numpy as np
import pytest
import torch

from pyg_c2f.recipes import TrainingOptions, get_recipe, train
from tests.models import HISTORIES, MODELS, make_model

# Their users have no anchors of their own.
LINEAR = ('linear', 'diffusion')
every_model = pytest.mark.parametrize('name', MODELS)
# For what no graph changes, such as a wrong argument.
one_graph = pytest.mark.parametrize('toy', [0], indirect=True)


def train_items(toy, user):
    return toy.edge_index[1, toy.edge_index[0] == user]


def best(scores, k, choice=None, without=()):
    """The list that one row of scores gives, by a sort in Python."""
    choice = range(len(scores)) if choice is None else sorted(set(choice))
    left = sorted((-float(scores[i]), i) for i in choice if i not in without)[:k]
    lost = min(k, len(choice)) - len(left)
    ids = [i for _, i in left] + [-1] * lost
    return ids, [-score for score, _ in left] + [-np.inf] * lost


def assert_list(ours, expected):
    assert ours[0].tolist() == expected[0]
    torch.testing.assert_close(ours[1], torch.tensor(expected[1]), atol=1e-5, rtol=1e-5)


# What is chosen -----------------------------------------------------------------------


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
        seen = train_items(toy, user).tolist() if exclude_seen else ()
        expected = best(table[user], k, choice, seen)
        assert_list((ids[user], scores[user]), expected)
        assert_list(model.recommend(user, k, **options), expected)
    if choice is not None:
        tensor = options | {'candidates': torch.tensor(choice, dtype=torch.uint8)}
        assert model.recommend(everyone, k, **tensor)[0].equal(ids)


@every_model
@pytest.mark.parametrize('exclude_seen', [True, False])
@pytest.mark.parametrize('choice', [None, [0, 6, 7]])
def test_several_histories_are_each_for_itself(toy, name, exclude_seen, choice):
    model = make_model(toy, name)
    options = {'k': 5, 'exclude_seen': exclude_seen, 'candidates': choice}
    ids, scores = model.recommend(history=HISTORIES, **options)
    assert ids.shape == scores.shape == (4, 5 if choice is None else 3)
    for place, history in enumerate(HISTORIES):
        ours = model.recommend(history=history, **options)
        assert ours[0].equal(ids[place])
        torch.testing.assert_close(ours[1], scores[place], atol=1e-6, rtol=1e-6)
        assert bool(set(history) & set(ours[0].tolist())) <= (not exclude_seen)
    # Other ways to give them, and a list of one.
    for same in (
        [torch.tensor(x) for x in HISTORIES],
        [np.array(x) for x in HISTORIES],
        tuple(x[::-1] + x for x in HISTORIES),
    ):
        assert model.recommend(history=same, **options)[0].equal(ids)
    table = torch.tensor([[4, 0, 4], [7, 7, 7]])
    assert model.recommend(history=table, **options)[0].equal(ids[:2])
    assert model.recommend(history=[[7]], **options)[0].equal(ids[1:2])
    assert model.recommend(history=range(8), **options)[0].equal(ids[3])


@every_model
def test_in_blocks(toy, name, monkeypatch):
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
    for ours, theirs in zip(lists(), whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_equal_scores_are_in_the_order_of_the_items(toy):
    model = make_model(toy, 'linear')
    with torch.no_grad():
        model.coarse.codebook.zero_()
        model.fine.codebook.zero_()
        model.bias.copy_(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1.0]))
    for k in range(1, 9):
        ids, _ = model.recommend(1, k)  # who has no items
        assert ids.tolist() == [1, 3, 5, 7, 0, 2, 4, 6][:k]


# A known user as somebody new ---------------------------------------------------------


@pytest.mark.parametrize('name', LINEAR)
def test_inductive_users_are_their_histories(toy, name):
    model = make_model(toy, name)
    users = [user for user in range(toy.num_users) if len(train_items(toy, user))]
    ids, scores = model.recommend(users, k=4)
    history = [train_items(toy, user) for user in users]
    new_ids, new_scores = model.recommend(history=history, k=4)
    assert new_ids.equal(ids)
    torch.testing.assert_close(new_scores, scores, atol=1e-5, rtol=0)


def overlap(model):
    """The share of the best 20 that users and their own train items agree on."""
    rowptr, col = model.train_items()
    users = rowptr.diff().nonzero().flatten()
    ids, _ = model.recommend(users)
    history = [col[rowptr[user] : rowptr[user + 1]] for user in users]
    new_ids, _ = model.recommend(history=history)
    return float((ids.unsqueeze(2) == new_ids.unsqueeze(1)).any(dim=2).float().mean())


def test_other_users_have_more_than_their_histories(synthetic, fast_model):
    assert overlap(fast_model) == 1
    # Ten epochs: .83 of the lists, .65 once it is trained to its end.
    recipe = get_recipe('paper', 'synthetic')
    options = TrainingOptions(stages=('coarse',), fixed_epochs={'coarse': (5, 10)})
    model = train(synthetic, recipe, options).model
    assert 0.7 < overlap(model) < 0.95


@one_graph
@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({}, 'either users or a history'),
        ({'users': 6}, r'user ids in \[0, 6\) \(got 6\)'),
        ({'users': [0, -1]}, r'user ids in \[0, 6\)'),
        ({'users': []}, 'at least one user id'),
        ({'history': []}, 'at least one item id'),
        ({'history': 'a'}, "give a list .got 'a'"),
        ({'users': [[0, 1]]}, r'flat list of user ids \(got shape \[1, 2\]\)'),
        ({'users': torch.tensor([True, False])}, 'whole numbers as user ids'),
        ({'users': [1.0]}, 'whole numbers as user ids'),
        ({'users': {0, 1}}, 'user ids, whole numbers'),
        ({'users': [None]}, 'user ids, whole numbers'),
        ({'users': [10**30]}, 'user ids, whole numbers'),
        ({'users': 0, 'k': '3'}, "whole number k >= 1 .got '3'"),
        ({'users': 0, 'k': True}, 'whole number k >= 1'),
        ({'users': torch.tensor([1j])}, 'whole numbers as user ids'),
        ({'users': torch.tensor(200, dtype=torch.uint8)}, r'\[0, 6\) \(got 200\)'),
        ({'users': torch.arange(90)}, r'\(got \[6, 7, 8\]\)'),
        ({'history': 3}, r'give a list \(got 3\)'),
        ({'history': torch.tensor(3)}, 'give a list'),
        ({'history': torch.zeros(1, 1, 1)}, 'flat list of item ids'),
        ({'history': [[1], 2]}, 'both ids and lists'),
        ({'history': [[1], [2], [], [3]]}, r'each history \(history 2 is empty\)'),
        ({'history': [[]]}, 'history 0 is empty'),
        ({'history': torch.zeros(2, 0, dtype=torch.long)}, 'history 0 is empty'),
        ({'history': torch.zeros(0, 2, dtype=torch.long)}, 'at least one item id'),
        ({'history': [[1], [8]]}, r'item ids in \[0, 8\) \(got \[8\]\)'),
        ({'users': 0, 'candidates': []}, 'at least one candidate'),
        ({'users': 0, 'candidates': [-1]}, r'item ids in \[0, 8\)'),
        ({'users': 0, 'candidates': 3}, 'a list of item ids'),
        ({'users': 0, 'k': 0}, r'k >= 1 \(got 0\)'),
    ],
)
def test_wrong_people(toy, kwargs, match):
    with pytest.raises(ValueError, match=match):
        make_model(toy, 'fine').recommend(**kwargs)


# Similar items ------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize('k', [3, 100])
def test_similar_items(toy, name, k):
    model = make_model(toy, name)
    has_zeros = name == 'linear'
    if has_zeros:  # Two items without any features, which no graph gives them.
        for table in (model.coarse, model.fine):
            table.assignment_weight[-toy.num_items :][[2, 6]] = 0
    x = model.item_features().detach().double().numpy()
    zero = ~x.any(axis=1)
    assert zero.sum() == 2 or not has_zeros
    length = np.where(zero, 1, np.linalg.norm(x, axis=1))
    cosine = (x @ x.T) / length[:, None] / length
    ids, cosines = model.similar_items(range(8), k)
    assert ids.shape == cosines.shape == (8, min(k, 7))
    for item in range(8):
        others = [i for i in range(8) if i != item]
        order = sorted(others, key=lambda i: (zero[i], -round(cosine[item, i], 5), i))
        assert ids[item].tolist() == order[:k]
        np.testing.assert_allclose(
            cosines[item], cosine[item, order[:k]], atol=1e-5, rtol=0
        )
        one = model.similar_items(item, k)
        assert one[0].equal(ids[item])
        torch.testing.assert_close(one[1], cosines[item])


def test_features_of_items_are_the_propagated_ones(toy):
    for name in MODELS:
        model = make_model(toy, name)
        h = model.propagate()
        expected = h[6:14] if MODELS[name] is None else h[1]
        torch.testing.assert_close(model.item_features(), expected)


@one_graph
@pytest.mark.parametrize(
    ('items', 'k', 'match'),
    [
        (8, 3, r'item ids in \[0, 8\)'),
        ([], 3, 'at least one item id'),
        ('g', 3, 'item ids, whole numbers'),
        (0, 0, r"'similar_items' expected a whole number k >= 1 \(got 0\)"),
    ],
)
def test_wrong_items(toy, items, k, match):
    with pytest.raises(ValueError, match=match):
        make_model(toy, 'fine').similar_items(items, k)
