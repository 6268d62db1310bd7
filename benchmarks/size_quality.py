r"""Quality against the stored size, each size with the settings that suit it.

    python benchmarks/size_quality.py --dataset gowalla --data-root ../shared/data

For every target size and every cell of a grid of widths and fine levels, the mean
number of coarse links is found that fills the size. The cell with the best validation
NDCG@20 (seed 0) is chosen, then run with several seeds and evaluated on test items. A
megabyte is a million bytes. Finished work is kept in the JSON, so that a second call
continues where the first one stopped.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from math import floor
from pathlib import Path
from typing import Any

import torch
from common import (
    MEGABYTE,
    METRICS,
    PER_LEVEL,
    WIDTHS,
    as_settings,
    base_recipe,
    data_arguments,
    estimated_bytes,
    header,
    header_text,
    link_bytes,
    load_data,
    markdown_table,
    quality_cells,
    read_result,
    remembered,
    result_path,
    run_seeds,
    spectrum_key,
    stored_bytes,
    write_result,
)
from torch_geometric.data import HeteroData
from tqdm import tqdm

from pyg_c2f.checkpoint import model_bytes
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.files import write_json
from pyg_c2f.nn import LinearC2F
from pyg_c2f.recipes import FastRecipe, fast
from pyg_c2f.typing import ITEM, USER

SIZES = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
LEVELS = (0, 1, 2, 4)
FULLEST, EMPTIEST = 0.995, 0.975  # of a target size; seeds differ a little
COLUMNS_PER_LINK = 8  # no more links than one to so many columns
ATTEMPTS = 4


def build(data: HeteroData, recipe: FastRecipe) -> tuple[LinearC2F, int]:
    """The model of seed 0 in its last stage, and its stored size."""
    model = fast.build_fast(data, recipe, torch.Generator().manual_seed(0))
    model.set_stage('fine' if recipe.fine_per_item else 'coarse')
    return model, stored_bytes(model_bytes(model))


def fill(data: HeteroData, recipe: FastRecipe, target: float) -> dict[str, Any]:
    """A cell of the grid: the links that fill the size, and validation figures."""
    rows = data[ITEM].num_nodes
    most = max(recipe.embedding_dim / COLUMNS_PER_LINK, 1.0)
    each, wanted = link_bytes(recipe, rows), target * (FULLEST + EMPTIEST) / 2
    empty = replace(recipe, coarse_per_item=1.0)
    links = 1 + (wanted - estimated_bytes(data, empty)) / each
    for _ in range(ATTEMPTS):
        links = floor(100 * min(max(links, 1.0), most)) / 100
        recipe = replace(recipe, coarse_per_item=links)
        model, size = build(data, recipe)
        if EMPTIEST * target <= size <= FULLEST * target:
            break
        if (links == 1 and size > target) or (links == most and size < target):
            break
        links += (wanted - size) / each
    links = recipe.coarse_per_item
    names = ('embedding_dim', 'coarse_per_item', 'fine_per_item', 'num_fine')
    cell = {'settings': {x: getattr(recipe, x) for x in names}, 'stored': size}
    if size > target:
        return cell | {'refused': f'{links} links take {size:,} bytes already'}
    val = evaluate_split(model.scorer(), data, 'val', ks=(20,))
    capped = links == most and size < EMPTIEST * target
    return cell | {'val': {name: val[name] for name in METRICS}, 'capped': capped}


def search(
    data: HeteroData,
    base: FastRecipe,
    sizes: Sequence[float],
    grid: Sequence[tuple[int, int]],
    cells: dict[str, Any],
) -> Iterator[None]:
    """Computes the missing cells; yields after each so that it can be saved."""
    most = min(data[USER].num_nodes, data[ITEM].num_nodes)
    per_level = min(PER_LEVEL, data[ITEM].num_nodes)
    with remembered('spectral_features', spectrum_key):
        for width, levels in tqdm(grid, 'grid'):
            shape = {'embedding_dim': min(width, most), 'fine_per_item': levels}
            if levels:
                shape['num_fine'] = per_level * levels
            last: dict[str, Any] = {}
            for size in sorted(sizes):
                name = f'{size:g} MB, {width} wide, {levels} levels'
                if name not in cells:
                    # Where a smaller size is not filled, a larger one is the same.
                    cells[name] = (
                        last
                        if last.get('capped')
                        else fill(data, replace(base, **shape), size * MEGABYTE)
                    ) | {'size': size}
                    yield
                last = cells[name]


def choose(cells: dict[str, Any], sizes: Sequence[float]) -> dict[str, Any]:
    """The best cell of each size, by validation NDCG@20.

    Of sizes that no cell fills, only the first is kept.
    """
    chosen, full = {}, False
    for size in sorted(sizes):
        known = [x for x in cells.values() if x['size'] == size and 'val' in x]
        if not known or full:
            continue
        chosen[f'{size:g}'] = max(known, key=lambda x: x['val'][METRICS[0]])
        full = all(x['capped'] for x in known)
    return chosen


def table(result: dict[str, Any]) -> str:
    """The chosen settings and their figures as Markdown."""
    rows, figures, left_out = [], [], []
    for size in result['sizes']:
        entry = result['chosen'].get(f'{size:g}')
        if entry is None:
            left_out.append(f'{size:g}')
        elif 'summary' in entry:
            s = entry['summary']
            figures += entry['runs'].values()
            cells = [f'{size:g}', f'`{as_settings(entry["settings"])}`']
            cells += [str(s['seeds']), f'{s["stored"]:,.0f}']
            cells += quality_cells(s, 'val') + quality_cells(s, 'test')
            rows.append([*cells, f'{s["seconds"]:.1f}'])
    names = 'MB|settings|seeds|stored bytes|val NDCG@20|val Recall@20|'
    names += 'test NDCG@20|test Recall@20|seconds'
    out = [
        '# Quality against stored size\n',
        header_text(result, figures),
        'Settings chosen by validation NDCG@20 at seed 0; mean ± standard deviation '
        'over seeds; seconds of building, without loading and ranking.\n',
        markdown_table(names.split('|'), rows),
    ]
    if left_out:
        out.append(
            f'Left out: {", ".join(left_out)} MB. No settings of the grid are so '
            'small, or a smaller size holds all that the grid can use.\n'
        )
    return '\n'.join(out)


def draw(result: dict[str, Any], path: Path) -> None:
    """Test figures against bytes, with the deviation over seeds."""
    from matplotlib.figure import Figure

    done = [x['summary'] for x in result['chosen'].values() if 'summary' in x]
    x = [s['stored'] / MEGABYTE for s in done]
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    for ax, metric, name in zip(
        figure.subplots(1, 2),
        ('recall@20', 'ndcg@20'),
        ('Recall@20', 'NDCG@20'),
        strict=True,
    ):
        for split, colour, style in (
            ('test', '#0072B2', 'o-'),
            ('val', '#D55E00', 's--'),
        ):
            y, error = zip(*(s[split][metric] for s in done), strict=True)
            label = 'test' if split == 'test' else 'validation'
            ax.errorbar(x, y, error, fmt=style, color=colour, capsize=3, label=label)
        ax.set_xlabel('stored megabytes')
        ax.set_ylabel(name)
        ax.set_title(f'{result["dataset"]}, protocol {result["protocol"]}')
        ax.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Searches, chooses, and runs the chosen settings with all seeds."""
    argv = sys.argv[1:] if argv is None else argv
    parser = data_arguments(__doc__)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument(
        '--sizes', type=float, nargs='+', default=SIZES, help='in megabytes'
    )
    parser.add_argument('--widths', type=int, nargs='+', default=WIDTHS)
    parser.add_argument('--levels', type=int, nargs='+', default=LEVELS)
    parser.add_argument(
        '--quick', action='store_true', help="one seed, the recipe's width and levels"
    )
    args = parser.parse_args(argv)
    data, base = load_data(args), base_recipe(args)
    if args.quick:
        args.seeds, args.widths = 1, [base.embedding_dim]
        args.levels = [base.fine_per_item]
    grid = [(width, levels) for width in args.widths for levels in args.levels]
    path = result_path(args, f'size_quality-{args.dataset}-{args.protocol}')
    known = read_result(path, ('base', 'cells', 'chosen'))
    if known['base'] != asdict(base):  # Other settings outside the grid: start again.
        known |= {'base': asdict(base), 'cells': {}, 'chosen': {}}
    result = header('size_quality', args, argv) | {'sizes': sorted(args.sizes)} | known

    for _ in search(data, base, args.sizes, grid, result['cells']):
        write_json(path, result)
    before = result['chosen']
    result['chosen'] = choose(result['cells'], args.sizes)
    for size, cell in tqdm(result['chosen'].items(), 'seeds'):
        entry = {x: before.get(size, {}).get(x) for x in ('recipe', 'runs', 'summary')}
        recipe = replace(base, **cell['settings'])
        for _ in run_seeds(data, recipe, args.seeds, entry):
            result['chosen'][size] = cell | entry
            write_json(path, result)
        result['chosen'][size] = cell | entry
    draw(result, path.with_suffix('.png'))
    write_result(path, result, table(result))


if __name__ == '__main__':
    main()
