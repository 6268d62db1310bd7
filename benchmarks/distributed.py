r"""The same run on one process and on many: figures, bytes, scaling, a lost process.

    python benchmarks/distributed.py --part same --dataset lastfm --recipe fast
    python benchmarks/distributed.py --part bytes scaling --dataset gowalla
    python benchmarks/distributed.py --part lost --dataset synthetic --recipe paper

Parts: ``same`` trains by one process, by two, by four, and by two nodes of two that
share nothing but a network, and compares the resulting files. ``bytes`` counts what
single steps send, in a network of its own, and compares it with a formula. ``scaling``
gives each process a core and one thread, and times the phases of a run in turns with
those of one process. ``lost`` kills one process of a training of recipe paper, which
must end with a line that says how to continue; it is continued with another number of
processes, or by ``torchrun --max-restarts``. All processes have one thread. Each call
adds to the results or replaces earlier ones.
"""

import argparse
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from bytes_sent import (
    Vectors,
    anchors_bytes,
    basis_width,
    counted_columns,
    evaluation_bytes,
    paper_step_bytes,
    product_bytes,
    refill_bytes,
    ritz_bytes,
)
from common import (
    ROOT,
    figures_of,
    header,
    header_text,
    make_parser,
    markdown_table,
    read_result,
    result_path,
    stamp,
)
from torch_geometric.data import HeteroData
from tqdm import tqdm

from pyg_c2f.anchors import codes
from pyg_c2f.anchors.spectral import _ritz, _times_gram, shared_interactions
from pyg_c2f.checkpoint import read_tensors
from pyg_c2f.cli.torchrun import join, leave
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.experiment import reuse_freed_memory
from pyg_c2f.files import write_json, write_text
from pyg_c2f.nn import C2F
from pyg_c2f.recipes import (
    RECIPES,
    FastRecipe,
    PaperRecipe,
    TrainingOptions,
    get_recipe,
)
from pyg_c2f.recipes.base import own_scorer
from pyg_c2f.recipes.fast import build_fast, share_pairs
from pyg_c2f.recipes.paper import Triples
from pyg_c2f.recipes.resume import read_resume
from pyg_c2f.shards import Group, Rows, one_block_each
from pyg_c2f.typing import ITEM, USER

SCRIPT = Path(__file__).resolve()
PARTS = ('same', 'bytes', 'scaling', 'lost')
# Of a run that is compared: a loss of every epoch, where something is trained.
SETTINGS: dict[str, list[str]] = {
    'fast': [],
    'paper': ['max_epochs=8', 'eval_every=1', 'patience=2'],
}
# Nodes and processes of each.
LAYOUTS = {
    '1 process': (1, 1),
    '2 processes': (1, 2),
    '4 processes': (1, 4),
    '2 nodes of 2 processes': (2, 2),
}
SUBNET = '10.213.77'
PORT = 29500
# What is aimed at: of figures, of losses (relative), of bytes, and of the speed.
MOST_APART, MOST_LOSS_APART, MOST_BYTES_APART, LEAST_SPEED_UP = 1e-4, 1e-5, 0.1, 1.7
SETTLE = 0.1  # seconds until the last acknowledgements are on the wire
STEPS = 10


# Processes ----------------------------------------------------------------------------


class Process(NamedTuple):
    """A program that was started, and the files with its output."""

    popen: 'subprocess.Popen[bytes]'
    log: Path

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        return self.log.with_suffix('.err').read_text()


def start(command: Sequence[str], log: Path, **env: str) -> Process:
    """Starts a program with one thread in the folder of the repository."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as out, log.with_suffix('.err').open('w') as err:
        popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {'OMP_NUM_THREADS': '1'} | env,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    return Process(popen, log)


def wait(processes: Sequence[Process], timeout: float) -> list[int]:
    """Waits for programs, and terminates all of them if one takes too long."""
    try:
        return [process.popen.wait(timeout) for process in processes]
    finally:
        for process in processes:
            if process.popen.poll() is None:
                process.popen.terminate()  # torchrun ends its own ones first.
                process.popen.wait()


def check(processes: Sequence[Process], timeout: float) -> None:
    """Waits for programs and raises an error if one of them fails."""
    if any(wait(processes, timeout)):
        said = '\n'.join(process.errors[-3000:] for process in processes)
        raise SystemExit(f'{processes[0].popen.args!r} failed:\n{said}')


def python(size: int, *options: str) -> list[str]:
    """The beginning of a command that runs a script by so many processes."""
    if size == 1:
        return [sys.executable]
    run = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(size)]
    return [*run, *(options or ['--standalone'])]


def reason(error: Exception) -> str:
    """The error message of a program on one line."""
    return ' '.join((getattr(error, 'stderr', None) or str(error)).split())


class Node(NamedTuple):
    """What a command on a node begins with, and the node's address."""

    prefix: list[str]
    address: str


@contextmanager
def two_nodes() -> Iterator[list[Node]]:
    """Two network namespaces with a cable between them.

    Raises:
        OSError: If there is no ``ip``.
        subprocess.CalledProcessError: If it may not do that here.
    """
    names = [f'c2f-{os.getpid()}-{number}' for number in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(['ip', *words], check=True, capture_output=True, text=True)

    with ExitStack() as stack:
        for name in names:
            ip('netns', 'add', name)
            stack.callback(ip, 'netns', 'del', name)
        first, second = names
        cable = ['veth0', 'type', 'veth', 'peer', 'name', 'veth0', 'netns', second]
        ip('-n', first, 'link', 'add', *cable)
        for number, name in enumerate(names, 1):
            ip('-n', name, 'addr', 'add', f'{SUBNET}.{number}/24', 'dev', 'veth0')
            for device in ('lo', 'veth0'):
                ip('-n', name, 'link', 'set', device, 'up')
        yield [
            Node(['ip', 'netns', 'exec', name], f'{SUBNET}.{number}')
            for number, name in enumerate(names, 1)
        ]


def start_layout(
    layout: str, call: list[str], log: Path, stack: ExitStack, *options: str
) -> list[Process]:
    """Starts a script by the processes of a layout, a torchrun on each node.

    Args:
        layout (str): One of :data:`LAYOUTS`.
        call (List): The script and what it takes.
        log (Path): Takes what it says.
        stack (ExitStack): Ends the nodes.
        options (Tuple): Of torchrun.

    Raises:
        OSError, subprocess.CalledProcessError: If there can be no such nodes here.
    """
    num_nodes, size = LAYOUTS[layout]
    if num_nodes == 1:
        return [start([*python(size, '--standalone', *options), *call], log)]
    nodes = stack.enter_context(two_nodes())
    meet = ['--rdzv-backend', 'c10d', '--rdzv-endpoint', f'{nodes[0].address}:{PORT}']
    processes = []
    for number, node in enumerate(nodes):
        # By its name a host would not find itself in a namespace.
        here = ['--nnodes', str(num_nodes), *meet, '--local-addr', node.address]
        here += ['--rdzv-conf', f'is_host={int(number == 0)}', *options]
        command = [*node.prefix, *python(size, *here), *call]
        log_of_node = log.with_name(f'{log.stem}-{number}{log.suffix}')
        processes.append(start(command, log_of_node, GLOO_SOCKET_IFNAME='veth0'))
    return processes


def train_call(args: argparse.Namespace, dataset: str, out: Path) -> list[str]:
    """The training that is compared."""
    settings = [*SETTINGS[args.recipe], *args.set]
    return [
        *('run.py', 'train', '--dataset', dataset, '--protocol', args.protocol),
        *([] if args.data_root is None else ['--data-root', args.data_root]),
        *('--recipe', args.recipe, '--quiet', '--out', str(out)),
        *(['--set', *settings] if settings else []),
    ]


def worker(
    args: argparse.Namespace, part: str, dataset: str, size: int, prefix: Sequence[str]
) -> dict[str, Any]:
    """The result of this script, run as the processes of a part."""
    out = args.work / f'{part}-{size}.json'
    out.unlink(missing_ok=True)
    job = vars(args) | {'part': part, 'dataset': dataset, 'out': str(out)}
    call = [str(SCRIPT), '--worker', json.dumps(job, default=str)]
    process = start([*prefix, *python(size), *call], args.work / f'{part}-{size}.txt')
    check([process], args.timeout)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


# The same figures ---------------------------------------------------------------------


def left_by(out: Path) -> dict[str, Any]:
    """The figures of a run, its losses by epoch, and the checksum of its model."""
    metrics = json.loads((out / 'metrics.json').read_text())
    lines = [json.loads(x) for x in (out / 'history.jsonl').read_text().splitlines()]
    return {
        'figures': figures_of(metrics),
        'losses': {
            f'{x["stage"]} {x["phase"]} {x["epoch"]}': x['loss']
            for x in lines
            if x['loss'] is not None
        },
        'evaluations': {
            f'{x["stage"]} {x["phase"]} {x["epoch"]} {name}': value
            for x in lines
            for name, value in x['val'].items()
        },
        'model': hashlib.sha256((out / 'model.safetensors').read_bytes()).hexdigest(),
    }


def apart(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How far a run is from another one."""
    figures, losses = (
        [
            (ours[key].get(name), value)
            for key in keys
            for name, value in theirs[key].items()
        ]
        for keys in (('figures', 'evaluations'), ('losses',))
    )
    same_epochs = ours['evaluations'].keys() == theirs['evaluations'].keys()
    return {
        'same_epochs': same_epochs,
        'figures': max((abs(x - y) for x, y in figures if x is not None), default=0.0),
        'losses': max(
            (abs(x / y - 1) for x, y in losses if x is not None), default=0.0
        ),
        'num_losses': len(losses),
        'same_bytes': ours['model'] == theirs['model'],
    }


def same(args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """Trains in each layout, and compares with the first one."""
    first, layouts = None, {}
    for layout in tqdm(LAYOUTS, desc=f'same, {dataset}'):
        out = args.work / f'same-{dataset}-{layout.replace(" ", "-")}'
        shutil.rmtree(out, ignore_errors=True)
        call, begin = train_call(args, dataset, out), time.perf_counter()
        with ExitStack() as stack:
            try:
                log = args.work / 'same.txt'
                processes = start_layout(layout, call, log, stack)
            except (OSError, subprocess.CalledProcessError) as error:
                layouts[layout] = {'left_out': reason(error)}
                continue
            check(processes, args.timeout)
        seconds = time.perf_counter() - begin
        ours = left_by(out)
        first = first or ours
        layouts[layout] = {'seconds': round(seconds, 1)} | apart(ours, first)
    return {'layouts': layouts}


def same_table(entry: dict[str, Any]) -> str:
    """The layouts as Markdown."""
    heads = 'processes|model|largest difference of a figure|of a loss, relative|seconds'
    rows = []
    for layout, x in entry['layouts'].items():
        if 'left_out' in x:
            rows.append([layout, f'left out: {x["left_out"]}', '', '', ''])
            continue
        model = 'the same bytes' if x['same_bytes'] else 'other bytes'
        figures = f'{x["figures"]:.1e}'
        if not x['same_epochs']:
            figures += ', other epochs'
        losses = f'{x["losses"]:.1e}' if x['num_losses'] else 'no losses'
        rows.append([layout, model, figures, losses, f'{x["seconds"]:.0f}'])
    return (
        f'Aimed at: {MOST_APART:.0e} and {MOST_LOSS_APART:.0e}; models have the same '
        'bytes with recipe fast. Seconds are those of the whole '
        'call, on as many cores as there are.\n\n'
    ) + markdown_table(heads.split('|'), rows)


# What a step sends --------------------------------------------------------------------


def on_wire() -> int:
    """The bytes that this network namespace has sent to itself so far."""
    for line in Path('/proc/net/dev').read_text().splitlines():
        name, _, numbers = line.partition(':')
        if name.strip() == 'lo':
            return int(numbers.split()[8])
    raise RuntimeError('no loopback device')


def traffic(group: Group, function: Callable[[], object], repeats: int) -> int:
    """The bytes that a function sends, with those of two barriers."""

    def settled() -> int:
        group.wait()
        time.sleep(SETTLE)
        count = on_wire()
        group.wait()
        return count

    counts = []
    for _ in range(repeats):
        before = settled()
        function()
        counts.append(settled() - before)
    return int(median(counts))


class Case(NamedTuple):
    """A step whose bytes are counted."""

    name: str
    step: Callable[[], object]
    formula: Callable[[], int]  # asked for after the step
    repeats: int = 5


def count_bytes(job: dict[str, Any], data: HeteroData) -> dict[str, Any]:
    """The bytes of each step, in all processes: measured and by its formula."""
    cases = fast_cases if job['recipe'] == 'fast' else paper_cases
    group, steps = cases(job, data)
    idle = traffic(group, lambda: None, 9)
    found = {}
    for case in steps:
        measured = traffic(group, case.step, case.repeats) - idle
        found[case.name] = {'measured': measured, 'formula': case.formula()}
    return {'idle': idle, 'steps': found}


def fast_cases(job: dict[str, Any], data: HeteroData) -> tuple[Group, list[Case]]:
    """The steps of recipe fast."""
    recipe = recipe_of(job)
    assert isinstance(recipe, FastRecipe)
    group = Group(recipe.num_shards, is_distributed=True)
    size, num_items = group.size, data[ITEM].num_nodes
    _, users, own = share_pairs(data, group)
    items = group.rows(num_items)
    deg = group.all_reduce(torch.bincount(own[1], minlength=num_items))
    norms = recipe.user_norm, recipe.item_norm
    interactions = shared_interactions(own, users, items, *norms, deg)
    rank = min(recipe.embedding_dim, users.num_rows, num_items)
    width = basis_width(rank, users.num_rows, num_items)
    x = torch.randn(items.stop - items.start, width)
    product = _times_gram(interactions, x)
    with counted_columns() as columns:
        model = build_fast(data, recipe, torch.Generator().manual_seed(0), group)
    vectors = Vectors(width, columns, model.diagnostics['basis']['rounds'])
    model.set_stage('fine' if recipe.fine_per_item else 'coarse')
    refills: list[int] = []

    def build() -> None:
        # Centroids without rows come and go with the data: they are counted.
        refills.clear()
        largest = codes._largest

        def counted(value: torch.Tensor, k: int, rows: Rows) -> torch.Tensor:
            refills.append(k)
            return largest(value, k, rows)

        codes._largest = counted
        try:
            build_fast(data, recipe, torch.Generator().manual_seed(0), group)
        finally:
            codes._largest = largest

    def of_build() -> int:
        links = model.coarse.assignment.index.size(1)
        empty = sum(refill_bytes(num_items, k, rank, size) for k in refills)
        return anchors_bytes(recipe, num_items, rank, vectors, links, size) + empty

    return group, [
        Case(
            f"product with R'R, {width} columns",
            lambda: _times_gram(interactions, x),
            lambda: product_bytes(num_items, width, size),
        ),
        Case(
            f'Rayleigh-Ritz step, {width} columns',
            lambda: _ritz(x, product, items),
            lambda: ritz_bytes(width, size),
        ),
        Case('all anchors', build, of_build, repeats=1),
        evaluation_case(
            lambda: evaluate_split(
                own_scorer(model, data, users), data, 'val', users=users
            ),
            size,
        ),
    ]


def evaluation_case(step: Callable[[], object], size: int) -> Case:
    """The evaluation of all users."""
    return Case('evaluation', step, lambda: evaluation_bytes(size), repeats=3)


def paper_cases(job: dict[str, Any], data: HeteroData) -> tuple[Group, list[Case]]:
    """The steps of recipe paper, in its coarse stage."""
    group = one_block_each(is_distributed=True)
    recipe = recipe_of(job)
    assert isinstance(recipe, PaperRecipe)
    model, batch_size = start_model(data, recipe), recipe.batch_size_coarse
    step = Case(
        'training step',
        paper_step(data, recipe, group),
        lambda: paper_step_bytes(batch_size, group.size),
    )
    users = group.rows(data[USER].num_nodes)
    evaluation = evaluation_case(
        lambda: evaluate_split(model.scorer(), data, 'val', users=users), group.size
    )
    return group, [step, evaluation]


def recipe_of(job: dict[str, Any]) -> PaperRecipe | FastRecipe:
    """The recipe of a job; anchors of recipe paper start at random, for speed."""
    changes = {'fast': [], 'paper': ['anchors=random']}[job['recipe']]
    settings = dict(pair.partition('=')[::2] for pair in [*changes, *job['set']])
    return get_recipe(job['recipe'], settings)


def start_model(data: HeteroData, recipe: PaperRecipe) -> C2F:
    """A model at the start of its coarse stage."""
    return recipe.start(data, 'coarse', None, TrainingOptions(seed=0))


def paper_step(
    data: HeteroData, recipe: PaperRecipe, group: Group
) -> Callable[[], object]:
    """A training step of a batch that is drawn once."""
    model = start_model(data, recipe)
    trainer = recipe.trainer(model, data, TrainingOptions(group=group))
    generator = torch.Generator().manual_seed(1)
    user, positive, negative = (
        torch.randint(high, (recipe.batch_size_coarse,), generator=generator)
        for high in (model.num_users, model.num_items, model.num_items)
    )
    triples: Triples = (user, positive, negative)
    return lambda: trainer.step(triples)


def bytes_(args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """Counts the bytes of steps, in a network namespace of its own."""
    prefix = ['unshare', '-n', 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh']
    try:
        subprocess.run([*prefix, 'true'], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f'--part bytes needs a network namespace: {reason(error)}'
        ) from None
    env = [*prefix, 'env', 'GLOO_SOCKET_IFNAME=lo']
    return {
        'processes': {
            str(size): worker(args, 'bytes', dataset, size, env)
            for size in tqdm(args.processes, desc=f'bytes, {dataset}')
        }
    }


def bytes_table(entry: dict[str, Any]) -> str:
    """The steps as Markdown."""
    heads = 'step|processes|bytes measured|bytes by formula|ratio'
    rows = [
        [
            name,
            size,
            f'{x["measured"]:,}',
            f'{x["formula"]:,}',
            f'{x["measured"] / x["formula"]:.3f}',
        ]
        for size, found in entry['processes'].items()
        for name, x in found['steps'].items()
    ]
    rows.sort(key=lambda row: list(entry['processes']).index(row[1]))
    return (
        'What all processes together send, with all headers and acknowledgements, '
        'less the two barriers around it; for the formulas see the functions in the '
        f'script. Aimed at: a ratio within {MOST_BYTES_APART:.0%} of one, where more '
        'than headers are sent.\n\n'
    ) + markdown_table(heads.split('|'), rows)


# Seconds ------------------------------------------------------------------------------


def take_times(job: dict[str, Any], data: HeteroData) -> dict[str, float]:
    """The seconds of the phases of a run, and of all of them together."""
    reuse_freed_memory()
    is_distributed = dist.is_initialized()
    recipe, times = recipe_of(job), {}
    wait = dist.barrier if is_distributed else lambda: None

    def timed(name: str, function: Callable[[], Any], repeats: int = 1) -> Any:
        seconds = []
        for _ in range(repeats):
            wait()
            begin = time.perf_counter()
            out = function()
            wait()
            seconds.append(time.perf_counter() - begin)
        times[name] = median(seconds)
        return out

    if isinstance(recipe, PaperRecipe):
        group = one_block_each(is_distributed)
        step = paper_step(data, recipe, group)
        for _ in range(3):
            step()
        timed('step', step, STEPS)
        model, users = start_model(data, recipe), group.rows(data[USER].num_nodes)
        timed(
            'evaluation',
            lambda: evaluate_split(model.scorer(), data, 'val', users=users),
        )
        return times

    def run() -> None:
        group = Group(recipe.num_shards, is_distributed)
        generator = torch.Generator().manual_seed(0)
        model = timed('anchors', lambda: build_fast(data, recipe, generator, group))
        model.set_stage('fine' if recipe.fine_per_item else 'coarse')
        users = group.rows(model.num_users)
        score = own_scorer(model, data, users) if is_distributed else model.scorer()
        timed('evaluation', lambda: evaluate_split(score, data, 'val', users=users))

    timed('all together', run)
    return times


def scaling(args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """One process on a core against several with a core each, in turns."""
    cores, sizes = len(os.sched_getaffinity(0)), [1, *args.processes]
    sizes = [size for size in sizes if size <= cores]
    rounds: dict[str, list[dict[str, float]]] = {str(size): [] for size in sizes}
    for _ in tqdm(range(args.rounds), desc=f'scaling, {dataset}'):
        for size in sizes:
            rounds[str(size)].append(worker(args, 'scaling', dataset, size, []))
    return {'rounds': rounds}


def scaling_table(entry: dict[str, Any]) -> str:
    """The phases as Markdown."""
    rounds = entry['rounds']
    one, *others = rounds
    heads = ['phase', '1 process, s']
    for size in others:
        heads += [f'{size} processes, s', 'speed-up']
    rows = []
    for name in rounds[one][0]:
        seconds = {x: median(y[name] for y in rounds[x]) for x in rounds}
        cells = [name, f'{seconds[one]:.3f}']
        for size in others:
            cells += [f'{seconds[size]:.3f}', f'{seconds[one] / seconds[size]:.2f}']
        rows.append(cells)
    return (
        f'Medians of {len(rounds[one])} rounds in turns; each process has a core of '
        'its own and one thread. Aimed at with two processes: '
        f'{LEAST_SPEED_UP} in all.\n\n'
    ) + markdown_table(heads, rows)


# A lost process -----------------------------------------------------------------------


def workers_of(processes: Sequence[Process]) -> dict[int, int]:
    """The processes that torchrun has started on all nodes: their numbers by rank."""
    found = {}
    for process in processes:
        pid = process.popen.pid  # ip has become torchrun.
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
        for child in children:
            words = Path(f'/proc/{child}/environ').read_bytes().split(b'\0')
            env = dict(word.partition(b'=')[::2] for word in words)
            if b'RANK' in env:
                found[int(env[b'RANK'])] = int(child)
    return found


def evaluations(out: Path) -> int:
    """The lines of the history of a run."""
    path = out / 'history.jsonl'
    return len(path.read_text().splitlines()) if path.exists() else 0


def kill_one(
    processes: Sequence[Process],
    out: Path,
    rank: int,
    after: float,
    pause: float,
    timeout: float,
) -> str:
    """Kills a worker after so many evaluations and a part; the epoch to go on from."""
    end = time.monotonic() + timeout
    while evaluations(out) < int(after):
        ended = any(process.popen.poll() is not None for process in processes)
        if ended or time.monotonic() > end:
            raise SystemExit(f'{out}: no kill before the end:\n{processes[0].errors}')
        time.sleep(0.02)
    time.sleep((after - int(after)) * pause)
    os.kill(workers_of(processes)[rank], signal.SIGKILL)
    state = read_resume(out)
    if state is None:
        return 'the start'
    return '{stage} {epoch}'.format(**state[1]['progress'])


def is_whole(out: Path) -> bool:
    """Whether all files of an interrupted run can be read."""
    for path in out.glob('*.safetensors'):
        read_tensors(path)
    for path in out.glob('*.json*'):
        for line in path.read_text().splitlines() if path.suffix == '.jsonl' else ():
            json.loads(line)
    json.loads((out / 'config.json').read_text())
    return not (out / 'metrics.json').exists()


class Loss(NamedTuple):
    """A run that loses a process."""

    layout: str
    rank: int
    then: int | None  # so many go on; nothing where torchrun sees to it

    @property
    def name(self) -> str:
        """What it is, in words."""
        how = f'continued by {self.then}' if self.then else 'goes on by itself'
        return f'{self.layout}, number {self.rank} killed, {how}'


LOSSES = (
    Loss('2 processes', 0, 1),
    Loss('2 processes', 1, 4),
    Loss('4 processes', 0, 2),
    Loss('4 processes', 2, 1),
    Loss('2 processes', 0, None),
    Loss('2 processes', 1, None),
    Loss('4 processes', 3, None),
    Loss('2 nodes of 2 processes', 0, None),
    Loss('2 nodes of 2 processes', 3, None),
)


def lose(
    args: argparse.Namespace,
    dataset: str,
    case: Loss,
    after: float,
    pause: float,
    expected: dict[str, Any],
) -> dict[str, Any]:
    """Kills a worker once, and has the run go on to its end."""
    out = args.work / 'lost'
    shutil.rmtree(out, ignore_errors=True)
    options = [] if case.then else ['--max-restarts', '2']
    call, log = train_call(args, dataset, out), args.work / 'lost.txt'
    with ExitStack() as stack:
        try:
            processes = start_layout(case.layout, call, log, stack, *options)
        except (OSError, subprocess.CalledProcessError) as error:
            return {'left_out': reason(error)}
        stack.callback(wait, processes, 0)  # Whatever happens, they end.
        epoch = kill_one(processes, out, case.rank, after, pause, args.timeout)
        begin = time.perf_counter()
        status = max(map(abs, wait(processes, args.timeout)))
    lines = ''.join(process.errors for process in processes).splitlines()
    said = [x for x in lines if x.startswith('error: ')]
    found: dict[str, Any] = {
        'after': round(after, 2),
        'epoch': epoch,
        'seconds': round(time.perf_counter() - begin, 2),
        'status': status,
        'said': said,
    }
    if case.then:
        found['whole'] = is_whole(out)
        again = ['run.py', 'train', '--resume', '--out', str(out)]
        size = str(LAYOUTS[case.layout][1])
        how = shlex.join(['torchrun', '--nproc-per-node', size, *again])
        found['says_how'] = len(said) == 1 and said[0].endswith(f'with: {how}')
        command = [*python(case.then), *again]
        (status,) = wait([start(command, args.work / 'again.txt')], args.timeout)
    return found | ({} if status else {'end': apart(left_by(out), expected)})


def lost(args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """Loses processes at random times, in each of :data:`LOSSES`."""
    if args.recipe != 'paper':
        raise SystemExit('--part lost needs --recipe paper: recipe fast ends too soon')
    whole = args.work / f'lost-{dataset}-whole'
    shutil.rmtree(whole, ignore_errors=True)
    begin = time.perf_counter()
    call, log = train_call(args, dataset, whole), args.work / 'whole.txt'
    check([start([*python(1), *call], log)], args.timeout)
    expected, last = left_by(whole), evaluations(whole)
    pause = (time.perf_counter() - begin) / last
    rng = random.Random(args.seed)
    found: dict[str, list[dict[str, Any]]] = {}
    for case in tqdm(LOSSES * args.kills, desc=f'lost, {dataset}'):
        # After the first evaluation, and while there is an epoch to come.
        after = rng.uniform(1, last - 2)
        trial = lose(args, dataset, case, after, pause, expected)
        found.setdefault(case.name, []).append(trial)
    return {'evaluations': last, 'cases': found}


def lost_table(entry: dict[str, Any]) -> str:
    """The cases as Markdown."""
    heads = (
        'run|kills|status not 0|one line says how to go on|all files whole|'
        'went on and ended|most seconds|went on from|largest difference of a figure|'
        'of a loss, relative'
    )
    rows = []
    for name, trials in entry['cases'].items():
        if 'left_out' in trials[0]:
            rows.append([name, f'left out: {trials[0]["left_out"]}', *[''] * 8])
            continue
        stopped = [x for x in trials if 'whole' in x]
        counts = [
            sum(x['status'] != 0 for x in stopped),
            sum(x['says_how'] for x in stopped),
            sum(x['whole'] for x in stopped),
        ]
        ends = [x['end'] for x in trials if 'end' in x]
        figures, losses = (
            f'{max((x[key] for x in ends), default=0):.1e}'
            for key in ('figures', 'losses')
        )
        if not all(x['same_epochs'] for x in ends):
            figures += ', other epochs'
        rows.append(
            [
                *(name, str(len(trials))),
                *(str(x) if stopped else '' for x in counts),
                *(str(len(ends)), f'{max(x["seconds"] for x in trials):.1f}'),
                *(', '.join(x['epoch'] for x in trials), figures, losses),
            ]
        )
    return (
        f'A run has {entry["evaluations"]} evaluations, and loses a process at a '
        'random time among them, by SIGKILL. Seconds are those from there until the '
        'program ends; of one that goes on by itself, until the run is over. '
        'Differences are to one process that was left alone; aimed at: '
        f'{MOST_APART:.0e}.\n\n'
    ) + markdown_table(heads.split('|'), rows)


# All together -------------------------------------------------------------------------

MEASURE = {'same': same, 'bytes': bytes_, 'scaling': scaling, 'lost': lost}
TABLE = {
    'same': ('The same run', same_table),
    'bytes': ('Bytes on the wire', bytes_table),
    'scaling': ('Speed', scaling_table),
    'lost': ('A lost process', lost_table),
}


def work(job: dict[str, Any]) -> None:
    """A process of a part: measures, and the first one writes."""
    torch.set_num_threads(1)
    if job['part'] == 'scaling':
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ.get('LOCAL_RANK', 0))]})
    join()
    data = get_dataset(job['dataset'], job['data_root'], job['protocol'])
    measure = {'bytes': count_bytes, 'scaling': take_times}[job['part']]
    found = measure(job, data)
    if not dist.is_initialized() or dist.get_rank() == 0:
        write_json(Path(job['out']), found)
    leave()


def text(result: dict[str, Any]) -> str:
    """All parts as Markdown."""
    parts = ['# One process and many\n']
    for part in PARTS:
        title, table = TABLE[part]
        for entry in result[part].values():
            parts.append(f'## {title}: {entry["dataset"]}, recipe {entry["recipe"]}\n')
            parts += [header_text(entry, [entry]), table(entry)]
    return '\n'.join(parts)


def main(argv: list[str]) -> None:
    """Measures the chosen parts, writes the tables."""
    parser = make_parser(__doc__)
    parser.add_argument('--part', nargs='+', choices=PARTS, default=['same'])
    parser.add_argument('--dataset', nargs='+', default=['synthetic'], metavar='NAME')
    parser.add_argument('--data-root', metavar='DIR')
    parser.add_argument('--protocol', choices=['c2f', 'standard'], default='c2f')
    parser.add_argument('--recipe', choices=RECIPES, default='fast')
    parser.add_argument(
        '--set', nargs='+', default=[], action='extend', metavar='NAME=VALUE'
    )
    parser.add_argument(
        '--processes',
        nargs='+',
        type=int,
        default=[2, 4],
        metavar='N',
        help='numbers of processes of the parts bytes and scaling',
    )
    parser.add_argument('--rounds', type=int, default=5, help='of the part scaling')
    parser.add_argument('--kills', type=int, default=3, help='of each case of lost')
    parser.add_argument('--seed', type=int, default=2024, help='draws the kills')
    parser.add_argument(
        '--timeout', type=float, default=3600, help='seconds of one program'
    )
    parser.add_argument(
        '--work', type=Path, default=Path('runs/distributed'), metavar='DIR'
    )
    parser.add_argument('--worker', type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker is not None:
        work(args.worker)
        return
    args.work = args.work.absolute()
    if args.data_root is not None:
        args.data_root = str(Path(args.data_root).absolute())
    args.work.mkdir(parents=True, exist_ok=True)
    path = result_path(args, 'distributed')
    for part in args.part:
        for dataset in args.dataset:
            found = MEASURE[part](args, dataset)
            entry = header('distributed', args, argv) | stamp() | found
            entry |= {'dataset': dataset, 'recipe': args.recipe, 'threads': 1}
            # What another session has added meanwhile is kept.
            result = read_result(path, PARTS)
            name = ' '.join([dataset, args.recipe, *args.set])
            result[part][name] = entry
            write_json(path, result)
            write_text(path.with_suffix('.md'), text(result))
            print(TABLE[part][1](entry))


if __name__ == '__main__':
    main(sys.argv[1:])
