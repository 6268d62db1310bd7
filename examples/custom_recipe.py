"""A recipe of your own: settings, and what they cost and bring.

A recipe is a frozen dataclass of settings; ``dataclasses.replace`` makes another one of
it, and ``fit`` takes it in place of a name. Here are the settings of the synthetic data
set, a quarter of its width without fine anchors, and three links alone; each
with the bytes of its codebooks, links and scalars.
"""

import argparse
from dataclasses import replace

import pyg_c2f
from pyg_c2f.checkpoint import model_bytes
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split, popularity_score
from pyg_c2f.recipes import get_recipe
from pyg_c2f.typing import RATES

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--num-users', type=int, default=1000)
args = parser.parse_args()

data = SyntheticHierarchy(args.num_users, num_interactions=40 * args.num_users)[0]
base = get_recipe('fast', 'synthetic')
recipes = {
    'synthetic': base,
    'narrow': replace(base, embedding_dim=16, coarse_per_item=2.0, fine_per_item=0),
    'links only': replace(base, coarse_per_item=3.0, fine_per_item=0),
}

results = {}
for name, recipe in recipes.items():
    model = pyg_c2f.fit(data, recipe, seed=0)
    sizes = model_bytes(model)
    stored = sum(sizes[part] for part in ('codebooks', 'assignments', 'scalars'))
    results[name] = stored, evaluate_split(model.scorer(), data, 'val')['ndcg@20']
popularity = popularity_score(data[RATES].edge_index, data['item'].num_nodes)
results['popularity'] = 0, evaluate_split(popularity, data, 'val')['ndcg@20']
for name, (stored, ndcg) in results.items():
    print(f'{name:<14} {stored:>8,} bytes   validation NDCG@20 {ndcg:.4f}')
