"""Large data for benchmarks: planted structure, limits, memory, and failures."""

import large_data
import numpy as np
import pytest
from large_data import write_synthetic

from pyg_c2f.datasets import InteractionDataset
from pyg_c2f.typing import InputError
from tests.datasets.test_synthetic import is_skewed, learned_beats_popular
from tests.memory import peak


@pytest.fixture
def parts(monkeypatch):
    """Small blocks of users and communities; reads what is written."""
    pytest.importorskip('pyarrow')
    monkeypatch.setattr(large_data, '_NUM_DRAWS', 5000)
    monkeypatch.setattr(large_data, '_COMMUNITY', 100)

    def read(folder):
        table = pytest.importorskip('pyarrow.parquet').read_table(folder)
        return [table.column(name).to_numpy() for name in ('user_id', 'item_id')]

    return read


def test_written(tmp_path, parts):
    folder = tmp_path / 'toy' / 'toy.parquet'
    write_synthetic(folder, 2000, 3000, 80_000)
    assert len(list(folder.iterdir())) > 10
    users, items = parts(folder)
    assert users.dtype == items.dtype == np.int64
    assert len(np.unique(users * 3000 + items)) == len(users) == 80_000
    degree = np.bincount(users)
    assert len(degree) == 2000 and degree.min() >= 5
    assert 0 <= items.min() and items.max() < 3000
    assert is_skewed(degree) and is_skewed(np.bincount(items))
    assert learned_beats_popular(InteractionDataset(tmp_path, 'toy')[0], 30)


def test_written_by_seed(tmp_path, parts):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        write_synthetic(tmp_path / name, 50, 120, 1000, seed)
    pairs = [np.stack(parts(tmp_path / name)) for name in 'abc']
    assert np.array_equal(pairs[0], pairs[1])
    assert not np.array_equal(pairs[0], pairs[2])


def test_written_to_the_limit(tmp_path, parts):
    # Half of all items: by popularity alone some would never come.
    write_synthetic(tmp_path / 'a', 7, 5000, 7 * 2500)
    users, items = parts(tmp_path / 'a')
    assert len(np.unique(users * 5000 + items)) == len(users) > 0.5 * 7 * 2500
    assert np.bincount(users).max() == 2500


def test_memory_of_writing(tmp_path, parts):
    def write(num):
        write_synthetic(tmp_path / str(num), 1000, 2000, num)

    write(5000)  # imports
    assert peak(lambda: write(400_000)) < 2 * peak(lambda: write(40_000))


def test_writing_that_fails(tmp_path, parts, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(InputError, match='num_interactions must lie between'):
        write_synthetic(tmp_path / 'a', 50, 120, 10)
    with pytest.raises(InputError, match='exists already'):
        write_synthetic(tmp_path, 50, 120, 1000)
    monkeypatch.setattr(large_data, '_draw_distinct', stop)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / 'a', 50, 120, 1000)
    assert not list(tmp_path.iterdir())
