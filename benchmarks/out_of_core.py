r"""Data larger than memory: seconds and memory, from Parquet to figures.

    python benchmarks/out_of_core.py --interactions 1e6 1e7 1e8 --data-root /tmp/large

Each size is written by the generator (a twentieth as many users, a hundredth as many
items), built once by `run.py data --build`, and trained by `run.py train`: anchors,
and the lists of some users drawn at random.
Every call is a process of its own, whose peak memory is measured; mapped pages of the
data count as long as the system keeps them. A size that is in the JSON is not run
again. The data stay in `--data-root`.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ROOT,
    header,
    header_text,
    make_parser,
    markdown_table,
    number,
    read_result,
    result_path,
    stamp,
    write_result,
)
from large_data import write_synthetic

from pyg_c2f.files import write_json

USERS, ITEMS = 20, 100  # interactions for each
TOLERANCE = 1.25
SETTINGS = {
    'embedding_dim': 64,
    'coarse_per_item': 6,
    'fine_per_item': 1,
    'num_fine': 256,
}
# The steps that are timed: the build, without the start of a process, and parts of a
# run; `evaluate` ranks a fixed number of users, and all items.
PARTS = ('build', 'load', 'anchors', 'evaluate', 'sum')


def timed(call: Sequence[str], limit: int | None = None) -> dict[str, float]:
    """Seconds and peak memory of a process, which may use `limit` bytes."""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *call], cwd=ROOT, preexec_fn=restrict)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f'{" ".join(call)} ended with {process.returncode}')
    seconds = time.perf_counter() - start
    return {
        'seconds': seconds,
        'cpu_seconds': usage.ru_utime + usage.ru_stime,
        'peak_bytes': usage.ru_maxrss * 1024,
    }


def run(
    size: int, root: Path, eval_users: int, out: Path, limit: int | None
) -> dict[str, Any]:
    """One size, from the generator to the figures."""
    name = f'made-{size}'
    table = root / name / f'{name}.parquet'
    if not table.exists():
        table.parent.mkdir(parents=True, exist_ok=True)
        write_synthetic(table, size // USERS, size // ITEMS, size)
    for built in table.parent.glob('built-*'):
        shutil.rmtree(built)
    data = ['--dataset', name, '--data-root', str(root), '--protocol', 'c2f']
    start = timed(['run.py', 'data'])
    build = timed(['run.py', 'data', '--build', *data], limit)
    settings = [f'{key}={value}' for key, value in SETTINGS.items()]
    target = out / name
    options = ['--eval-users', str(eval_users), '--out', str(target), '--quiet']
    call = ['run.py', 'train', *data, *options, '--set', *settings]
    train = timed(call, limit)
    metrics = json.loads((target / 'metrics.json').read_text())
    shutil.rmtree(target)
    bytes_read = sum(path.stat().st_size for path in table.glob('*.parquet'))
    keys = ('num_users', 'num_items', 'num_train')
    return {
        'interactions': size,
        **{key: metrics[key] for key in keys},
        'eval_users': eval_users,
        'parquet_bytes': bytes_read,
        'start': start,
        'build': build,
        'run': train,
        'seconds': metrics['seconds'],
        'test': metrics['test'],
        'popularity': metrics['baselines']['popularity']['test'],
    } | stamp()


def seconds_of(result: dict[str, Any]) -> dict[str, float]:
    """The seconds of the parts."""
    build = result['build']['seconds'] - result['start']['seconds']
    parts = {'build': build} | {key: result['seconds'][key] for key in PARTS[1:-1]}
    return parts | {'sum': sum(parts.values())}


def cpu_seconds(result: dict[str, Any]) -> float:
    """CPU seconds of both processes, without their start."""
    both = result['build']['cpu_seconds'] + result['run']['cpu_seconds']
    return both - 2 * result['start']['cpu_seconds']


def verdict(sizes: list[dict[str, Any]]) -> dict[str, float]:
    """The largest ratio of the seconds of a million interactions, part by part."""
    costs = [
        {key: x / size['interactions'] for key, x in seconds_of(size).items()}
        for size in sizes
    ]
    for cost, size in zip(costs, sizes, strict=True):
        cost['cpu'] = cpu_seconds(size) / size['interactions']
    return {
        key: max(cost[key] for cost in costs) / min(cost[key] for cost in costs)
        for key in (*PARTS, 'cpu')
    }


def table(result: dict[str, Any]) -> str:
    """All sizes as Markdown."""
    sizes = [result['sizes'][key] for key in sorted(result['sizes'], key=int)]
    rows, costs, memory = [], [], []
    for size in sizes:
        millions = size['interactions'] / 1e6
        name = f'{millions:g} M'
        seconds = seconds_of(size)
        rows.append([name, *(f'{seconds[key]:.1f}' for key in PARTS)])
        cells = [f'{seconds[key] / millions:.3f}' for key in PARTS]
        costs.append([name, *cells, f'{cpu_seconds(size) / millions:.3f}'])
        counts = [f'{size[key]:,}' for key in ('num_users', 'num_items', 'num_train')]
        peaks = [f'{size[key]["peak_bytes"] / 1e9:.2f}' for key in ('build', 'run')]
        figures = [f'{size[key]["recall@20"]:.4f}' for key in ('test', 'popularity')]
        memory.append([name, *counts, *peaks, *figures])
    ratios = verdict(sizes)
    costs.append(
        ['largest / smallest', *(f'{ratios[key]:.2f}' for key in (*PARTS, 'cpu'))]
    )
    names = 'interactions|users|items|train pairs|build, peak GB|run, peak GB|Recall@20'
    names += '|popularity'
    within = 'linear' if ratios['sum'] <= TOLERANCE else 'not linear'
    cost_names = ['s / million', *PARTS, 'CPU, all']
    return '\n'.join(
        [
            '# From Parquet to figures\n',
            header_text(result, sizes),
            markdown_table(names.split('|'), memory),
            'Seconds:\n',
            markdown_table(['interactions', *PARTS], rows),
            'Seconds of a million interactions:\n',
            markdown_table(cost_names, costs),
            f'In all {within} within {TOLERANCE - 1:.0%}.',
            '',
        ]
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds of a million interactions, and peak memory."""
    from matplotlib.figure import Figure

    sizes = [result['sizes'][key] for key in sorted(result['sizes'], key=int)]
    millions = np.array([size['interactions'] for size in sizes]) / 1e6
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    cost, memory = figure.subplots(1, 2)
    for key in PARTS:
        seconds = np.array([seconds_of(size)[key] for size in sizes])
        cost.loglog(millions, seconds / millions, 'o-', label=key)
    cost.set_ylabel('seconds of a million')
    cost.legend(frameon=False, fontsize=7)
    for key in ('build', 'run'):
        peaks = [size[key]['peak_bytes'] / 1e9 for size in sizes]
        memory.loglog(millions, peaks, 'o-', label=key)
    memory.set_ylabel('peak memory, GB')
    memory.legend(frameon=False)
    for axes in (cost, memory):
        axes.set_xlabel('million interactions')
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the sizes that are not done yet."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    sizes = [10**6, 10**7, 10**8]
    parser.add_argument('--interactions', type=number, nargs='+', default=sizes)
    parser.add_argument('--data-root', required=True, type=Path)
    parser.add_argument('--eval-users', type=int, default=1000)
    parser.add_argument('--memory', type=float, help='limit of a process, GB')
    args = parser.parse_args(argv)
    limit = None if args.memory is None else int(args.memory * 1e9)
    path = result_path(args, 'out_of_core')
    result = header('out_of_core', args, argv) | {'settings': SETTINGS}
    known = read_result(path, ['sizes', 'settings'])
    result['sizes'] = known['sizes'] if known['settings'] == SETTINGS else {}
    root = args.data_root.resolve()
    for size in sorted(args.interactions):
        if str(size) not in result['sizes']:
            done = run(size, root, args.eval_users, root / 'runs', limit)
            result['sizes'][str(size)] = done
            write_json(path, result)
    result['verdict'] = verdict(list(result['sizes'].values()))
    draw(result, path.with_suffix('.png'))
    write_result(path, result, table(result))


if __name__ == '__main__':
    main()
