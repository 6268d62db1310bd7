r"""What each part of recipe fast brings: one setting after the other is changed.

    python benchmarks/ablation.py --dataset gowalla --data-root ../shared/data

Every variant is recipe fast with a few settings changed, run with several seeds. Test
figures are reported and choose nothing. What is done is kept in the JSON, so that a
second call goes on where the first one stopped; a variant whose settings have changed
since is done again. The helpers here also serve the other scripts on recipe fast.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from step_cost import device_name
from torch_geometric.data import HeteroData
from tqdm import tqdm

from pyg_c2f.checkpoint import model_bytes, write_json, write_text
from pyg_c2f.config import FastRecipe, get_recipe
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.fast import train_fast
from pyg_c2f.train import check_run, reuse_freed_memory
from pyg_c2f.typing import Stage

METRICS = ('ndcg@20', 'recall@20')
STORED = ('codebooks', 'assignments', 'scalars')
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ('default', {}),
    ('no fine levels', {'fine_links': 0}),
    ('no fine levels, 11 links', {'fine_links': 0, 'coarse_links': 11}),
    ('power 0.5', {'power': 0.5}),
    ('power 0', {'power': 0.0}),
    ('popularity 0', {'popularity': 0.0}),
    ('item power 0.5', {'item_power': 0.5}),
    ('diffusion channel', {'diffusion': 1.0}),
    ('32-bit storage', {'dtype': 'float32'}),
]


def data_arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every script here takes."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--dataset', default='gowalla')
    parser.add_argument('--data-root')
    parser.add_argument('--protocol', choices=('c2f', 'standard'), default='standard')
    parser.add_argument('--out', default='benchmarks/results', type=Path)
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a setting of the recipe to start from, instead of its own',
    )
    return parser


def load_data(args: argparse.Namespace) -> HeteroData:
    """The data set that the arguments name."""
    reuse_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    return get_dataset(args.dataset, args.data_root, args.protocol)


def base_recipe(args: argparse.Namespace) -> FastRecipe:
    """Recipe fast with the settings of the data set and those of the call."""
    settings = dict(pair.partition('=')[::2] for pair in args.set)
    recipe = get_recipe('fast', args.dataset, settings)
    assert isinstance(recipe, FastRecipe)
    return recipe


def read_result(path: Path, parts: Iterable[str]) -> dict[str, Any]:
    """What an earlier call has left, each of the parts a dictionary."""
    result = json.loads(path.read_text()) if path.exists() else {}
    return {part: result.get(part, {}) for part in parts}


def header(name: str, args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """How the figures came about."""
    return {
        'call': shlex.join(['python', f'benchmarks/{name}.py', *argv]),
        'dataset': getattr(args, 'dataset', 'generated'),
        'protocol': getattr(args, 'protocol', ''),
        'processor': device_name(torch.device('cpu')),
        'torch': torch.__version__,
    }


def stamp() -> dict[str, Any]:
    """When and with how many threads a figure was taken."""
    return {'date': time.strftime('%Y-%m-%d'), 'threads': torch.get_num_threads()}


def header_text(result: dict[str, Any], figures: Iterable[dict[str, Any]]) -> str:
    """The header as Markdown; dates and threads are those of the figures."""
    figures = list(figures)
    dates = sorted({x['date'] for x in figures})
    threads = sorted({x['threads'] for x in figures})
    when = ' to '.join([dates[0], dates[-1]][: len(dates)]) if dates else 'not yet'
    title = f'{result["dataset"]}, protocol {result["protocol"]}'
    return (
        f'`{result["call"]}`\n\n{title.removesuffix(", protocol ")}. '
        f'{result["processor"]}, threads {", ".join(map(str, threads))}; {when}; '
        f'torch {result["torch"]}.\n'
    )


def stored_bytes(sizes: dict[str, int]) -> int:
    """The stored size of a model: codebooks, assignments and scalars."""
    return sum(sizes[name] for name in STORED)


def measure(data: HeteroData, recipe: FastRecipe, seed: int) -> dict[str, Any]:
    """Figures of one run: validation and test, bytes, seconds without rankings."""
    check_run(data, recipe)
    stages: tuple[Stage, ...] = ('fine',) if recipe.fine_links else ('coarse',)
    model, results, clock = train_fast(data, recipe, seed, stages)
    test = evaluate_split(model.scorer(), data, 'test', ks=(20,))
    val = results[model.stage][1]['val']
    sizes = model_bytes(model)
    return {
        'val': {name: val[name] for name in METRICS},
        'test': {name: test[name] for name in METRICS},
        'bytes': sizes | {'stored': stored_bytes(sizes)},
        'seconds': round(clock['anchors'], 3),
        **stamp(),
    }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, the latter zero for a single value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def over_seeds(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of the figures over the seeds."""
    runs = list(runs)
    return {
        'seeds': len(runs),
        **{
            split: {name: spread([x[split][name] for x in runs]) for name in METRICS}
            for split in ('val', 'test')
        },
        'stored': mean(x['bytes']['stored'] for x in runs),
        'inference_extra': mean(x['bytes']['inference_extra'] for x in runs),
        'seconds': mean(x['seconds'] for x in runs),
    }


def quality_cells(summary: dict[str, Any], split: str) -> list[str]:
    """Cells of a table: each metric with its deviation."""
    return [f'{m:.4f} ± {s:.4f}' for m, s in summary[split].values()]


def markdown_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [names, ['---'] * len(names), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def as_settings(settings: dict[str, Any]) -> str:
    """Settings as they are given on the command line."""
    return ' '.join(f'--set {name}={value}' for name, value in settings.items())


def run_seeds(
    data: HeteroData, recipe: FastRecipe, seeds: int, entry: dict[str, Any]
) -> Iterable[int]:
    """Fills an entry with the seeds that it lacks, and tells after each of them."""
    if entry.get('recipe') != asdict(recipe):
        entry.clear()
        entry |= {'recipe': asdict(recipe), 'runs': {}}
    for seed in range(seeds):
        if str(seed) not in entry['runs']:
            entry['runs'][str(seed)] = measure(data, recipe, seed)
            entry['summary'] = over_seeds(entry['runs'].values())
            yield seed


def table(result: dict[str, Any]) -> str:
    """The variants as Markdown."""
    rows, figures = [], []
    for name, entry in result['variants'].items():
        settings = ', '.join(f'{k}={v}' for k, v in entry['settings'].items())
        figures += entry['runs'].values()
        s = entry['summary']
        cells = [name, settings, str(s['seeds'])]
        cells += quality_cells(s, 'val') + quality_cells(s, 'test')
        cells += [f'{s["stored"]:,.0f}', f'{s["inference_extra"]:,.0f}']
        rows.append([*cells, f'{s["seconds"]:.1f}'])
    names = 'variant|settings|seeds|val NDCG@20|val Recall@20|test NDCG@20|'
    names += 'test Recall@20|stored bytes|inference extra|seconds'
    out = ['# What each part of recipe fast brings\n', header_text(result, figures)]
    out += [
        'Mean ± standard deviation over seeds. Test figures choose nothing. Seconds '
        'are those of the anchors, without loading and ranking; inference '
        'extra is the train graph, where recommending needs more than a history.\n',
        markdown_table(names.split('|'), rows),
    ]
    return '\n'.join(out)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the variants that are not done yet."""
    argv = sys.argv[1:] if argv is None else argv
    parser = data_arguments(__doc__)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument(
        '--only',
        nargs='+',
        choices=[name for name, _ in VARIANTS],
        metavar='NAME',
        help='variants to run: ' + ', '.join(name for name, _ in VARIANTS),
    )
    args = parser.parse_args(argv)
    data, base = load_data(args), base_recipe(args)
    path = args.out / f'ablation-{args.dataset}-{args.protocol}.json'
    result = header('ablation', args, argv) | read_result(path, ['variants'])

    def write() -> None:
        order = [name for name, _ in VARIANTS if name in result['variants']]
        result['variants'] = {name: result['variants'][name] for name in order}
        write_json(path, result)
        write_text(path.with_suffix('.md'), table(result))

    chosen = [x for x in VARIANTS if not args.only or x[0] in args.only]
    for name, settings in (bar := tqdm(chosen)):
        bar.set_description(name)
        entry = result['variants'].get(name, {})
        for _ in run_seeds(data, replace(base, **settings), args.seeds, entry):
            entry['settings'] = settings
            result['variants'][name] = entry
            write()
    write()
    print(table(result))
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
