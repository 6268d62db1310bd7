r"""Data sets of user-item interactions as PyG graphs."""

from pyg_c2f.datasets.built import build_dataset
from pyg_c2f.datasets.interactions import (
    InteractionDataset,
    Labels,
    with_validation_in_train,
)
from pyg_c2f.datasets.published import AmazonBook, Gowalla, Yelp2018, Yelp2020
from pyg_c2f.datasets.registry import DEFAULT_ROOT, describe, get_dataset
from pyg_c2f.datasets.synthetic import SyntheticHierarchy, write_synthetic

__all__ = [
    'InteractionDataset',
    'Gowalla',
    'Yelp2018',
    'Yelp2020',
    'AmazonBook',
    'SyntheticHierarchy',
    'write_synthetic',
    'Labels',
    'DEFAULT_ROOT',
    'get_dataset',
    'build_dataset',
    'describe',
    'with_validation_in_train',
]
