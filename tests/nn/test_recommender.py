"""Lists out of the models: who asks, what is chosen from, and what it is called."""

import copy
import sys

import numpy as np
import pytest
import torch
from torch_geometric.testing import withPackage

from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.nn import LinearC2F
from pyg_c2f.recipes import FastRecipe, fit, get_recipe, train
from pyg_c2f.typing import Assignment, InputError

MODELS = {
    'coarse': None,
    'fine': None,
    'linear': {},
    'diffusion': {'diffusion': 0.7},
}
# Their users have no anchors of their own.
LINEAR = ('linear', 'diffusion')
every_model = pytest.mark.parametrize('name', MODELS)
no_diffusion = pytest.mark.parametrize('name', [x for x in MODELS if x != 'diffusion'])
# For what no graph changes, such as a wrong argument.
one_graph = pytest.mark.parametrize('toy', [0], indirect=True)
HISTORIES = [[4, 0], [7], [2, 3, 5, 2], [0, 1, 2, 3, 4, 5, 6, 7]]
USER_IDS = ['ann', 'bob', 'cem', 'dee', 'eve', '5']
ITEM_IDS = ['a', 'b', 'c', 'd', '0', 'f', 'ä b', '']
TITLES = ['The same'] * 8


def make_model(toy, name):
    if MODELS[name] is None:
        return toy.model(name)
    sizes = (toy.num_users, toy.num_items, toy.num_coarse, toy.num_fine, 6)
    model = LinearC2F(toy.edge_index, *sizes, coarse_per_item=3, **MODELS[name])
    weight = torch.randn(model.coarse.index.shape)
    weight[torch.rand(weight.shape) < 0.2] = 0
    model.set_assignment(Assignment(model.coarse.index, weight))
    with torch.no_grad():
        model.bias.normal_()
    model.set_stage('fine')
    return model


def named(toy, name='fine'):
    model = make_model(toy, name)
    model.set_ids(USER_IDS, ITEM_IDS, TITLES)
    return model


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
    monkeypatch.setattr('pyg_c2f.nn.recommend.BLOCK_SCORES', 3 * toy.num_items)
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


@pytest.fixture(scope='module')
def data():
    return SyntheticHierarchy(protocol='c2f')[0]


@pytest.fixture(scope='module')
def fast_model(data):
    return fit(data, FastRecipe(embedding_dim=32))


def overlap(model):
    """The share of the best 20 that users and their own train items agree on."""
    rowptr, col = model.train_items()
    users = rowptr.diff().nonzero().flatten()
    ids, _ = model.recommend(users)
    history = [col[rowptr[user] : rowptr[user + 1]] for user in users]
    new_ids, _ = model.recommend(history=history)
    return float((ids.unsqueeze(2) == new_ids.unsqueeze(1)).any(dim=2).float().mean())


def test_other_users_have_more_than_their_histories(data, fast_model):
    assert overlap(fast_model) == 1
    # Ten epochs: .83 of the lists, .65 once it is trained to its end.
    recipe = get_recipe('paper', 'synthetic')
    epochs = {'coarse': (5, 10)}
    model = train(data, recipe, stages=('coarse',), fixed_epochs=epochs).model
    assert 0.7 < overlap(model) < 0.95


# What it is called --------------------------------------------------------------------


@every_model
def test_original_ids(toy, name):
    model = named(toy, name)
    assert (model.user_ids, model.item_ids) == (USER_IDS, ITEM_IDS)
    assert model.item_titles == TITLES
    ids, scores = model.recommend([1, 5, 0], k=7)
    items, same = model.recommend(['bob', '5', 'ann'], k=7)
    assert items == [[ITEM_IDS[i] for i in row if i >= 0] for row in ids.tolist()]
    assert same.equal(scores) and same.shape == (3, 7)
    assert model.recommend('5', k=7)[0] == items[1]

    options = {'k': 4, 'exclude_seen': False}
    ids, scores = model.recommend(history=[4, 7], candidates=[0, 4, 6, 7], **options)
    chosen = ['a', '0', 'ä b', '']
    items, same = model.recommend(history=['0', ''], candidates=chosen, **options)
    assert items == [ITEM_IDS[i] for i in ids.tolist()] and same.equal(scores)
    several, _ = model.recommend(history=[['0', ''], ['0']], candidates=chosen, k=3)
    assert len(several) == 2
    assert several[0] == [x for x in items if x not in ('0', '')]

    ids, cosines = model.similar_items([4, 0], k=3)
    items, same = model.similar_items(['0', 'a'], k=3)
    assert items == [[ITEM_IDS[i] for i in row] for row in ids.tolist()]
    assert same.equal(cosines) and model.similar_items('0', k=3)[0] == items[0]


def test_without_original_ids_they_are_the_numbers(toy):
    model = make_model(toy, 'linear')
    assert model.user_ids is model.item_ids is model.item_titles is None
    ids, _ = model.recommend([4, 0], k=3)
    items, _ = model.recommend(['4', '0'], k=3)
    assert items == [[str(i) for i in row if i >= 0] for row in ids.tolist()]
    history, _ = model.recommend(history=['7', '0'], k=3)
    assert history == [str(i) for i in model.recommend(history=[7, 0], k=3)[0].tolist()]
    # Of users alone, or items alone.
    model.set_ids(users=USER_IDS)
    assert model.recommend(['eve', 'ann'], k=3)[0] == items
    model.set_ids(items=ITEM_IDS)
    names = [[ITEM_IDS[int(i)] for i in row] for row in items]
    assert model.recommend(['4', '0'], k=3)[0] == names


def test_ids_survive_copies_and_are_no_state(toy):
    model = named(toy)
    twin = copy.deepcopy(model).to(torch.device('cpu'))
    assert twin.recommend('ann')[0] == model.recommend('ann')[0]
    twin.set_ids()
    assert twin.user_ids is None and model.user_ids == USER_IDS
    assert not any('id' in key.split('.')[-1].split('_') for key in model.state_dict())


def test_ids_that_are_no_text(toy):
    model = make_model(toy, 'fine')
    model.set_ids(torch.arange(6) + 10, np.arange(8) * 2, iter(range(8)))
    assert model.user_ids == ['10', '11', '12', '13', '14', '15']
    assert model.item_ids[-1] == '14' and model.item_titles[-1] == '7'


@one_graph
@pytest.mark.parametrize(
    ('ids', 'match'),
    [
        ({'users': USER_IDS[1:]}, r"'C2F' expected 6 user ids \(got 5\)"),
        ({'items': []}, r'8 item ids \(got 0\)'),
        ({'titles': TITLES * 2}, r'8 item titles \(got 16\)'),
        ({'users': ['a', 'b', 'c', 'b', 'd', 'a']}, 'users 0 and 5 have the same id'),
        ({'items': ['x', *'abcdef', 'x']}, "items 0 and 7 have the same id 'x'"),
        ({'items': [*'abcdefg', 'x\0y']}, r"item ids hold no NUL .*'x\\x00y'"),
        ({'titles': ['\0'] * 8}, 'item titles hold no NUL'),
    ],
)
def test_wrong_ids(toy, ids, match):
    model = named(toy)
    with pytest.raises(InputError, match=match):
        model.set_ids(**ids)
    # Those of before are still there.
    assert (model.user_ids, model.item_ids) == (USER_IDS, ITEM_IDS)
    assert model.item_titles == TITLES and model.numbers('5', 'user') == 5


UNKNOWN = 'the model knows 6 users, such as ann, bob, cem'


@one_graph
@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({}, 'either users or a history'),
        ({'users': 6}, r'user ids in \[0, 6\) \(got 6\)'),
        ({'users': [0, -1]}, r'user ids in \[0, 6\)'),
        ({'users': []}, 'at least one user id'),
        ({'history': []}, 'at least one item id'),
        ({'users': 'fay'}, f"unknown user 'fay': {UNKNOWN}"),
        ({'users': ['ann', '0']}, f"unknown user '0': {UNKNOWN}"),
        ({'history': ['a', 'g']}, "unknown item 'g': the model knows 8 items, such as"),
        ({'history': [['a'], ['ann']]}, "unknown item 'ann'"),
        ({'users': 'ann', 'candidates': ['x']}, "unknown item 'x'"),
        ({'users': ['ann', 1]}, "either original ids.* .got both: 'ann' and 1"),
        ({'history': [1, 'a']}, 'got both'),
        ({'history': [['a'], [1]]}, 'got both'),
        ({'users': 'ann', 'candidates': ['a', 1]}, 'got both'),
        ({'users': 'ann', 'candidates': [1]}, 'candidates are of the other kind'),
        ({'users': 1, 'candidates': ['a']}, 'candidates are of the other kind'),
        ({'history': 'a'}, "give a list .got 'a'"),
        ({'users': 'ann', 'candidates': 'a'}, 'a list of item ids'),
        ({'users': 'ann', 'history': ['a']}, 'either users or a history'),
        ({'users': [[0, 1]]}, r'flat list of user ids \(got shape \[1, 2\]\)'),
        ({'users': torch.tensor([True, False])}, 'whole numbers as user ids'),
        ({'users': [1.0]}, 'whole numbers as user ids'),
        ({'users': {0, 1}}, 'user ids, whole numbers or text'),
        ({'users': [None]}, 'user ids, whole numbers or text'),
        ({'users': [10**30]}, 'user ids, whole numbers or text'),
        ({'users': 0, 'k': '3'}, "whole number k >= 1 .got '3'"),
        ({'users': 0, 'k': True}, 'whole number k >= 1'),
        ({'users': torch.tensor([1j])}, 'whole numbers as user ids'),
        ({'users': 0, 'index': 5}, 'an index that .build_index. made .got int'),
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
        named(toy).recommend(**kwargs)


@one_graph
@pytest.mark.parametrize(
    'text', ['8', '-1', '01', ' 1', '1.0', '+1', '٣', '', '9' * 9999]
)
def test_texts_that_are_no_number_of_an_item(toy, text):
    model = make_model(toy, 'fine')
    says = '^unknown item .*: the model knows 8 items, such as 0, 1, 2$'
    with pytest.raises(InputError, match=says):
        model.recommend(history=['3', text])


def test_numbers(toy):
    model = named(toy)
    assert model.numbers('5', 'user').tolist() == 5
    assert model.numbers(['0', 'a', '0'], 'item').tolist() == [4, 0, 4]
    assert model.numbers([4, 0], 'item').tolist() == [4, 0]


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
        ('g', 3, "unknown item 'g'"),
        (['a', 0], 3, 'got both'),
        (0, 0, r"'similar_items' expected a whole number k >= 1 \(got 0\)"),
    ],
)
def test_wrong_items(toy, items, k, match):
    with pytest.raises(ValueError, match=match):
        named(toy).similar_items(items, k)


# Through an index ---------------------------------------------------------------------


@withPackage('faiss')
@no_diffusion
@pytest.mark.parametrize(('exclude_seen', 'k'), [(True, 100), (False, 3)])
def test_all_cells_give_the_exact_list(toy, name, exclude_seen, k, monkeypatch):
    model = named(toy, name)
    monkeypatch.setattr('pyg_c2f.nn.recommend.BLOCK_SCORES', 20)
    options = {'k': k, 'exclude_seen': exclude_seen}
    for cells in (1, 3):
        index = model.build_index(cells, cells)
        for who in (
            {'users': range(6)},
            {'users': 3},
            {'history': HISTORIES},
            {'history': [3, 0, 3]},
        ):
            ids, scores = model.recommend(**who, **options)
            ours = model.recommend(**who, **options, index=index)
            assert ours[0].equal(ids)
            torch.testing.assert_close(ours[1], scores, atol=1e-5, rtol=1e-5)
    items = model.recommend(['eve', 'ann'], **options, index=index)[0]
    assert items == model.recommend(['eve', 'ann'], **options)[0]


@withPackage('faiss')
@no_diffusion
def test_an_index_is_a_picture_of_the_model(toy, name):
    model = make_model(toy, name)
    index = model.build_index(2, 2)
    asked = [{'users': range(6)}, {'history': HISTORIES}]
    before = [model.recommend(**who, k=3, index=index) for who in asked]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    for who, (ids, scores) in zip(asked, before, strict=True):
        ours = model.recommend(**who, k=3, index=index)
        assert ours[0].equal(ids)
        torch.testing.assert_close(ours[1], scores)


@withPackage('faiss')
def test_recall_of_the_index(fast_model):
    index = fast_model.build_index()
    # The catalogue is small: all of it is looked at.
    assert (index.num_cells, index.num_cells_to_visit) == (76, 76)
    index = fast_model.build_index(num_cells_to_visit=10)
    rowptr, col = fast_model.train_items()
    users = range(fast_model.num_users)
    histories = [col[rowptr[i] : rowptr[i + 1]] for i in range(500)]
    for who in ({'users': users}, {'history': histories}):
        ids, scores = fast_model.recommend(**who)
        found, values = fast_model.recommend(**who, index=index)
        hit = (found.unsqueeze(2) == ids.unsqueeze(1)) & (found.unsqueeze(2) >= 0)
        assert hit.any(dim=1).float().mean() > 0.9
        # What is found has its own score, in the right order.
        right = hit.nonzero()
        torch.testing.assert_close(
            values[right[:, 0], right[:, 1]],
            scores[right[:, 0], right[:, 2]],
            atol=1e-5,
            rtol=1e-5,
        )
        assert (values.diff(dim=1) <= 0).nan_to_num().all()
    # Nobody is told what he has.
    found, _ = fast_model.recommend(users, index=index)
    row = torch.arange(len(users)).repeat_interleave(rowptr.diff())
    seen = row * fast_model.num_items + col
    key = torch.arange(len(users)).unsqueeze(1) * fast_model.num_items + found
    assert not torch.isin(key[found >= 0], seen).any()


@withPackage('faiss')
def test_a_list_ends_where_the_cells_do(fast_model):
    index = fast_model.build_index(num_cells=1000, num_cells_to_visit=1)
    ids, scores = fast_model.recommend(range(100), k=50, index=index)
    assert ids.shape == (100, 50)
    assert (ids == -1).any() and (ids[:, 0] >= 0).any()
    assert ((ids == -1) == (scores == -torch.inf)).all()
    # The places that are left come last.
    assert ((ids >= 0).int().diff(dim=1) <= 0).all()


@withPackage('faiss')
def test_wrong_index(toy, fast_model):
    model = make_model(toy, 'linear')
    with pytest.raises(ValueError, match='6 users and 8 items .got 2000 and 3000'):
        model.recommend(0, index=fast_model.build_index(1))
    with pytest.raises(ValueError, match='either candidates or an index'):
        model.recommend(0, candidates=[1], index=model.build_index(1))
    for cells, visited in ((0, 0), (9, 1), (2, 3), (2, 0)):
        with pytest.raises(ValueError, match=f'<= 8 .got {visited} and {cells}'):
            model.build_index(cells, visited)


def test_a_diffusion_channel_is_no_inner_product(toy):
    with pytest.raises(ValueError, match=r'no inner products \(got diffusion=0.7\)'):
        make_model(toy, 'diffusion').build_index()


def test_without_faiss(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(ImportError, match=r'pip install pyg-c2f\[faiss\]'):
        make_model(toy, 'fine').build_index()
