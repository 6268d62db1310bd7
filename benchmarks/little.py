r"""Recipe ``fast`` on little data: the defaults and a search, against ItemKNN and EASE.

    python benchmarks/little.py --data-root ../shared/data

Shops of 20 to 3,000 items: planted ones, and random users and items of real data sets
(users as they are, items by their popularity, and a tenth of a user's items each for
validation and test). The settings of ItemKNN and EASE are chosen on the validation
items of each shop, from a few values. Figures are means over shops drawn with other
seeds, and the difference to the better of the two in standard errors.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import product
from statistics import mean, stdev
from typing import Any

import torch
from common import (
    header,
    header_text,
    make_parser,
    markdown_table,
    read_result,
    result_path,
    stamp,
    write_result,
)
from methods import EASE, Baseline, Histories, ItemKNN, histories_of
from torch_geometric.data import HeteroData

from pyg_c2f.datasets import SyntheticHierarchy, get_dataset
from pyg_c2f.evaluate import evaluate_split, popularity_score
from pyg_c2f.files import write_json
from pyg_c2f.recipes import FastRecipe
from pyg_c2f.recipes.fast import build_fast
from pyg_c2f.recipes.search import search
from pyg_c2f.sparse import degree, rowptr_of, unique_pairs
from pyg_c2f.typing import ITEM, RATES, USER, Score

METRIC = 'ndcg@20'
# Users, items, interactions, groups and sub-groups of planted shops.
PLANTED = {
    'planted, 20 items': (30, 20, 250, 2, 4),
    'planted, 50 items': (100, 50, 1000, 3, 6),
    'planted, 120 items': (300, 120, 4000, 4, 12),
    'planted, 600 items': (1500, 600, 30_000, 6, 30),
    'planted, 3,000 items': (2000, 3000, 80_000, 20, 100),
}
# Users and items of shops that are part of a data set.
PARTS = [
    ('ml-100k', 60, 30),
    ('ml-100k', 150, 100),
    ('ml-1m', 60, 20),
    ('ml-1m', 400, 200),
    ('lastfm', 100, 60),
    ('lastfm', 300, 100),
]
LEAST_ITEMS = 4  # of a user
HELD_OUT = 0.1
L2 = (10.0, 50.0, 200.0, 1000.0)
NEIGHBORS, MEASURES = (10, 20, 50, 200), ('cosine', 'tfidf')


def part_of(data: HeteroData, num_users: int, num_items: int, seed: int) -> HeteroData:
    """A shop of random users and items of a data set, split anew."""
    generator = torch.Generator().manual_seed(seed)
    names = ('edge_index', 'val_edge_label_index', 'test_edge_label_index')
    pairs = torch.cat([data[RATES][name] for name in names], dim=1)
    user, item = torch.full((2, data.num_nodes), -1)
    users = torch.randperm(data[USER].num_nodes, generator=generator)[:num_users]
    weight = degree(pairs[1], data[ITEM].num_nodes).float()
    items = torch.multinomial(weight, num_items, generator=generator)
    user[users], item[items] = torch.arange(num_users), torch.arange(num_items)
    pairs = torch.stack([user[pairs[0]], item[pairs[1]]])
    pairs = unique_pairs(pairs[:, (pairs >= 0).all(dim=0)], num_items)
    is_kept = degree(pairs[0], num_users) >= LEAST_ITEMS
    pairs = pairs[:, is_kept[pairs[0]]]
    pairs[0] = (is_kept.cumsum(0) - 1)[pairs[0]]
    # In random order for each user: the first tenth is for test.
    order = torch.rand(pairs.size(1), generator=generator).argsort()
    pairs = pairs[:, order[pairs[0, order].argsort(stable=True)]]
    rowptr = rowptr_of(pairs[0], int(is_kept.sum()))
    place = torch.arange(pairs.size(1)) - rowptr[pairs[0]]
    held_out = (rowptr.diff() * HELD_OUT).ceil()[pairs[0]]
    out = HeteroData()
    out[USER].num_nodes, out[ITEM].num_nodes = int(is_kept.sum()), num_items
    out.protocol = 'standard'
    out[RATES].test_edge_label_index = pairs[:, place < held_out]
    is_val = (place >= held_out) & (place < 2 * held_out)
    out[RATES].val_edge_label_index = pairs[:, is_val]
    out[RATES].edge_index = pairs[:, place >= 2 * held_out]
    return out


def chosen(methods: Sequence[Baseline], data: HeteroData, train: Histories) -> Score:
    """The scores of the method that is the best on validation items."""
    scores = [x.scorer(x.fit(train), train) for x in methods]
    return max(scores, key=lambda x: evaluate_split(x, data, 'val', ks=(20,))[METRIC])


def model_score(data: HeteroData, recipe: FastRecipe, seed: int) -> Score:
    """The scores of recipe fast."""
    model = build_fast(data, recipe, torch.Generator().manual_seed(seed))
    if recipe.fine_per_item:
        model.set_stage('fine')
    return model.scorer()


def compare(data: HeteroData, seed: int) -> dict[str, float]:
    """Test NDCG@20 of all methods on one shop."""
    sizes = data[USER].num_nodes, data[ITEM].num_nodes
    train = histories_of(data[RATES].edge_index, *sizes)
    knn = [
        ItemKNN(min(k, sizes[1] - 1), measure)
        for k, measure in product(NEIGHBORS, MEASURES)
    ]
    found = search(data, FastRecipe(), num_trials=6, seed=seed)
    scores = {
        'popularity': popularity_score(data[RATES].edge_index, sizes[1]),
        'ItemKNN': chosen(knn, data, train),
        'EASE': chosen([EASE(x) for x in L2], data, train),
        'defaults': model_score(data, FastRecipe(), seed),
        'search': model_score(data, found.recipe, seed),
    }
    return {
        name: evaluate_split(score, data, 'test', ks=(20,))[METRIC]
        for name, score in scores.items()
    }


def shops(root: str | None) -> dict[str, Callable[[int], HeteroData]]:
    """The shops by name, each from a seed; without the data sets that are missing."""
    found: dict[str, Callable[[int], HeteroData]] = {
        name: lambda seed, x=sizes: SyntheticHierarchy(*x, seed=seed)[0]
        for name, sizes in PLANTED.items()
    }
    for name, num_users, num_items in PARTS if root else ():
        data = get_dataset(name, root, 'standard')
        found[f'{name}, {num_items} items'] = (
            lambda seed, x=(data, num_users, num_items): part_of(*x, seed)
        )
    return found


def table(result: dict[str, Any]) -> str:
    """Means over seeds as Markdown."""
    names = ('popularity', 'ItemKNN', 'EASE', 'defaults', 'search')
    rows = []
    for shop, runs in result['shops'].items():
        runs = list(runs.values())
        means = {name: mean(x[name] for x in runs) for name in names}
        best = max('ItemKNN', 'EASE', key=lambda name: means[name])
        cells = [f'{means[name]:.4f}' for name in names]
        for name in ('defaults', 'search'):
            gains = [x[name] - x[best] for x in runs]
            error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            cells.append(f'{mean(gains):+.4f} ± {error:.4f}')
        rows.append([shop, str(len(runs)), *cells])
    columns = ['shop', 'seeds', *names, 'defaults - best', 'search - best']
    stamps = [x for runs in result['shops'].values() for x in runs.values()]
    about = 'Best: the better of ItemKNN and EASE; after ± the standard error.'
    return f'{header_text(result, stamps)}\n{about}\n\n{markdown_table(columns, rows)}'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the shops and seeds that are missing, and prints all."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument('--data-root')
    parser.add_argument('--seeds', type=int, default=20, help='shops of a kind')
    args = parser.parse_args(argv)
    path = result_path(args, 'little')
    result = header('little', args, argv) | read_result(path, ('shops',))
    for name, make in shops(args.data_root).items():
        runs = result['shops'].setdefault(name, {})
        # A large shop varies less, and takes longer.
        seeds = args.seeds if make(0)[ITEM].num_nodes < 500 else args.seeds // 4
        for seed in range(max(seeds, 1)):
            if str(seed) not in runs:
                runs[str(seed)] = compare(make(seed), seed) | stamp()
                write_json(path, result)
    write_result(path, result, table(result))
    return 0


if __name__ == '__main__':
    sys.exit(main())
