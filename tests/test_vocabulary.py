"""Original ids: questions and answers in them, and what is refused."""

import copy

import numpy as np
import pytest
import torch

from pyg_c2f.typing import InputError
from pyg_c2f.vocabulary import NamedModel, Vocabulary
from tests.models import MODELS, make_model

USER_IDS = ['ann', 'bob', 'cem', 'dee', 'eve', '5']
ITEM_IDS = ['a', 'b', 'c', 'd', '0', 'f', 'ä b', '']
TITLES = ['The same'] * 8
every_model = pytest.mark.parametrize('name', MODELS)


def named(toy, name='fine', users=USER_IDS, items=ITEM_IDS):
    return NamedModel(make_model(toy, name), Vocabulary(6, 8, users, items, TITLES))


@every_model
def test_original_ids(toy, name):
    model = named(toy, name)
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


def test_without_original_ids_the_numbers_are_the_ids(toy):
    inner = make_model(toy, 'linear')
    model = NamedModel(inner)
    ids, _ = model.recommend([4, 0], k=3)
    items, _ = model.recommend(['4', '0'], k=3)
    assert items == [[str(i) for i in row if i >= 0] for row in ids.tolist()]
    history, _ = model.recommend(history=['7', '0'], k=3)
    assert history == [str(i) for i in model.recommend(history=[7, 0], k=3)[0].tolist()]
    # Only the users have names, or only the items.
    model = NamedModel(inner, Vocabulary(6, 8, USER_IDS))
    assert model.recommend(['eve', 'ann'], k=3)[0] == items
    model = NamedModel(inner, Vocabulary(6, 8, item_ids=ITEM_IDS))
    names = [[ITEM_IDS[int(i)] for i in row] for row in items]
    assert model.recommend(['4', '0'], k=3)[0] == names


def test_everything_else_is_passed_to_the_model(toy):
    model = named(toy)
    twin = copy.deepcopy(model).to(torch.device('cpu')).eval()
    assert isinstance(twin, NamedModel) and twin.model is not model.model
    assert twin.recommend('ann')[0] == model.recommend('ann')[0]
    assert twin.stage == 'fine' and twin.num_items == 8
    users = torch.arange(3)
    assert twin(users, users).equal(model.model(users, users))
    assert all(key.startswith('model.') for key in model.state_dict())
    with pytest.raises(AttributeError, match='no attribute .nothing.'):
        model.nothing  # noqa: B018


def test_ids_of_other_kinds(toy):
    names = Vocabulary(6, 8, torch.arange(6) + 10, np.arange(8) * 2, iter(range(8)))
    assert names.user_ids == ['10', '11', '12', '13', '14', '15']
    assert names.item_ids[-1] == '14' and names.title(7) == '7'
    assert Vocabulary(6, 8).title(7) == ''
    model = named(toy)
    with pytest.raises(InputError, match='6 users and 9 items, the model has 6'):
        NamedModel(model.model, Vocabulary(6, 9))
    assert model.numbers('5', 'user').tolist() == 5
    assert model.numbers(['0', 'a', '0'], 'item').tolist() == [4, 0, 4]
    assert model.numbers([4, 0], 'item').tolist() == [4, 0]


@pytest.mark.parametrize(
    ('names', 'match'),
    [
        ({'user_ids': USER_IDS[1:]}, r'6 user ids \(got 5\)'),
        ({'item_ids': []}, r'8 item ids \(got 0\)'),
        ({'item_titles': TITLES * 2}, r'8 item titles \(got 16\)'),
        ({'user_ids': ['a', 'b', 'c', 'b', 'd', 'a']}, 'users 0 and 5 have the same'),
        ({'item_ids': [*'abcdefg', 'x\0y']}, r"item ids hold no NUL .*'x\\x00y'"),
    ],
)
def test_wrong_names(names, match):
    with pytest.raises(InputError, match=match):
        Vocabulary(6, 8, **names)


UNKNOWN = 'the model knows 6 users, such as ann, bob, cem'


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'users': 'fay'}, f"unknown user 'fay': {UNKNOWN}"),
        ({'history': ['a', 'g']}, "unknown item 'g': the model knows 8 items, such as"),
        ({'history': [['a'], ['ann']]}, "unknown item 'ann'"),
        ({'users': 'ann', 'candidates': ['x']}, "unknown item 'x'"),
        ({'users': ['ann', 1]}, "either original ids.* .got both: 'ann' and 1"),
        ({'history': [['a'], [1]]}, 'got both'),
        ({'users': 'ann', 'candidates': ['a', 1]}, 'got both'),
        ({'users': 'ann', 'candidates': [1]}, 'candidates are of the other kind'),
        ({'users': 1, 'candidates': ['a']}, 'candidates are of the other kind'),
        ({'users': 'ann', 'candidates': 'a'}, 'a list of item ids'),
        ({'users': 'ann', 'history': ['a']}, 'either users or a history'),
    ],
)
def test_wrong_questions(toy, kwargs, match):
    with pytest.raises(ValueError, match=match):
        named(toy).recommend(**kwargs)


def test_wrong_items(toy):
    model = named(toy)
    with pytest.raises(ValueError, match="unknown item 'g'"):
        model.similar_items('g', 3)
    with pytest.raises(ValueError, match='got both'):
        model.similar_items(['a', 0], 3)
    model = NamedModel(model.model)
    says = '^unknown item .*: the model knows 8 items, such as 0, 1, 2$'
    for text in ('8', '-1', '01', ' 1', '1.0', '٣', '', '9' * 9999):
        with pytest.raises(InputError, match=says):
            model.recommend(history=['3', text])
