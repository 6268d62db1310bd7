r"""What building the anchors costs as the interactions grow: is it linear?

    python benchmarks/scale.py --interactions 1e6 3e6 1e7 3e7

The interactions are generated: a thirtieth as many users, a fortieth as many items, a
skewed popularity, and users who stay among a community of a thousand items for seven of
ten interactions. Each size runs in a process of its own, for its peak memory; a size
that is in the JSON with the same settings is not run again. The first stage is SVD and
rotation, the second the anchors.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import (
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
from torch_geometric.data import HeteroData
from tqdm import tqdm

from pyg_c2f.experiment import reuse_freed_memory
from pyg_c2f.files import write_json
from pyg_c2f.recipes import FastRecipe, fast
from pyg_c2f.sparse import pair_keys, split_keys
from pyg_c2f.typing import ITEM, RATES, USER

RECIPE = FastRecipe(embedding_dim=64, coarse_per_item=6, fine_per_item=1, num_fine=256)
USERS, ITEMS = 30, 40  # interactions for each
EXPONENT = 0.8
COMMUNITY, LOYALTY = 1000, 0.7  # items of a community, draws that stay in it
SURPLUS = 1.2  # draws, for repeated ones count once
CHUNK = 1 << 21
TOLERANCE = 1.2


def generate(num_interactions: int, seed: int = 0) -> HeteroData:
    """Random interactions, about as many as asked for."""
    rng = np.random.default_rng(seed)
    num_draws = int(SURPLUS * num_interactions)
    num_users = max(num_interactions // USERS, 1)
    num_groups = max(num_interactions // ITEMS // COMMUNITY, 1)
    num_ranks = max(num_interactions // ITEMS // num_groups, 1)
    num_items = num_ranks * num_groups
    # The rank of an item in its community decides how popular it is.
    share = (1.0 + np.arange(num_ranks)) ** -EXPONENT
    below = np.cumsum(share / share.sum())
    place = rng.permutation(num_items)
    keys = np.empty(num_draws, dtype=np.int64)
    for start in range(0, num_draws, CHUNK):
        size = min(CHUNK, num_draws - start)
        user = rng.integers(num_users, size=size)
        rank = below.searchsorted(rng.random(size)).clip(max=num_ranks - 1)
        group = user % num_groups
        leaves = rng.random(size) > LOYALTY
        group[leaves] = rng.integers(num_groups, size=int(leaves.sum()))
        item = place[rank * num_groups + group]
        keys[start : start + size] = pair_keys((user, item), num_items)
    keys.sort()
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    keys = keys[rng.random(len(keys)) < num_interactions / len(keys)]
    data = HeteroData()
    data[USER].num_nodes, data[ITEM].num_nodes = num_users, num_items
    edges = np.stack(split_keys(keys, num_items))
    data[RATES].edge_index = torch.from_numpy(edges)
    return data


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build(num_interactions: int) -> dict[str, Any]:
    """Seconds and memory of one build, in this process."""
    reuse_freed_memory()
    data = generate(num_interactions)
    before = peak_bytes()
    spectrum, seconds = fast.spectral_features, {}

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        out = spectrum(*args)
        seconds['spectrum'] = time.perf_counter() - start
        return out

    fast.spectral_features = timed
    start = time.perf_counter()
    fast.build_fast(data, RECIPE, torch.Generator().manual_seed(0))
    seconds['total'] = time.perf_counter() - start
    fast.spectral_features = spectrum
    return {
        'interactions': data[RATES].edge_index.size(1),
        'users': data[USER].num_nodes,
        'items': data[ITEM].num_nodes,
        'seconds': seconds,
        'peak_bytes_of_the_data': before,
        'peak_bytes': peak_bytes(),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds of a size."""
    spectrum, total = (
        median(x['seconds'][name] for x in runs) for name in ('spectrum', 'total')
    )
    keys = ('interactions', 'users', 'items')
    return {
        **{key: runs[0][key] for key in keys},
        'rounds': len(runs),
        'spectrum': spectrum,
        'anchors': total - spectrum,
        'total': total,
        'per_million': total / runs[0]['interactions'] * 1e6,
        'peak_bytes': max(x['peak_bytes'] for x in runs),
    }


def verdict(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether the seconds of a million interactions agree within the tolerance."""
    costs = [x['per_million'] for x in sizes]
    ratio = max(costs) / min(costs)
    exponent = None
    if len(sizes) > 1:
        x, y = np.log([[s['interactions'], s['total']] for s in sizes]).T
        exponent = float(np.polyfit(x, y, 1)[0])
    return {'ratio': ratio, 'linear': ratio <= TOLERANCE, 'exponent': exponent}


def table(result: dict[str, Any]) -> str:
    """All sizes as Markdown."""
    sizes = result['summary']
    rows = [
        [f'{s[key]:,}' for key in ('interactions', 'users', 'items')]
        + [f'{s[key]:.2f}' for key in ('spectrum', 'anchors', 'total', 'per_million')]
        + [f'{s["peak_bytes"] / 1e9:.2f}', str(s['rounds'])]
        for s in sizes
    ]
    names = 'interactions|users|items|SVD and rotation, s|anchors, s|total, s|'
    names += 's / million|peak memory, GB|rounds'
    figures = [run for runs in result['runs'].values() for run in runs]
    end = result['verdict']
    text = (
        f'Seconds of a million interactions differ by a factor of {end["ratio"]:.2f} '
        f'at most: {"" if end["linear"] else "not "}linear within '
        f'{TOLERANCE - 1:.0%}.'
    )
    if end['exponent'] is not None:
        text += f' The fitted exponent is {end["exponent"]:.2f}.'
    return '\n'.join(
        [
            '# Cost against interactions\n',
            header_text(result, figures),
            markdown_table(names.split('|'), rows),
            text,
            '',
        ]
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds, seconds of a million, and memory against interactions."""
    from matplotlib.figure import Figure

    sizes = result['summary']
    x = [s['interactions'] / 1e6 for s in sizes]
    figure = Figure(figsize=(12, 3.4), layout='constrained')
    axes = figure.subplots(1, 3)
    for key, label, colour in (
        ('total', 'total', '#0072B2'),
        ('spectrum', 'SVD and rotation', '#D55E00'),
        ('anchors', 'anchors', '#009E73'),
    ):
        axes[0].loglog(x, [s[key] for s in sizes], 'o-', color=colour, label=label)
    axes[0].set_ylabel('seconds')
    axes[0].legend(frameon=False)
    cost = [s['per_million'] for s in sizes]
    axes[1].semilogx(x, cost, 'o-', color='#0072B2')
    middle = (max(cost) * min(cost)) ** 0.5
    half = TOLERANCE**0.5
    axes[1].axhspan(middle / half, middle * half, color='#7A7A7A', alpha=0.2)
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel('seconds of a million (band: 20 %)')
    memory = [s['peak_bytes'] / 1e9 for s in sizes]
    axes[2].loglog(x, memory, 'o-', color='#0072B2')
    axes[2].set_ylabel('peak memory, GB')
    for ax in axes:
        ax.set_xlabel('million interactions')
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the sizes that are not done yet, each in a process of its own."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    sizes = [10**6, 3 * 10**6, 10**7, 3 * 10**7]
    parser.add_argument('--interactions', type=number, nargs='+', default=sizes)
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--one', type=number, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one is not None:
        print(json.dumps(build(args.one)))
        return

    path = result_path(args, 'scale')
    result = header('scale', args, argv) | {'recipe': asdict(RECIPE)}
    known = read_result(path, ['runs', 'recipe'])
    result['runs'] = known['runs'] if known['recipe'] == result['recipe'] else {}
    for size in tqdm(sorted(args.interactions)):
        runs = result['runs'].setdefault(str(size), [])
        while len(runs) < args.rounds:
            call = [sys.executable, __file__, '--one', str(size)]
            done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]) | stamp())
            write_json(path, result)
    order = sorted(result['runs'], key=int)
    result['summary'] = [summary(result['runs'][size]) for size in order]
    result['verdict'] = verdict(result['summary'])
    draw(result, path.with_suffix('.png'))
    write_result(path, result, table(result))


if __name__ == '__main__':
    main()
