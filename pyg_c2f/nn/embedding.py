import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_c2f.anchors.paper import random_assignment
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.typing import Assignment


class SoftThreshold(torch.nn.Module):
    r"""The soft threshold, which makes learned features sparse.

    .. math::
        \mathrm{soft}(x) = \mathrm{sign}(x) \cdot \max(|x| - \theta, 0)

    Entries with :math:`|x| \leq \theta` are exactly zero and get no gradient.

    Args:
        threshold (float, optional): The threshold :math:`\theta`. (default: ``1.0``)

    Raises:
        ValueError: If the threshold is negative.

    Example:
        >>> SoftThreshold(1.0)(torch.tensor([-3.0, 0.5, 1.5])).tolist()
        [-2.0, 0.0, 0.5]
    """

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        if threshold < 0:
            raise ValueError(
                f"'SoftThreshold' expected threshold >= 0 (got {threshold})"
            )
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return F.softshrink(x, self.threshold)

    def extra_repr(self) -> str:
        return f'threshold={self.threshold}'


class MetaEmbedding(torch.nn.Module):
    r"""An embedding table of shared anchor features: codebook and sparse assignment.

    .. math::
        \mathbf{e}_i = \sum_{a \in \mathcal{A}(i)} s_{i,a} \mathbf{m}_a

    Entity :math:`i` has :math:`t` anchors :math:`\mathcal{A}(i)` with weights
    :math:`s_{i,a}`; only the codebook :math:`\mathbf{M}` is learned. From `"Lightweight
    Embeddings for Graph Collaborative Filtering" <https://arxiv.org/abs/2403.18479>`_
    and `"Coarse-to-Fine Lightweight Meta-Embedding for ID-Based Recommendation"
    <https://arxiv.org/abs/2501.11870>`_. Call it with ids wherever a
    :class:`torch.nn.Embedding` is called; :attr:`weight` is the table it stands for,
    computed when asked for: what is written into it is lost.

    The assignment (two buffers) starts at random, seeded by the global generator;
    :meth:`set_assignment` puts another one in place, such as those of
    :mod:`pyg_c2f.anchors`. Like :class:`torch.nn.EmbeddingBag`, it has no second
    derivative.

    Args:
        num_entities (int): The number of entities.
        num_anchors (int): The number of anchors.
        embedding_dim (int): The width of the anchors' features.
        anchors_per_entity (int, optional): The number :math:`t` of anchors of each
            entity. (default: ``2``)

    Shapes:
        - **input:** ids :math:`(*)`; all entities if :obj:`None`
        - **output:** embeddings :math:`(*, F)`

    Raises:
        ValueError: If a size is not positive, or there are fewer anchors than one
            entity needs.

    Example:
        >>> emb = MetaEmbedding(1000, 20, 16, anchors_per_entity=2)
        >>> emb(torch.tensor([[0, 1, 999]])).shape
        torch.Size([1, 3, 16])
    """

    index: Tensor
    assignment_weight: Tensor

    def __init__(
        self,
        num_entities: int,
        num_anchors: int,
        embedding_dim: int,
        anchors_per_entity: int = 2,
    ) -> None:
        super().__init__()
        sizes = (num_entities, num_anchors, embedding_dim, anchors_per_entity)
        if min(sizes) < 1 or anchors_per_entity > num_anchors:
            raise ValueError(
                f"'MetaEmbedding' expected positive sizes and at least "
                f'anchors_per_entity anchors (got num_entities={num_entities}, '
                f'num_anchors={num_anchors}, embedding_dim={embedding_dim}, '
                f'anchors_per_entity={anchors_per_entity})'
            )
        self.num_embeddings = num_entities
        self.num_anchors = num_anchors
        self.embedding_dim = embedding_dim
        self.anchors_per_entity = anchors_per_entity
        self.codebook = torch.nn.Parameter(torch.empty(num_anchors, embedding_dim))
        size = (num_entities, anchors_per_entity)
        self.register_buffer('index', torch.empty(size, dtype=torch.long))
        self.register_buffer('assignment_weight', torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draws the codebook from :math:`\mathcal{N}(0, 1)`, the anchors at random."""
        torch.nn.init.normal_(self.codebook)
        sizes = self.num_embeddings, self.num_anchors, self.anchors_per_entity
        self.set_assignment(random_assignment(*sizes))

    @property
    def assignment(self) -> Assignment:
        """The anchors of each entity and their weights, ``[num_entities, t]`` each."""
        return Assignment(self.index, self.assignment_weight)

    def set_assignment(self, assignment: Assignment) -> None:
        """Puts another assignment of the same shape in place.

        Raises:
            ValueError: If a shape or an anchor does not fit.
        """
        index, weight = assignment
        if index.shape != self.index.shape or weight.shape != self.index.shape:
            raise ValueError(
                f"'MetaEmbedding' expected an assignment of shape "
                f'{tuple(self.index.shape)} (got {tuple(index.shape)} and '
                f'{tuple(weight.shape)})'
            )
        if not index.is_meta:  # On the meta device there are no values.
            low, high = index.min().item(), index.max().item()
            if index.is_floating_point() or low < 0 or high >= self.num_anchors:
                raise ValueError(
                    f"'MetaEmbedding' expected anchors in [0, {self.num_anchors}) (got "
                    f'{low} to {high}, {index.dtype})'
                )
        # New tensors, not copies into the old ones: a graph of the old assignment
        # may still be waiting for its backward pass. Nor the given ones, which
        # loading a state would write into.
        self.index = index.to(self.codebook.device, torch.long, copy=True)
        self.assignment_weight = weight.to(self.codebook, copy=True)

    @property
    def weight(self) -> Tensor:
        """The full table ``[num_entities, embedding_dim]``, with its gradient."""
        return weighted_sum(self.assignment, self.codebook)

    def forward(self, ids: Tensor | None = None) -> Tensor:
        if ids is None:
            return self.weight
        # index_select refuses a negative id, as torch.nn.Embedding does.
        assignment = Assignment(
            *(x.index_select(0, ids.flatten()) for x in self.assignment)
        )
        out = weighted_sum(assignment, self.codebook)
        return out.view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return (
            f'{self.num_embeddings}, {self.num_anchors}, {self.embedding_dim}, '
            f'anchors_per_entity={self.anchors_per_entity}'
        )
