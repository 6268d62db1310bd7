"""The benchmarks beyond memory and beyond one machine, on data of no size."""

import json

import pytest

pytest.importorskip('pyarrow')


@pytest.fixture
def scripts(import_benchmark):
    return import_benchmark


def test_out_of_core(scripts, tmp_path, monkeypatch):
    script = scripts('out_of_core')
    monkeypatch.setattr(script, 'SETTINGS', script.SETTINGS | {'embedding_dim': 16})
    call = ['--interactions', '20000', '--data-root', str(tmp_path / 'data')]
    call += ['--out', str(tmp_path), '--eval-users', '50', '--memory', '8']
    script.main(call)
    path = tmp_path / 'out_of_core.json'
    first = json.loads(path.read_text())
    size = first['sizes']['20000']
    assert (size['num_users'], size['num_items']) == (1000, 200)
    assert size['test']['recall@20'] > 0 and size['popularity']['recall@20'] > 0
    assert size['run']['peak_bytes'] > 1e8
    seconds = script.seconds_of(size)
    assert list(seconds) == list(script.PARTS)
    assert seconds['sum'] == pytest.approx(sum(list(seconds.values())[:-1]))
    assert 'In all linear within 25%' in path.with_suffix('.md').read_text()
    # What is done is not done again.
    monkeypatch.setattr(script, 'run', None)
    script.main(call)
    assert json.loads(path.read_text())['sizes'] == first['sizes']


def test_plan(scripts, tmp_path):
    script = scripts('plan')
    script.main(['--dataset', 'synthetic', '--out', str(tmp_path), '--rounds', '1'])
    result = json.loads((tmp_path / 'plan.json').read_text())
    constants = script.Constants(**result['constants'])
    assert min(constants) > 0
    page = (tmp_path / 'plan.md').read_text()
    assert page.count('| 512 |') >= 3
    recipe = script.FastRecipe()
    few, many = (script.Size(1e7, 1e6, 1e9, 128, w) for w in (8, 64))
    # Eight times the workers do it in an eighth of the time; what they send stays.
    spent = [script.seconds(x, recipe, constants, 100) for x in (few, many)]
    for key, value in spent[0].items():
        assert value == pytest.approx(8 * spent[1][key])
    sent = [script.sent(x, recipe, constants) for x in (few, many)]
    assert sent[0] < sent[1] < 1.2 * sent[0]
    assert (
        script.memory(many, recipe)['anchors'] < script.memory(few, recipe)['anchors']
    )
