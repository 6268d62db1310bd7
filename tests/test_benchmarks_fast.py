"""The benchmarks on recipe fast run on small data, and go on where they stopped."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pyg_c2f import fast
from pyg_c2f.config import FastRecipe
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.typing import ITEM, RATES, USER

SMALL = ['--dataset', 'small', '--set', 'embedding_dim=32', '--set', 'num_fine=64']


def small_data(*_):
    return SyntheticHierarchy(300, 400, 6000, num_groups=4, num_subgroups=8)[0]


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / 'benchmarks')
    common = importlib.import_module('common')
    monkeypatch.setattr(common, 'get_dataset', small_data)
    monkeypatch.setattr(common, 'reuse_freed_memory', lambda: None)
    monkeypatch.chdir(tmp_path)

    def script(name: str) -> ModuleType:
        return importlib.import_module(name)

    return script


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_ablation(scripts, tmp_path, monkeypatch):
    ablation, common = scripts('ablation'), scripts('common')
    names = ['default', 'no fine levels', '32-bit storage']
    call = [*SMALL, '--out', str(tmp_path), '--only', *names]
    ablation.main([*call, '--seeds', '1'])
    path = tmp_path / 'ablation-small-standard.json'
    first = read(path)['variants']
    assert list(first) == names
    run = first['default']['runs']['0']
    assert 0 < run['test']['ndcg@20'] < 1 and run['bytes']['inference_extra'] == 0
    assert (
        first['no fine levels']['runs']['0']['bytes']['stored'] < run['bytes']['stored']
    )
    assert 'no fine levels' in path.with_suffix('.md').read_text()

    done = []
    measure = common.measure
    monkeypatch.setattr(
        common, 'measure', lambda *args: done.append(args[2]) or measure(*args)
    )
    ablation.main([*call, '--seeds', '2'])
    second = read(path)['variants']
    assert done == [1, 1, 1]
    assert second['default']['runs']['0'] == run
    assert second['default']['summary']['seeds'] == 2


def test_size_quality(scripts, tmp_path, monkeypatch):
    script = scripts('size_quality')
    call = [*SMALL, '--quick', '--sizes', '0.001', '0.0065', '0.007', '1', '2']
    call += ['--out', str(tmp_path), '--set', 'fine_links=1']
    script.main(call)
    path = tmp_path / 'size_quality-small-standard.json'
    result = read(path)
    # The smallest holds nothing, and the first large one all that there is to hold.
    assert list(result['chosen']) == ['0.0065', '0.007', '1']
    for size, entry in result['chosen'].items():
        assert entry['summary']['stored'] <= float(size) * 1e6
    assert result['chosen']['0.007']['summary']['stored'] > 0.96 * 7000
    assert path.with_suffix('.png').stat().st_size > 1000
    assert 'Left out: 0.001, 2 MB' in path.with_suffix('.md').read_text()

    monkeypatch.setattr(script, 'build', None)
    monkeypatch.setattr(scripts('common'), 'measure', None)
    script.main(call)
    assert read(path)['chosen'] == result['chosen']


def test_remembered_changes_nothing(scripts):
    common = scripts('common')
    data, recipe = small_data(), FastRecipe(embedding_dim=16, num_fine=32)

    def build():
        return fast.build_fast(data, recipe, torch.Generator().manual_seed(3))

    expected, function = build().state_dict(), fast.spectral_features
    with common.remembered('spectral_features', common.spectrum_key):
        build()
        actual = build().state_dict()
    assert fast.spectral_features is function
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    'settings', [{}, {'fine_links': 0}, {'fine_links': 1, 'num_fine': 100}]
)
def test_estimated_bytes_are_near_the_stored_ones(scripts, settings):
    script = scripts('size_quality')
    recipe = FastRecipe(embedding_dim=64, **({'num_fine': 64} | settings))
    data = small_data()
    _, size = script.build(data, recipe)
    estimated = scripts('common').estimated_bytes(data, recipe)
    assert estimated == pytest.approx(size, rel=0.05)


def test_scale(scripts, tmp_path, monkeypatch):
    script = scripts('scale')
    call = ['--interactions', '20000', '6e4', '--out', str(tmp_path)]
    script.main(call)
    result = read(tmp_path / 'scale.json')
    for size, line in zip((20_000, 60_000), result['summary'], strict=True):
        assert line['interactions'] == pytest.approx(size, rel=0.05)
        assert 0 < line['spectrum'] < line['total']
        assert line['peak_bytes'] > 1e8
    assert 'linear within 20%' in (tmp_path / 'scale.md').read_text()
    assert (tmp_path / 'scale.png').stat().st_size > 1000
    monkeypatch.setattr(script.subprocess, 'run', None)
    script.main(call)
    assert read(tmp_path / 'scale.json') == result


def test_generated_pairs_are_distinct_and_skewed(scripts):
    data = scripts('scale').generate(50_000)
    edges = data[RATES].edge_index
    assert edges.unique(dim=1).size(1) == edges.size(1)
    assert int(edges[0].max()) < data[USER].num_nodes
    count = edges[1].bincount(minlength=data[ITEM].num_nodes).sort().values
    assert count[-len(count) // 10 :].sum() > 2 * count[: len(count) // 2].sum()


def test_tune_never_sees_test_items(scripts, tmp_path, monkeypatch):
    pytest.importorskip('optuna')
    script = scripts('tune')
    assert 'test_edge_label_index' in small_data()[RATES]
    seen = []

    def look(score, data, split, ks):
        assert split == 'val' and 'test_edge_label_index' not in data[RATES]
        seen.append(split)
        return evaluate_split(score, data, split, ks)

    def build(data, *args):
        assert 'test_edge_label_index' not in data[RATES]
        return build_fast(data, *args)

    evaluate_split, build_fast = script.evaluate_split, fast.build_fast
    monkeypatch.setattr(script, 'evaluate_split', look)
    monkeypatch.setattr(fast, 'build_fast', build)
    monkeypatch.setattr(script, 'WIDTHS', (16, 32))
    monkeypatch.setattr(script, 'PER_LEVEL', 32)
    call = [*SMALL, '--megabytes', '0.02', '--out', str(tmp_path)]
    script.main([*call, '--trials', '6'])
    path = tmp_path / 'tune-small-standard-0.02MB.json'
    result = read(path)
    assert seen and result['trials'] == 6 and result['complete'] > 0
    assert all(x['stored'] <= 20_000 for x in result['best'])
    values = [x['val']['ndcg@20'] for x in result['best']]
    assert values == sorted(values, reverse=True)
    assert '--set embedding_dim=' in path.with_suffix('.md').read_text()
    # A second call goes on.
    script.main([*call, '--trials', '8'])
    assert read(path)['trials'] == 8


def test_tune_says_how_to_get_optuna(scripts, monkeypatch):
    script = scripts('tune')
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(SystemExit, match='pip install optuna'):
        script.main(['--trials', '1'])


def test_the_best_line_repeats_the_trial(scripts, tmp_path, monkeypatch):
    pytest.importorskip('optuna')
    script, common = scripts('tune'), scripts('common')
    monkeypatch.setattr(script, 'WIDTHS', (16, 32))
    call = [*SMALL, '--megabytes', '1', '--out', str(tmp_path), '--trials', '3']
    script.main(call)
    best = read(tmp_path / 'tune-small-standard-1MB.json')['best'][0]
    line = common.as_settings(best['settings']).split()
    parser = common.data_arguments('')
    recipe = common.base_recipe(parser.parse_args([*SMALL, *line]))
    run = common.measure(small_data(), recipe, seed=0)
    assert run['val'] == pytest.approx(best['val'])
    assert run['bytes']['stored'] == best['stored']


@pytest.mark.parametrize('part', ['curve', 'bits', 'newcomers', 'index', 'onnx'])
def test_bundle(part, scripts, tmp_path, monkeypatch):
    bundle = scripts('bundle')
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
