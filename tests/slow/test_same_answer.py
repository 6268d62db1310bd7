"""One seed gives the same bytes in any process, with any number of threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = {
    'fast': '--recipe fast',
    # Steps so large that each stage comes to its second phase, with re-assignment.
    'paper': '--recipe paper --set max_epochs=4 eval_every=1 patience=1 '
    'embedding_dim=32 lr_coarse=3 lr_fine=3',
}
PROGRAM = """
import sys, run
from pyg_c2f import experiment
experiment.write_report = lambda out, *_: out / 'report.html'
for name, options in {runs}.items():
    call = ['train', '--quiet', '--out', sys.argv[1] + '/' + name, *options.split()]
    assert run.main(call) == 0
"""


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
    """Runs in separate processes: two with one thread, one with two."""
    root = tmp_path_factory.mktemp('answers')

    def start(name, threads):
        (root / name).mkdir()
        call = [sys.executable, '-c', PROGRAM.format(runs=RUNS), str(root / name)]
        env = os.environ | {'OMP_NUM_THREADS': str(threads), 'PYTHONHASHSEED': 'random'}
        env['OMP_WAIT_POLICY'] = 'passive'  # Waiting threads leave the cores to others.
        return subprocess.Popen(call, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)

    alone = [start('first', 1), start('again', 1)]
    assert [process.wait(300) for process in alone] == [0, 0]
    assert start('two threads', 2).wait(300) == 0
    return root


def answer(folder):
    """The bytes of the models, and the figures."""
    metrics = json.loads((folder / 'metrics.json').read_text())
    del metrics['seconds']
    models = {path.name: path.read_bytes() for path in folder.glob('*.safetensors')}
    assert len(models) > 2
    return models, metrics


def test_all_phases_are_run(answers):
    names = {f'{stage}-{phase}' for stage in ('coarse', 'fine') for phase in (1, 2)}
    assert names <= {path.stem for path in (answers / 'first/paper').iterdir()}


@pytest.mark.parametrize('other', ['again', 'two threads'])
@pytest.mark.parametrize('name', RUNS)
def test_same_bytes(answers, name, other):
    assert answer(answers / 'first' / name) == answer(answers / other / name)
