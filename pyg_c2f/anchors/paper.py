r"""Assignments to anchors: starts and re-assignments; the start of the fine codebook.

Pure functions: tensors in, :class:`~pyg_c2f.typing.Assignment` out. No function holds
a dense matrix of entities times anchors outside a block of rows.
"""

import warnings
from types import ModuleType

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from pyg_c2f.finite import NotFiniteError, check_finite
from pyg_c2f.sparse import rowptr_of
from pyg_c2f.typing import Assignment

BLOCK = 16_384  # rows of a dense entities x anchors block: 40 MB with 300 anchors


def import_pymetis() -> ModuleType:
    """The library that cuts graphs.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import pymetis
    except ImportError as error:
        raise ImportError(
            'the METIS start needs pymetis: pip install "pyg-c2f[metis]", or set '
            'anchors=random'
        ) from error
    return pymetis


def metis_partition(
    edge_index: Tensor, num_users: int, num_items: int, num_parts: int
) -> Tensor:
    """The METIS cut of the user-item graph, unweighted.

    Args:
        edge_index (Tensor): The unique train pairs, shape ``[2, num_edges]``.
        num_users (int): The number of users.
        num_items (int): The number of items.
        num_parts (int): The number of parts.

    Returns:
        Tensor: The part of each entity (users first, then items). METIS leaves parts
        empty where the graph has few edges.

    Raises:
        ImportError: If pymetis is not installed.
    """
    pymetis = import_pymetis()
    pairs = torch.stack([edge_index[0], edge_index[1] + num_users])
    row, col = torch.cat([pairs, pairs.flip(0)], dim=1).cpu()
    col = col[row.argsort(stable=True)]
    rowptr = rowptr_of(row, num_users + num_items)
    graph = pymetis.CSRAdjacency(rowptr.int().numpy(), col.int().numpy())
    _, labels = pymetis.part_graph(num_parts, graph)
    return torch.tensor(labels, device=edge_index.device)


def partition_assignment(
    labels: Tensor,
    num_anchors: int,
    anchors_per_entity: int,
    own_weight: float = 0.5,
    generator: torch.Generator | None = None,
) -> Assignment:
    r"""Ties each entity to the anchor of its part and to random other ones.

    The own anchor gets :math:`w^*`, the others share :math:`1 - w^*` evenly (SPEC
    section 2); with one anchor an entity it gets the weight 1.

    Args:
        labels (Tensor): The part of each entity, ``[num_entities]``.
        num_anchors (int): The number of anchors.
        anchors_per_entity (int): The number :math:`t` of anchors of each entity.
        own_weight (float, optional): :math:`w^*`. (default: ``0.5``)
        generator (torch.Generator, optional): Draws the other anchors.
    """
    num_others = anchors_per_entity - 1
    others = _distinct(labels.numel(), num_anchors - 1, num_others, generator)
    others = others.to(labels.device)
    # Skip the own anchor: the draws number the remaining ones.
    others += (others >= labels.unsqueeze(1)).long()
    index = torch.cat([labels.unsqueeze(1), others], dim=1)
    weight = torch.full(index.shape, (1 - own_weight) / max(num_others, 1))
    weight[:, 0] = own_weight if num_others else 1.0
    return Assignment(index, weight.to(labels.device))


def random_assignment(
    num_nodes: int,
    num_anchors: int,
    anchors_per_node: int,
    generator: torch.Generator | None = None,
) -> Assignment:
    """The start without a partition: a random own anchor, and random other ones."""
    labels = torch.randint(num_anchors, (num_nodes,), generator=generator)
    sizes = num_anchors, anchors_per_node
    return partition_assignment(labels, *sizes, generator=generator)


def _distinct(
    num_rows: int, high: int, num_draws: int, generator: torch.Generator | None
) -> Tensor:
    """Distinct uniform integers below ``high`` in each row (Floyd's algorithm)."""
    out = torch.empty(num_rows, num_draws, dtype=torch.long)
    for k in range(num_draws):
        last = high - num_draws + k
        draw = torch.randint(last + 1, (num_rows,), generator=generator)
        taken = (out[:, :k] == draw.unsqueeze(1)).any(dim=1)
        out[:, k] = torch.where(taken, last, draw)
    return out


def pinv_assignment(h_nodes: Tensor, h_anchors: Tensor, num_links: int) -> Assignment:
    r"""Re-assignment by pseudo-inverse (SPEC section 2).

    .. math::
        \mathbf{S} \leftarrow \mathrm{top}_t \left( \mathbf{H}_N \mathbf{H}_c^{+}
        \right)

    Each row keeps its :math:`t` largest entries as they are, without renormalisation.
    Where fewer than :math:`t` are positive, the others are zero, which is no link:
    the published program stops there, since its graph refuses negative weights. In
    float64: anchors that are nearly dependent have large inverses, which cancel.

    Args:
        h_nodes (Tensor): The propagated nodes' features, ``[num_nodes, channels]``.
        h_anchors (Tensor): The propagated anchors' features, ``[num_anchors,
            channels]``.
        num_links (int): The number :math:`t` of anchors of each node.

    Raises:
        NotFiniteError: If features or weights hold NaN or infinity.
    """
    pinv = _pinv('anchors', h_anchors)
    tops = [(b.double() @ pinv).topk(num_links) for b in h_nodes.split(BLOCK)]
    weight = torch.cat([top.values for top in tops]).clamp_(min=0).to(h_nodes)
    check_finite([('the new assignment', weight)])
    return Assignment(torch.cat([top.indices for top in tops]), weight)


def _pinv(what: str, h: Tensor) -> Tensor:
    """The pseudo-inverse in double precision, of what the features' own can tell."""
    check_finite([(f'the features of the {what}', h)])
    rounding = max(h.shape) * torch.finfo(h.dtype).eps
    try:
        pinv = torch.linalg.pinv(h.double(), rtol=rounding)
    except torch.linalg.LinAlgError as error:
        raise NotFiniteError(f'the pseudo-inverse of the {what}: {error}') from None
    check_finite([(f'the pseudo-inverse of the {what}', pinv)])
    return pinv


def bridge_scores(h_nodes: Tensor, h_coarse: Tensor, h_fine: Tensor) -> Tensor:
    r"""How strongly the entities bridge each coarse anchor to each fine one.

    .. math::
        (\mathbf{H}_N \mathbf{H}_c^{+})^{\top} (\mathbf{H}_N \mathbf{H}_f^{+})
        = (\mathbf{H}_c^{+})^{\top} (\mathbf{H}_N^{\top} \mathbf{H}_N) \mathbf{H}_f^{+}

    The entities enter through one Gram matrix of width times width, so neither dense
    product of entities times anchors is formed. All of it is in float64, which costs
    little beside a propagation.

    Args:
        h_nodes (Tensor): The propagated entities' features, ``[num_nodes, channels]``.
        h_coarse (Tensor): The coarse anchors' features, ``[num_coarse, channels]``.
        h_fine (Tensor): The fine anchors' features, ``[num_fine, channels]``.

    Returns:
        Tensor: The scores, ``[num_coarse, num_fine]``.

    Raises:
        NotFiniteError: If features or scores hold NaN or infinity.
    """
    gram = torch.stack([b.double().T @ b.double() for b in h_nodes.split(BLOCK)])
    pinv_c = _pinv('coarse anchors', h_coarse)
    pinv_f = _pinv('fine anchors', h_fine)
    scores = (pinv_c.T @ gram.sum(dim=0) @ pinv_f).to(h_nodes.dtype)
    check_finite([('the bridge from coarse to fine anchors', scores)])
    return scores


def partition_scores(
    coarse: Assignment, num_coarse: int, labels: Tensor, num_fine: int
) -> Tensor:
    r"""The entities of each coarse anchor in each part, :math:`\mathbf{S}_1^{\top}
    \mathbf{P}` (SPEC section 3).

    Row :math:`i` of :math:`\mathbf{P}` has 0.5 at the entity's part of a cut into
    :math:`r` parts, and shares the other 0.5 evenly over all other parts; only the
    weight that each anchor has in each part is summed up.

    Args:
        coarse (Assignment): Entities to coarse anchors.
        num_coarse (int): The number of coarse anchors.
        labels (Tensor): The part of each entity, ``[num_entities]``.
        num_fine (int): The number :math:`r` of parts and fine anchors.

    Returns:
        Tensor: The scores, ``[num_coarse, num_fine]``.
    """
    cell = coarse.index * num_fine + labels.unsqueeze(1)
    mass = scatter(
        coarse.weight.flatten(), cell.flatten(), dim_size=num_coarse * num_fine
    ).view(num_coarse, num_fine)
    rest = 0.5 / max(num_fine - 1, 1)
    return rest * mass.sum(dim=1, keepdim=True) + (0.5 - rest) * mass


def softmax_assignment(scores: Tensor, num_links: int) -> Assignment:
    r"""Keeps the largest entries of the softmax of each row, not renormalised.

    With the scores of :func:`bridge_scores` it is the paper's weight bridging, with
    those of :func:`partition_scores` its start (SPEC section 3).

    Args:
        scores (Tensor): The scores, ``[num_coarse, num_fine]``.
        num_links (int): The number :math:`f` of fine anchors of each coarse one.
    """
    top = scores.softmax(dim=1).topk(num_links)
    return Assignment(top.indices, top.values)


def sparse_pca_codes(
    rows: Tensor, num_components: int, random_state: int = 0
) -> Tensor:
    """The codes of rows in sparse principal components, through scikit-learn.

    Args:
        rows (Tensor): The rows to encode, ``[num_rows, channels]``.
        num_components (int): The number of components.
        random_state (int, optional): The seed of the solver, which the published
            program leaves to the global state. (default: ``0``)

    Returns:
        Tensor: The codes, ``[num_rows, num_components]``.
    """
    # Takes more than a second to import, and only the start of a fine stage needs it.
    from sklearn.decomposition import SparsePCA
    from sklearn.exceptions import ConvergenceWarning

    pca = SparsePCA(num_components, random_state=random_state)
    with warnings.catch_warnings():
        # Of steps inside the solver; a start needs no converged ones.
        warnings.simplefilter('ignore', ConvergenceWarning)
        codes = pca.fit_transform(rows.detach().cpu().numpy())
    return torch.from_numpy(codes).to(rows)


def place_codes(codes: Tensor, columns: Tensor, embedding_dim: int) -> Tensor:
    """Spreads the codes of each row over columns of its own, zeros elsewhere.

    Args:
        codes (Tensor): The codes, ``[num_rows, num_components]``.
        columns (Tensor): Distinct columns for each row, ``[num_rows, num_components]``.
        embedding_dim (int): The width of the result.
    """
    return codes.new_zeros(len(codes), embedding_dim).scatter_(1, columns, codes)


def sparse_pca_codebook(
    codebook: Tensor,
    num_fine: int,
    num_components: int = 80,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The start of the fine codebook from the coarse one (SPEC section 3).

    Draws ``num_fine`` rows of the codebook with replacement, takes their sparse
    principal component codes, and places the codes of each row, in order, at random
    distinct columns. With as many components as columns the codes stay where they are.

    Args:
        codebook (Tensor): The trained coarse codebook, ``[num_coarse, channels]``.
        num_fine (int): The number of rows to make.
        num_components (int, optional): The number of components. (default: ``80``)
        generator (torch.Generator, optional): Draws the rows, the columns, and the
            seed of the solver.
    """
    dim = codebook.size(1)
    rows = torch.randint(len(codebook), (num_fine,), generator=generator)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    sample = codebook[rows.to(codebook.device)]
    codes = sparse_pca_codes(sample, min(num_components, dim), random_state=seed)
    if num_components >= dim:
        return codes
    order = torch.rand(num_fine, dim, generator=generator).argsort(dim=1)
    columns = order[:, :num_components].sort(dim=1).values
    return place_codes(codes, columns.to(codes.device), dim)
