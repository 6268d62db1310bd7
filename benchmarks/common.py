"""Shared by the scripts: arguments, results and tables, runs of recipe fast."""

import argparse
import json
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch_geometric.data import HeteroData
from torch_geometric.utils import degree

from pyg_c2f.checkpoint import model_bytes
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.experiment import reuse_freed_memory
from pyg_c2f.files import write_json, write_text
from pyg_c2f.packing import WEIGHT_BITS, num_bits
from pyg_c2f.recipes import FastRecipe, TrainingOptions, fast, get_recipe, train
from pyg_c2f.typing import ITEM, RATES

ROOT = Path(__file__).resolve().parents[1]
METRICS = ('ndcg@20', 'recall@20')
STORED = ('codebooks', 'assignments', 'scalars')
MEGABYTE = 1_000_000
WIDTHS = (256, 384, 512, 768)
PER_LEVEL = 256


# Arguments ----------------------------------------------------------------------------


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every script here takes."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', default=ROOT / 'benchmarks/results', type=Path)
    return parser


def number(text: str) -> int:
    """A whole number, 1e6 included."""
    return int(float(text))


def data_arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with a data set and settings of recipe fast."""
    parser = make_parser(doc)
    parser.add_argument('--dataset', default='gowalla')
    parser.add_argument('--data-root')
    parser.add_argument('--protocol', choices=('c2f', 'standard'), default='standard')
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
    return get_dataset(args.dataset, args.data_root, args.protocol)


def base_recipe(args: argparse.Namespace) -> FastRecipe:
    """Recipe fast with the settings of the data set and those of the call."""
    settings = dict(pair.partition('=')[::2] for pair in args.set)
    recipe = get_recipe('fast', settings)
    assert isinstance(recipe, FastRecipe)
    return recipe


# Results ------------------------------------------------------------------------------


def result_path(args: argparse.Namespace, name: str) -> Path:
    """The JSON file of a result, in a folder that is there."""
    args.out.mkdir(parents=True, exist_ok=True)
    return args.out / f'{name}.json'


def read_result(path: Path, parts: Iterable[str]) -> dict[str, Any]:
    """The result of an earlier call; a part that is missing is an empty dictionary."""
    result = json.loads(path.read_text()) if path.exists() else {}
    return {part: result.get(part, {}) for part in parts}


def header(name: str, args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The call, the data and the machine behind the figures."""
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


def device_name(device: torch.device) -> str:
    """The model of the graphics card or of the processor."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name()
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (x.partition(':')[2].strip() for x in lines if x.startswith('model name'))
    return next(names, platform.processor())


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


def markdown_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [names, ['---'] * len(names), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def write_result(path: Path, result: dict[str, Any], text: str) -> None:
    """Writes a result as JSON, and its Markdown beside it; prints the latter."""
    write_json(path, result)
    write_text(path.with_suffix('.md'), text)
    print(text)
    print(f'wrote {path}')


def figures_of(metrics: dict[str, Any]) -> dict[str, float]:
    """All figures of the stages in a ``metrics.json``, each under one name."""
    return {
        f'{stage} {phase} {split} {name}': value
        for stage in ('coarse', 'fine')
        for phase, result in metrics.get(stage, {}).items()
        for split in ('val', 'test')
        for name, value in result[split].items()
    }


# Runs of recipe fast ------------------------------------------------------------------


def stored_bytes(sizes: dict[str, int]) -> int:
    """The stored size of a model: codebooks, assignments and scalars."""
    return sum(sizes[name] for name in STORED)


def measure(data: HeteroData, recipe: FastRecipe, seed: int) -> dict[str, Any]:
    """Figures of one run: validation and test, bytes, seconds without rankings."""
    run = train(data, recipe, TrainingOptions(seed))
    model = run.model
    test = evaluate_split(model.scorer(), data, 'test', ks=(20,))
    val = run.phases[model.stage][1]['val']
    sizes = model_bytes(model)
    return {
        'val': {name: val[name] for name in METRICS},
        'test': {name: test[name] for name in METRICS},
        'bytes': sizes | {'stored': stored_bytes(sizes)},
        'seconds': round(run.seconds['anchors'], 3),
        **stamp(),
    }


def run_seeds(
    data: HeteroData, recipe: FastRecipe, seeds: int, entry: dict[str, Any]
) -> Iterable[int]:
    """Runs the seeds that an entry lacks; yields after each so that it can be saved."""
    if entry.get('recipe') != asdict(recipe):
        entry.clear()
        entry |= {'recipe': asdict(recipe), 'runs': {}}
    for seed in range(seeds):
        if str(seed) not in entry['runs']:
            entry['runs'][str(seed)] = measure(data, recipe, seed)
            entry['summary'] = over_seeds(entry['runs'].values())
            yield seed


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


def as_settings(settings: dict[str, Any]) -> str:
    """Settings as they are given on the command line."""
    return ' '.join(f'--set {name}={value}' for name, value in settings.items())


def link_bytes(recipe: FastRecipe, num_rows: int) -> float:
    """Bytes of one more coarse link of every row."""
    bits = num_bits(recipe.embedding_dim) + WEIGHT_BITS
    return num_rows * {'packed': bits / 8, 'float32': 6}[recipe.dtype]


def estimated_bytes(data: HeteroData, recipe: FastRecipe) -> float:
    """An estimate of the stored size of a model before it is built."""
    num_items = data[ITEM].num_nodes
    most = int(degree(data[RATES].edge_index[1], num_items).max())
    scalars = num_items * (1 if most < 256 else 2 if most < 1 << 15 else 4)
    size = scalars + num_items + recipe.coarse_per_item * link_bytes(recipe, num_items)
    if recipe.fine_per_item:
        per_level = recipe.num_fine // recipe.fine_per_item
        size += num_items * recipe.fine_per_item * num_bits(per_level) / 8
        entry = (1 if recipe.embedding_dim <= 256 else 2) + 2
        size += fast.DENSITY * recipe.num_fine * recipe.embedding_dim * entry
        size += 4 * (recipe.num_fine + 1)
    return size


@contextmanager
def remembered(name: str, key: Callable[..., Any], num_kept: int = 1) -> Iterator[None]:
    """Caches a function of ``pyg_c2f.recipes.fast`` within this block.

    Args:
        name (str): A function there that takes a generator.
        key (Callable): What the result depends on beside the generator's state, from
            the same arguments; the data set must not change.
        num_kept (int, optional): The number of results kept. (default: ``1``)
    """
    function = getattr(fast, name)
    known: dict[Any, Any] = {}

    def recall(*args: Any) -> Any:
        generator = next(x for x in args if isinstance(x, torch.Generator))
        at = key(*args), generator.get_state().numpy().tobytes()
        if at not in known:
            if len(known) == num_kept:
                del known[next(iter(known))]
            out = function(*args)
            known[at] = out, generator.get_state()
        out, state = known[at]
        generator.set_state(state)
        return out

    setattr(fast, name, recall)
    try:
        yield
    finally:
        setattr(fast, name, function)


NORMS = ('user_norm', 'item_norm')


def spectrum_key(*args: Any) -> tuple[Any, ...]:
    """What the features of the spectrum depend on."""
    own, *_ = args
    recipe = next(x for x in args if isinstance(x, FastRecipe))
    names = ('embedding_dim', 'spectral_power', 'importance_power', *NORMS)
    return own.size(1), *(getattr(recipe, name) for name in names)
