"""Calls of run.py that leave something to ship: export and demo."""

import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import pyg_c2f
import run
from pyg_c2f.bundle import Bundle
from pyg_c2f.cli import demo

ROOT = Path(run.__file__).parent
HISTORY = [3, 8, 1]


@pytest.fixture
def call(capsys):
    """Makes a call of that exit status, and returns the lines it prints."""

    def answer(*words, status=0):
        capsys.readouterr()
        assert run.main([str(word) for word in words]) == status
        shown = capsys.readouterr()
        return (shown.err if status else shown.out).splitlines()

    return answer


def assert_similar(items, out):
    """A list for a history is nearly that of the model, whose weights are rounded."""
    expected, _ = pyg_c2f.load(out).recommend(history=HISTORY, k=10)
    assert len({*items.tolist()} & {*expected.tolist()}) >= 8


def test_export_a_bundle(fast_run, tmp_path, call):
    path = tmp_path / 'small.c2f'
    words = ['export', '--checkpoint', fast_run, '--out', path]
    lines = call(*words)
    sizes = [int(line.split()[1].replace(',', '')) for line in lines[:-1]]
    assert sum(sizes) == path.stat().st_size
    assert lines[-1] == f'{path}: {path.stat().st_size:,} bytes'
    bundle = Bundle.load(path)
    assert_similar(bundle.recommend(HISTORY, 10)[0], fast_run)
    small = call(*words, '--weight-bits', 3, '--no-names')
    assert small[2].startswith('LINK') and small[2] < lines[2]
    assert Bundle.load(path).item_ids is None is not bundle.item_ids
    # Without --out it is beside the model.
    call('export', '--checkpoint', fast_run)
    (fast_run / 'model.c2f').unlink()


def test_export_onnx(fast_run, tmp_path, call):
    onnxruntime = pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    path = tmp_path / 'small.onnx'
    words = ['export', '--format', 'onnx', '--checkpoint', fast_run, '--out', path]
    assert call(*words) == [f'{path}: {path.stat().st_size:,} bytes']
    session = onnxruntime.InferenceSession(path)
    items, _ = session.run(None, {'history': HISTORY, 'k': [10]})
    assert_similar(items, fast_run)


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        ('export --format tflite', "invalid choice: 'tflite'"),
        ('export --format onnx --no-names', '--no-names goes with --format bundle'),
        ('export --out a.onnx --weight-bits 5', '--weight-bits goes with --format'),
        ('export --weight-bits 0', 'expected a whole number from 2 to 8'),
        ('export --out .', 'is a folder; name a file in it'),
        ('export --out nowhere/model.c2f', 'nowhere'),
        ('export --out model.safetensors', 'is the checkpoint itself'),
        ('demo --data-root .', 'one of the two'),
    ],
)
def test_wrong_calls(words, says, fast_run, call, tmp_path, monkeypatch):
    out = tmp_path / 'model.safetensors'
    shutil.copy(fast_run / out.name, out)
    monkeypatch.chdir(tmp_path)
    (line,) = call(*words.split(), '--checkpoint', tmp_path, status=2)
    assert says in line
    assert [*tmp_path.iterdir()] == [out]
    assert out.read_bytes() == (fast_run / out.name).read_bytes()


def test_export_refuses_recipe_paper(text_run, call):
    (line,) = call('export', '--checkpoint', text_run, status=2)
    assert '--recipe fast' in line


@pytest.fixture
def served(monkeypatch):
    """What the demo would serve."""
    calls = []
    monkeypatch.setattr(demo, 'serve', lambda *args: calls.append(args))
    return calls


def test_demo_with_invented_films(served, tmp_path, monkeypatch, capsys):
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
