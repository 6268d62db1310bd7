from pyg_c2f.recipes.base import (
    Recipe,
    Run,
    Schedule,
    Trainer,
    TrainingOptions,
    check_run,
    train,
)
from pyg_c2f.recipes.fast import FastRecipe
from pyg_c2f.recipes.paper import PaperRecipe
from pyg_c2f.recipes.registry import RECIPES, get_recipe

__all__ = [
    'RECIPES',
    'FastRecipe',
    'PaperRecipe',
    'Recipe',
    'Run',
    'Schedule',
    'Trainer',
    'TrainingOptions',
    'check_run',
    'get_recipe',
    'train',
]
