"""The scripts run on small data, go on where they stopped, and choose as they say."""

import json
from types import SimpleNamespace

import bundle
import common
import frontier
import little
import plan
import pytest
import scale
import search
import size_quality
import time_to_quality
import torch

from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.recipes import FastRecipe
from pyg_c2f.typing import RATES

SMALL = ['--dataset', 'small', '--set', 'embedding_dim=32', '--set', 'num_fine=64']


def small_data(name='', root=None, protocol='standard'):
    return SyntheticHierarchy(300, 400, 6000, 4, 8, protocol=protocol)[0]


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Small data, in a folder of its own."""
    monkeypatch.setattr(common, 'get_dataset', small_data)
    for script in (common, scale, frontier, time_to_quality):
        monkeypatch.setattr(script, 'reuse_freed_memory', lambda: None)
    monkeypatch.chdir(tmp_path)


def read(path):
    return json.loads(path.read_text())


def test_size_quality(tmp_path, monkeypatch):
    call = [*SMALL, '--quick', '--sizes', '0.001', '0.0065', '0.007', '1', '2']
    call += ['--out', str(tmp_path), '--set', 'fine_per_item=1']
    size_quality.main(call)
    path = tmp_path / 'size_quality-small-standard.json'
    result = read(path)
    # The smallest holds nothing, and the first large one all that there is to hold.
    assert list(result['chosen']) == ['0.0065', '0.007', '1']
    for size, entry in result['chosen'].items():
        assert entry['summary']['stored'] <= float(size) * 1e6
    assert result['chosen']['0.007']['summary']['stored'] > 0.96 * 7000
    assert path.with_suffix('.png').stat().st_size > 1000
    assert 'Left out: 0.001, 2 MB' in path.with_suffix('.md').read_text()

    monkeypatch.setattr(size_quality, 'build', None)
    monkeypatch.setattr(common, 'measure', None)
    size_quality.main(call)
    assert read(path)['chosen'] == result['chosen']


def test_search(tmp_path, monkeypatch):
    call = ['--dataset', 'small', '--sizes', 'none', '6kB', '--seconds', '1']
    call += ['--seeds', '1', '--out', str(tmp_path)]
    search.main(call)
    path = tmp_path / 'search-small.json'
    runs = read(path)['runs']
    assert list(runs) == ['defaults', 'none', '6kB']
    for key, (run,) in ((key, runs[key].values()) for key in runs):
        assert 0.1 < run['train']['ndcg@20'] < 1 and run['refit']['recall@20'] > 0.1
        assert (key == 'defaults') == (not run['trials'])
    assert runs['6kB']['0']['refit']['bytes'] <= 6000
    assert '6kB' in path.with_suffix('.md').read_text()
    assert (tmp_path / 'search.png').stat().st_size > 1000
    monkeypatch.setattr(search, 'run', None)
    search.main(call)
    assert read(path)['runs'] == runs


def test_the_best_so_far_rises():
    trials = [{'ndcg': x, 'seconds': s} for s, x in enumerate((0.2, 0.1, 0.3))]
    assert search.best_so_far(trials) == [(0, 0.2), (1, 0.2), (2, 0.3)]


def test_little(tmp_path, monkeypatch):
    pytest.importorskip('implicit')
    planted = {'planted, 50 items': (100, 50, 1000, 3, 6)}
    monkeypatch.setattr(little, 'PLANTED', planted)
    call = ['--seeds', '2', '--out', str(tmp_path)]
    little.main(call)
    runs = read(tmp_path / 'little.json')['shops']['planted, 50 items']
    assert list(runs) == ['0', '1']
    assert all(x['defaults'] > 1.5 * x['popularity'] for x in runs.values())
    monkeypatch.setattr(little, 'compare', None)
    little.main(call)
    assert 'planted, 50 items | 2 |' in (tmp_path / 'little.md').read_text()


def test_a_part_of_a_data_set_is_split_by_user():
    data = little.part_of(small_data(), 80, 40, seed=1)
    names = ('edge_index', 'val_edge_label_index', 'test_edge_label_index')
    train, val, test = (data[RATES][name] for name in names)
    pairs = torch.cat([train, val, test], dim=1)
    assert pairs.unique(dim=1).size(1) == pairs.size(1)
    count = torch.bincount(pairs[0], minlength=data['user'].num_nodes)
    assert int(count.min()) >= 4 and int(pairs[1].max()) < 40
    for part in (val, test):
        held_out = torch.bincount(part[0], minlength=len(count))
        assert held_out.equal((count * 0.1).ceil().long())


def test_scale(tmp_path, monkeypatch, capsys):
    def in_this_process(call, **_):
        scale.main(call[2:])
        return SimpleNamespace(stdout=capsys.readouterr().out)

    monkeypatch.setattr(scale.subprocess, 'run', in_this_process)
    call = ['--interactions', '2e4', '6e4', '--out', str(tmp_path)]
    scale.main(call)
    result = read(tmp_path / 'scale.json')
    for size, line in zip((20_000, 60_000), result['summary'], strict=True):
        assert line['interactions'] == pytest.approx(size, rel=0.05)
        assert 0 < line['spectrum'] < line['total'] and line['peak_bytes'] > 1e8
    assert 'linear within 20%' in (tmp_path / 'scale.md').read_text()
    assert (tmp_path / 'scale.png').stat().st_size > 1000
    monkeypatch.setattr(scale.subprocess, 'run', None)
    scale.main(call)
    assert read(tmp_path / 'scale.json') == result


def test_plan(tmp_path):
    plan.main(['--dataset', 'small', '--out', str(tmp_path), '--rounds', '1'])
    constants = plan.Constants(**read(tmp_path / 'plan.json')['constants'])
    assert min(constants) > 0
    assert (tmp_path / 'plan.md').read_text().count('| 512 |') >= 3
    recipe = FastRecipe()
    few, many = (plan.Size(1e7, 1e6, 1e9, 128, w) for w in (8, 64))
    # Eight times the workers do it in an eighth of the time; what they send stays.
    spent = [plan.seconds(x, recipe, constants, 100) for x in (few, many)]
    for key, value in spent[0].items():
        assert value == pytest.approx(8 * spent[1][key])
    sent = [plan.sent(x, recipe, constants) for x in (few, many)]
    assert sent[0] < sent[1] < 1.2 * sent[0]


@pytest.mark.parametrize('part', ['curve', 'bits', 'newcomers', 'index', 'onnx'])
def test_bundle(part, tmp_path, monkeypatch):
    for name, value in {
        'SIZES': (0.003, 0.004),
        'SHAPES': ((32, 0, 0.003), (32, 2, 0.02)),
        'NUM_CHOOSERS': 100,
        'NUM_NEWCOMERS': 50,
        'NUM_LISTS': 20,
        'BITS': (4, 8),
    }.items():
        monkeypatch.setattr(bundle, name, value)
    needs = {'newcomers': 'implicit', 'index': 'faiss', 'onnx': 'onnxruntime'}
    if part in needs:
        pytest.importorskip(needs[part])
    call = [part, *SMALL, '--out', str(tmp_path), '--files', str(tmp_path / 'files')]
    bundle.main([*call, '--seeds', '2'])
    path = tmp_path / f'bundle-{part}-small.json'
    first, page = read(path), path.with_suffix('.md').read_text()
    assert page.startswith(f'# Bundles: {part}')
    if part == 'curve':
        for run in first['runs'].values():
            assert run['file'] <= run['size'] * 1e6
            assert run['test']['recall@20'] > 0.9 * run['model']['recall@20']
    if part == 'newcomers':
        assert len(first['runs']) == 2
        # The model alone has nothing for those it does not know.
        assert page.count('|  |') == 1
    if part in ('bits', 'onnx'):
        kept = [x['kept'] for x in first['cells'].values() if 'kept' in x]
        assert 0.9 < max(kept) <= 1
    if part == 'index':
        assert first['cells']['exact, all items']['kept'] == 1
    # What is done is not done again.
    if part not in ('index', 'onnx'):
        bundle.main([*call, '--seeds', '2'])
        assert read(path) == first


def test_frontier(tmp_path, monkeypatch, capsys):
    pytest.importorskip('optuna')
    names = ['popularity', 'ours', 'low-pass', 'low-pass rounded', 'LinkProp']
    monkeypatch.setattr(frontier, 'get_dataset', small_data)
    call = ['--dataset', 'small', '--quick', '--out', str(tmp_path), '--only']
    frontier.main([*call, 'low-pass PQ'])
    assert 'run that first' in ''.join(capsys.readouterr())
    frontier.main([*call, *names])
    path = tmp_path / 'frontier-quick.json'
    result = read(path)['datasets']
    methods = result['small']['methods']
    assert set(methods) == set(names)
    for name, entry in methods.items():
        assert 1 <= len(entry['trials']) <= (1 if name == 'popularity' else 3)
        sizes = [x['summary']['bytes'] for x in entry['finals']]
        assert sizes == sorted(set(sizes)) and sizes
        qualities = [x['val']['ndcg@20'] for x in entry['finals']]
        assert qualities == sorted(qualities)
        for final in entry['finals']:
            assert final['serves_anyone']
            for protocol in ('standard', 'c2f'):
                for mean, deviation in final['summary'][protocol].values():
                    assert 0 < mean < 1 and deviation == 0
    # What is rounded starts from the tables that were chosen, and is smaller.
    plain = [x['params'] for x in methods['low-pass']['trials']]
    for trial in methods['low-pass rounded']['trials']:
        assert json.loads(trial['params']['source']) in plain
    text = (tmp_path / 'frontier-quick.md').read_text()
    assert all(name in text for name in names)
    picture = tmp_path / 'frontier-quick-small.png'
    assert picture.read_bytes().startswith(b'\x89PNG')
    # What is done is not done again.
    frontier.main([*call, *names])
    assert read(path)['datasets'] == result


def test_time_to_quality(tmp_path):
    call = ['--dataset', 'synthetic', '--seconds', '1', '--threads', '1']
    time_to_quality.main([*call, '--out', str(tmp_path)])
    path = tmp_path / 'time_to_quality-synthetic.json'
    methods = read(path)['methods']
    assert list(methods) == ['fast', 'gfcf', 'paper', 'lightgcn']
    for method in methods.values():
        seconds = [point['seconds'] for point in method['points']]
        assert seconds == sorted(seconds) and method['other_seconds'] > 0
    assert len(methods['gfcf']['points']) == 1 <= len(methods['paper']['points'])
    assert methods['lightgcn']['ended'] == 'by the limit'
    assert 'GF-CF' in path.with_suffix('.md').read_text()
    assert path.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
