"""Recipes: looking them up, and what ``--set`` takes and refuses."""

from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import get_args

import pytest

from pyg_c2f.recipes import RECIPES, FastRecipe, PaperRecipe, get_recipe
from pyg_c2f.recipes.presets import DATASET_SETTINGS
from pyg_c2f.typing import InputError

FIELDS = [field.name for field in fields(PaperRecipe)]
WHOLE = [field.name for field in fields(PaperRecipe) if field.type is int]
NUMBERS = [field.name for field in fields(PaperRecipe) if field.type in (int, float)]


def test_defaults():
    assert get_recipe() == FastRecipe()
    assert get_recipe('paper') == PaperRecipe()


def test_recipes_are_fixed():
    with pytest.raises(FrozenInstanceError):
        PaperRecipe().num_coarse = 3


@pytest.mark.parametrize('name', FIELDS)
def test_every_field_can_be_set(name):
    old = getattr(PaperRecipe(), name)
    if isinstance(old, str):
        new = 'random'
    elif isinstance(old, int):
        new = old + 1
    else:
        new = old / 2
    recipe = get_recipe('paper', settings={name: str(new)})
    assert recipe == replace(PaperRecipe(), **{name: new})
    assert type(getattr(recipe, name)) is type(old)


def test_a_data_set_has_settings_of_its_own():
    for (name, dataset), settings in DATASET_SETTINGS.items():
        assert get_recipe(name, dataset) == RECIPES[name](**settings)
    assert get_recipe('paper', 'yelp2020').num_layers == 4
    assert get_recipe('paper', 'gowalla') == get_recipe('paper', 'unheard-of')


def test_given_settings_come_last():
    recipe = get_recipe('paper', 'yelp2020', {'num_layers': '1'})
    assert (recipe.num_layers, recipe.own_weight) == (1, 0.6)


def test_a_recipe_survives_json_types():
    assert PaperRecipe(**asdict(get_recipe('paper', 'yelp2020'))).own_weight == 0.6
    assert PaperRecipe(gate=1).gate == 1


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'num_cores': '3'}, "unknown setting 'num_cores'.*num_coarse"),
        ({'': '3'}, 'unknown setting'),
        ({'num_coarse': 'many'}, 'num_coarse=many: expected a whole number'),
        ({'num_coarse': '3.0'}, 'a whole number'),
        ({'num_coarse': ''}, 'a whole number'),
        ({'gate': 'half'}, 'gate=half: expected a number'),
        ({'gate': '1.1'}, 'from 0 to 1'),
        ({'own_weight': '-0.1'}, 'from 0 to 1'),
        ({'num_fine': '1', 'fine_per_coarse': '1'}, 'from 2 to'),
        ({'batch_size_coarse': '0'}, 'from 1 to'),
        ({'num_layers': '-1'}, 'from 0 to'),
        ({'anchors': 'spectral'}, 'metis, random'),
        ({'anchors_per_entity': '9', 'num_coarse': '8'}, 'raise num_coarse=8'),
        ({'fine_per_coarse': '9', 'num_fine': '8'}, 'raise num_fine=8'),
    ],
)
def test_refused(settings, says):
    with pytest.raises(InputError, match=says):
        get_recipe('paper', settings=settings)


@pytest.mark.parametrize('name', NUMBERS)
def test_no_number_can_be_absurd(name):
    for value in ('nan', 'inf', '-inf', '-1', '1e300', '9' * 40):
        with pytest.raises(InputError, match=f'^{name}='):
            get_recipe('paper', settings={name: value})


@pytest.mark.parametrize('name', WHOLE)
def test_python_callers_are_checked_too(name):
    for value in (2.5, '8', None, True):
        with pytest.raises(InputError, match='a whole number'):
            PaperRecipe(**{name: value})


def test_only_known_anchors():
    kind = next(field.type for field in fields(PaperRecipe) if field.name == 'anchors')
    assert all(PaperRecipe(anchors=name).anchors == name for name in get_args(kind))
    with pytest.raises(InputError):
        PaperRecipe(anchors='Metis')


def test_unknown_recipe():
    with pytest.raises(InputError, match="unknown recipe 'slow'.*paper"):
        get_recipe('slow')
