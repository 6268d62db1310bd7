"""A recipe of your own: anchors in closed form, then trained on all pairs.

A recipe is a frozen dataclass of settings that says how a stage starts and what trains
it; evaluating, logging, keeping the best, saving and resuming come from
``pyg_c2f.recipes.train``. This one starts like recipe fast and trains codebooks and
scalars on: ``WholeDataLoss`` counts every pair of users and items, without sampling. A
user's features are the sum of what the items of the history send, so each positive
score holds the item's own part, and the loss could learn to copy it: the offset leaves
that part out. On these data the closed form stays the best model.
"""

import argparse
from dataclasses import dataclass

import torch

import pyg_c2f
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.finite import check_step
from pyg_c2f.graph import interaction_weight
from pyg_c2f.nn import WholeDataLoss, build_pairs
from pyg_c2f.recipes import FastRecipe, Schedule, Trainer


@dataclass(frozen=True)
class TrainedRecipe(FastRecipe):
    """Recipe fast, and a few epochs of the whole-data loss behind it."""

    lr: float = 3e-3
    """learning rate"""
    alpha: float = 0.05
    """weight of all pairs beside the positives"""
    max_epochs: int = 20
    """most epochs of a stage"""

    def start(self, data, stage, before, options):
        model = super().start(data, stage, before, options)
        if before is None:
            rescale(model)
        return model

    def trainer(self, model, data, options):
        return WholeDataTrainer(model, self)

    def blank(self, data):  # A resumed run loads its state into it.
        return super().start(data, 'coarse', None, pyg_c2f.recipes.TrainingOptions())


@torch.no_grad()
def rescale(model):
    """Brings the scores of positives near one half; no list changes."""
    user, item = features(model)
    row, col = model.edge_index
    gain = (0.5 / (user[row] * item[col]).sum(dim=1).mean().item()) ** 0.5
    model.coarse.codebook.mul_(gain)
    model.fine.codebook.mul_(gain)
    model.threshold *= gain
    model.soft_threshold.threshold = model.threshold


def features(model):
    """The features of users, and of items with the scale of their scores."""
    user, item = model.propagate()
    return user, item * model.item_scale().unsqueeze(1)


class WholeDataTrainer(Trainer):
    """One step an epoch, over all pairs of users and items."""

    remedy = 'lower lr'

    def __init__(self, model, recipe):
        self.model, self.criterion = model, WholeDataLoss(recipe.alpha)
        sizes = model.num_users, model.num_items
        self.pairs = build_pairs(model.edge_index, *sizes)
        norms = model.user_norm, model.item_norm
        weight = interaction_weight(model.edge_index, *sizes, *norms)
        self.weight = weight[self.pairs.perm]
        table = model.coarse if model.stage == 'coarse' else model.fine
        self.optimizer = torch.optim.Adam([table.codebook, model.bias], recipe.lr)
        self.schedule = Schedule(recipe.max_epochs, eval_every=5, patience=2)

    def train_epoch(self, phase, bar):
        user, item = features(self.model)
        own = (item * item).sum(dim=1) / self.model.item_scale()
        offset = self.weight * own[self.pairs.col]
        loss = self.criterion(user, item, self.pairs, self.model.bias, offset=offset)
        self.optimizer.zero_grad()
        loss.backward()
        check_step(loss, self.model)
        self.optimizer.step()
        return loss.item()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--num-users', type=int, default=1000)
    parser.add_argument('--num-epochs', type=int, default=20)
    args = parser.parse_args()
    data = SyntheticHierarchy(args.num_users, num_interactions=40 * args.num_users)[0]
    best = 0.0
    sizes = {'embedding_dim': 64, 'num_fine': 256, 'dtype': 'float32'}
    for recipe in (
        FastRecipe(**sizes),
        TrainedRecipe(**sizes, max_epochs=args.num_epochs),
    ):
        model = pyg_c2f.fit(data, recipe, seed=0)
        val = evaluate_split(model.scorer(), data, 'val')
        best = max(best, val['ndcg@20'])
        print(f'{type(recipe).__name__:14} validation NDCG@20 {val["ndcg@20"]:.4f}')
