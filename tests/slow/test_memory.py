"""The memory that a cache of many interactions takes, made and read."""

from pyg_c2f.datasets import InteractionDataset, build_dataset
from pyg_c2f.datasets import cache as module
from pyg_c2f.datasets import parquet as parquet_module
from tests.datasets.test_cache import random_pairs, write_table
from tests.memory import peak


def test_memory_of_a_build(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'BUCKET', 2**17)
    monkeypatch.setattr(parquet_module, '_BATCH', 2**16)
    num = 3 * 10**6
    pairs = random_pairs(num=num, num_users=20_000, num_items=50_000)
    root = write_table(tmp_path, *pairs, rows=10**5)
    del pairs
    two_columns = 2 * 8 * num  # the least that reading them into memory takes
    assert peak(lambda: build_dataset('toy', root)) < two_columns / 4
    assert peak(lambda: InteractionDataset(root, 'toy')) < 10**6
