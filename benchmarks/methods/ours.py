"""Both recipes with the interface of the other methods."""

import json
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from methods.base import (
    Baseline,
    Histories,
    Tensors,
    pack_graph,
    prefixed,
    unpack_graph,
    without_prefix,
)
from methods.filters import (
    item_columns,
    item_degree,
    item_graph,
    low_pass_scorer,
)
from pyg_c2f.checkpoint import model_meta, restore_model
from pyg_c2f.evaluate import Score
from pyg_c2f.nn import LinearC2F
from pyg_c2f.nn.recommender import Recommender
from pyg_c2f.recipes import FastRecipe, PaperRecipe, TrainingOptions, train
from pyg_c2f.recipes.fast import build_fast
from pyg_c2f.typing import ITEM, RATES, USER, Stage


@dataclass(frozen=True)
class Fast(Baseline):
    r"""Recipe ``fast``: users are represented by their items.

    .. math::
        s_{uj} = d_j^p \Big( \tfrac{1}{4} \Big\langle \sum_{i \in N(u)} d_i^{-b}
        \mathbf{x}_i, \, \mathbf{x}_j \Big\rangle + \beta \sum_{i \in N(u)} d_i^{-b}
        (\tilde{R}^{\top} \tilde{R})_{ij} \Big)

    which is :class:`~pyg_c2f.nn.LinearC2F` but for a factor of each user. What is
    stored are the codebooks, links and degrees of a checkpoint; with the diffusion
    channel (:math:`\beta > 0`) the train graph, which has the degrees, takes the place
    of these.

    Args:
        recipe (FastRecipe, optional): The settings.
    """

    recipe: FastRecipe = FastRecipe()
    serves_anyone: ClassVar[bool] = True

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        model = build_fast(_data(histories), self.recipe, generator)
        model.set_stage('fine' if self.recipe.fine_per_item else 'coarse')
        stored = _stored(model)
        if self.recipe.diffusion:
            del stored['degree']
            stored |= prefixed('graph', pack_graph(histories))
        return stored

    @torch.no_grad()
    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        recipe = self.recipe
        if recipe.diffusion:
            graph = without_prefix('graph', stored)
            train = unpack_graph(graph, histories.num_items)
            stored = stored | {'degree': item_degree(train)}
        # A model without interactions: what users have comes with the request.
        model = _model(
            stored,
            histories._replace(rowptr=histories.rowptr * 0, col=histories.col[:0]),
        )
        assert isinstance(model, LinearC2F)
        exponents = recipe.score_power, histories, recipe.item_norm
        low = low_pass_scorer(model.ego(), stored['degree'], *exponents)
        if not recipe.diffusion:
            return low
        deg = stored['degree'].clamp(min=1).float().unsqueeze(1)
        hop = item_graph(train, recipe.user_norm, recipe.item_norm)
        scale = recipe.diffusion * deg**recipe.score_power

        def score(users: Tensor) -> Tensor:
            rows = item_columns(histories, users).mul_(deg**-recipe.item_norm)
            return low(users).mul_(0.25).add_(hop(rows).mul_(scale).T)

        return score


@dataclass(frozen=True)
class Paper(Baseline):
    """C2F as published, for a fixed number of epochs; LEGCF is its coarse stage alone.

    What is stored are the codebooks (the fine one sparse), assignments and scalars of a
    checkpoint, and the train graph in compact form.

    Args:
        recipe (PaperRecipe, optional): The settings.
        coarse_epochs (Tuple, optional): The epoch that re-assignment starts from and
            the last one of the coarse stage. (default: ``(65, 195)``, the published
            run's on Gowalla)
        fine_epochs (Tuple, optional): Those of the fine stage; without them there is
            none. (default: :obj:`None`)
    """

    recipe: PaperRecipe = PaperRecipe()
    coarse_epochs: tuple[int, int] = (65, 195)
    fine_epochs: tuple[int, int] | None = None
    serves_anyone: ClassVar[bool] = False

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        epochs: dict[Stage, tuple[int, int]] = {'coarse': self.coarse_epochs}
        if self.fine_epochs is not None:
            epochs['fine'] = self.fine_epochs
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        options = TrainingOptions(seed, tuple(epochs), fixed_epochs=epochs)
        model = train(_data(histories), self.recipe, options).model.model
        return _stored(model) | prefixed('graph', pack_graph(histories))

    @torch.no_grad()
    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        graph = without_prefix('graph', stored)
        known = unpack_graph(graph, histories.num_items, histories.num_users)
        return _model(stored, known).scorer()


def _data(histories: Histories) -> HeteroData:
    data = HeteroData()
    data[USER].num_nodes = histories.num_users
    data[ITEM].num_nodes = histories.num_items
    data[RATES].edge_index = histories.edge_index
    return data


def _stored(model: Recommender) -> Tensors:
    """The tensors of a checkpoint without the graph, its header among them."""
    tensors = model.to_tensors()
    stored = {name: x for name, x in tensors.items() if not name.startswith('graph.')}
    meta = bytearray(json.dumps(model_meta(model)).encode())
    return stored | {'meta': torch.frombuffer(meta, dtype=torch.uint8)}


def _model(stored: Tensors, train: Histories) -> Recommender:
    """The model that was stored, on train interactions."""
    meta = json.loads(bytes(stored['meta'].tolist()))
    meta['num_users'] = str(train.num_users)
    return restore_model(stored | prefixed('graph', pack_graph(train)), meta)
