r"""Data sets of user-item interactions as PyG graphs."""

from pyg_c2f.datasets.interactions import (
    InteractionDataset,
    Labels,
    with_validation_in_train,
)
from pyg_c2f.datasets.published import AmazonBook, Gowalla, Yelp2018, Yelp2020
from pyg_c2f.datasets.registry import build_dataset, describe, get_dataset
from pyg_c2f.datasets.spec import DEFAULT_ROOT, DataSpec
from pyg_c2f.datasets.synthetic import SyntheticHierarchy

__all__ = [
    'DataSpec',
    'InteractionDataset',
    'Gowalla',
    'Yelp2018',
    'Yelp2020',
    'AmazonBook',
    'SyntheticHierarchy',
    'Labels',
    'DEFAULT_ROOT',
    'get_dataset',
    'build_dataset',
    'describe',
    'with_validation_in_train',
]
