"""The benchmark of several processes: its formulas, comparisons and small parts."""

import json
from pathlib import Path

import pytest
import torch

from pyg_c2f import spectral
from pyg_c2f.config import FastRecipe
from pyg_c2f.graph import normalized_interactions
from pyg_c2f.spectral import randomized_svd


@pytest.fixture(scope='module')
def script(import_benchmark):
    return import_benchmark('distributed')


SMALL = ['--set', 'embedding_dim=16', 'num_fine=16', 'coarse_links=2']


def call(script, tmp_path, *options):
    folders = ['--out', str(tmp_path), '--work', str(tmp_path / 'work')]
    script.main([*options, *folders, '--timeout', '120'])
    return json.loads((tmp_path / 'distributed.json').read_text())


def test_formulas(import_benchmark):
    """One process sends nothing; of two, each sends what it has."""
    formulas = import_benchmark('bytes_sent')
    recipe = FastRecipe(embedding_dim=8, num_fine=8)
    found = formulas.Vectors(8, {4: 30, 8: 10}, rounds=3)
    for size in (1, 2, 4):
        others = size - 1
        assert formulas.product_bytes(100, 8, size) == 12 * 100 * 8 * others
        assert formulas.summed(10, size) == 2 * formulas.moved(10, size) == 20 * others
        vectors = formulas.vectors_bytes(100, found, size)
        # The start, and the products in single and in double precision.
        tables = (8 * 8 + 12 * 30 + 16 * 10) * 100 * others
        # A Gram matrix, its vectors and values: one at the start, two a round.
        assert vectors == tables + 7 * (16 * 64 + 8 * 64 + 8 * 8) * others
        assert formulas.anchors_bytes(recipe, 100, 8, found, 4, size) >= vectors
    assert formulas.paper_step_bytes(7, 2) == 8 * (2 * 7 + 1)


def test_columns_are_counted(import_benchmark):
    """Of a matrix whose vectors take one round: those of its basis."""
    formulas = import_benchmark('bytes_sent')
    edge_index = torch.ones(20, 20).nonzero().T
    interactions = normalized_interactions(edge_index, 20, 20)
    function = spectral._times_gram
    with formulas.counted_columns() as columns:
        randomized_svd(interactions, 20, 1, torch.Generator().manual_seed(0))
    # Of rank one, so in double precision.
    assert columns == {8: formulas.basis_width(1, 20, 20)}
    assert spectral._times_gram is function


def test_differences(script):
    first = {
        'figures': {'a': 0.5, 'b': 0.25},
        'evaluations': {'x 1': 0.5},
        'losses': {'1': 2.0},
        'model': 'm',
    }
    same = script.apart(first, first)
    assert same['same_epochs'] and same['same_bytes']
    assert same['figures'] == same['losses'] == 0
    other = first | {
        'figures': {'a': 0.5, 'b': 0.5},
        'losses': {'1': 3.0},
        'evaluations': {'x 1': 0.5, 'x 2': 0.5},
        'model': 'n',
    }
    found = script.apart(other, first)
    assert not found['same_epochs'] and not found['same_bytes']
    assert (found['figures'], found['losses']) == (0.25, 0.5)


def test_times_of_one_process(script, tmp_path, monkeypatch):
    """Recipe fast, in this process instead of one of its own."""
    before = torch.get_num_threads()

    def worker(args, part, dataset, size, prefix):
        job = vars(args) | {'part': part, 'dataset': dataset}
        data = script.get_dataset(dataset, None, args.protocol)
        return script.take_times(job, data)

    monkeypatch.setattr(script, 'worker', worker)
    monkeypatch.setattr(script, 'reuse_freed_memory', lambda: None)
    monkeypatch.setattr(script.os, 'sched_getaffinity', lambda _: {0})
    options = ['--part', 'scaling', '--rounds', '1', *SMALL]
    result = call(script, tmp_path, *options)
    ((name, entry),) = result['scaling'].items()
    assert name.startswith('synthetic fast')
    (times,) = entry['rounds']['1']
    assert set(times) == {'anchors', 'evaluation', 'all together'}
    assert '| anchors |' in (tmp_path / 'distributed.md').read_text()
    assert torch.get_num_threads() == before


def test_bytes(script, tmp_path):
    """Two processes in a network namespace: what is sent is what the formulas say."""
    try:
        options = ['--part', 'bytes', '--processes', '2', *SMALL]
        result = call(script, tmp_path, *options)
    except SystemExit as error:
        if 'needs a network namespace' not in str(error):
            raise
        pytest.skip(str(error))
    (entry,) = result['bytes'].values()
    steps = entry['processes']['2']['steps']
    ratios = {
        name: x['measured'] / x['formula']
        for name, x in steps.items()
        if x['formula'] > 100_000
    }
    assert len(ratios) >= 2
    assert all(ratio == pytest.approx(1, abs=0.1) for ratio in ratios.values())
    assert '## Bytes on the wire' in (tmp_path / 'distributed.md').read_text()


def test_same_and_parts_side_by_side(script, tmp_path, monkeypatch):
    """One layout, and an entry of another part that stays."""
    monkeypatch.setattr(script, 'LAYOUTS', {'1 process': (1, 1)})
    kept = {'rounds': {'1': [{'anchors': 1.0}]}, 'dataset': 'x', 'recipe': 'fast'}
    kept |= {'call': '', 'date': '', 'threads': 1, 'processor': '', 'torch': ''}
    kept |= {'protocol': ''}
    path = tmp_path / 'distributed.json'
    path.write_text(json.dumps({'scaling': {'x': kept}}))
    result = call(script, tmp_path, '--set', 'embedding_dim=16')
    assert result['scaling'] == {'x': kept}
    (entry,) = result['same'].values()
    layout = entry['layouts']['1 process']
    assert layout['same_bytes'] and layout['num_losses'] == 0
    assert Path(tmp_path / 'work/same-synthetic-1-process/metrics.json').exists()


def test_no_nodes_here(script, monkeypatch):
    """Where there can be no namespaces, a layout is left out with the reason."""

    def fail(command, **_):
        raise script.subprocess.CalledProcessError(1, command, stderr='not\npermitted')

    monkeypatch.setattr(script.subprocess, 'run', fail)
    with pytest.raises(script.subprocess.CalledProcessError) as info:
        with script.two_nodes():
            pass
    assert script.reason(info.value) == 'not permitted'
