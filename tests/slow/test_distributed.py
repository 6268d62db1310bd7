"""Several processes give the results of one; refused settings and lost processes."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import run
from pyg_c2f import experiment
from pyg_c2f.anchors.codes import kmeans, kth_largest
from pyg_c2f.anchors.spectral import varimax
from pyg_c2f.checkpoint import read_tensors
from pyg_c2f.cli import torchrun as torchrun_module
from pyg_c2f.recipes.resume import read_resume
from pyg_c2f.shards import Group, Rows, one_thread_each
from tests.hard import HARD, weights
from tests.tiny import settings

ROOT = Path(__file__).parents[2]
FAST = 'num_fine=8 coarse_per_item=2 num_shards=4 item_norm=0.4 score_power=0.5'
# The same processes run all calls, because starting them takes the time.
PROGRAM = """
import json, os, sys
from pyg_c2f.cli import torchrun
from tests.slow.test_distributed import run_calls

folder, calls = sys.argv[1], json.loads(sys.argv[2])
assert torchrun.join()
leave = torchrun.leave
with open(f'{folder}/{os.environ["RANK"]}.json', 'w') as file:
    json.dump(run_calls('joined', calls), file)
leave()
"""


# Whole runs ---------------------------------------------------------------------------


def torchrun(size, *options):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    return [*command, '--nproc-per-node', str(size), *options]


def popen(command, **kwargs):
    env = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **kwargs)


def train_call(root, out, *options):
    data = ['--dataset', 'text', '--data-root', str(root)]
    return ['train', *data, '--quiet', '--out', str(out), *options]


# Long enough to lose a process on the way.
PAPER = [
    *settings(max_epochs=40, patience=40, lr_coarse=0.01),
    *('--stage', 'coarse'),
]
REFUSED = (
    ('num_shards=1', '--set num_shards=1'),
    (
        'diffusion=0.5',
        '--set diffusion=0.5: 2 processes can share --set diffusion=0 only',
    ),
)


@pytest.fixture(scope='module')
def answers(shared_root, start, tmp_path_factory):
    """For each number of processes its folder, and what each process answered.

    One is this process, two come from torchrun, three wait for work anyway.
    """
    folders = {x: tmp_path_factory.mktemp(f'processes{x}') for x in (1, 2, 3)}
    calls = {
        size: [
            train_call(shared_root, folder / 'fast', '--set', *FAST.split()),
            ['evaluate', '--checkpoint', str(folder / 'fast')],
        ]
        for size, folder in folders.items()
    }
    calls[1].append(train_call(shared_root, folders[1] / 'paper', *PAPER))
    for setting, _ in REFUSED:
        options = ['--set', *FAST.split(), setting]
        calls[2].append(train_call(shared_root, folders[2] / 'refused', *options))
    program = folders[2] / 'program.py'
    program.write_text(PROGRAM)
    command = [*torchrun(2), str(program), str(folders[2]), json.dumps(calls[2])]
    by_torchrun = popen(command, stdout=subprocess.DEVNULL)
    found = {1: [run_calls(None, calls[1])], 3: start(3)(run_calls, calls[3])}
    assert by_torchrun.wait(240) == 0
    found[2] = [json.loads((folders[2] / f'{r}.json').read_text()) for r in range(2)]
    return {size: (folders[size], found[size]) for size in folders}


def run_calls(group, calls):
    """The status, the output and the errors of each call, in this process.

    One process prints an error; as after a restart, another may print the next one.
    """
    changes = {'join_quietly': lambda: group is not None, 'leave': lambda: None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, 'write_report', lambda out, *_: out / 'report.html')
        for name, value in changes.items():
            patch.setattr(torchrun_module, name, value)
        answers = []
        for number, call in enumerate(calls):
            patch.setenv('TORCHELASTIC_RESTART_COUNT', str(number))
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = run.main(call)
            answers.append([status, out.getvalue(), err.getvalue()])
    return answers


def figures(out):
    """The metrics of a run, but for sizes of files and seconds."""
    metrics = json.loads((out / 'metrics.json').read_text())
    metrics['popularity'] = metrics['baselines']['popularity']
    keys = ('popularity', 'coarse', 'fine', 'val', 'test')
    return dict(leaves({key: metrics[key] for key in keys if key in metrics}))


def leaves(value, name=''):
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f'{name} {key}')
    else:
        yield name, value


def history(out):
    return [json.loads(x) for x in (out / 'history.jsonl').read_text().splitlines()]


def check_same_curve(ours, theirs):
    for line, other in zip(ours, theirs, strict=True):
        for key in ('stage', 'phase', 'epoch'):
            assert line[key] == other[key]
        assert (line['loss'] is None) == (other['loss'] is None)
        if line['loss'] is not None:
            assert line['loss'] == pytest.approx(other['loss'], rel=1e-5)
        assert line['val'] == pytest.approx(other['val'], abs=1e-4)


@pytest.mark.parametrize('size', [2, 3])
def test_recipe_fast_gives_the_same_bytes(answers, size):
    ours, theirs = (answers[x][0] / 'fast' for x in (size, 1))
    for name in ('coarse-1', 'fine-1', 'model'):
        file = f'{name}.safetensors'
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()
    assert figures(ours) == pytest.approx(figures(theirs), abs=1e-7)
    assert not list(ours.glob('*.part'))


@pytest.mark.parametrize('size', [2, 3])
def test_one_process_prints(answers, size):
    expected = answers[1][1][0]
    first, *others = answers[size][1]
    for number in range(2):
        assert first[number][0] == 0 and first[number][1]
        assert all(other[number][:2] == [0, ''] for other in others)
    # The figures of an evaluation.
    assert first[1][1] == expected[1][1] and 'recall@20' in first[1][1]


def test_what_cannot_be_shared(answers):
    """All processes refuse it, one of them says why."""
    for number, (_, says) in enumerate(REFUSED, 2):
        found = [answer[number] for answer in answers[2][1]]
        assert [status for status, *_ in found] == [2, 2]
        (line,) = ''.join(errors for *_, errors in found).splitlines()
        assert line.startswith('error: ') and says in line
    assert not (answers[2][0] / 'refused').exists()


# A lost process -----------------------------------------------------------------------


def ranks(torchrun):
    """The processes that torchrun has started."""
    children = Path(f'/proc/{torchrun.pid}/task/{torchrun.pid}/children').read_text()
    found = {}
    for pid in map(int, children.split()):
        words = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
        for word in words:
            if word.startswith(b'RANK='):
                found[int(word.removeprefix(b'RANK='))] = pid
    return found


# The process that writes is lost while the other one computes, and meets nobody.
BUSY = """
import os, signal, sys, time
import run
from pyg_c2f.recipes.paper import C2FTrainer

step, left = C2FTrainer.step, [9]

def busy(*args):
    left[0] -= 1
    if not left[0]:
        if os.environ['RANK'] == '0':
            os.kill(os.getpid(), signal.SIGKILL)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            time.sleep(0.01)
    return step(*args)

C2FTrainer.step = busy
sys.exit(run.main(sys.argv[1:]))
"""


def test_a_lost_process_is_told_once(shared_root, answers, tmp_path):
    """One process alone continues the run."""
    program, out = tmp_path / 'program.py', tmp_path / 'out'
    program.write_text(BUSY)
    command = [*torchrun(2), str(program), *train_call(shared_root, out, *PAPER)]
    process = popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    again = ['train', '--resume', '--out', str(out)]
    (line,) = [x for x in said.splitlines() if x.startswith('error: ')]
    assert line.startswith('error: a process of this run ')
    how = f'torchrun --nproc-per-node 2 run.py {" ".join(again)}'
    assert line.endswith(f'continue with: {how}')
    for path in out.glob('*.safetensors'):
        read_tensors(path)
    assert read_resume(out)[1]['progress']['epoch'] > 0
    assert not (out / 'metrics.json').exists()
    assert run_calls(None, [again])[0][0] == 0
    check_same_end(out, answers)


def check_same_end(out, answers):
    expected = answers[1][0] / 'paper'
    check_same_curve(history(out), history(expected))
    assert figures(out) == pytest.approx(figures(expected), abs=1e-4)


def test_torchrun_starts_a_run_anew_and_it_goes_on(shared_root, answers, tmp_path):
    run = ['run.py', *train_call(shared_root, tmp_path, *PAPER)]
    command = [*torchrun(2, '--max-restarts', '2'), *run]
    process = popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    path, end = tmp_path / 'history.jsonl', time.monotonic() + 120
    while not path.exists() or path.read_text().count('\n') < 5:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.kill(ranks(process)[1], signal.SIGKILL)
    before = history(tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    # What was there is still there, with the seconds that it took then.
    assert history(tmp_path)[: len(before) - 2] == before[:-2]
    check_same_end(tmp_path, answers)


# Tables -------------------------------------------------------------------------------


def draw(*sizes):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes)))


def tables(_, num_blocks, num_rows, skew):
    """The names of the results that differ from those of one process."""
    alone, many = Group(num_blocks), Group(num_blocks, is_distributed=True)
    shares = [(part / num_blocks) ** skew for part in range(num_blocks + 1)]
    bounds = [round(num_rows * share) for share in shares]
    one, rows = Rows(alone, bounds), Rows(many, bounds)
    x, y, matrix = draw(num_rows, 5), draw(num_rows, 3), draw(5, 2)
    own_x, own_y = rows.local(x), rows.local(y)
    index = torch.arange(2 * num_rows).flip(0) % max(num_rows, 1)
    whole = draw(num_rows, 2, 3).double()

    def squares(x, rows):
        return [x[block].square().sum(dim=0) for block in rows.blocks]

    def product(x, y, rows):
        return [partial(torch.mm, x[b].T, y[b]) for b in rows.blocks]

    pairs = {
        'gather': (rows.gather(own_x), x),
        'gather a vector': (rows.gather(own_x[:, 0]), x[:, 0]),
        'gather integers': (rows.gather(rows.local(index)), index[:num_rows]),
        'reduce_scatter': (
            rows.reduce_scatter((many.rank + 1) * whole),
            rows.local(6 * whole),
        ),
        'select': (rows.select(own_x, index), x[index]),
        'select a vector': (rows.select(own_x[:, 0], index), x[index, 0]),
        'sum': (many.sum(squares(own_x, rows)), alone.sum(squares(x, one))),
        'sum in double precision': (
            # Digits that the order of the sums would change.
            many.sum(squares(own_x.double() / 3, rows)),
            alone.sum(squares(x.double() / 3, one)),
        ),
        'sum of each': (
            many.sum_of_each(product(own_x, own_y, rows)),
            alone.sum_of_each(product(x, y, one)),
        ),
        'gram': (rows.gram(own_x, own_y), one.gram(x, y)),
        'matmul': (rows.matmul(own_x, matrix), rows.local(one.matmul(x, matrix))),
        'max': (torch.tensor(many.max(-many.rank)), torch.tensor(0.0)),
        'broadcast': (many.broadcast(draw(3) + many.rank), draw(3)),
        'bounds': (torch.tensor(rows.bounds), torch.tensor(one.bounds)),
        'blocks': (
            torch.tensor(len(rows.blocks)),
            torch.tensor(len(many.local(range(num_blocks)))),
        ),
    }
    return [
        name for name, (ours, theirs) in pairs.items() if not torch.equal(ours, theirs)
    ]


@pytest.mark.parametrize('num_blocks', [3, 4, 7])
@pytest.mark.parametrize(
    ('num_rows', 'skew'),
    [(20, 1), (2, 1), (1, 1), (60, 3), (9, 9), (50, 1 / 9)],
    ids=['even', 'fewer rows', 'one row', 'uneven', 'the last has all', 'the first'],
)
def test_tables_of_several_processes(start, num_blocks, num_rows, skew):
    """Blocks without rows, processes without rows, 3 processes on 4 blocks."""
    assert start(3)(tables, num_blocks, num_rows, skew) == [[], [], []]


# The k-th largest ---------------------------------------------------------------------

NUMBERS = {
    'numbers': draw(7, 60).abs(),
    'many alike': torch.randint(4, (7, 60)) / 3,
    'zeros': torch.zeros(7, 60),
    'tiny and huge': draw(7, 60).abs() * 10.0 ** torch.arange(-40, 35)[:60].float(),
}


@pytest.mark.parametrize('x', NUMBERS.values(), ids=NUMBERS)
def test_kth_largest(start, x):
    ks = (1, 2, 59, 60, 211, 419, 420)
    expected = [x.flatten().kthvalue(x.numel() - k + 1).values.item() for k in ks]
    assert [kth_largest(x, k, Group()) for k in ks] == expected
    assert kth_largest(x, 1000, Group()) <= x.min().item()
    assert start(3)(kth_of_all, x, ks) == [expected] * 3


def kth_of_all(_, x, ks):
    group = Group(4, is_distributed=True)
    own = group.rows(len(x)).local(x)
    return [kth_largest(own, k, group) for k in ks]


# What is found of rows ----------------------------------------------------------------


def of_rows(x, group):
    """Rotation, centroids and labels: the parts of the anchors of recipe fast."""
    rows = group.rows(len(x))
    own, weight = rows.local(x), rows.local(weights(len(x), 1e3))
    rotation = varimax(own, weight, items=rows)
    start = torch.Generator().manual_seed(0)
    centroids, label = kmeans(own, 12, weight, start, rows=rows)
    return [rotation, centroids, rows.gather(label)]


def of_all_rows(_, x):
    return of_rows(x, Group(4, is_distributed=True))


@pytest.mark.parametrize('x', HARD.values(), ids=HARD)
def test_several_processes_and_threads_find_the_same(start, x):
    expected = of_rows(x, Group(4))
    with threads(2):
        found = [of_rows(x, Group(4)), *start(3)(of_all_rows, x)]
    assert all(all(map(torch.equal, one, expected)) for one in found)


# Threads ------------------------------------------------------------------------------


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_one_thread_each():
    """One thread and two give the same bits, unlike a plain product."""
    x, square = draw(40_000, 60), draw(200, 200)
    calls = [partial(torch.mm, part.T, part) for part in x.chunk(4)]
    calls += [partial(torch.linalg.qr, square), partial(torch.linalg.eigvalsh, square)]

    def results():
        *products, qr, values = one_thread_each(calls)
        return [*products, qr.Q, values]

    found = {}
    for number in (1, 2):
        with threads(number):
            found[number] = results()
            assert torch.get_num_threads() == number
    assert all(map(torch.equal, found[1], found[2]))
    with threads(2):
        with pytest.raises(ZeroDivisionError):
            one_thread_each([lambda: 1 // 0, int])
        assert torch.get_num_threads() == 2
