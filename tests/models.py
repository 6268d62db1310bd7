"""Small models of every kind, and histories to ask them with."""

import torch

from pyg_c2f.nn import LinearC2F
from pyg_c2f.typing import Assignment

MODELS = {
    'coarse': None,
    'fine': None,
    'linear': {},
    'diffusion': {'diffusion': 0.7},
}
HISTORIES = [[4, 0], [7], [2, 3, 5, 2], [0, 1, 2, 3, 4, 5, 6, 7]]


def make_model(toy, name):
    if MODELS[name] is None:
        return toy.model(name)
    sizes = (toy.num_users, toy.num_items, toy.num_coarse, toy.num_fine, 6)
    model = LinearC2F(toy.edge_index, *sizes, max_coarse_per_item=3, **MODELS[name])
    weight = torch.randn(model.coarse.index.shape)
    weight[torch.rand(weight.shape) < 0.2] = 0
    model.set_assignment(Assignment(model.coarse.index, weight))
    with torch.no_grad():
        model.bias.normal_()
    model.set_stage('fine')
    return model
