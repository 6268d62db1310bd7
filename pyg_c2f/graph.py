r"""From train edges and anchor assignments to graphs.

Two forms of one graph: a :class:`~torch_geometric.data.HeteroData` with one relation
per kind of edge (the readable form), and one CSR matrix over the nodes in the block
order users, items, coarse anchors, fine anchors (the fused form).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.typing import Adj, SparseTensor
from torch_geometric.utils import cumsum, is_sparse

from pyg_c2f.sparse import CSR, degree
from pyg_c2f.typing import (
    COARSE,
    FINE,
    ITEM,
    RATED_BY,
    RATES,
    USER,
    Assignment,
    EdgeType,
)


def inverse_sqrt(deg: Tensor) -> Tensor:
    r"""Returns :math:`d^{-1/2}`, and 0 where the degree :math:`d` is 0."""
    return torch.where(deg > 0, deg, torch.inf).rsqrt()


def interaction_weight(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    user_norm: float = 0.5,
    item_norm: float = 0.5,
    item_degree: Tensor | None = None,
) -> Tensor:
    r"""The non-zeros of the degree-normalised interactions.

    .. math::
        a_{ui} = d_u^{-a} d_i^{-b}

    where :math:`d` counts the train interactions of a user or an item.

    Args:
        edge_index (Tensor): The unique train pairs, users in row 0, items in row 1.
        num_users (int): The number of users.
        num_items (int): The number of items.
        user_norm (float, optional): The exponent :math:`a`. (default: ``0.5``)
        item_norm (float, optional): The exponent :math:`b`. (default: ``0.5``)
        item_degree (Tensor, optional): The items' degrees, where the pairs are those
            of some of the users only.

    Returns:
        Tensor: The weights of the pairs, shape ``[num_edges]``.
    """
    user, item = edge_index
    if item_degree is None:
        item_degree = degree(item, num_items)
    user_scale = power(degree(user, num_users).clamp(min=1), -user_norm)
    item_scale = power(item_degree.clamp(min=1), -item_norm)
    return user_scale[user] * item_scale[item]


def power(degree: Tensor, exponent: float) -> Tensor:
    """Degrees to a power, in the default precision.

    Rounded from double precision: in single precision the last digit depends on where
    in a tensor a number stands, and so on how many processes share the rows.
    """
    return (degree.double() ** exponent).to(torch.get_default_dtype())


def assignment_to_edges(assignment: Assignment) -> tuple[Tensor, Tensor]:
    """The links of an assignment, without those of weight zero.

    Returns:
        Tuple: ``edge_index`` (nodes in row 0, anchors in row 1) and ``edge_weight``.
    """
    row, slot = assignment.weight.nonzero(as_tuple=True)
    col = assignment.index[row, slot]
    return torch.stack([row, col]), assignment.weight[row, slot]


def build_hetero_data(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    coarse: Assignment,
    num_coarse: int,
    fine: Assignment | None = None,
    num_fine: int = 0,
) -> HeteroData:
    r"""The graph of users, items, coarse and fine anchors (SPEC section 1).

    Every relation stands in both directions and carries its ``edge_weight``: the
    normalised interactions :math:`\mathbf{A}` on user-item, the assignments
    :math:`\mathbf{S}_1` on entity-coarse and :math:`\mathbf{S}_2` on coarse-fine.
    :func:`joint_norm` turns them into the propagation weights.

    Args:
        edge_index (Tensor): The unique train pairs, shape ``[2, num_edges]``.
        num_users (int): The number of users.
        num_items (int): The number of items.
        coarse (Assignment): Entities (users first, then items) to coarse anchors.
        num_coarse (int): The number of coarse anchors.
        fine (Assignment, optional): Coarse anchors to fine anchors; without it the
            fine anchors are left out. (default: :obj:`None`)
        num_fine (int): The number of fine anchors. (default: :obj:`0`)
    """
    data = HeteroData()
    data[USER].num_nodes, data[ITEM].num_nodes = num_users, num_items
    data[COARSE].num_nodes = num_coarse
    weight = interaction_weight(edge_index, num_users, num_items)
    add_relation(data, RATES, RATED_BY, (edge_index, weight.to(coarse.weight)))
    add_assignment(data, USER, COARSE, Assignment(*(x[:num_users] for x in coarse)))
    add_assignment(data, ITEM, COARSE, Assignment(*(x[num_users:] for x in coarse)))
    if fine is not None:
        data[FINE].num_nodes = num_fine
        add_assignment(data, COARSE, FINE, fine)
    return data


def add_assignment(
    data: HeteroData, nodes: str, anchors: str, assignment: Assignment
) -> None:
    """Puts the links of an assignment into a graph, in both directions."""
    there, back = (nodes, 'assigned_to', anchors), (anchors, 'anchors', nodes)
    add_relation(data, there, back, assignment_to_edges(assignment))


def add_relation(
    data: HeteroData, there: EdgeType, back: EdgeType, edges: tuple[Tensor, Tensor]
) -> None:
    """Puts edges and their weights into a graph, in both directions."""
    pairs, weight = edges
    data[there].edge_index, data[there].edge_weight = pairs, weight
    data[back].edge_index, data[back].edge_weight = pairs.flip(0), weight


class BlockGraph(NamedTuple):
    r"""The fused form: one CSR matrix over all nodes, and the assignments beside it.

    ``adj`` holds the jointly normalised :math:`\hat{\mathbf{X}}` (symmetric), the
    other entries the assignments :math:`\mathbf{S}_1, \mathbf{S}_2` as they are and
    their transposes (as CSR), which the fine stage needs for its correction.
    """

    adj: CSR  # [num_nodes, num_nodes], int32 indices
    scale: Tensor  # [num_nodes], diag(X 1)^-1/2
    coarse: Assignment  # [num_entities, t]
    coarse_t: CSR  # S1', [num_coarse, num_entities]
    fine: Assignment | None  # [num_coarse, f]
    fine_t: CSR | None  # S2', [num_fine, num_coarse]


def normalized_interactions(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    user_norm: float = 0.5,
    item_norm: float = 0.5,
) -> CSR:
    """The matrix of :func:`interaction_weight`, ``[num_users, num_items]``."""
    weight = interaction_weight(edge_index, num_users, num_items, user_norm, item_norm)
    return CSR.from_pairs(edge_index, weight, num_users, num_items)


def entity_csr(edge_index: Tensor, num_users: int, num_items: int) -> CSR:
    """The symmetric matrix A over users and items, which no assignment changes."""
    pairs = torch.stack([edge_index[0], edge_index[1] + num_users])
    weight = interaction_weight(edge_index, num_users, num_items).repeat(2)
    size = num_users + num_items
    return CSR.from_pairs(torch.cat([pairs, pairs.flip(0)], dim=1), weight, size, size)


def assignment_csr(assignment: Assignment) -> CSR:
    """All links of an assignment, also those of weight zero, ``[num_nodes, ...]``."""
    index, weight = assignment
    num_nodes, num_links = index.shape
    rowptr = torch.arange(num_nodes + 1, device=index.device) * num_links
    return CSR(rowptr, index.flatten(), weight.flatten())


def build_block_graph(
    entities: CSR,
    coarse: Assignment,
    num_coarse: int,
    fine: Assignment | None = None,
    num_fine: int = 0,
) -> BlockGraph:
    r"""Assembles and normalises the matrix of SPEC section 1.

    .. math::
        \mathbf{X} = \begin{bmatrix} \mathbf{A} & \mathbf{S}_1 & 0 \\
        \mathbf{S}_1^{\top} & 0 & \mathbf{S}_2 \\ 0 & \mathbf{S}_2^{\top} & 0
        \end{bmatrix}, \quad
        \hat{\mathbf{X}} = \mathrm{diag}(\mathbf{X} \mathbf{1})^{-1/2} \, \mathbf{X}
        \, \mathrm{diag}(\mathbf{X} \mathbf{1})^{-1/2}

    Without ``fine`` the blocks of :math:`\mathbf{S}_2` are empty (coarse stage). The
    rows of :math:`\mathbf{A}` are copied as they lie and only the links are sorted,
    so that a re-assignment costs no sort of the interactions.
    """
    num_entities, dtype = len(coarse.index), coarse.weight.dtype
    coarse_t = assignment_csr(coarse).transpose(num_coarse)
    # The rows of entities, coarse anchors and fine anchors, these empty at first.
    rowptr, col, weight = coarse_t
    empty = CSR(rowptr.new_zeros(num_fine + 1), col[:0], weight[:0])
    parts, fine_t = [_beside(entities, coarse, num_entities), coarse_t, empty], None
    if fine is not None:
        fine_t = assignment_csr(fine).transpose(num_fine)
        parts[1] = _beside(coarse_t, fine, num_entities + num_coarse)
        parts[2] = fine_t._replace(col=fine_t.col + num_entities)
    col = torch.cat([part.col for part in parts])
    weight = torch.cat([part.weight for part in parts])
    count = torch.cat([part.rowptr.diff() for part in parts])
    rowptr = cumsum(count)
    row = torch.repeat_interleave(count)
    # Sums in float64: a float32 sum over a row of thousands loses digits that
    # every layer would then carry.
    deg = count.new_zeros(count.numel(), dtype=torch.double)
    scale = inverse_sqrt(deg.index_add_(0, row, weight.double())).to(dtype)
    weight = scale[row] * weight * scale[col]
    return BlockGraph(
        CSR(rowptr.int(), col.int(), weight), scale, coarse, coarse_t, fine, fine_t
    )


def _beside(left: CSR, links: Assignment, first: int) -> CSR:
    """The rows of a matrix, each followed by its links to nodes from ``first`` on."""
    num_rows, t = links.index.shape
    step = torch.arange(num_rows + 1, device=left.col.device) * t
    rowptr = left.rowptr + step
    at = torch.arange(left.col.numel(), device=left.col.device) + t * left.row
    link_at = rowptr[1:, None] - t + torch.arange(t, device=left.col.device)
    col = at.new_empty(at.numel() + link_at.numel())
    weight = links.weight.new_empty(col.shape)
    col[at], weight[at] = left.col.long(), left.weight.to(weight.dtype)
    col[link_at], weight[link_at] = links.index + first, links.weight
    return CSR(rowptr, col, weight)


def adj_to_edges(adj: Adj, edge_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Source, destination and weight of each edge, for every form of an adjacency.

    Args:
        adj (Adj): An ``edge_index`` tensor, an :class:`~torch_geometric.EdgeIndex`, or
            the transposed matrix as a torch sparse tensor or as a ``SparseTensor``.
        edge_weight (Tensor, optional): The weights beside an ``edge_index``.

    Raises:
        ValueError: If the weights are missing, or given twice.
    """
    if not is_sparse(adj):
        if edge_weight is None:
            raise ValueError("'edge_weight' is needed beside an 'edge_index'")
        src, dst = adj.as_tensor() if isinstance(adj, EdgeIndex) else adj
        return src, dst, edge_weight
    if edge_weight is not None:
        raise ValueError(
            'a sparse adjacency carries its weights: leave the edge_weight out'
        )
    if isinstance(adj, SparseTensor):
        dst, src, value = adj.coo()
        if value is None:
            value = torch.ones(src.numel(), device=src.device)
        return src, dst, value
    coo = adj.to_sparse_coo().coalesce()
    dst, src = coo.indices()
    return src, dst, coo.values()


def joint_norm(
    edge_index_dict: dict[EdgeType, Adj],
    edge_weight_dict: dict[EdgeType, Tensor],
    num_nodes_dict: dict[str, int],
) -> dict[EdgeType, Tensor]:
    r"""The joint normalisation of SPEC section 1, relation by relation.

    .. math::
        \hat{x}_{ij} = x_{ij} / \sqrt{d_i d_j}, \quad d_i = \sum_r \sum_j x^{(r)}_{ij}

    The degree :math:`d_i` sums the weights of *all* relations into the node. Each
    relation must therefore be there in both directions.

    Returns:
        Dict: The normalised weights of each relation, in the edges' order.
    """
    edges = {
        rel: adj_to_edges(adj, edge_weight_dict.get(rel))
        for rel, adj in edge_index_dict.items()
    }
    some = next(iter(edges.values()))[2]
    deg = {
        node_type: torch.zeros(num, dtype=torch.double, device=some.device)
        for node_type, num in num_nodes_dict.items()
    }
    for rel, (_, dst, weight) in edges.items():
        deg[rel[2]].index_add_(0, dst, weight.double())
    scale = {
        node_type: inverse_sqrt(value).to(some.dtype)
        for node_type, value in deg.items()
    }
    return {
        rel: scale[rel[0]][src] * weight * scale[rel[2]][dst]
        for rel, (src, dst, weight) in edges.items()
    }
