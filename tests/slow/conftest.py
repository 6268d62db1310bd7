"""Data and processes that the tests of several processes share."""

import pytest

from pyg_c2f.datasets import get_dataset
from tests.slow.processes import Processes
from tests.tiny import write_text_data


@pytest.fixture(scope='session')
def start(tmp_path_factory):
    """A function from a number of processes to these, started once."""
    started = {}

    def get(size):
        if size not in started:
            started[size] = Processes(size, tmp_path_factory.mktemp('store'))
        return started[size]

    yield get
    for processes in started.values():
        processes.end()


@pytest.fixture(scope='session')
def shared_root(tmp_path_factory):
    """A root of data, with the processed file that processes would write at once."""
    root = tmp_path_factory.mktemp('data')
    write_text_data(root)
    get_dataset('text', root, 'c2f')
    return root
