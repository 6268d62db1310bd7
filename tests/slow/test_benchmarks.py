"""The benchmarks whose parts are processes of their own, on small data."""

import json

import out_of_core
import pytest

from tests.benchmarks.test_distributed import SMALL, call


def test_out_of_core(tmp_path, monkeypatch):
    pytest.importorskip('pyarrow')
    monkeypatch.setattr(
        out_of_core, 'SETTINGS', out_of_core.SETTINGS | {'embedding_dim': 16}
    )
    call = ['--interactions', '20000', '--data-root', str(tmp_path / 'data')]
    call += ['--out', str(tmp_path), '--eval-users', '50', '--memory', '8']
    out_of_core.main(call)
    path = tmp_path / 'out_of_core.json'
    first = json.loads(path.read_text())
    size = first['sizes']['20000']
    assert (size['num_users'], size['num_items']) == (1000, 200)
    assert size['test']['recall@20'] > 0 and size['popularity']['recall@20'] > 0
    assert size['run']['peak_bytes'] > 1e8
    seconds = out_of_core.seconds_of(size)
    assert list(seconds) == list(out_of_core.PARTS)
    assert seconds['sum'] == pytest.approx(sum(list(seconds.values())[:-1]))
    assert 'In all linear within 25%' in path.with_suffix('.md').read_text()
    # What is done is not done again.
    monkeypatch.setattr(out_of_core, 'run', None)
    out_of_core.main(call)
    assert json.loads(path.read_text())['sizes'] == first['sizes']


def test_bytes(tmp_path):
    """Two processes in a network namespace: what is sent is what the formulas say."""
    try:
        options = ['--part', 'bytes', '--processes', '2', *SMALL]
        result = call(tmp_path, *options)
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
