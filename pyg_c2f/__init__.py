r"""Recommenders whose embeddings fit in a megabyte, for PyTorch Geometric."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyg_c2f.checkpoint import load, save
    from pyg_c2f.nn import C2F
    from pyg_c2f.recipes.registry import fit

__version__ = '0.1.0'

__all__ = ['C2F', 'fit', 'load', 'save']

_HOMES = {
    'C2F': 'nn',
    'fit': 'recipes.registry',
    'load': 'checkpoint',
    'save': 'checkpoint',
}


def __getattr__(name: str) -> Any:
    # Names come when they are asked for (PEP 562), so that a device that only imports
    # ``pyg_c2f.bundle`` needs NumPy and no torch.
    if name in _HOMES:
        return getattr(import_module(f'pyg_c2f.{_HOMES[name]}'), name)
    if not name.startswith('_') and find_spec(f'pyg_c2f.{name}'):
        return import_module(f'pyg_c2f.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
