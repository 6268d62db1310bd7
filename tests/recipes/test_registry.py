"""Recipes: how they are found, and what ``--set`` takes and refuses."""

from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest

import pyg_c2f
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.recipes import FastRecipe, PaperRecipe, get_recipe
from pyg_c2f.typing import InputError

FIELDS = [field.name for field in fields(PaperRecipe)]
NUMBERS = [field.name for field in fields(PaperRecipe) if field.type in (int, float)]


def test_recipes():
    assert get_recipe() == FastRecipe()
    assert get_recipe('paper') == PaperRecipe()
    with pytest.raises(FrozenInstanceError):
        PaperRecipe().num_coarse = 3
    with pytest.raises(InputError, match="unknown recipe 'slow'.*paper"):
        get_recipe('slow')
    recipe = get_recipe('paper', {'own_weight': '0.6'})
    assert PaperRecipe(**asdict(recipe)).own_weight == 0.6


@pytest.mark.parametrize('name', FIELDS)
def test_every_field_can_be_set(name):
    old = getattr(PaperRecipe(), name)
    kinds = {str: lambda: 'random', int: lambda: old + 1, float: lambda: old / 2}
    new = kinds[type(old)]()
    recipe = get_recipe('paper', settings={name: str(new)})
    assert recipe == replace(PaperRecipe(), **{name: new})
    assert type(getattr(recipe, name)) is type(old)


def test_a_width_may_be_left_to_the_data():
    assert FastRecipe().embedding_dim is None
    assert get_recipe(settings={'embedding_dim': '32'}).embedding_dim == 32
    for text in ('None', '0', '2.5'):
        with pytest.raises(InputError, match='^embedding_dim=.*a whole number'):
            get_recipe(settings={'embedding_dim': text})


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'num_cores': '3'}, "unknown setting 'num_cores'.*num_coarse"),
        ({'num_coarse': 'many'}, 'num_coarse=many: expected a whole number'),
        ({'gate': 'half'}, 'gate=half: expected a number'),
        ({'gate': '1.1'}, 'from 0 to 1'),
        ({'num_fine': '1', 'fine_per_coarse': '1'}, 'from 2 to'),
        ({'batch_size_coarse': '0'}, 'from 1 to'),
        ({'num_layers': '-1'}, 'from 0 to'),
        ({'anchors': 'spectral'}, 'metis, random'),
        ({'anchors_per_entity': '9', 'num_coarse': '8'}, 'raise num_coarse=8'),
        ({'fine_per_coarse': '9', 'num_fine': '8'}, 'raise num_fine=8'),
    ],
)
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        get_recipe('paper', settings=settings)


@pytest.mark.parametrize('name', NUMBERS)
def test_absurd_numbers_are_refused(name):
    for value in ('nan', 'inf', '-inf', '-1', '1e300', '9' * 40):
        with pytest.raises(InputError, match=f'^{name}='):
            get_recipe('paper', settings={name: value})
    if type(getattr(PaperRecipe(), name)) is int:  # Callers in Python are checked too.
        for value in (2.5, '8', None, True):
            with pytest.raises(InputError, match='a whole number'):
                PaperRecipe(**{name: value})


def test_the_name_of_the_data_set_changes_nothing():
    data = SyntheticHierarchy(60, 40, 600, 2, 4)[0]
    models = []
    for name in ('lastfm', 'gowalla', 'my-shop'):
        data.dataset = name
        models.append(pyg_c2f.fit(data).model.to_tensors())
    for other in models[1:]:
        assert all(x.equal(models[0][key]) for key, x in other.items())
