"""The benchmark of all methods: what it chooses, writes and goes on with."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from methods import (
    EASE,
    GFCF,
    IALS,
    ColumnWise,
    CompressedLightGCN,
    Half,
    HashEmbedding,
    LightGCN,
    LowPass,
    Pruned,
    RowWise,
    file_bytes,
    histories_of,
)

ROOT = Path(__file__).parents[1]
NAMES = ['popularity', 'ours', 'low-pass', 'low-pass rounded', 'LinkProp']


@pytest.fixture(scope='module')
def modules(import_benchmark):
    return [import_benchmark(x) for x in ('frontier', 'frontier_report')]


def call(out, *names):
    program = str(ROOT / 'benchmarks' / 'frontier.py')
    line = [sys.executable, program, '--dataset', 'synthetic', '--quick', '--only']
    line += [*names, '--out', str(out), '--runs', str(out / 'runs')]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def test_a_quick_look(tmp_path):
    run = call(tmp_path, *NAMES)
    assert run.returncode == 0, run.stderr
    path = tmp_path / 'frontier-quick.json'
    before = path.read_text()
    methods = json.loads(before)['datasets']['synthetic']['methods']
    assert set(methods) == set(NAMES)
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
    assert all(name in text for name in NAMES)
    picture = tmp_path / 'frontier-quick-synthetic.png'
    assert picture.read_bytes().startswith(b'\x89PNG')

    # Done already: a second call measures nothing again.
    assert call(tmp_path, *NAMES).returncode == 0
    after = json.loads(path.read_text())['datasets']
    assert after == json.loads(before)['datasets']


def test_what_is_compressed_needs_its_tables(tmp_path):
    run = call(tmp_path, 'low-pass PQ')
    assert 'run that first' in run.stdout + run.stderr


def test_choose(modules):
    frontier, _ = modules

    def trial(size, quality):
        return {'bytes': size, 'val': {'ndcg@20': quality}}

    small, worse, large = trial(90, 0.1), trial(95, 0.05), trial(900, 0.2)
    trials = [worse, large, small, {'params': {}, 'refused': 'too large'}]
    assert frontier.choose(trials, [50, 100, 200, 1000]) == [small, large]
    assert frontier.choose(trials, [905]) == [small]  # no room for a few more bytes
    assert frontier.choose(trials, [50]) == []


def test_front_and_best(modules):
    _, report = modules

    def point(name, size, quality):
        value = {'ndcg@20': [quality, 0.0], 'recall@20': [quality, 0.0]}
        summary = {'bytes': size, 'standard': value, 'c2f': value}
        return report.Point(name, {'summary': summary})

    found = [point('a', 10, 0.1), point('b', 20, 0.05), point('c', 30, 0.3)]
    assert [x.method for x in report.front(found)] == ['a', 'c']
    assert report.best(found, 25, 'standard').method == 'a'
    assert report.best(found, 5, 'standard') is None


@pytest.mark.parametrize(
    'method',
    [
        LowPass(4, codec=RowWise(4)),
        GFCF(4, codec=Half()),
        EASE(10.0, 3),
        IALS(4, codec=ColumnWise(4)),
        LightGCN(embedding_dim=4, epochs=2, codec=Pruned(0.5)),
        CompressedLightGCN(
            embedding_dim=4, epochs=2, embedding=partial(HashEmbedding, num_buckets=9)
        ),
    ],
    ids=lambda method: type(method).__name__,
)
def test_the_store_holds_what_a_method_fits(method, modules, tmp_path):
    frontier, _ = modules
    rated = torch.rand(30, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    train = histories_of(rated.nonzero().T, 30, 20)
    store = frontier.Store(tmp_path)
    want = method.fit(train, torch.Generator().manual_seed(3))
    for _ in range(2):  # fitted, and read again
        stored, seconds, _ = store.fit(method, train, 3)
        assert len(file_bytes(stored)) == len(file_bytes(want))
        assert seconds > 0
    users = torch.arange(30)
    got, expected = (method.scorer(x, train)(users) for x in (stored, want))
    # EASE is whole in the store, as float16.
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-3)
