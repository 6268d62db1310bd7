"""The benchmark of several processes: its formulas, comparisons and small parts."""

import json

import bytes_sent
import distributed
import torch

from pyg_c2f.anchors import spectral
from pyg_c2f.anchors.spectral import randomized_svd
from pyg_c2f.graph import normalized_interactions
from pyg_c2f.recipes import FastRecipe

SMALL = ['--set', 'embedding_dim=16', 'num_fine=16', 'coarse_per_item=2']


def call(tmp_path, *options):
    folders = ['--out', str(tmp_path), '--work', str(tmp_path / 'work')]
    distributed.main([*options, *folders, '--timeout', '120'])
    return json.loads((tmp_path / 'distributed.json').read_text())


def test_formulas():
    """One process sends nothing; of two, each sends what it has."""
    recipe = FastRecipe(embedding_dim=8, num_fine=8)
    found = bytes_sent.Vectors(8, {4: 30, 8: 10}, rounds=3)
    for size in (1, 2, 4):
        others = size - 1
        assert bytes_sent.product_bytes(100, 8, size) == 12 * 100 * 8 * others
        assert bytes_sent.moved(10, size) == 10 * others
        assert bytes_sent.summed(10, size) == 20 * others
        vectors = bytes_sent.vectors_bytes(100, found, size)
        # The start, and the products in single and in double precision.
        tables = (8 * 8 + 12 * 30 + 16 * 10) * 100 * others
        # A Gram matrix, its vectors and values: one at the start, two a round.
        assert vectors == tables + 7 * (16 * 64 + 8 * 64 + 8 * 8) * others
        assert bytes_sent.anchors_bytes(recipe, 100, 8, found, 4, size) >= vectors
    assert bytes_sent.paper_step_bytes(7, 2) == 8 * (2 * 7 + 1)


def test_columns_are_counted():
    """Of a matrix whose vectors take one round: those of its basis."""
    edge_index = torch.ones(20, 20).nonzero().T
    interactions = normalized_interactions(edge_index, 20, 20)
    function = spectral._times_gram
    with bytes_sent.counted_columns() as columns:
        randomized_svd(interactions, 20, 1, torch.Generator().manual_seed(0))
    # Of rank one, so in double precision.
    assert columns == {8: bytes_sent.basis_width(1, 20, 20)}
    assert spectral._times_gram is function


def test_differences():
    first = {
        'figures': {'a': 0.5, 'b': 0.25},
        'evaluations': {'x 1': 0.5},
        'losses': {'1': 2.0},
        'model': 'm',
    }
    same = distributed.apart(first, first)
    assert same['same_epochs'] and same['same_bytes']
    assert same['figures'] == same['losses'] == 0
    other = first | {
        'figures': {'a': 0.5, 'b': 0.5},
        'losses': {'1': 3.0},
        'evaluations': {'x 1': 0.5, 'x 2': 0.5},
        'model': 'n',
    }
    found = distributed.apart(other, first)
    assert not found['same_epochs'] and not found['same_bytes']
    assert (found['figures'], found['losses']) == (0.25, 0.5)


def test_times_of_one_process(tmp_path, monkeypatch):
    """Recipe fast, in this process instead of one of its own."""
    before = torch.get_num_threads()

    def worker(args, part, dataset, size, prefix):
        job = vars(args) | {'part': part, 'dataset': dataset}
        data = distributed.get_dataset(dataset, None, args.protocol)
        return distributed.take_times(job, data)

    monkeypatch.setattr(distributed, 'worker', worker)
    monkeypatch.setattr(distributed, 'reuse_freed_memory', lambda: None)
    monkeypatch.setattr(distributed.os, 'sched_getaffinity', lambda _: {0})
    options = ['--part', 'scaling', '--rounds', '1', *SMALL]
    result = call(tmp_path, *options)
    ((name, entry),) = result['scaling'].items()
    assert name.startswith('synthetic fast')
    (times,) = entry['rounds']['1']
    assert set(times) == {'anchors', 'evaluation', 'all together'}
    assert '| anchors |' in (tmp_path / 'distributed.md').read_text()
    assert torch.get_num_threads() == before
