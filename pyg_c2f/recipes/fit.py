r"""Trains a model on a data set in one call."""

from pathlib import Path

from torch_geometric.data import HeteroData

from pyg_c2f.checkpoint import save
from pyg_c2f.recipes.base import Recipe, TrainingOptions, train
from pyg_c2f.recipes.presets import get_recipe
from pyg_c2f.recipes.resume import delete_resume
from pyg_c2f.vocabulary import NamedModel


def fit(
    data: HeteroData,
    recipe: str | Recipe = 'fast',
    seed: int = 2024,
    out: str | Path | None = None,
    progress: bool = False,
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

    Raises:
        InputError: If a setting does not fit the data.
    """
    if isinstance(recipe, str):
        recipe = get_recipe(recipe, data.dataset if 'dataset' in data else '')
    target = None if out is None else Path(out)
    run = train(data, recipe, TrainingOptions(seed, out=target, progress=progress))
    if target is not None:
        save(run.model, target)
        delete_resume(target)
    return run.model
