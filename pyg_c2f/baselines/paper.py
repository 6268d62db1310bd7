"""Recipe paper, and its coarse stage alone, behind the interface of the others."""

import json
from dataclasses import dataclass
from typing import ClassVar

import torch
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
from pyg_c2f.checkpoint import build_model, model_meta, model_tensors
from pyg_c2f.config import Recipe
from pyg_c2f.evaluate import Score
from pyg_c2f.train import train
from pyg_c2f.typing import ITEM, RATES, USER, Stage


@dataclass(frozen=True)
class Paper(Baseline):
    """C2F as published, for a fixed number of epochs; LEGCF is its coarse stage alone.

    What is stored are the codebooks (the fine one sparse), assignments and scalars of a
    checkpoint, and the train graph in compact form.

    Args:
        recipe (Recipe, optional): The settings.
        coarse_epochs (Tuple, optional): The epoch that re-assignment starts from and
            the last one of the coarse stage. (default: ``(65, 195)``, the published
            run's on Gowalla)
        fine_epochs (Tuple, optional): Those of the fine stage; without them there is
            none. (default: :obj:`None`)
    """

    recipe: Recipe = Recipe()
    coarse_epochs: tuple[int, int] = (65, 195)
    fine_epochs: tuple[int, int] | None = None
    serves_anyone: ClassVar[bool] = False

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
        epochs: dict[Stage, tuple[int, int]] = {'coarse': self.coarse_epochs}
        if self.fine_epochs is not None:
            epochs['fine'] = self.fine_epochs
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        stages = tuple(epochs)
        model = train(data, self.recipe, seed, stages, fixed_epochs=epochs).model
        tensors = model_tensors(model)
        stored = {k: x for k, x in tensors.items() if not k.startswith('graph.')}
        meta = torch.frombuffer(
            bytearray(json.dumps(model_meta(model)).encode()), dtype=torch.uint8
        )
        return stored | prefixed('graph', pack_graph(histories)) | {'meta': meta}

    @torch.no_grad()
    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        graph = without_prefix('graph', stored)
        known = unpack_graph(graph, histories.num_items, histories.num_users)
        as_csr = {'graph.rowptr': known.rowptr, 'graph.col': known.col}
        meta = json.loads(bytes(stored['meta'].tolist()))
        return build_model(stored | as_csr, meta).scorer()
