from typing import Any, Final

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size, SparseTensor
from torch_geometric.utils import is_sparse, spmm

from pyg_c2f.graph import adj_to_edges, joint_norm
from pyg_c2f.typing import (
    COARSE,
    COARSE_ITEM,
    COARSE_USER,
    FINE,
    FINE_COARSE,
    EdgeType,
)


class AnchorConv(MessagePassing):
    r"""Weighted propagation without parameters, square or bipartite.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i)} e_{j,i} \cdot \mathbf{x}_j

    where :math:`e_{j,i}` is the weight of the edge from :math:`j` to :math:`i` (1
    without weights). It is one relation of the propagation of the `"Coarse-to-Fine
    Lightweight Meta-Embedding for ID-Based Recommendation"
    <https://arxiv.org/abs/2501.11870>`_ paper: between entities and anchors, or among
    entities. The graph may be an ``edge_index`` tensor, an
    :class:`~torch_geometric.EdgeIndex` (sorted by column and with its ``sparse_size``
    it takes the fused way), or the transposed matrix as torch sparse CSR or
    ``torch_sparse.SparseTensor`` (always fused, with the weights inside). Under
    :func:`torch.compile` it must be a tensor: torch traces no other form.

    Args:
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)` or
          :math:`((|\mathcal{V_s}|, F), (|\mathcal{V_t}|, F))` if bipartite (the second
          may be :obj:`None` if ``size`` is given), edge indices
          :math:`(2, |\mathcal{E}|)`, edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V_t}|, F)`

    Raises:
        ValueError: If ``edge_weight`` is given beside a sparse matrix, which has its
            own weights, or the flow of a bipartite graph is not from source to target.

    Example:
        >>> conv = AnchorConv()
        >>> edge_index = torch.tensor([[0, 1], [2, 2]])
        >>> conv(torch.ones(3, 4), edge_index, torch.tensor([0.5, 0.5]))[2]
        tensor([1., 1., 1., 1.])
    """

    SUPPORTS_FUSED_EDGE_INDEX: Final[bool] = True

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault('aggr', 'add')
        super().__init__(**kwargs)

    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj,
        edge_weight: OptTensor = None,
        size: Size = None,
    ) -> Tensor:
        if isinstance(x, Tensor):
            x = (x, x)
        elif self.flow != 'source_to_target':
            # PyG 2.8 takes the first of two sizes for that of the output, silently.
            raise ValueError(
                f"'{self.__class__.__name__}' sends from source to target in a "
                f"bipartite graph: flip the 'edge_index' (got flow={self.flow!r})"
            )
        if edge_weight is not None and is_sparse(edge_index):
            raise ValueError(
                f"'{self.__class__.__name__}' takes the weights of a sparse matrix "
                f"from the matrix itself (got an 'edge_weight' beside it)"
            )
        if isinstance(edge_index, EdgeIndex):
            # The fused product has no gradient for the weights, knows one direction,
            # and an index of unknown size ends at its last edge: gather instead.
            learned = edge_weight is not None and edge_weight.requires_grad
            unknown = None in edge_index.sparse_size()
            if learned or unknown or self.flow != 'source_to_target':
                size = edge_index.sparse_size() if size is None else size
                edge_index = edge_index.as_tensor()
        # propagate_type: (x: OptPairTensor, edge_weight: OptTensor)
        return self.propagate(edge_index, x=x, edge_weight=edge_weight, size=size)

    def message(self, x_j: Tensor, edge_weight: OptTensor) -> Tensor:
        return x_j if edge_weight is None else edge_weight.view(-1, 1) * x_j

    def message_and_aggregate(
        self, edge_index: Adj, x: OptPairTensor, edge_weight: OptTensor
    ) -> Tensor:
        if isinstance(edge_index, EdgeIndex):
            # Not EdgeIndex.matmul: its gradient fails on bipartite graphs (PyG 2.8).
            if edge_weight is None:
                edge_weight = x[0].new_ones(edge_index.size(1))
            edge_index = edge_index.to_sparse_csc(edge_weight).t()
        dtype, device = x[0].dtype, x[0].device.type
        wide = torch.promote_types(dtype, torch.float)
        if wide == dtype and not torch.is_autocast_enabled(device):
            return spmm(edge_index, x[0], reduce=self.aggr)
        # The CPU's sparse product knows no lower precision than single.
        with torch.autocast(device, enabled=False):
            out = spmm(edge_index.to(wide), x[0].to(wide), reduce=self.aggr)
        return out.to(dtype)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}()'


class C2FConv(AnchorConv):
    r"""One layer of coarse-to-fine propagation over users, items and anchors.

    From the `"Coarse-to-Fine Lightweight Meta-Embedding for ID-Based Recommendation"
    <https://arxiv.org/abs/2501.11870>`_ paper, as its published program computes it:
    with :math:`\mathbf{Z} = \hat{\mathbf{X}} \mathbf{H}`, the jointly normalised
    propagation over all relations, and its blocks of entities, coarse and fine anchors,

    .. math::
        \mathbf{z}_c' &= (1 - g) \mathbf{z}_c + (2g - 1) \mathbf{S}_2 \mathbf{z}_f \\
        \mathbf{z}_N' &= \mathbf{z}_N - \mathbf{S}_1 \mathbf{z}_c
        + \mathbf{S}_1 \mathbf{z}_c'

    The layer's output is :math:`[\mathbf{z}_N' ; \mathbf{z}_c' ; \mathbf{z}_f]`. For
    gates below 0.5 the fine part enters with a negative weight, unlike what the paper's
    text suggests. Without fine nodes the layer is :math:`\hat{\mathbf{X}} \mathbf{H}`
    alone (coarse stage).

    Args:
        gate (float, optional): The share :math:`g` of the fine part. (default: ``0.2``)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:** ``x_dict`` with node features :math:`(|\mathcal{V}_r|, F)` of the
          types user, item, coarse and (fine stage) fine; ``edge_index_dict`` and
          ``edge_weight_dict`` of the relations of
          :func:`pyg_c2f.graph.build_hetero_data`, with the weights
          :math:`\mathbf{A}, \mathbf{S}_1, \mathbf{S}_2` as they are: the joint
          normalisation happens here. A stack of layers computes it once with
          :func:`pyg_c2f.graph.joint_norm` and hands it over as ``norm_dict``.
        - **output:** ``x_dict`` of the same types and shapes

    Raises:
        ValueError: If a relation points to a node type without features, or there are
            fine features without the relations that carry them to entities.

    Example:
        >>> model = C2F(torch.tensor([[0, 0, 1], [0, 1, 1]]), 2, 2, num_coarse=2,
        ...             num_fine=2, embedding_dim=8, fine_per_coarse=1)
        >>> data = model.to_hetero_data()
        >>> x_dict = {key: torch.ones(n, 8) for key, n in data.num_nodes_dict.items()}
        >>> out = C2FConv()(x_dict, data.edge_index_dict, data.edge_weight_dict)
        >>> {key: tuple(x.shape) for key, x in out.items()}
        {'user': (2, 8), 'item': (2, 8), 'coarse': (2, 8)}
    """

    def __init__(self, gate: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate = gate

    def forward(  # type: ignore[override]
        self,
        x_dict: dict[str, Tensor],
        edge_index_dict: dict[EdgeType, Adj],
        edge_weight_dict: dict[EdgeType, Tensor] | None = None,
        norm_dict: dict[EdgeType, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        for rel in edge_index_dict:
            if rel[0] not in x_dict or rel[2] not in x_dict:
                raise ValueError(
                    f"'{self.__class__.__name__}' has no features for both ends of "
                    f'{rel} (got features of {sorted(x_dict)})'
                )
        raw = edge_weight_dict or {}
        if norm_dict is None:
            num_nodes = {node_type: x.size(0) for node_type, x in x_dict.items()}
            norm_dict = joint_norm(edge_index_dict, raw, num_nodes)

        z_dict = {node_type: torch.zeros_like(x) for node_type, x in x_dict.items()}
        for rel, adj in edge_index_dict.items():
            weight = norm_dict[rel]
            z_dict[rel[2]] = z_dict[rel[2]] + self._send(x_dict, rel, adj, weight)

        if FINE not in x_dict:
            return z_dict
        for rel in (FINE_COARSE, COARSE_USER, COARSE_ITEM):
            if rel not in edge_index_dict:
                raise ValueError(
                    f"'{self.__class__.__name__}' needs the relation {rel} beside fine "
                    f'features (got {list(edge_index_dict)})'
                )

        def from_anchors(x: dict[str, Tensor], rel: EdgeType) -> Tensor:
            adj = edge_index_dict[rel]
            return self._send(x, rel, adj, adj_to_edges(adj, raw.get(rel))[2])

        fine_part = from_anchors(z_dict, FINE_COARSE)
        z_c = z_dict[COARSE]
        new_c = (1 - self.gate) * z_c + (2 * self.gate - 1) * fine_part
        change = {COARSE: new_c - z_c}
        for rel in (COARSE_USER, COARSE_ITEM):
            entity = rel[2]
            change[entity] = z_dict[entity]
            z_dict[entity] = z_dict[entity] + from_anchors(change, rel)
        z_dict[COARSE] = new_c
        return z_dict

    def _send(
        self, x_dict: dict[str, Tensor], rel: EdgeType, adj: Adj, weight: Tensor
    ) -> Tensor:
        x = (x_dict[rel[0]], x_dict[rel[2]])
        size = (x[0].size(0), x[1].size(0))
        if not is_sparse(adj):
            return super().forward(x, adj, weight, size)
        return super().forward(x, _with_values(adj, weight), None, size)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(gate={self.gate})'


def _with_values(adj: Adj, weight: Tensor) -> Adj:
    """The same sparse matrix with other values (in row-major order)."""
    if isinstance(adj, SparseTensor):
        return adj.set_value(weight, layout='coo')
    csr = adj.to_sparse_csr()
    return torch.sparse_csr_tensor(
        csr.crow_indices(), csr.col_indices(), weight, csr.shape
    )
