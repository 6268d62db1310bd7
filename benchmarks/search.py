r"""What a search for settings reaches on validation items, and in how many seconds.

    python benchmarks/search.py --dataset ml-1m --data-root ../shared/data \
        --sizes 25kB 50kB 100kB --seconds 60

For each size (``none``: without one) and seed, settings are chosen within the seconds,
from the defaults, with the seed drawing the sample of users. Then a model of them is
fitted to the train items, and another one to train and validation items, as
``frontier.py`` does for its last fits; test items are evaluated once each. The defaults
without a search are there as well. ``search.png`` shows the best so far over the
seconds, of all data sets in the results. Finished work is kept in the JSON.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import (
    data_arguments,
    header,
    header_text,
    load_data,
    markdown_table,
    read_result,
    result_path,
    spread,
    stamp,
    write_result,
)
from torch_geometric.data import HeteroData

from pyg_c2f.datasets import with_validation_in_train
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.files import write_json
from pyg_c2f.recipes import FastRecipe
from pyg_c2f.recipes.fast import build_fast
from pyg_c2f.recipes.search import search, stored_bytes

NO_SIZE = 'none'


def fitted(data: HeteroData, recipe: FastRecipe, seed: int) -> dict[str, Any]:
    """Figures and bytes of a model, of train items and with the validation items."""
    out = {}
    refit = with_validation_in_train(data)
    for name, train in (('train', data), ('refit', refit)):
        start = time.perf_counter()
        model = build_fast(train, recipe, torch.Generator().manual_seed(2 * seed))
        if recipe.fine_per_item:
            model.set_stage('fine')
        seconds = round(time.perf_counter() - start, 2)
        # Items to leave out, and to find, are those of the data either way.
        test = evaluate_split(model.scorer(), data, 'test', ks=(20,))
        out[name] = test | {'bytes': stored_bytes(model), 'seconds': seconds}
    return out


def run(
    data: HeteroData, size: str, seconds: float | None, seed: int
) -> dict[str, Any]:
    """One search, and the models of what it has found."""
    start = time.perf_counter()
    recipe, trials, out = FastRecipe(), [], {}
    if seconds is not None:
        limit = None if size == NO_SIZE else size
        found = search(data, recipe, size=limit, seconds=seconds, seed=seed)
        recipe, trials = found.recipe, found.trials
        out = {'ndcg': found.ndcg, 'default': found.default, 'why': found.why}
    spent = time.perf_counter() - start
    return out | {
        'recipe': str(recipe),
        'trials': trials,
        'spent': round(spent, 2),
        **fitted(data, recipe, seed),
        **stamp(),
    }


def table(result: dict[str, Any]) -> str:
    """The figures of all sizes as Markdown."""
    names = ['size', 'seconds', 'seeds', 'bytes', 'validation', 'with the defaults']
    names += ['test NDCG@20 / Recall@20', 'refit with validation items']
    rows, stamps = [], []
    for key, runs in result['runs'].items():
        runs = list(runs.values())
        stamps += runs
        ndcg = [
            f'{mean(x[name] for x in runs):.4f}' if name in runs[0] else ''
            for name in ('ndcg', 'default')
        ]
        tests = [
            ' / '.join(
                '{:.4f} ± {:.4f}'.format(*spread([x[kind][name] for x in runs]))
                for name in ('ndcg@20', 'recall@20')
            )
            for kind in ('train', 'refit')
        ]
        size = f'{mean(x["refit"]["bytes"] for x in runs):,.0f}'
        spent = f'{mean(x["spent"] for x in runs):.0f}'
        rows.append([key, spent, str(len(runs)), size, *ndcg, *tests])
    return f'{header_text(result, stamps)}\n{markdown_table(names, rows)}'


def best_so_far(trials: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """The best trial up to each second."""
    out: list[tuple[float, float]] = []
    for trial in trials:
        if 'seconds' in trial:
            best = max(trial['ndcg'], out[-1][1] if out else 0.0)
            out.append((trial['seconds'], best))
    return out


def picture(folder: Path) -> None:
    """The best so far over seconds, of all data sets, without a size."""
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    results = [
        read_result(x, ('dataset', 'runs')) for x in folder.glob('search-*.json')
    ]
    results = [x for x in results if x['runs'].get(NO_SIZE)]
    if not results:
        return
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for color, result in enumerate(results):
        for number, one in enumerate(result['runs'][NO_SIZE].values()):
            start = one['default']
            points = best_so_far([{'ndcg': start, 'seconds': 0.0}, *one['trials']])
            x, y = zip(*points, strict=True)
            axes.step(
                x,
                [100 * (value / start - 1) for value in y],
                where='post',
                color=f'C{color}',
                label=None if number else result['dataset'],
                alpha=0.8,
            )
    axes.set_xlabel('seconds of search, two threads')
    axes.set_ylabel('validation NDCG@20 over the defaults, %')
    axes.legend(frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / 'search.png', dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing, and prints and draws all of it."""
    argv = sys.argv[1:] if argv is None else argv
    parser = data_arguments(__doc__)
    parser.add_argument('--sizes', nargs='+', default=[NO_SIZE], help='as 250kB')
    parser.add_argument('--seconds', type=float, default=60.0, help='of a search')
    parser.add_argument('--seeds', type=int, default=5, help='searches of each size')
    args = parser.parse_args(argv)
    data = load_data(args)
    path = result_path(args, f'search-{args.dataset}')
    result = header('search', args, argv) | read_result(path, ('runs',))
    kinds = [('defaults', None), *((size, args.seconds) for size in args.sizes)]
    for key, seconds in kinds:
        runs = result['runs'].setdefault(key, {})
        for seed in range(args.seeds):
            if str(seed) not in runs:
                runs[str(seed)] = run(data, key, seconds, seed)
                write_json(path, result)
    write_result(path, result, table(result))
    picture(path.parent)
    return 0


if __name__ == '__main__':
    sys.exit(main())
