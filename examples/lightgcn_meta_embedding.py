"""``MetaEmbedding`` in the place of the table of PyG's own LightGCN.

The model, its loss and its training stay as PyG has them; only the table changes, from
one row for each user and item to the rows of a few anchors, of which every user and
item mixes two. A METIS cut of the graph says which: users and items of one part share
an anchor; at random, for comparison, the anchors are worth little. The data are made
up, so that nothing is downloaded.
"""

import argparse

import torch
from torch_geometric import seed_everything
from torch_geometric.nn import LightGCN

from pyg_c2f.anchors.paper import metis_partition, partition_assignment
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split, popularity_score
from pyg_c2f.nn import MetaEmbedding
from pyg_c2f.typing import RATES

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--steps', type=int, default=100)
parser.add_argument('--num-anchors', type=int, default=100)
args = parser.parse_args()

seed_everything(0)
data = SyntheticHierarchy(400, 600, 12000, num_groups=8, num_subgroups=40)[0]
num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
pairs = data[RATES].edge_index
edge_index = data.to_homogeneous().edge_index  # both directions, items behind users


def train(model: LightGCN) -> float:
    """Trains with PyG's own loss, and returns the validation NDCG@20."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(args.steps):
        users, items = pairs[:, torch.randint(pairs.size(1), (2048,))]
        others = torch.randint(num_items, items.shape)
        labels = torch.stack([users.repeat(2), torch.cat([items, others]) + num_users])
        positive, negative = model(edge_index, labels).chunk(2)
        loss = model.recommendation_loss(positive, negative, labels.unique())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        h_user, h_item = model.get_embedding(edge_index).split([num_users, num_items])
    return evaluate_split(lambda ids: h_user[ids] @ h_item.T, data, 'val')['ndcg@20']


num_nodes, dim = num_users + num_items, 32
models = {}
for name in ('nn.Embedding', 'METIS anchors', 'random anchors'):
    models[name] = LightGCN(num_nodes, dim, num_layers=2)
    if name != 'nn.Embedding':
        # After this 'reset_parameters' of LightGCN would only fill a passing copy.
        models[name].embedding = MetaEmbedding(num_nodes, args.num_anchors, dim)
parts = metis_partition(pairs, num_users, num_items, args.num_anchors)
assignment = partition_assignment(parts, args.num_anchors, anchors_per_entity=2)
models['METIS anchors'].embedding.set_assignment(assignment)

results = {}
for name, model in models.items():
    results[name] = sum(p.numel() for p in model.parameters()), train(model)
popularity = popularity_score(pairs, num_items)
results['popularity'] = num_items, evaluate_split(popularity, data, 'val')['ndcg@20']
for name, (numel, ndcg) in results.items():
    print(f'{name:<14} {numel:>7,} numbers   validation NDCG@20 {ndcg:.4f}')
