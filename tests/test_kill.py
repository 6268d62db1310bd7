"""Runs that are killed and continued end with the same bits (fifty: benchmarks)."""

import importlib
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import run

ROOT = Path(__file__).parents[1]
SETTINGS = {
    'num_coarse': 6,
    'num_fine': 4,
    'embedding_dim': 8,
    'pca_components': 4,
    'fine_per_coarse': 2,
    'num_layers': 2,
    'batch_size_coarse': 512,
    'batch_size_fine': 512,
    'lr_coarse': 0.1,
    'lr_fine': 0.1,
    'max_epochs': 8,
    'patience': 2,
    'eval_every': 1,
}


@pytest.fixture(scope='module')
def kill():
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    yield importlib.import_module('kill')
    sys.path.pop(0)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """A training of a second, without the drawing."""
    monkeypatch.setattr(run, 'write_report', lambda out, *_: out / 'report.html')
    rng, folder = np.random.default_rng(0), tmp_path / 'data' / 'text'
    folder.mkdir(parents=True)
    rows = [(user, *rng.permutation(50)[:12].tolist()) for user in range(40)]
    for name, part in (('train', slice(1, 9)), ('test', slice(9, None))):
        lines = (f'{row[0]} {" ".join(map(str, row[part]))}\n' for row in rows)
        (folder / f'{name}.txt').write_text(''.join(lines))
    data = ['--data-root', str(tmp_path / 'data'), '--dataset', 'text']
    values = (f'{key}={value}' for key, value in SETTINGS.items())
    return ['train', *data, '--quiet', '--recipe', 'paper', '--set', *values]


def test_killed_and_continued(kill, call, tmp_path):
    found = kill.compare(tmp_path / 'runs', call, 12, seed=1, progress=False)
    assert found['different'] == []
    points = [point for x in found['trials'] for point in x['points']]
    assert len(points) >= 12
    seen = {(kind == 'time', where.split(',')[0]) for kind, _, where in points}
    assert seen >= set(product((True, False), ('coarse', 'fine')))
    assert any(x['damaged'] for x in found['trials'])


@pytest.mark.parametrize('number', [1, 9, 20])
@pytest.mark.parametrize('kind', ['half written', 'before the rename'])
def test_killed_in_a_write(kill, call, tmp_path, kind, number):
    """The write is not there, and what was there before it is whole."""
    out, log = tmp_path / 'out', tmp_path / 'log.txt'
    assert kill.start([*call, '--out', str(out)], (kind, number), log, out) == -9
    (part,) = out.glob('*.part')
    assert part.with_suffix('') not in kill.resume_files(out) or number > 1
    for path in out.glob('*.safetensors'):
        kill.checkpoint.read_tensors(path)
    assert kill.start(['train', '--resume', '--out', str(out)], None, log, out) in (
        0,
        2,
    )


def test_another_answer_is_noticed(kill, call, tmp_path):
    """The comparison can fail."""
    log = tmp_path / 'log.txt'
    for name, seed in (('a', '1'), ('b', '2'), ('c', '1')):
        out = tmp_path / name
        options = ['--seed', seed, '--out', str(out)]
        assert kill.start([*call, *options], None, log, out) == 0
    a, b, c = (kill.content(tmp_path / name) for name in 'abc')
    assert a == c and a != b
    assert a['model.safetensors'] != b['model.safetensors']
