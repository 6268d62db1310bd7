r"""Recommenders whose embeddings fit in a megabyte, for PyTorch Geometric."""

from pyg_c2f.checkpoint import load, save
from pyg_c2f.nn import C2F
from pyg_c2f.train import fit

__version__ = '0.1.0'

__all__ = ['C2F', 'fit', 'load', 'save']
