r"""What torch-scatter and torch-sparse contribute: seconds of a propagation.

    python benchmarks/extensions.py --dataset gowalla --data-root ../shared/data

Each round times every form of the graph once, so that a slow moment of the machine
meets all of them; the table gives medians, and each as a ratio to ``torch.sparse`` CSR
in the same run. The forms are those that :class:`~pyg_c2f.nn.AnchorConv` takes, and the
package's own product, which training uses and which needs neither.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch_geometric.typing
from common import (
    header,
    header_text,
    make_parser,
    markdown_table,
    result_path,
    stamp,
    write_result,
)
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor
from tqdm import tqdm

from pyg_c2f.datasets import get_dataset
from pyg_c2f.graph import normalized_interactions
from pyg_c2f.nn import AnchorConv
from pyg_c2f.sparse import csr_matmul
from pyg_c2f.typing import ITEM, RATES, USER

EXTENSIONS = ('WITH_TORCH_SCATTER', 'WITH_TORCH_SPARSE')


def without_extensions(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same call as where torch-scatter and torch-sparse are not installed."""

    def call() -> Tensor:
        for name in EXTENSIONS:
            setattr(torch_geometric.typing, name, False)
        try:
            return function()
        finally:
            for name in EXTENSIONS:
                setattr(torch_geometric.typing, name, True)

    return call


def forms(data: torch_geometric.data.HeteroData, width: int) -> dict[str, Callable]:
    """Propagates from items to users, by each form of the graph."""
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    user, item = data[RATES].edge_index
    by_user = normalized_interactions(data[RATES].edge_index, num_users, num_items)
    weight = by_user.weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_items, width, generator=generator, requires_grad=True)
    size, conv = (num_items, num_users), AnchorConv()
    edge_index = torch.stack([item, user])
    order = edge_index[1].argsort(stable=True)
    sorted_index = EdgeIndex(
        edge_index[:, order], sparse_size=size, sort_order='col'
    ).fill_cache_()
    csr = torch.sparse_coo_tensor(
        torch.stack([user, item]), weight, (num_users, num_items)
    ).to_sparse_csr()
    sparse = SparseTensor(
        row=user, col=item, value=weight, sparse_sizes=(num_users, num_items)
    )
    other = x.new_zeros(num_users, width)
    pair = (x, other)
    return {
        'torch.sparse CSR': lambda: conv(pair, csr),
        'edge_index': lambda: conv(pair, edge_index, weight, size),
        'edge_index, without': without_extensions(
            lambda: conv(pair, edge_index, weight, size)
        ),
        'EdgeIndex': lambda: conv(pair, sorted_index, weight[order], size),
        'EdgeIndex, without': without_extensions(
            lambda: conv(pair, sorted_index, weight[order], size)
        ),
        'SparseTensor (torch-sparse)': lambda: conv(pair, sparse),
        'csr_matmul, the own product': lambda: csr_matmul(by_user, x),
    }


def measure(
    calls: dict[str, Callable[[], Tensor]], rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds of each form, forward and with backward, taken in turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in tqdm(range(rounds + 1), 'rounds'):
        for name, call in calls.items():
            begin = time.perf_counter()
            out = call()
            middle = time.perf_counter()
            out.sum().backward()
            if number:  # The first round warms up.
                end = time.perf_counter()
                taken[name].append((middle - begin, end - begin))
    return {
        name: {
            'forward': median(x for x, _ in pairs),
            'with backward': median(x for _, x in pairs),
        }
        for name, pairs in taken.items()
    }


def main(argv: list[str]) -> None:
    """Measures and writes the table."""
    parser = make_parser(__doc__)
    parser.add_argument('--dataset', default='gowalla')
    parser.add_argument('--data-root', default='datasets', metavar='DIR')
    parser.add_argument('--width', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=21)
    args = parser.parse_args(argv)
    if not all(getattr(torch_geometric.typing, name) for name in EXTENSIONS):
        raise SystemExit('this needs them: pip install --no-build-isolation .[sparse]')
    calls = forms(get_dataset(args.dataset, args.data_root), args.width)
    outs = [call().detach() for call in calls.values()]
    apart = max(float((out - outs[0]).abs().max()) for out in outs)
    seconds = measure(calls, args.rounds)
    result = header('extensions', args, argv) | stamp()
    result |= {'width': args.width, 'seconds': seconds, 'apart_by_at_most': apart}
    base = seconds['torch.sparse CSR']
    kinds = ('forward', 'with backward')
    rows = [
        [name, *(f'{1e3 * x[k]:.1f} ms ({x[k] / base[k]:.2f})' for k in kinds)]
        for name, x in seconds.items()
    ]
    text = '# What torch-scatter and torch-sparse contribute\n\n'
    text += header_text(result, [result])
    text += f'\nItems to users, {args.width} columns; the forms differ by at most '
    text += f'{apart:.0e}. In brackets: times torch.sparse.\n\n'
    text += markdown_table(['form of the graph', *kinds], rows)
    write_result(result_path(args, 'extensions'), result, text)


if __name__ == '__main__':
    main(sys.argv[1:])
