"""A tiny data set, and a run on it."""

import pytest

from pyg_c2f.datasets import SyntheticHierarchy
from tests.tiny import run_of


@pytest.fixture(scope='session')
def data():
    return SyntheticHierarchy(60, 80, 900, 4, 8, protocol='c2f')[0]


@pytest.fixture(scope='session')
def whole_out(tmp_path_factory):
    """The directory of the uninterrupted run."""
    return tmp_path_factory.mktemp('whole')


@pytest.fixture(scope='session')
def whole(data, whole_out):
    """The uninterrupted run of both stages, and its log."""
    lines = []
    return run_of(data, out=whole_out, on_evaluation=lines.append), lines
