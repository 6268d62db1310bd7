"""Trains a LinearC2F on from its closed form, with a loss over all pairs.

Recipe fast builds the anchors and trains nothing. Here its codebooks and the items'
scalars are trained on: a step takes the propagated features of all users and items, and
``WholeDataLoss`` counts every pair of them without sampling. A user's features are the
sum of what his items send, so that each positive score holds the item's own part, and
the loss could learn to copy: the offset leaves that part out. Validation items choose
the step to keep; on these data it is the closed form, which training has not beaten.
"""

import argparse
from copy import deepcopy

import torch
from torch import Tensor

import pyg_c2f
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.graph import interaction_weight
from pyg_c2f.nn import LinearC2F, WholeDataLoss, build_pairs

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--num-users', type=int, default=1000)
parser.add_argument('--num-steps', type=int, default=20)
args = parser.parse_args()

data = SyntheticHierarchy(args.num_users, num_interactions=40 * args.num_users)[0]
model = pyg_c2f.fit(data, pyg_c2f.config.FastRecipe(embedding_dim=64, num_fine=256))
assert isinstance(model, LinearC2F)

edge_index, sizes = model.edge_index, (model.num_users, model.num_items)
pairs = build_pairs(edge_index, *sizes)
weight = interaction_weight(edge_index, *sizes, model.user_norm, model.item_norm)
weight = weight[pairs.perm]


def features() -> tuple[Tensor, Tensor]:
    """The features of users, and of items with the scale of their scores."""
    user, item = model.propagate()
    return user, item * model.item_scale().unsqueeze(1)


with torch.no_grad():  # Scores of positives near one half; no list changes.
    user, item = features()
    mean = (user[edge_index[0]] * item[edge_index[1]]).sum(dim=1).mean()
    gain = (0.5 / mean.item()) ** 0.5
    model.coarse.codebook.mul_(gain)
    model.fine.codebook.mul_(gain)
    model.soft_threshold.threshold *= gain
    model.threshold = model.soft_threshold.threshold

criterion = WholeDataLoss(alpha=0.05)
learned = [model.coarse.codebook, model.fine.codebook, model.bias]
optimizer = torch.optim.Adam(learned, lr=3e-3)
losses, values, best = [], [], model
for _ in range(args.num_steps + 1):
    values.append(evaluate_split(model.scorer(), data, 'val')['ndcg@20'])
    if values[-1] == max(values):
        best = deepcopy(model)
    user, item = features()
    own = (item * model.propagate()[1]).sum(dim=1)[pairs.col]
    loss = criterion(user, item, pairs, model.bias, offset=weight * own)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
best.round_()  # To what a checkpoint stores.
print(f'loss {losses[0]:.3f} to {losses[-1]:.3f}')
print(f'validation NDCG@20 {values[0]:.4f} in closed form, at best {max(values):.4f}')
