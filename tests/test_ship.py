"""Calls of run.py that leave something to ship: export and demo."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

import pyg_c2f
import run
from pyg_c2f.bundle import Bundle
from pyg_c2f.cli import demo

ROOT = Path(run.__file__).parent
SMALL = ('embedding_dim=16', 'num_fine=16')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A complete run on the embedded data set."""
    out = tmp_path_factory.mktemp('runs') / 'fast'
    assert run.main(['train', '--out', str(out), '--set', *SMALL]) == 0
    return out


def lines_of(capsys, *words):
    capsys.readouterr()
    assert run.main([str(word) for word in words]) == 0
    return capsys.readouterr().out.splitlines()


def error_of(capsys, *words):
    capsys.readouterr()
    assert run.main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_export_a_bundle(trained, tmp_path, capsys):
    path = tmp_path / 'small.c2f'
    lines = lines_of(capsys, 'export', '--checkpoint', trained, '--out', path)
    sizes = [int(line.split()[1].replace(',', '')) for line in lines[:-1]]
    assert sum(sizes) == path.stat().st_size
    assert lines[-1] == f'{path}: {path.stat().st_size:,} bytes'
    model, bundle = pyg_c2f.load(trained), Bundle.load(path)
    expected, _ = model.recommend(history=[3, 8, 1], k=10)
    items, _ = bundle.recommend([3, 8, 1], 10)
    assert len(set(items.tolist()) & set(expected.tolist())) >= 8


def test_export_options_of_a_bundle(trained, tmp_path, capsys):
    call = ['export', '--checkpoint', trained, '--out', tmp_path / 'a.c2f']
    whole = lines_of(capsys, *call)
    small = lines_of(capsys, *call, '--weight-bits', 3, '--no-names')
    assert small[2].startswith('LINK') and small[2] < whole[2]


def test_export_onnx(trained, tmp_path, capsys):
    onnxruntime = pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    path = tmp_path / 'small.onnx'
    call = ['export', '--format', 'onnx', '--checkpoint', trained, '--out', path]
    (line,) = lines_of(capsys, *call)
    assert line == f'{path}: {path.stat().st_size:,} bytes'
    session = onnxruntime.InferenceSession(path)
    items, _ = session.run(None, {'history': [3, 8, 1], 'k': [10]})
    expected, _ = pyg_c2f.load(trained).recommend(history=[3, 8, 1], k=10)
    assert len(set(items.tolist()) & set(expected.tolist())) >= 8


def test_export_goes_beside_the_model(trained, capsys):
    lines_of(capsys, 'export', '--checkpoint', trained)
    (trained / 'model.c2f').unlink()


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['--format', 'tflite'], "invalid choice: 'tflite'"),
        (['--format', 'onnx', '--no-names'], '--no-names is no option of --format'),
        (['--format', 'onnx', '--weight-bits', '5'], '--weight-bits is no option'),
        (['--weight-bits', '0'], '0 bits of a weight; choose 2 to 8'),
        (['--out', '.'], 'is a folder; name a file in it'),
        (['--out', 'nowhere/model.c2f'], 'nowhere'),
    ],
)
def test_wrong_exports(options, says, trained, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in error_of(capsys, 'export', '--checkpoint', trained, *options)
    assert not list(tmp_path.iterdir())
    assert not list(trained.glob('model.c2f*'))


def test_export_of_the_paper(capsys, tmp_path):
    edge_index = torch.tensor([[0, 1], [0, 1]])
    model = pyg_c2f.C2F(edge_index, 2, 3, 2, 2, 4, fine_per_coarse=2)
    pyg_c2f.save(model, tmp_path)
    assert '--recipe fast' in error_of(capsys, 'export', '--checkpoint', tmp_path)


def test_export_leaves_the_checkpoint_alone(trained, capsys):
    before = (trained / 'model.safetensors').read_bytes()
    call = ['export', '--checkpoint', trained, '--out', trained / 'model.safetensors']
    assert 'is the checkpoint itself' in error_of(capsys, *call)
    assert (trained / 'model.safetensors').read_bytes() == before


def test_a_run_whose_ids_lie_beside_it(trained, tmp_path, capsys):
    pyg_c2f.save(pyg_c2f.load(trained), tmp_path)
    lines_of(capsys, 'recommend', '--checkpoint', tmp_path, '--user', '3')
    (tmp_path / 'ids.json').write_text('{}')
    call = ['recommend', '--checkpoint', tmp_path, '--user', '3']
    assert 'older version' in error_of(capsys, *call)


@pytest.fixture
def served(monkeypatch):
    """What the demo would serve."""
    calls = []
    monkeypatch.setattr(demo, 'serve', lambda *args: calls.append(args))
    return calls


def test_demo_with_made_up_films(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(['demo', '--port', '0']) == 0
    assert 'the films are made up' in capsys.readouterr().err
    ((site, port, says),) = served
    assert (site, port) == (Path('runs/demo/site'), 0)
    assert {path.name for path in site.iterdir()} == {*demo.PAGE, 'model.c2f'}
    bundle = Bundle.load(site / 'model.c2f')
    assert f'{bundle.num_items:,} items' in says
    assert len(set(bundle.item_titles)) == bundle.num_items
    # The second time it is there already.
    before = (site.parent / 'synthetic/model.safetensors').stat().st_mtime_ns
    assert run.main(['demo']) == 0
    assert (site.parent / 'synthetic/model.safetensors').stat().st_mtime_ns == before


def test_demo_of_a_checkpoint(served, trained, tmp_path):
    call = ['demo', '--checkpoint', str(trained), '--out', str(tmp_path)]
    assert run.main(call) == 0
    bundle = Bundle.load(tmp_path / 'site/model.c2f')
    assert bundle.item_titles is None
    assert {path.name for path in tmp_path.iterdir()} == {'site'}


def test_demo_of_a_checkpoint_and_data(capsys, trained):
    call = ['demo', '--checkpoint', trained, '--data-root', '.']
    assert 'one of the two' in error_of(capsys, *call)


def test_titles_that_are_made_up():
    titles = [demo.made_up(item) for item in range(3000)]
    assert len(set(titles)) == 3000
    assert titles[0] != titles[1]
    assert ', part ' not in titles[800] and titles[900].endswith(', part 2')


def test_demo_serves(trained, tmp_path):
    call = [sys.executable, ROOT / 'run.py', 'demo', '--checkpoint', trained]
    process = subprocess.Popen(
        [*call, '--out', tmp_path, '--port', '0'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background, shells have their children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        process.stdout.readline()
        url = process.stdout.readline().split()[1]
        assert url.startswith('http://127.0.0.1:')
        for name, kind in (
            ('', 'text/html'),
            ('app.js', 'text/javascript'),
            ('model.c2f', 'application/octet-stream'),
        ):
            with urllib.request.urlopen(url + name) as answer:
                assert answer.headers['Content-Type'] == kind
                assert answer.headers['Cache-Control'] == 'no-cache'
                content = answer.read()
        assert content == (tmp_path / 'site/model.c2f').read_bytes()
        # The same port is taken now.
        call = [*call, '--out', tmp_path, '--port', url.split(':')[2].strip('/')]
        other = subprocess.run(call, capture_output=True, text=True)
        assert other.returncode == 2
        assert 'name another, or 0 for any' in other.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ''
    finally:
        process.kill()
