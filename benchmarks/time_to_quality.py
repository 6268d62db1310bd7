r"""How good is a model after so many seconds of training?

    python benchmarks/time_to_quality.py --dataset gowalla --data-root ../shared/data

One process, one method after the other: recipe ``fast``, recipe ``paper`` (coarse
stage, evaluated after every epoch), LightGCN of PyG with BPR, and GF-CF, which is not
trained. Seconds include the start (anchors, SVD, graph) and the training, but not
loading and evaluations, which are given separately. All figures are on validation
items; test items are not touched.
"""

import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    device_name,
    make_parser,
    result_path,
    write_result,
)
from methods import GFCF, Histories, LightGCN, histories_of
from torch_geometric.data import HeteroData

from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import Score, evaluate_split, popularity_score
from pyg_c2f.experiment import reuse_freed_memory
from pyg_c2f.recipes import PaperRecipe, TrainingOptions, get_recipe, train
from pyg_c2f.typing import ITEM, RATES, USER

LABELS = {
    'fast': 'recipe fast',
    'paper': 'recipe paper, coarse stage',
    'lightgcn': 'LightGCN (PyG), BPR',
    'gfcf': 'GF-CF',
}
COLOURS = {
    'fast': '#D55E00',
    'paper': '#0072B2',
    'lightgcn': '#009E73',
    'gfcf': '#000000',
}
# LightGCN is evaluated again once it has trained so much longer.
GROWTH = 1.1
# LightGCN ends by the limit of seconds alone.
EPOCHS = 1_000_000
# PyG's loss counts a node of a batch once, at 1e-4 by default; ours counts it as often
# as it occurs, which on Gowalla is 1 / 0.8 times as much.
LAMBDA_REG = 8e-5


class _TimeIsUpError(Exception):
    """Ends a training from within."""


class Curve:
    """The points of one method.

    Args:
        limit: the seconds of training after which it ends.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.start = limit, time.perf_counter()
        self.points: list[dict[str, float]] = []
        self.other_seconds = 0.0

    def trained(self) -> float:
        """The seconds so far, without those of the evaluations."""
        return time.perf_counter() - self.start - self.other_seconds

    def add(self, seconds: float, val: dict[str, float], may_end: bool = True) -> None:
        """Adds a point; ends the training when its time is over."""
        point = {name: val[name] for name in ('recall@20', 'ndcg@20')}
        self.points.append({'seconds': seconds, **point})
        self.other_seconds = time.perf_counter() - self.start - seconds
        if may_end and seconds >= self.limit:
            raise _TimeIsUpError


def run_fast(data: HeteroData, seed: int, curve: Curve) -> None:
    """Recipe ``fast``, both stages."""

    def add(line: dict[str, Any]) -> None:
        # Both stages are there once the anchors are, whatever the limit.
        curve.add(line['seconds'], line['val'], may_end=line['stage'] == 'fine')

    recipe = get_recipe('fast')
    train(data, recipe, TrainingOptions(seed, on_evaluation=add))


def run_paper(data: HeteroData, seed: int, curve: Curve) -> None:
    """The coarse stage of recipe ``paper``, evaluated after every epoch."""
    recipe = get_recipe('paper')
    assert isinstance(recipe, PaperRecipe)
    # The same epochs without a better model end a phase as with its own settings.
    patience = recipe.patience * recipe.eval_every
    changes = {'eval_every': '1', 'patience': str(patience)}
    recipe = get_recipe('paper', changes)
    assert isinstance(recipe, PaperRecipe)

    def add(line: dict[str, Any]) -> None:
        curve.add(line['seconds'], line['val'])

    train(data, recipe, TrainingOptions(seed, ('coarse',), on_evaluation=add))


def train_histories(data: HeteroData) -> Histories:
    """The train interactions."""
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    return histories_of(data[RATES].edge_index, num_users, num_items)


def run_lightgcn(data: HeteroData, seed: int, curve: Curve) -> None:
    """LightGCN with BPR, evaluated less and less often."""
    due = 0.0

    def watch(epoch: int, score: Score) -> bool:
        nonlocal due
        seconds = curve.trained()
        if seconds >= min(due, curve.limit):
            curve.add(seconds, evaluate_split(score, data, 'val'))
            due = GROWTH * seconds
        return False

    method = LightGCN(
        num_layers=3,
        loss='bpr',
        start='random',
        lr=1e-3,
        lambda_reg=LAMBDA_REG,
        epochs=EPOCHS,
        eval_every=1,
    )
    generator = torch.Generator().manual_seed(seed)
    method.fit(train_histories(data), generator, watch)


def run_gfcf(data: HeteroData, seed: int, curve: Curve) -> None:
    """GF-CF: one point."""
    method, histories = GFCF(), train_histories(data)
    stored = method.fit(histories, torch.Generator().manual_seed(seed))
    score = method.scorer(stored, histories)
    seconds = curve.trained()
    curve.add(seconds, evaluate_split(score, data, 'val'))


METHODS: dict[str, Callable[[HeteroData, int, Curve], None]] = {
    'fast': run_fast,
    'gfcf': run_gfcf,
    'paper': run_paper,
    'lightgcn': run_lightgcn,
}


def ladder(best: float) -> list[float]:
    """At most ten round levels up to the best value."""
    step = next((x for x in (0.01, 0.02, 0.05) if best <= 10 * x), 0.1)
    return [round(step * (n + 1), 2) for n in range(int(best / step))]


def reached(points: list[dict[str, float]], level: float) -> str:
    """The seconds of the first point at a level."""
    seconds = (x['seconds'] for x in points if x['recall@20'] >= level)
    first = next(seconds, None)
    return '-' if first is None else f'{first:,.1f}'


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    methods = result['methods']
    best = {
        name: max(x['points'], key=lambda point: point['recall@20'])
        for name, x in methods.items()
    }
    head = ' | '.join(LABELS[name] for name in methods)
    out = [
        f'# Time to quality on {result["dataset"]}, protocol {result["protocol"]}\n',
        f'`{result["call"]}`\n',
        f'Threads: {result["threads"]}, of {result["cpu"]}. Validation items; seconds '
        'of start and training, without loading and evaluation. Popularity: Recall@20 '
        f'{result["popularity"]["recall@20"]:.4f}, NDCG@20 '
        f'{result["popularity"]["ndcg@20"]:.4f}.\n',
        f'Seconds until Recall@20 is reached:\n\n| Recall@20 | {head} |',
        '|---' * (len(methods) + 1) + '|',
    ]
    for level in ladder(max(point['recall@20'] for point in best.values())):
        cells = [reached(x['points'], level) for x in methods.values()]
        out.append(f'| {level:.2f} | {" | ".join(cells)} |')
    out.append(
        '\nWhere it ended, by itself or by the limit of '
        f'{result["seconds"]:,.0f} s, and the best on the way. "Else" is evaluations '
        'and the copies of the best model:\n\n'
        '| method | seconds | Recall@20 | NDCG@20 | best Recall@20 | at | points | '
        'else, seconds | ended |\n|---|---|---|---|---|---|---|---|---|'
    )
    for name, x in methods.items():
        last = x['points'][-1]
        out.append(
            f'| {LABELS[name]} | {last["seconds"]:,.1f} | {last["recall@20"]:.4f} | '
            f'{last["ndcg@20"]:.4f} | {best[name]["recall@20"]:.4f} | '
            f'{best[name]["seconds"]:,.1f} | {len(x["points"])} | '
            f'{x["other_seconds"]:,.1f} | {x["ended"]} |'
        )
    return '\n'.join(out) + '\n'


def draw(result: dict[str, Any], path: Path) -> None:
    """Recall@20 against the logarithm of seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout='constrained')
    ax = figure.subplots()
    for name, x in result['methods'].items():
        points = x['points']
        ax.plot(
            [point['seconds'] for point in points],
            [point['recall@20'] for point in points],
            {'gfcf': 'D', 'fast': 'o-'}.get(name, '.-'),
            color=COLOURS[name],
            label=LABELS[name],
        )
    popularity = result['popularity']['recall@20']
    ax.axhline(popularity, color='#7A7A7A', linestyle=':', label='popularity')
    ax.set_xscale('log')
    ax.set_ylim(bottom=0)
    ax.set_title(f'{result["dataset"]}, protocol {result["protocol"]}')
    ax.set_xlabel(f'seconds of start and training, threads: {result["threads"]}')
    ax.set_ylabel('validation Recall@20')
    ax.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the methods and writes figures, table and picture."""
    parser = make_parser(__doc__)
    parser.add_argument('--dataset', required=True)
    parser.add_argument('--data-root')
    parser.add_argument('--protocol', default='c2f', choices=('c2f', 'standard'))
    parser.add_argument('--seconds', type=float, default=300, help='for each method')
    parser.add_argument('--seed', type=int, default=2024)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    reuse_freed_memory()

    data = get_dataset(args.dataset, args.data_root, args.protocol)
    popularity = popularity_score(data[RATES].edge_index, data[ITEM].num_nodes)
    result: dict[str, Any] = {
        'call': shlex.join(['python', 'benchmarks/time_to_quality.py', *argv]),
        'dataset': args.dataset,
        'protocol': args.protocol,
        'split': 'val',
        'seconds': args.seconds,
        'seed': args.seed,
        'threads': args.threads,
        'cpu': device_name(torch.device('cpu')),
        'versions': {'python': platform.python_version(), 'torch': torch.__version__},
        'popularity': evaluate_split(popularity, data, 'val'),
        'methods': {},
    }
    name = args.dataset if args.protocol == 'c2f' else f'{args.dataset}-standard'
    path = result_path(args, f'time_to_quality-{name}')
    for method, run in METHODS.items():
        curve, ended = Curve(args.seconds), 'by itself'
        try:
            run(data, args.seed, curve)
        except _TimeIsUpError:
            ended = 'by the limit'
        result['methods'][method] = {
            'points': curve.points,
            'other_seconds': curve.other_seconds,
            'ended': ended,
        }
        print(LABELS[method], json.dumps(curve.points[-1]), flush=True)
    draw(result, path.with_suffix('.png'))
    write_result(path, result, table(result))


if __name__ == '__main__':
    main()
