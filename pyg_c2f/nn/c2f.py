from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.anchors.paper import bridge_scores, pinv_assignment, softmax_assignment
from pyg_c2f.graph import (
    BlockGraph,
    build_block_graph,
    build_hetero_data,
    entity_csr,
    joint_norm,
)
from pyg_c2f.nn.conv import C2FConv
from pyg_c2f.nn.embedding import MetaEmbedding, SoftThreshold
from pyg_c2f.nn.fused import fused_ego, fused_propagation, weighted_sum
from pyg_c2f.nn.recommender import InnerProducts, Recommender
from pyg_c2f.nn.stored import (
    check_settings,
    check_sizes,
    fill_codebook,
    graph_tensors,
    sparse_codebook,
    stored_edges,
)
from pyg_c2f.packing import small_int_below
from pyg_c2f.sparse import CSR, csr_matmul, take_rows
from pyg_c2f.typing import COARSE, FINE, ITEM, USER, Assignment, Score, Stage

MAX_LAYERS = 1000


class C2F(Recommender):
    r"""The coarse-to-fine lightweight meta-embedding recommender.

    From the `"Coarse-to-Fine Lightweight Meta-Embedding for ID-Based Recommendation"
    <https://arxiv.org/abs/2501.11870>`_ paper. Users and items (the entities) own no
    features; they are sparse mixtures of coarse anchors, and these of fine anchors:

    .. math::
        \mathbf{H}^{(0)} = [\tanh(\mathbf{S}_1 \mathbf{E}_c) ; \;
        g \mathbf{S}_2 \mathbf{F} + (1 - g) \mathbf{E}_c ; \; \tanh(\mathbf{F})],
        \quad \mathbf{F} = \mathrm{soft}(\mathbf{E}_f)

    (coarse stage: :math:`[\tanh(\mathbf{S}_1 \mathbf{E}_c) ; \mathbf{E}_c ; 0]`),
    propagated by :math:`L` layers of :class:`C2FConv` and averaged over the layers. A
    pair scores :math:`\mathbf{h}_u^{\top} \mathbf{h}_i + b_u + b_i + b_0`.

    The model is in one of two stages (:meth:`set_stage`): ``'coarse'`` trains the
    coarse codebook, ``'fine'`` freezes it and trains the fine one; the scalars
    :math:`b` are trained in both. Assignments change by :meth:`set_assignment` and
    :meth:`update_assignment` only, never in :meth:`forward`.

    Args:
        edge_index (Tensor): The unique train pairs, users in row 0, items in row 1,
            shape ``[2, num_edges]``.
        num_users (int): The number of users.
        num_items (int): The number of items.
        num_coarse (int, optional): The number :math:`c` of coarse anchors.
        num_fine (int, optional): The number :math:`r` of fine anchors.
        embedding_dim (int, optional): The width :math:`d` of the codebooks.
        num_layers (int, optional): The number :math:`L` of layers.
        anchors_per_entity (int, optional): Coarse anchors of each entity, :math:`t`.
        fine_per_coarse (int, optional): Fine anchors of each coarse one, :math:`f`.
        gate (float, optional): The gate :math:`g`.
        threshold (float, optional): The soft threshold of the fine codebook.

    Raises:
        ValueError: If a size is not positive, an edge does not fit the sizes, or there
            are fewer anchors than one node needs.

    Example:
        >>> edge_index = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
        >>> model = C2F(edge_index, 3, 4, num_coarse=2, num_fine=2, embedding_dim=8,
        ...             fine_per_coarse=2)
        >>> items, scores = model.recommend([0, 1], k=2)
        >>> items.shape
        torch.Size([2, 2])
    """

    def __init__(  # noqa: PLR0913
        self,
        edge_index: Tensor,
        num_users: int,
        num_items: int,
        num_coarse: int = 300,
        num_fine: int = 100,
        embedding_dim: int = 128,
        num_layers: int = 3,
        anchors_per_entity: int = 2,
        fine_per_coarse: int = 4,
        gate: float = 0.2,
        threshold: float = 1.0,
    ) -> None:
        super().__init__(
            edge_index, num_users, num_items, num_coarse, num_fine, embedding_dim
        )
        if num_layers < 0:
            raise ValueError(f"'C2F' expected layers (got num_layers={num_layers})")
        self.num_layers = int(num_layers)
        self.anchors_per_entity = int(anchors_per_entity)
        self.fine_per_coarse = int(fine_per_coarse)
        self.gate, self.threshold = float(gate), float(threshold)

        num_entities = num_users + num_items
        self.coarse = MetaEmbedding(
            num_entities, num_coarse, embedding_dim, anchors_per_entity
        )
        self.fine = MetaEmbedding(num_coarse, num_fine, embedding_dim, fine_per_coarse)
        self.soft_threshold = SoftThreshold(threshold)
        self.bias = torch.nn.Parameter(torch.empty(num_entities))
        self.global_bias = torch.nn.Parameter(torch.empty(1))
        self.convs = torch.nn.ModuleList(C2FConv(gate) for _ in range(num_layers))
        self._entities: CSR | None = None
        self._graph: BlockGraph | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets everything: codebooks and :math:`b` from
        :math:`\mathcal{N}(0, 1)` (:math:`b_0 = 0`), random assignments, stage coarse.
        """
        self.coarse.reset_parameters()
        self.fine.reset_parameters()
        torch.nn.init.normal_(self.bias)
        torch.nn.init.zeros_(self.global_bias)
        self.set_stage('coarse')

    def set_stage(self, stage: Stage) -> None:
        """Enters a stage: freezes the codebook that the stage does not train."""
        super().set_stage(stage)
        self.coarse.codebook.requires_grad_(stage == 'coarse')
        self.fine.codebook.requires_grad_(stage == 'fine')
        self._graph = None

    def set_assignment(
        self, coarse: Assignment | None = None, fine: Assignment | None = None
    ) -> None:
        super().set_assignment(coarse, fine)
        self._graph = None

    @torch.no_grad()
    def update_assignment(self, h: Tensor) -> dict[str, float]:
        r"""Re-assigns from propagated features: :math:`\mathbf{S}_1` in the coarse
        stage (:func:`~pyg_c2f.anchors.pinv_assignment`), :math:`\mathbf{S}_2` in the
        fine stage (:func:`~pyg_c2f.anchors.bridge_scores`).

        Args:
            h (Tensor): The output of :meth:`propagate`, ``[num_nodes, channels]``.

        Returns:
            Dict: ``changed``, the share of links that are new, and ``anchors_in_use``.
        """
        h_n, h_c, h_f = self.split(h.detach())
        table = self.stage_table
        if self.stage == 'coarse':
            new = pinv_assignment(h_n, h_c, self.anchors_per_entity)
        else:
            scores = bridge_scores(h_n, h_c, h_f)
            new = softmax_assignment(scores, self.fine_per_coarse)
        old = table.index.masked_fill(table.assignment_weight == 0, -1)
        kept = (new.index.unsqueeze(2) == old.unsqueeze(1)).any(dim=2)
        kept = kept[new.weight != 0]
        table.set_assignment(new)
        self._graph = None
        return {
            'changed': 1 - float(kept.sum()) / max(kept.numel(), 1),
            'anchors_in_use': self.anchors_in_use(),
        }

    def anchors_in_use(self) -> int:
        index, weight = self.stage_table.assignment
        return index[weight != 0].unique().numel()

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The blocks of entities, coarse anchors and fine anchors of node features."""
        num_entities = self.num_users + self.num_items
        return x.split([num_entities, self.num_coarse, self.num_fine])

    def ego(self, columns: slice | None = None) -> Tensor:
        r"""The entities' features before propagation, :math:`\tanh(\mathbf{S}_1
        \mathbf{E}_c)`.

        Args:
            columns (slice, optional): The columns to compute. (default: all)
        """
        graph = self.block_graph()
        codebook = _take_columns(self.coarse.codebook, columns)
        return fused_ego(codebook, graph.coarse, graph.coarse_t)

    def layer0(self, columns: slice | None = None) -> tuple[Tensor, Tensor, Tensor]:
        r"""The blocks of :math:`\mathbf{H}^{(0)}`: entities, coarse, fine anchors.

        Args:
            columns (slice, optional): The columns to compute, here and, from these, in
                :meth:`propagate`; columns are independent. (default: all)
        """
        ego = self.ego(columns)
        codebook = _take_columns(self.coarse.codebook, columns)
        fine = _take_columns(self.fine.codebook, columns)
        if self.stage == 'coarse':
            return ego, codebook, torch.zeros_like(fine)
        fine = self.soft_threshold(fine)
        mixed = weighted_sum(self.fine.assignment, fine)
        blended = self.gate * mixed + (1 - self.gate) * codebook
        return ego, blended, fine.tanh()

    def block_graph(self) -> BlockGraph:
        """The fused graph of the current stage and assignments (built once)."""
        if self._graph is None:
            self._graph = build_block_graph(self._train_csr(), *self._assignments())
        return self._graph

    def _assignments(self) -> tuple[Assignment, int, Assignment | None, int]:
        """Those of the stage, with the numbers of anchors, as graphs are made of."""
        fine = self.fine.assignment if self.stage == 'fine' else None
        return self.coarse.assignment, self.num_coarse, fine, self.num_fine

    def to_hetero_data(self) -> HeteroData:
        """The model's graph, the anchors' learned features as their ``x``."""
        data = build_hetero_data(
            self.edge_index, self.num_users, self.num_items, *self._assignments()
        )
        data[COARSE].x = self.coarse.codebook.detach()
        if self.stage == 'fine':
            data[FINE].x = self.soft_threshold(self.fine.codebook).detach()
        return data

    def propagate(
        self,
        x: tuple[Tensor, Tensor, Tensor] | None = None,
        fused: bool = True,
    ) -> Tensor:
        r"""The mean over all layers, for all nodes in block order.

        Args:
            x (Tuple, optional): The output of :meth:`layer0`. (default: computed)
            fused (bool, optional): Whether to go over one CSR matrix, or to pass
                messages relation by relation: the same numbers, the readable way.
                (default: :obj:`True`)

        Returns:
            Tensor: Users, items, coarse anchors, fine anchors, ``[num_nodes, d]``.
        """
        x = self.layer0() if x is None else x
        if fused:
            graph = self.block_graph()
            return fused_propagation(torch.cat(x), graph, self.num_layers, self.gate)
        layers = self.layers(x)
        out = [
            sum(xs) / len(xs) for xs in zip(*(x.values() for x in layers), strict=True)
        ]
        if self.stage == 'coarse':
            out.append(x[2])
        return torch.cat(out)

    def layers(
        self, x: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> list[dict[str, Tensor]]:
        """The features of every layer, relation by relation (the readable way).

        Args:
            x (Tuple, optional): The output of :meth:`layer0`. (default: computed)
        """
        ego, coarse, fine = self.layer0() if x is None else x
        user, item = ego.split([self.num_users, self.num_items])
        x_dict = {USER: user, ITEM: item, COARSE: coarse}
        if self.stage == 'fine':
            x_dict[FINE] = fine
        data = self.to_hetero_data()
        edges, weights = data.edge_index_dict, data.edge_weight_dict
        norm = joint_norm(edges, weights, {k: len(x) for k, x in x_dict.items()})
        out = [x_dict]
        for conv in self.convs:
            out.append(conv(out[-1], edges, weights, norm))
        return out

    def forward(
        self,
        users: Tensor,
        items: Tensor,
        h: Tensor | None = None,
        with_bias: bool = True,
    ) -> Tensor:
        r"""The scores of pairs, :math:`\mathbf{h}_u^{\top} \mathbf{h}_i + b_u + b_i +
        b_0`.

        Args:
            users (Tensor): User ids, ``[batch_size]``.
            items (Tensor): Item ids, ``[batch_size]``, or several rows of them,
                ``[*, batch_size]``, such as positive and negative items.
            h (Tensor, optional): The output of :meth:`propagate`, or some of its
                columns, which give a part of the products. (default: computed)
            with_bias (bool, optional): Whether to add the scalars :math:`b`. (default:
                :obj:`True`)

        Returns:
            Tensor: The scores, of the shape of ``items``.
        """
        h = self.propagate() if h is None else h
        # One gather for all rows: each one costs a table of zeros in the backward.
        ids = torch.cat([users, items.flatten() + self.num_users])
        h_user, h_item = h.index_select(0, ids).tensor_split((users.numel(),))
        dots = (h_user * h_item.view(*items.shape, -1)).sum(dim=-1)
        if not with_bias:
            return dots
        bias = self.bias.index_select(0, ids)
        b_user, b_item = bias.tensor_split((users.numel(),))
        # The global scalar goes to the users first: in a difference of two scores of
        # a user the gradients of both then cancel exactly, not up to rounding.
        return dots + b_item.view(items.shape) + (b_user + self.global_bias)

    @torch.no_grad()
    def scorer(self) -> Score:
        """The scores of all items, by one propagation, as a function of users."""
        h_user, h_item = self._entity_features()
        b_user = self.bias.detach()[: self.num_users]
        return self._scorer(h_item, lambda users: h_user[users], b_user)

    @torch.no_grad()
    def history_scorer(self, rowptr: Tensor, col: Tensor) -> Score:
        r"""The scores of all items for people unknown to the model.

        A new person is a user node without anchors of its own, whose features are what
        the items of the history send to it,

        .. math::
            \mathbf{h}_u = \frac{1}{L + 1} \sum_{i \in \mathcal{N}(u)} \hat{x}_{ui}
            \sum_{l=0}^{L-1} \mathbf{h}_i^{(l)}

        and without a scalar :math:`b_u`, while the items keep the features that they
        have without this person.
        """
        _, h_item = self._entity_features()
        features = self._new_features()

        def of_rows(rows: Tensor) -> Tensor:
            start, at = take_rows(rowptr, rows)
            return features(start, col[at])

        return self._scorer(h_item, of_rows)

    def _scorer(
        self,
        h_item: Tensor,
        features: Callable[[Tensor], Tensor],
        b_user: Tensor | None = None,
    ) -> Score:
        item_t, b_item = h_item.T.contiguous(), self._item_bias()

        def score(users: Tensor) -> Tensor:
            out = torch.addmm(b_item, features(users), item_t)
            return out if b_user is None else out.add_(b_user[users].unsqueeze(1))

        return score

    def _new_features(self) -> Callable[[Tensor, Tensor], Tensor]:
        """A function from histories, as CSR, to features of people."""
        num_layers, graph = self.num_layers, self.block_graph()
        items = slice(self.num_users, self.num_users + self.num_items)
        scale = graph.scale[items]
        deg = self.item_degree()
        x0 = torch.cat(self.layer0())
        below = torch.zeros_like(x0)
        if num_layers > 0:
            below = fused_propagation(x0, graph, num_layers - 1, self.gate)
            below = below * (num_layers / (num_layers + 1))
        below = below[items].contiguous()

        def features(rowptr: Tensor, col: Tensor) -> Tensor:
            count = rowptr.diff()
            row = torch.repeat_interleave(count)
            weight = (count[row] * deg[col]).rsqrt()
            total = weight.new_zeros(len(count)).index_add_(0, row, weight)
            weight = weight / total.sqrt()[row] * scale[col]
            return csr_matmul(CSR(rowptr, col, weight), below)

        return features

    def train_items(self) -> tuple[Tensor, Tensor]:
        users = self._train_csr().between(0, self.num_users)
        return users.rowptr, users.col - self.num_users

    def item_features(self) -> Tensor:
        return self._entity_features()[1]

    @torch.no_grad()
    def inner_products(self) -> InnerProducts:
        h_user, h_item = self._entity_features()
        return InnerProducts(
            torch.cat([h_item, self._item_bias().unsqueeze(1)], dim=1),
            self.bias.detach()[: self.num_users].clone(),
            lambda users: h_user[users],
            self._new_features(),
        )

    def _entity_features(self) -> tuple[Tensor, Tensor]:
        end = self.num_users + self.num_items
        h_user, h_item, _ = self.propagate().tensor_split((self.num_users, end))
        return h_user, h_item

    def _item_bias(self) -> Tensor:
        b_item = self.bias.detach()[self.num_users :]
        return b_item + self.global_bias.detach()

    def _train_csr(self) -> CSR:
        if self._entities is None:
            self._entities = entity_csr(self.edge_index, self.num_users, self.num_items)
        return self._entities

    def _forget(self) -> None:
        self._entities = self._graph = None

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors that stand for the model in a file.

        Assignments have the smallest integers that number the anchors; the fine
        codebook keeps only the entries that the soft threshold lets through (as CSR);
        the train pairs are packed. A coarse model has no
        fine parts.
        """
        tensors = {
            'coarse.codebook': self.coarse.codebook.detach(),
            'coarse.index': small_int_below(self.coarse.index, self.num_coarse),
            'coarse.weight': self.coarse.assignment_weight,
            'bias': self.bias.detach(),
            'global_bias': self.global_bias.detach(),
        } | graph_tensors(self.edge_index, self.num_items)
        if self.stage == 'fine':
            tensors |= sparse_codebook(self.fine.codebook, self.threshold) | {
                'fine.index': small_int_below(self.fine.index, self.num_fine),
                'fine.weight': self.fine.assignment_weight,
            }
        return tensors

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any], stage: Stage
    ) -> Self:
        sizes = check_settings(settings, cls.setting_kinds())
        num_entities = sizes['num_users'] + sizes['num_items']
        coarse_links = num_entities * sizes['anchors_per_entity']
        fine_links = sizes['num_coarse'] * sizes['fine_per_coarse']
        entities = num_entities, len(tensors['bias'])
        check_sizes(tensors, sizes, entities, max(coarse_links, fine_links))
        if sizes['num_layers'] > MAX_LAYERS:
            raise ValueError(f'there are more than {MAX_LAYERS} layers')
        model = cls(stored_edges(tensors, sizes['num_items']), **sizes)
        model.set_stage(stage)
        coarse = tensors['coarse.index'].long(), tensors['coarse.weight']
        model.set_assignment(Assignment(*coarse))
        with torch.no_grad():
            for name in ('bias', 'global_bias'):
                getattr(model, name).copy_(tensors[name])
            model.coarse.codebook.copy_(tensors['coarse.codebook'])
            if stage == 'fine':
                fill_codebook(model.fine.codebook, tensors)
                fine = tensors['fine.index'].long(), tensors['fine.weight']
                model.set_assignment(fine=Assignment(*fine))
        return model

    def extra_repr(self) -> str:
        return f'{self.num_users}, {self.num_items}, stage={self.stage!r}'


def _take_columns(table: Tensor, columns: slice | None) -> Tensor:
    return table if columns is None else table[:, columns].contiguous()
