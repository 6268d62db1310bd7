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


def lines_of(capsys, *words):
    capsys.readouterr()
    assert run.main([str(word) for word in words]) == 0
    return capsys.readouterr().out.splitlines()


def error_of(capsys, *words):
    capsys.readouterr()
    assert run.main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_export_a_bundle(fast_run, tmp_path, capsys):
    path = tmp_path / 'small.c2f'
    call = ['export', '--checkpoint', fast_run, '--out', path]
    lines = lines_of(capsys, *call)
    sizes = [int(line.split()[1].replace(',', '')) for line in lines[:-1]]
    assert sum(sizes) == path.stat().st_size
    assert lines[-1] == f'{path}: {path.stat().st_size:,} bytes'
    model, bundle = pyg_c2f.load(fast_run), Bundle.load(path)
    expected, _ = model.recommend(history=[3, 8, 1], k=10)
    items, _ = bundle.recommend([3, 8, 1], 10)
    assert len(set(items.tolist()) & set(expected.tolist())) >= 8
    small = lines_of(capsys, *call, '--weight-bits', 3, '--no-names')
    assert small[2].startswith('LINK') and small[2] < lines[2]
    assert Bundle.load(path).item_ids is None is not bundle.item_ids


def test_export_onnx(fast_run, tmp_path, capsys):
    onnxruntime = pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    path = tmp_path / 'small.onnx'
    call = ['export', '--format', 'onnx', '--checkpoint', fast_run, '--out', path]
    (line,) = lines_of(capsys, *call)
    assert line == f'{path}: {path.stat().st_size:,} bytes'
    session = onnxruntime.InferenceSession(path)
    items, _ = session.run(None, {'history': [3, 8, 1], 'k': [10]})
    expected, _ = pyg_c2f.load(fast_run).recommend(history=[3, 8, 1], k=10)
    assert len(set(items.tolist()) & set(expected.tolist())) >= 8


def test_export_goes_beside_the_model(fast_run, capsys):
    lines_of(capsys, 'export', '--checkpoint', fast_run)
    (fast_run / 'model.c2f').unlink()


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['--format', 'tflite'], "invalid choice: 'tflite'"),
        (['--format', 'onnx', '--no-names'], '--no-names goes with --format bundle'),
        (['--out', 'a.onnx', '--weight-bits', '5'], '--weight-bits goes with --format'),
        (['--weight-bits', '0'], 'expected a whole number from 2 to 8'),
        (['--out', '.'], 'is a folder; name a file in it'),
        (['--out', 'nowhere/model.c2f'], 'nowhere'),
    ],
)
def test_wrong_exports(options, says, fast_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in error_of(capsys, 'export', '--checkpoint', fast_run, *options)
    assert not list(tmp_path.iterdir())
    assert not list(fast_run.glob('model.c2f*'))


def test_export_of_the_paper(capsys, tmp_path):
    edge_index = torch.tensor([[0, 1], [0, 1]])
    model = pyg_c2f.C2F(edge_index, 2, 3, 2, 2, 4, fine_per_coarse=2)
    pyg_c2f.save(model, tmp_path)
    assert '--recipe fast' in error_of(capsys, 'export', '--checkpoint', tmp_path)


def test_export_leaves_the_checkpoint_alone(fast_run, capsys):
    before = (fast_run / 'model.safetensors').read_bytes()
    call = ['export', '--checkpoint', fast_run, '--out', fast_run / 'model.safetensors']
    assert 'is the checkpoint itself' in error_of(capsys, *call)
    assert (fast_run / 'model.safetensors').read_bytes() == before


@pytest.fixture
def served(monkeypatch):
    """What the demo would serve."""
    calls = []
    monkeypatch.setattr(demo, 'serve', lambda *args: calls.append(args))
    return calls


def test_demo_with_made_up_films(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(['demo', '--port', '0']) == 0
    assert 'the films are invented' in capsys.readouterr().err
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


def test_demo_of_a_checkpoint(served, fast_run, tmp_path):
    call = ['demo', '--checkpoint', str(fast_run), '--out', str(tmp_path)]
    assert run.main(call) == 0
    bundle = Bundle.load(tmp_path / 'site/model.c2f')
    assert bundle.item_titles[3] == 'The item 3'
    assert {path.name for path in tmp_path.iterdir()} == {'site'}


def test_demo_of_a_checkpoint_and_data(capsys, fast_run):
    call = ['demo', '--checkpoint', fast_run, '--data-root', '.']
    assert 'one of the two' in error_of(capsys, *call)


def test_titles_that_are_made_up():
    titles = [demo.made_up(item) for item in range(3000)]
    assert len(set(titles)) == 3000
    assert titles[0] != titles[1]
    assert ', part ' not in titles[800] and titles[900].endswith(', part 2')


def test_demo_serves(fast_run, tmp_path):
    call = [sys.executable, ROOT / 'run.py', 'demo', '--checkpoint', fast_run]
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
        assert 'give another, or 0 for any' in other.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ''
    finally:
        process.kill()
