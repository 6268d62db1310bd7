"""The writer of ONNX models: lists of onnxruntime are lists of the model."""

import sys

import numpy as np
import pytest
import torch

from pyg_c2f import fit, load, save
from pyg_c2f.config import FastRecipe
from pyg_c2f.datasets import get_dataset
from pyg_c2f.export import write_onnx
from pyg_c2f.nn import C2F, LinearC2F
from pyg_c2f.typing import Assignment, InputError

onnx = pytest.importorskip('onnx', reason='writes ONNX models')
ort = pytest.importorskip('onnxruntime', reason='runs ONNX models')

NUM_USERS, NUM_ITEMS = 40, 50
KINDS = {
    'coarse': dict(),
    'norms': dict(user_norm=0.3, item_norm=0.2, item_power=0.7),
    'one level': dict(fine_links=1),
    'sparse fine': dict(fine_links=2, threshold=1.0),
    'no fine left': dict(fine_links=2, threshold=9.0),
    'codebook': dict(num_coarse=9, fine_links=3),
    'far apart': dict(num_coarse=700),
    'few weights': dict(few=True),
    'bias': dict(fine_links=2, bias=True, user_norm=0.7),
}


def make_model(num_coarse=6, fine_links=0, bias=False, few=False, **options):
    torch.manual_seed(0)
    pairs = torch.rand(NUM_USERS, NUM_ITEMS).lt(0.1).nonzero().T
    model = LinearC2F(
        pairs,
        *(NUM_USERS, NUM_ITEMS, num_coarse, 12, 6),
        coarse_links=3,
        fine_links=fine_links or 1,
        **options,
    )
    # Of one item some anchors come twice, and some links are none.
    index = torch.randint(num_coarse, (NUM_ITEMS, 3))
    weight = torch.randn(NUM_ITEMS, 3) * (torch.rand(NUM_ITEMS, 3) < 0.8)
    model.set_assignment(Assignment(index, weight.round() if few else weight))
    if fine_links:
        size = 12 // fine_links
        local = torch.randint(size, (NUM_ITEMS, fine_links))
        index = local + size * torch.arange(fine_links)
        model.set_assignment(fine=Assignment(index, torch.ones(index.shape)))
    with torch.no_grad():
        if num_coarse == 6:
            model.coarse.codebook.copy_(torch.eye(6))
        if bias:
            model.bias.normal_()
    model.set_stage('fine' if fine_links else 'coarse')
    return model


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
    for length in (1, 2, 3, 10, 49, 200):
        history = rng.integers(NUM_ITEMS, size=length).tolist()
        for k in (1, 10, 1000):
            assert_same_list(run, model, history, k)


def test_a_repeated_item_counts_once(tmp_path):
    run = exported(make_model(fine_links=2), tmp_path)
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


@pytest.fixture(scope='module')
def trained():
    data = get_dataset('synthetic', protocol='c2f')
    return fit(data, FastRecipe(embedding_dim=64, dtype='float32'))


def histories(model):
    rowptr, col = model.train_items()
    for user in rowptr.diff().nonzero().flatten().tolist()[:100]:
        yield col[rowptr[user] : rowptr[user + 1]].tolist()


def test_a_checkpoint(trained, tmp_path):
    save(trained, tmp_path)
    model = load(tmp_path / 'model.safetensors')
    run = exported(model, tmp_path)
    for history in list(histories(model))[:10]:
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


def test_refuses_a_diffusion_channel(tmp_path):
    pairs = torch.tensor([[0, 1], [0, 1]])
    model = LinearC2F(pairs, 2, 3, 8, 2, 4, fine_links=1, diffusion=1.0)
    with pytest.raises(InputError, match='train with diffusion=0'):
        write_onnx(model, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


def test_refuses_the_paper_recipe(tmp_path):
    pairs = torch.tensor([[0, 1], [0, 1]])
    model = C2F(pairs, 2, 3, 2, 2, embedding_dim=4, fine_per_coarse=2)
    with pytest.raises(InputError, match='recipe paper'):
        write_onnx(model, tmp_path / 'model.onnx')


def test_refuses_fine_anchors_without_levels(tmp_path):
    model = make_model(fine_links=2)
    index, weight = model.fine.assignment
    for wrong in (Assignment(index.flip(1), weight), Assignment(index, weight / 2)):
        model.set_assignment(fine=wrong)
        with pytest.raises(InputError, match='one fine anchor of each level'):
            write_onnx(model, tmp_path / 'model.onnx')


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
