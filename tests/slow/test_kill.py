"""Runs that are killed and resumed end with the same bits (more in kill.py)."""

from itertools import product

import kill
import pytest

from pyg_c2f import experiment
from pyg_c2f.checkpoint import read_tensors
from pyg_c2f.recipes.resume import resume_files
from tests.tiny import settings, write_text_data


@pytest.fixture
def call(tmp_path, monkeypatch):
    """A training of a second, without the drawing."""
    monkeypatch.setattr(experiment, 'write_report', lambda out, *_: out / 'report.html')
    write_text_data(tmp_path)
    data = ['--data-root', str(tmp_path), '--dataset', 'text', '--protocol', 'c2f']
    # Long enough to be killed in each phase of both stages.
    longer = settings(max_epochs=8, patience=2, batch_size_fine=512)
    return ['train', *data, '--quiet', *longer]


def test_killed_and_continued(call, tmp_path):
    found = kill.compare(tmp_path / 'runs', call, 12, seed=1, progress=False)
    assert found['different'] == []
    points = [point for x in found['trials'] for point in x['points']]
    assert len(points) >= 12
    seen = {(kind == 'time', where.split(',')[0]) for kind, _, where in points}
    assert seen >= set(product((True, False), ('coarse', 'fine')))
    assert any(x['damaged'] for x in found['trials'])


@pytest.mark.parametrize('number', [1, 20])
@pytest.mark.parametrize('kind', ['half written', 'before the rename'])
def test_killed_in_a_write(call, tmp_path, kind, number):
    """The write is not there, and what was there before it is whole."""
    out, log = tmp_path / 'out', tmp_path / 'log.txt'
    assert kill.start([*call, '--out', str(out)], (kind, number), log, out) == -9
    (part,) = out.glob('*.part')
    assert part.with_suffix('') not in resume_files(out) or number > 1
    for path in out.glob('*.safetensors'):
        read_tensors(path)
    again = ['train', '--resume', '--out', str(out)]
    assert kill.start(again, None, log, out) in (0, 2)


def test_another_answer_is_noticed(call, tmp_path):
    """The comparison can fail."""
    log = tmp_path / 'log.txt'
    for name, seed in (('a', '1'), ('b', '2')):
        out = tmp_path / name
        options = ['--seed', seed, '--out', str(out)]
        assert kill.start([*call, *options], None, log, out) == 0
    a, b = (kill.content(tmp_path / name) for name in 'ab')
    assert a != b and a['model.safetensors'] != b['model.safetensors']
