r"""What a faithful step costs, beside one CSR propagation measured in the same run.

    python benchmarks/step_cost.py --dataset gowalla --data-root ../shared/data

Each round times every piece once, so that a slow moment of the machine meets all of
them; the table gives medians over the rounds, and each as a ratio to one propagation
(``torch.sparse`` CSR times dense, 32-bit indices) of the same graph and width. A batch
with 3 layers propagates 6 times (forward and backward).
"""

import copy
import json
import platform
import resource
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from statistics import median

import torch
from common import (
    device_name,
    make_parser,
    result_path,
)
from torch_geometric.data import HeteroData
from torch_geometric.utils import degree

from pyg_c2f.anchors.codes import residual_codes, threshold_assignment
from pyg_c2f.anchors.spectral import randomized_svd, varimax
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.experiment import reuse_freed_memory
from pyg_c2f.files import write_json
from pyg_c2f.nn import C2F
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.recipes import FastRecipe, PaperRecipe, TrainingOptions, get_recipe
from pyg_c2f.recipes.fast import build_fast
from pyg_c2f.recipes.paper import make_sampler
from pyg_c2f.sparse import csr_matmul
from pyg_c2f.typing import Stage


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Times the pieces and prints the table."""
    parser = make_parser(__doc__)
    parser.add_argument('--dataset', default='gowalla')
    parser.add_argument('--data-root')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reuse_freed_memory()
    device = torch.device(args.device)

    data = get_dataset(args.dataset, args.data_root, 'c2f').to(device)
    recipe = get_recipe('paper')
    assert isinstance(recipe, PaperRecipe)
    options = TrainingOptions(seed=0)
    sampler = make_sampler(data, recipe, options.generator('coarse'))
    triples = [x.to(device) for x in sampler.sample_epoch()]

    def make(stage: Stage) -> Callable[[], object]:
        before = models.get('coarse')
        model = recipe.start(data, stage, before and copy.deepcopy(before), options)
        models[stage] = model
        trainer = recipe.trainer(model, data, options)
        parts = (x.split(trainer.batch_size) for x in triples)
        batches = cycle(list(zip(*parts, strict=True)))
        return lambda: trainer.step(next(batches))

    models: dict[str, C2F] = {}
    steps = {stage: make(stage) for stage in ('coarse', 'fine')}
    model = models['coarse']
    adj = model.block_graph().adj
    x = torch.randn(adj.rowptr.numel() - 1, recipe.embedding_dim, device=device)
    csr = torch.sparse_csr_tensor(*adj, (len(x), len(x)))

    messages = message_arguments(model)

    def rebuild() -> None:
        model.set_assignment()
        model.block_graph()

    h = model.propagate().detach()
    readable = 'one message-passing layer, normalisation included'
    pieces = {
        'one CSR propagation (torch.sparse)': lambda: csr @ x,
        'one fused propagation (ours)': lambda: csr_matmul(adj, x),
        f'coarse batch of {recipe.batch_size_coarse}': steps['coarse'],
        f'fine batch of {recipe.batch_size_fine}': steps['fine'],
        're-assigning the entities': lambda: model.update_assignment(h),
        'rebuilding the graph': rebuild,
        f'drawing {triples[0].numel():,} triples': sampler.sample_epoch,
        'ranking all users': lambda: evaluate_split(model.scorer(), data, 'test'),
        readable: lambda: model.convs[0](*messages),
        **fast_pieces(data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in pieces}
    for number in range(args.rounds + 1):
        for name, function in pieces.items():
            if number == 0 and name == readable:
                # Training and ranking have had their turn; this gathers every edge.
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            taken = timed(function, device)
            if number > 0:  # The first round warms up.
                seconds[name].append(taken)

    unit = median(seconds['one CSR propagation (torch.sparse)'])
    result = {
        'dataset': args.dataset,
        'device': device_name(device),
        'threads': args.threads,
        'rounds': args.rounds,
        'warm_up_rounds': 1,
        'seed': 0,
        'seconds': {name: median(times) for name, times in seconds.items()},
        'spread': {name: [min(t), max(t)] for name, t in seconds.items()},
        'ratio': {name: median(times) / unit for name, times in seconds.items()},
        'peak_bytes': peak,
        'floor': floors(adj.col.numel(), len(x), recipe.embedding_dim),
        'versions': {'python': platform.python_version(), 'torch': torch.__version__},
    }
    path = result_path(args, f'step_cost-{args.dataset}-{device.type}')
    write_json(path, result)

    print(f'{"piece":50} {"seconds":>9} {"ratio":>7}')
    for name in seconds:
        print(f'{name:50} {result["seconds"][name]:9.4f} {result["ratio"][name]:7.2f}')
    print(f'peak memory of training and ranking {peak / 1e9:.2f} GB')
    print(json.dumps(result['floor']))
    print(f'wrote {path}')


def fast_pieces(data: HeteroData) -> dict[str, Callable[[], object]]:
    """The pieces of recipe fast."""
    recipe = get_recipe('fast')
    assert isinstance(recipe, FastRecipe)
    model = build_fast(data, recipe, torch.Generator().manual_seed(0))
    model.set_stage('fine')
    rank = model.embedding_dim
    svd = partial(randomized_svd, model.by_user(), model.num_items, rank)
    importance = degree(model.edge_index[1], model.num_items) ** recipe.importance_power
    _, value, right = svd()
    x = right * value**recipe.spectral_power
    rotated = x @ varimax(x, importance.sqrt())
    rest = rotated - weighted_sum(model.coarse.assignment, model.coarse.codebook)
    levels = recipe.fine_per_item, recipe.num_fine // recipe.fine_per_item
    h_user, h_item = (x.detach() for x in model.propagate())
    h_item = h_item * model.item_scale().unsqueeze(1)
    return {
        f'fast: {rank} singular vectors': svd,
        'fast: rotating them (varimax)': lambda: varimax(x, importance.sqrt()),
        'fast: tying items to coarse anchors': lambda: threshold_assignment(
            rotated, recipe.coarse_per_item, importance
        ),
        f'fast: {levels[0]} levels of {levels[1]} fine anchors': lambda: residual_codes(
            rest, *levels, importance
        ),
        'fast: ranking all users, through the anchors': lambda: evaluate_split(
            model.scorer(), data, 'test'
        ),
        'fast: ranking all users, dot products': lambda: evaluate_split(
            lambda users: h_user[users] @ h_item.T, data, 'test'
        ),
    }


def message_arguments(model: C2F) -> tuple[dict, dict, dict]:
    """What a convolution takes, in the readable way."""
    data = model.to_hetero_data()
    ego, coarse, _ = (x.detach() for x in model.layer0())
    user, item = ego.split([model.num_users, model.num_items])
    x_dict = {'user': user, 'item': item, 'coarse': coarse}
    return x_dict, data.edge_index_dict, data.edge_weight_dict


def floors(num_edges: int, num_nodes: int, width: int) -> dict[str, int]:
    """The least work of one propagation: bytes gathered and written, and flops."""
    return {
        'bytes_of_a_propagation': num_edges * (4 * width + 8) + 4 * num_nodes * width,
        'flops_of_a_propagation': 2 * num_edges * width,
    }


if __name__ == '__main__':
    main()
