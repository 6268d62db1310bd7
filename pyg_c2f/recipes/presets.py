r"""Recipes by name, with the settings of data sets that were tried; training by one."""

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

DATASET_SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    # Chosen on validation items (standard) by benchmarks/frontier.py, rounded.
    ('fast', 'lastfm'): {
        'embedding_dim': 256,
        'coarse_per_item': 5.0,
        'fine_per_item': 1,
        'num_fine': 256,
        'user_norm': 0.5,
        'item_norm': 0.3,
        'spectral_power': 0.1,
        'score_power': 0.2,
    },
    ('fast', 'ml-1m'): {
        'embedding_dim': 96,
        'coarse_per_item': 10.0,
        'item_norm': 0.4,
        'spectral_power': 0.15,
        'score_power': 0.2,
    },
    ('fast', 'ml-100k'): {
        'embedding_dim': 48,
        'coarse_per_item': 8.0,
        'fine_per_item': 0,
        'user_norm': 0.42,
        'item_norm': 0.37,
        'spectral_power': 0.18,
        'score_power': 0.34,
    },
    # What the published run sets apart from Gowalla (SPEC section 5).
    ('paper', 'yelp2020'): {'num_layers': 4, 'own_weight': 0.6},
    ('fast', 'synthetic'): {
        'embedding_dim': 64,
        'coarse_per_item': 4.0,
        'num_fine': 256,
    },
    # The embedded data set is small: fewer and narrower anchors, and larger steps, for
    # an epoch has 40 batches only. Chosen on its validation items.
    ('paper', 'synthetic'): {
        'num_coarse': 100,
        'num_fine': 40,
        'embedding_dim': 64,
        'pca_components': 64,
        'lr_coarse': 1e-2,
        'lr_fine': 1e-2,
    },
}


def get_recipe(
    name: str = 'fast', dataset: str = '', settings: dict[str, str] | None = None
) -> Recipe:
    """Looks a recipe up, with a data set's settings and then the given ones.

    Args:
        name (str, optional): The recipe. (default: ``'fast'``)
        dataset (str, optional): The data set, for the settings that belong to it.
        settings (Dict, optional): Values by field name, as text.

    Raises:
        InputError: If the recipe or a setting is unknown, or a value does not fit.
    """
    if name not in RECIPES:
        raise InputError(f'unknown recipe {name!r}: choose one of {", ".join(RECIPES)}')
    changes = dict(DATASET_SETTINGS.get((name, dataset), {}))
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
        recipe (str or Recipe, optional): The settings, or the name of a
            recipe, which then has the settings of ``data.dataset`` too. (default:
            ``'fast'``)
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
        recipe = get_recipe(recipe, data.dataset if 'dataset' in data else '')
    if size is not None or seconds is not None:
        recipe = search(data, recipe, size=size, seconds=seconds, seed=seed).recipe
    target = None if out is None else Path(out)
    run = train(data, recipe, TrainingOptions(seed, out=target, progress=progress))
    if target is not None:
        save(run.model, target)
        delete_resume(target)
    return run.model
