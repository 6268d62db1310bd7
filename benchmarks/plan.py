r"""What a run takes on many workers: memory, bytes and seconds, on paper.

    python benchmarks/plan.py --dataset made-10000000 --data-root /tmp/large

The constants are measured on one core of this machine, on a data set whose tables do
not fit the caches; the rest is arithmetic, with the bytes of `distributed.py`, which
are checked there on the wire. A worker is one process on one such core.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from ablation import data_arguments, header, header_text, markdown_table, stamp
from distributed import anchors_bytes
from scale import number
from torch_geometric.data import HeteroData

from pyg_c2f.checkpoint import write_json, write_text
from pyg_c2f.codes import KMEANS_ITERATIONS
from pyg_c2f.config import FastRecipe
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import BLOCK_BYTES, evaluate_split, with_sampled_users
from pyg_c2f.fast import build_fast, share_pairs
from pyg_c2f.shards import Group
from pyg_c2f.spectral import (
    FILTER_DEGREE,
    FILTER_ROUNDS,
    OVERSAMPLING,
    TABLE_BYTES,
    VARIMAX_ITERATIONS,
    VARIMAX_ROWS,
    right_vectors,
    shared_interactions,
)
from pyg_c2f.train import reuse_freed_memory
from pyg_c2f.typing import ITEM

GB = 1e9
LINKS = 64  # of the item with most coarse links


class Size(NamedTuple):
    """A data set and the workers that share it."""

    users: float
    items: float
    pairs: float
    width: int
    workers: int


class Constants(NamedTuple):
    """Seconds on one core."""

    gather: float  # of a pair and column in a product with R or R'
    flop: float  # of a dense product
    rank: float  # of a user and item in an evaluation


def num_products() -> int:
    """The products with R or R' behind the singular vectors: start, looks, powers."""
    looks, powers = 1 + FILTER_ROUNDS, FILTER_ROUNDS * (FILTER_DEGREE - 1)
    return 1 + 2 * (looks + powers)


def dense_flops(size: Size, recipe: FastRecipe) -> float:
    """Of the items' rows of a worker: bases, looks, rotation, k-means."""
    rows, k = size.items / size.workers, size.width + OVERSAMPLING
    bases, looks = 1 + FILTER_ROUNDS, 1 + FILTER_ROUNDS
    # A basis is two Gram matrices and two products, a look one and two.
    vectors = (4 * bases + 3 * looks) * 2 * rows * k**2
    turned = max(VARIMAX_ROWS, 12 * size.width) / size.workers
    rotation = VARIMAX_ITERATIONS * 4 * turned * size.width**2
    centroids = recipe.num_fine / recipe.fine_links
    passes = 4 + KMEANS_ITERATIONS * recipe.fine_links
    return vectors + rotation + passes * 2 * rows * centroids * size.width


def memory(size: Size, recipe: FastRecipe) -> dict[str, float]:
    """Bytes of a worker at the peak of each part, mapped pages of the data apart."""
    rows, k = size.items / size.workers, size.width + OVERSAMPLING
    pairs, users = size.pairs / size.workers, size.users / size.workers
    columns = min(max(TABLE_BYTES // (4 * max(size.users, size.items)), 32), 128)
    links = 12 * size.items * (LINKS + recipe.fine_links)
    # Both ways round 8 bytes each; while they are made, pairs, order and places.
    both, making = 16 * pairs, 40 * pairs
    # Basis, product, three of a polynomial, one on the way; the parts that are whole.
    tables = 6 * 4 * rows * k + columns * (size.items * (4 + 4 + 8) + 4 * users)
    ranking = 4 * size.items * size.width + 2 * BLOCK_BYTES
    return {
        'pairs (mapped)': 24 * pairs,
        'anchors': max(both + tables, making + both),
        'evaluation': links + ranking,
    }


def sent(size: Size, recipe: FastRecipe) -> float:
    """Bytes that a worker sends for the anchors, on average."""
    items, width = int(size.items), size.width + OVERSAMPLING
    anchors = anchors_bytes(recipe, items, size.width, width, LINKS, size.workers)
    return anchors / size.workers


def seconds(
    size: Size, recipe: FastRecipe, constants: Constants, eval_users: int
) -> dict[str, float]:
    """Seconds of computing on a worker."""
    pairs, k = size.pairs / size.workers, size.width + OVERSAMPLING
    anchors = num_products() * pairs * k * constants.gather
    anchors += dense_flops(size, recipe) * constants.flop
    return {
        'anchors': anchors,
        'evaluation': eval_users * size.items * constants.rank / size.workers,
    }


def timed(function: Callable[[], object], rounds: int) -> float:
    """The median of a few calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


def measure(data: HeteroData, recipe: FastRecipe, rounds: int) -> Constants:
    """The constants, with dense parts taken off by the rate of dense products."""
    group = Group(recipe.partitions)
    _, users, own = share_pairs(data, group)
    num_items = data[ITEM].num_nodes
    items = group.rows(num_items)
    degree = torch.bincount(own[1], minlength=num_items)
    norms = recipe.user_norm, recipe.item_norm
    shared = shared_interactions(own, users, items, *norms, degree)
    pairs, rank = own.size(1), recipe.embedding_dim
    x = torch.randn(num_items // group.num_blocks, 512)
    flop = timed(lambda: x.T @ x, 5) / (2 * len(x) * 512**2)

    vectors = timed(lambda: right_vectors(shared, rank, torch.Generator()), rounds)
    k = rank + OVERSAMPLING
    dense = (4 + 3) * (1 + FILTER_ROUNDS) * 2 * num_items * k**2
    gather = (vectors - dense * flop) / (num_products() * pairs * k)

    model = build_fast(data, recipe, torch.Generator().manual_seed(0))
    model.set_stage('fine')

    some = with_sampled_users(data, 1024, 0)
    ranking = timed(lambda: evaluate_split(model.scorer(), some, 'val'), rounds)
    return Constants(gather, flop, ranking / (1024 * num_items))


def table(result: dict[str, Any]) -> str:
    """The constants and the arithmetic as Markdown."""
    constants = Constants(**result['constants'])
    recipe = FastRecipe()
    names = 'width|workers|mapped|anchors|evaluation|sent'
    names += '|s: anchors|on the wire|evaluation'
    rows = []
    for width in result['widths']:
        for workers in result['workers']:
            size = Size(*result['size'], width, workers)
            wire = sent(size, recipe)
            spent = seconds(size, recipe, constants, result['eval_users'])
            cells = [x / GB for x in (*memory(size, recipe).values(), wire)]
            cells += [spent['anchors'], wire / (result['gbit'] * GB / 8)]
            cells.append(spent['evaluation'])
            rows.append([str(width), str(workers), *(f'{x:.3g}' for x in cells)])
    users, items, pairs = result['size']
    return '\n'.join(
        [
            '# A run on many workers, on paper\n',
            header_text(result, [result]),
            'Measured on one core: '
            f'{constants.gather * 1e9:.3f} ns a pair and column in a product with the '
            f'interactions, {1e-9 / constants.flop:.0f} GFlop/s in dense products, '
            f'{constants.rank * 1e9:.1f} ns a user and item in an evaluation.\n',
            f'{users:.0e} users, {items:.0e} items, {pairs:.0e} pairs; a worker has '
            f'one such core and {result["gbit"]:g} Gbit/s; memory and bytes sent in GB '
            f'a worker, seconds of computing and on the wire; evaluation of '
            f'{result["eval_users"]:,} users.\n',
            markdown_table(names.split('|'), rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and works it out."""
    argv = sys.argv[1:] if argv is None else argv
    parser = data_arguments(__doc__)
    parser.add_argument('--size', type=number, nargs=3, default=[10**7, 10**6, 10**9])
    parser.add_argument('--workers', type=int, nargs='+', default=[8, 64, 512])
    parser.add_argument('--widths', type=int, nargs='+', default=[128, 512])
    parser.add_argument('--gbit', type=float, default=25.0)
    parser.add_argument('--eval-users', type=int, default=10_000)
    parser.add_argument('--rounds', type=int, default=3)
    parser.set_defaults(protocol='c2f')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    reuse_freed_memory()
    data = get_dataset(args.dataset, args.data_root, args.protocol)
    recipe = FastRecipe(embedding_dim=64, coarse_links=6, fine_links=1, num_fine=256)
    result = header('plan', args, argv) | stamp()
    keys = ('size', 'workers', 'widths', 'gbit', 'eval_users')
    result |= {key: getattr(args, key) for key in keys}
    result['constants'] = measure(data, recipe, args.rounds)._asdict()
    args.out.mkdir(parents=True, exist_ok=True)
    path: Path = args.out / 'plan.json'
    write_json(path, result)
    write_text(path.with_suffix('.md'), table(result))
    print(table(result))
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
