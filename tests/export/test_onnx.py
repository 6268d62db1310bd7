"""The writer of ONNX models: lists of onnxruntime are lists of the model."""

import sys

import numpy as np
import pytest
import torch

from pyg_c2f import load
from pyg_c2f.export import write_onnx
from pyg_c2f.typing import InputError
from tests.export.test_bundle import KINDS as BUNDLED
from tests.export.test_bundle import NUM_ITEMS, make_model

onnx = pytest.importorskip('onnx', reason='writes ONNX models')
ort = pytest.importorskip('onnxruntime', reason='runs ONNX models')

KINDS = {
    **BUNDLED,
    'far apart': dict(num_coarse=700),
    'no fine left': dict(fine_per_item=2, threshold=9.0),
}


def runner(path):
    """The function from a history and a length to a list."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(path, options, providers=['CPUExecutionProvider'])

    def run(history, k=20):
        feed = {'history': np.array(history, np.int64), 'k': np.array([k])}
        return session.run(['items', 'scores'], feed)

    return run


def exported(model, path, **options):
    write_onnx(model, path / 'model.onnx', **options)
    return runner(path / 'model.onnx')


def assert_same_list(run, model, history, k):
    """Items may differ where scores do not."""
    items, scores = run(history, k)
    ids, expected = model.recommend(history=history, k=model.num_items)
    of_item = dict(zip(ids.tolist(), expected.tolist(), strict=True))
    num_left = model.num_items - len(set(history))
    assert len(items) == len(set(items)) == min(k, num_left)
    assert not set(items) & set(history)
    np.testing.assert_allclose(scores, expected[: len(items)], rtol=1e-5, atol=1e-5)
    theirs = [of_item[item] for item in items]
    np.testing.assert_allclose(scores, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_lists_are_those_of_the_model(kind, tmp_path):
    model = make_model(**KINDS[kind])
    run = exported(model, tmp_path)
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 10, NUM_ITEMS - 1, 200):
        history = rng.integers(NUM_ITEMS, size=length).tolist()
        for k in (1, 10, 1000):
            assert_same_list(run, model, history, k)


def test_a_repeated_item_counts_once(tmp_path):
    run = exported(make_model(fine_per_item=2), tmp_path)
    for given, expected in zip(run([7, 3, 7, 7]), run([3, 7]), strict=True):
        assert given.tolist() == expected.tolist()


def test_no_item_is_left(tmp_path):
    items, scores = exported(make_model(), tmp_path)(range(NUM_ITEMS))
    assert len(items) == len(scores) == 0


@pytest.mark.parametrize('history', ([-1], [3, NUM_ITEMS], [-(2**63)], []))
def test_a_wrong_history_is_an_error(history, tmp_path):
    run = exported(make_model(), tmp_path)
    with pytest.raises(Exception, match='out of data bounds'):
        run(history)


# A trained model ----------------------------------------------------------------------


def test_a_checkpoint(fast_run, tmp_path):
    model = load(fast_run)
    run = exported(model, tmp_path)
    rowptr, col = model.train_items()
    for user in range(10):
        history = col[rowptr[user] : rowptr[user + 1]].tolist()
        assert_same_list(run, model, history, 20)


# The file -----------------------------------------------------------------------------


def test_what_the_file_says(tmp_path):
    write_onnx(make_model(), tmp_path / 'model.onnx')
    model = onnx.load(tmp_path / 'model.onnx')
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (18, 8)
    props = {prop.key: prop.value for prop in model.metadata_props}
    assert props == {
        'format': 'pyg_c2f history to list',
        'version': '1',
        'num_items': str(NUM_ITEMS),
    }
    assert [value.name for value in model.graph.input] == ['history', 'k']
    assert [value.name for value in model.graph.output] == ['items', 'scores']


def test_a_failure_leaves_nothing(tmp_path):
    (tmp_path / 'folder').mkdir()
    for path in (tmp_path / 'folder', tmp_path / 'missing' / 'model.onnx'):
        with pytest.raises(OSError):
            write_onnx(make_model(), path)
    assert [path.name for path in tmp_path.rglob('*')] == ['folder']


# What it refuses ----------------------------------------------------------------------


def test_refuses_numbers_that_are_not_finite(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.bias[3] = torch.nan
    with pytest.raises(InputError, match='not finite'):
        write_onnx(model, tmp_path / 'model.onnx')


def test_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match=r'pip install pyg-c2f\[onnx\]'):
        write_onnx(make_model(), tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())
