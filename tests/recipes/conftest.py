"""A tiny data set, and a run on it."""

import pytest

from pyg_c2f.datasets import SyntheticHierarchy
from tests.tiny import run_of


@pytest.fixture(scope='session')
def data():
    return SyntheticHierarchy(60, 80, 900, 4, 8, protocol='c2f')[0]


@pytest.fixture(scope='session')
def whole(data):
    """The uninterrupted run of both stages, and its log."""
    lines = []
    return run_of(data, on_evaluation=lines.append), lines
