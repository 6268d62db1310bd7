r"""What a run needs on many workers: an estimate of memory, bytes and seconds.

    python benchmarks/plan.py --dataset made-10000000 --data-root /tmp/large

The constants are measured on one core of this machine, on a data set whose tables do
not fit the caches; the rest is arithmetic, with the bytes of `distributed.py`, which
are checked there on the wire. A worker is one process on one such core.
"""

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from bytes_sent import Vectors, anchors_bytes, basis_width, counted_columns
from common import (
    data_arguments,
    header,
    header_text,
    load_data,
    markdown_table,
    number,
    result_path,
    stamp,
    write_result,
)
from torch_geometric.data import HeteroData

from pyg_c2f.anchors.codes import KMEANS_ITERATIONS
from pyg_c2f.anchors.spectral import (
    TABLE_BYTES,
    VARIMAX_ITERATIONS,
    VARIMAX_ROWS,
    right_vectors,
    shared_interactions,
)
from pyg_c2f.evaluate import BLOCK_BYTES, evaluate_split, with_sampled_users
from pyg_c2f.recipes import FastRecipe
from pyg_c2f.recipes.fast import build_fast, share_pairs
from pyg_c2f.shards import Group
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

    @property
    def basis(self) -> int:
        return basis_width(self.width, int(self.users), int(self.items))


class Constants(NamedTuple):
    """Seconds on one core, and what the singular vectors took."""

    gather: float  # of a pair and column in a product with R or R'
    flop: float  # of a dense product
    rank: float  # of a user and item in an evaluation
    products: float  # with R'R, of the whole basis
    rounds: int  # Rayleigh-Ritz steps


def vectors_flops(rows: float, width: int, rounds: int) -> float:
    """Flops of the dense products for the singular vectors of so many items."""
    # The start is a Gram matrix, a Rayleigh-Ritz step two, and two products.
    return (1 + 4 * rounds) * 2 * rows * width**2


def dense_flops(size: Size, recipe: FastRecipe, rounds: int) -> float:
    """Of the items' rows of a worker: singular vectors, rotation, k-means."""
    rows = size.items / size.workers
    vectors = vectors_flops(rows, size.basis, rounds)
    turned = max(VARIMAX_ROWS, 12 * size.width) / size.workers
    rotation = VARIMAX_ITERATIONS * 4 * turned * size.width**2
    centroids = recipe.num_fine / recipe.fine_per_item
    passes = 4 + KMEANS_ITERATIONS * recipe.fine_per_item
    return vectors + rotation + passes * 2 * rows * centroids * size.width


def memory(size: Size, recipe: FastRecipe) -> dict[str, float]:
    """Bytes of a worker at the peak of each part, mapped pages of the data apart."""
    rows = size.items / size.workers
    pairs, users = size.pairs / size.workers, size.users / size.workers
    columns = min(max(TABLE_BYTES // (4 * max(size.users, size.items)), 32), 128)
    links = 12 * size.items * (LINKS + recipe.fine_per_item)
    # Both ways round 8 bytes each; while they are made, pairs, order and places.
    both, making = 16 * pairs, 40 * pairs
    # Basis, product, three of a polynomial, one on the way; the parts that are whole.
    tables = 6 * 4 * rows * size.basis
    tables += columns * (size.items * (4 + 4 + 8) + 4 * users)
    ranking = 4 * size.items * size.width + 2 * BLOCK_BYTES
    return {
        'pairs (mapped)': 24 * pairs,
        'anchors': max(both + tables, making + both),
        'evaluation': links + ranking,
    }


def sent(size: Size, recipe: FastRecipe, constants: Constants) -> float:
    """Bytes that a worker sends for the anchors, on average."""
    columns = {4: round(constants.products * size.basis)}
    vectors = Vectors(size.basis, columns, constants.rounds)
    items = int(size.items)
    anchors = anchors_bytes(recipe, items, size.width, vectors, LINKS, size.workers)
    return anchors / size.workers


def seconds(
    size: Size, recipe: FastRecipe, constants: Constants, eval_users: int
) -> dict[str, float]:
    """Seconds of computing on a worker."""
    # The start is a product with R', and each with R'R is two.
    gathered = (1 + 2 * constants.products) * size.pairs / size.workers * size.basis
    anchors = gathered * constants.gather
    anchors += dense_flops(size, recipe, constants.rounds) * constants.flop
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
    group = Group(recipe.num_shards)
    _, users, own = share_pairs(data, group)
    num_items = data[ITEM].num_nodes
    items = group.rows(num_items)
    degree = torch.bincount(own[1], minlength=num_items)
    norms = recipe.user_norm, recipe.item_norm
    shared = shared_interactions(own, users, items, *norms, degree)
    pairs, rank = own.size(1), recipe.embedding_dim
    x = torch.randn(num_items // group.num_blocks, 512)
    flop = timed(lambda: x.T @ x, 5) / (2 * len(x) * 512**2)

    with counted_columns() as columns:
        model = build_fast(data, recipe, torch.Generator().manual_seed(0))
    model.set_stage('fine')
    width = basis_width(rank, users.num_rows, num_items)
    products, steps = columns.total() / width, model.diagnostics['basis']['rounds']

    def vectors() -> object:  # The same start, so as many products.
        return right_vectors(shared, rank, torch.Generator().manual_seed(0))

    dense = vectors_flops(num_items, width, steps) * flop
    gathered = (1 + 2 * products) * pairs * width
    gather = (timed(vectors, rounds) - dense) / gathered

    some = with_sampled_users(data, 1024, 0)
    ranking = timed(lambda: evaluate_split(model.scorer(), some, 'val'), rounds)
    rank_one = ranking / (1024 * num_items)
    return Constants(gather, flop, rank_one, products, steps)


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
            wire = sent(size, recipe, constants)
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
            f'{constants.rank * 1e9:.1f} ns a user and item in an evaluation; '
            f'{constants.products:.1f} products of the whole basis and '
            f'{constants.rounds} Rayleigh-Ritz steps for the singular vectors.\n',
            f'{users:.0e} users, {items:.0e} items, {pairs:.0e} pairs; a worker has '
            f'one such core and {result["gbit"]:g} Gbit/s; memory and bytes sent in GB '
            f'a worker, seconds of computing and on the wire; evaluation of '
            f'{result["eval_users"]:,} users.\n',
            markdown_table(names.split('|'), rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the constants and computes the estimates."""
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
    data = load_data(args)
    recipe = FastRecipe(
        embedding_dim=64, coarse_per_item=6, fine_per_item=1, num_fine=256
    )
    result = header('plan', args, argv) | stamp()
    keys = ('size', 'workers', 'widths', 'gbit', 'eval_users')
    result |= {key: getattr(args, key) for key in keys}
    result['constants'] = measure(data, recipe, args.rounds)._asdict()
    write_result(result_path(args, 'plan'), result, table(result))


if __name__ == '__main__':
    main()
