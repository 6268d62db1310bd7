"""Recipe fast behind the interface of the other methods."""

import json
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.baselines.base import (
    Baseline,
    Histories,
    Tensors,
    Watch,
    pack_graph,
    prefixed,
    unpack_graph,
    without_prefix,
)
from pyg_c2f.baselines.filters import (
    item_columns,
    item_degree,
    item_graph,
    low_pass_scorer,
)
from pyg_c2f.checkpoint import build_model, model_meta, model_tensors
from pyg_c2f.config import FastRecipe
from pyg_c2f.evaluate import Score
from pyg_c2f.fast import build_fast
from pyg_c2f.nn import LinearC2F
from pyg_c2f.typing import ITEM, RATES, USER, InputError


@dataclass(frozen=True)
class Fast(Baseline):
    r"""Recipe ``fast`` in closed form, its users living from their items.

    .. math::
        s_{uj} = d_j^p \Big( \tfrac{1}{4} \Big\langle \sum_{i \in N(u)} d_i^{-b}
        \mathbf{x}_i, \, \mathbf{x}_j \Big\rangle + \beta \sum_{i \in N(u)} d_i^{-b}
        (\tilde{R}^{\top} \tilde{R})_{ij} \Big)

    which is :class:`~pyg_c2f.nn.LinearC2F` with one layer but for a factor of each
    user. What is stored are the codebooks, links and degrees of a checkpoint; with the
    diffusion channel (:math:`\beta > 0`) the train graph, which has the degrees, takes
    the place of these.

    Args:
        recipe (FastRecipe, optional): The settings.

    Raises:
        InputError: If the recipe has users of their own, more layers, or a loss.
    """

    recipe: FastRecipe = FastRecipe()
    serves_anyone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        expected = {'users': 'inductive', 'num_layers': 1, 'loss': 'none'}
        for name, value in expected.items():
            if getattr(self.recipe, name) != value:
                raise InputError(
                    f"'Fast' expected {name}={value} (got {getattr(self.recipe, name)})"
                )

    def fit(
        self,
        histories: Histories,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensors:
        data = HeteroData()
        data[USER].num_nodes = histories.num_users
        data[ITEM].num_nodes = histories.num_items
        data[RATES].edge_index = histories.edge_index
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        model = build_fast(data, self.recipe, generator)
        model.set_stage('fine' if self.recipe.fine_links else 'coarse')
        meta = json.dumps(model_meta(model)).encode()
        stored = {
            name: x
            for name, x in model_tensors(model).items()
            if not name.startswith('graph.')
        }
        if self.recipe.diffusion:
            del stored['degree']
            stored |= prefixed('graph', pack_graph(histories))
        return stored | {'meta': torch.frombuffer(bytearray(meta), dtype=torch.uint8)}

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        x, recipe = _items(stored), self.recipe
        exponents = recipe.item_power, histories, recipe.item_norm
        if not recipe.diffusion:
            return low_pass_scorer(x, stored['degree'], *exponents)
        graph = without_prefix('graph', stored)
        train = unpack_graph(graph, histories.num_items)
        deg = item_degree(train).clamp(min=1).float().unsqueeze(1)
        low = low_pass_scorer(x, deg.flatten(), *exponents)
        hop = item_graph(train, recipe.user_norm, recipe.item_norm)
        scale = recipe.diffusion * deg**recipe.item_power

        def score(users: Tensor) -> Tensor:
            rows = item_columns(histories, users).mul_(deg**-recipe.item_norm)
            return low(users).mul_(0.25).add_(hop(rows).mul_(scale).T)

        return score


@torch.no_grad()
def _items(stored: Tensors) -> Tensor:
    """The features of the items, ``[num_items, embedding_dim]``."""
    meta = json.loads(bytes(stored['meta'].tolist()))
    # A model without interactions: what users have comes with the request.
    none = torch.zeros(int(meta['num_users']) + 1, dtype=torch.int)
    graph = {'graph.rowptr': none, 'graph.col': none[:0]}
    model = build_model(stored | graph, meta)
    assert isinstance(model, LinearC2F)
    return model.ego()[1].detach()
