r"""Data sets of user-item interactions as PyG graphs."""

from pyg_c2f.datasets.interactions import (
    InteractionDataset,
    Labels,
    with_validation_in_train,
)
from pyg_c2f.datasets.published import AmazonBook, Gowalla, Yelp2018, Yelp2020
from pyg_c2f.datasets.registry import DEFAULT_ROOT, describe, get_dataset
from pyg_c2f.datasets.synthetic import SyntheticHierarchy

__all__ = [
    'InteractionDataset',
    'Gowalla',
    'Yelp2018',
    'Yelp2020',
    'AmazonBook',
    'SyntheticHierarchy',
    'Labels',
    'DEFAULT_ROOT',
    'get_dataset',
    'describe',
    'with_validation_in_train',
]
