r"""Recipes by name, and training by one."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from torch_geometric.data import HeteroData

from pyg_c2f.checkpoint import save
from pyg_c2f.recipes.base import Recipe, TrainingOptions, parse_setting, train
from pyg_c2f.recipes.fast import FastRecipe
from pyg_c2f.recipes.paper import PaperRecipe
from pyg_c2f.recipes.resume import delete_resume
from pyg_c2f.recipes.search import search
from pyg_c2f.typing import InputError
from pyg_c2f.vocabulary import NamedModel

RECIPES: dict[str, type[Recipe]] = {'fast': FastRecipe, 'paper': PaperRecipe}


def get_recipe(name: str = 'fast', settings: dict[str, str] | None = None) -> Recipe:
    """Looks a recipe up, with the given settings.

    Args:
        name (str, optional): The recipe. (default: ``'fast'``)
        settings (Dict, optional): Values by field name, as text.

    Raises:
        InputError: If the recipe or a setting is unknown, or a value does not fit.
    """
    if name not in RECIPES:
        raise InputError(f'unknown recipe {name!r}: choose one of {", ".join(RECIPES)}')
    changes: dict[str, Any] = {}
    types = {field.name: field.type for field in fields(RECIPES[name])}
    for key, text in (settings or {}).items():
        if key not in types:
            raise InputError(
                f'unknown setting {key!r}: recipe {name} has {", ".join(types)}'
            )
        changes[key] = parse_setting(key, text, types[key])
    return RECIPES[name](**changes)


def fit(
    data: HeteroData,
    recipe: str | Recipe = 'fast',
    seed: int = 2024,
    out: str | Path | None = None,
    progress: bool = False,
    size: int | str | None = None,
    seconds: float | None = None,
) -> NamedModel:
    """Trains both stages on a data set and returns the model.

    Args:
        data (HeteroData): A data set of :mod:`pyg_c2f.datasets`, or any graph with
            train pairs in ``('user', 'rates', 'item').edge_index``, validation pairs in
            ``val_edge_label_index`` of that relation, and ``data.protocol``. The model
            knows the original ids in ``raw_id`` of users and items, and the
            ``title`` of items, where they are there.
        recipe (str or Recipe, optional): The settings, or the name of a recipe.
            (default: ``'fast'``)
        seed (int, optional): The seed. (default: ``2024``)
        out (str or Path, optional): The directory for checkpoints.
        progress (bool, optional): Whether to show progress bars. (default: ``False``)
        size (int or str, optional): The most bytes of the model without the train
            graph, such as ``'0.5MB'``: settings of recipe ``fast`` are chosen on
            validation items, see :func:`~pyg_c2f.recipes.search.search`.
        seconds (float, optional): The seconds to choose settings for, with or without
            a size.

    Raises:
        InputError: If a setting does not fit the data, or no model fits the size.
    """
    if isinstance(recipe, str):
        recipe = get_recipe(recipe)
    if size is not None or seconds is not None:
        recipe = search(data, recipe, size=size, seconds=seconds, seed=seed).recipe
    target = None if out is None else Path(out)
    run = train(data, recipe, TrainingOptions(seed, out=target, progress=progress))
    if target is not None:
        save(run.model, target)
        delete_resume(target)
    return run.model
