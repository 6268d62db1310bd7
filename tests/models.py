"""Small models of every kind, and histories to ask them with."""

import torch

from pyg_c2f.nn import LinearC2F
from pyg_c2f.typing import Assignment

MODELS = {'coarse': None, 'fine': None, 'linear': {}, 'diffusion': {'diffusion': 0.7}}
HISTORIES = [[4, 0], [7], [2, 3, 5, 2], [0, 1, 2, 3, 4, 5, 6, 7]]
SETTINGS = {
    'max_coarse_per_item': 3,
    'fine_per_item': 2,
    'threshold': 0.4,
    'score_power': 0.6,
    'user_norm': 0.3,
    'item_norm': 0.6,
}


def make_linear(toy, stage='fine', **changes):
    """A linear model of the graph of ``toy`` with random tables, links and biases."""
    sizes = (toy.num_users, toy.num_items, toy.num_coarse, toy.num_fine, 6)
    model = LinearC2F(toy.edge_index, *sizes, **(SETTINGS | changes))
    weight = torch.randn(model.coarse.index.shape)
    weight[torch.rand(weight.shape) < 0.2] = 0
    model.set_assignment(Assignment(model.coarse.index, weight))
    with torch.no_grad():
        model.bias.normal_()
    model.set_stage(stage)
    return model


def make_model(toy, name):
    changes = MODELS[name]
    return toy.model(name) if changes is None else make_linear(toy, **changes)
