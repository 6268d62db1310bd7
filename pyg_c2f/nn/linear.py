from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import cumsum, degree

from pyg_c2f.graph import (
    CSR,
    assignment_to_edges,
    csr_matmul,
    interaction_weight,
    ranges,
)
from pyg_c2f.nn.embedding import MetaEmbedding, SoftThreshold
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.nn.lists import best_unseen, check_edges
from pyg_c2f.spectral import Interactions, normalized_interactions
from pyg_c2f.typing import (
    COARSE,
    COARSE_ITEM,
    COARSE_USER,
    FINE,
    FINE_ITEM,
    FINE_USER,
    ITEM,
    ITEM_COARSE,
    ITEM_FINE,
    RATED_BY,
    RATES,
    USER,
    USER_COARSE,
    USER_FINE,
    Assignment,
    Stage,
    Stored,
    Users,
)

# Users whose anchor scores, one column each, stay in a core's cache.
SCORE_BLOCK = 128


class LinearC2F(torch.nn.Module):
    r"""Coarse and fine anchors without a nonlinearity: the model of recipe ``fast``.

    An item is a sparse mixture of coarse anchors plus one fine anchor of each level,
    which says what the coarse ones leave over; a user has no row of its own and lives
    from the items (``users='inductive'``), or is such a mixture too (``'assigned'``):

    .. math::
        \mathbf{x} = \mathbf{S}_1 \mathbf{E}_c + \mathbf{S}_2 \, \mathrm{soft}(
        \mathbf{E}_f), \quad
        \mathbf{H} = \frac{1}{L + 1} \sum_{l=0}^{L} \mathbf{A}^l \mathbf{x}

    with :math:`\mathbf{x}_u = 0` for an inductive user, and scores

    .. math::
        s_{ui} = d_i^{p} \left( \mathbf{h}_u^{\top} \mathbf{h}_i + \beta
        (\mathbf{A}^3)_{ui} \right) + b_i

    The second term, the diffusion channel, is the propagation of a one-hot identity
    feature beside the meta-embeddings: it has no parameter but needs the train graph.

    It differs from :class:`C2F` (the published model) in four ways: no tanh, so that
    propagation commutes with the codebooks (:meth:`mixtures`); anchors send to their
    nodes only, and get nothing back; items are tied to the fine anchors directly; and
    users need no row. With one layer and inductive users the graph is not needed to
    recommend: a history of items is enough.

    Args:
        edge_index (Tensor): The unique train pairs, ``[2, num_edges]``.
        num_users (int): The number of users.
        num_items (int): The number of items.
        num_coarse (int): The number of coarse anchors.
        num_fine (int): The number of fine anchors, of all levels together.
        embedding_dim (int): The width of the codebooks.
        coarse_links (int, optional): The most coarse anchors of a row. (default: ``8``)
        fine_links (int, optional): Fine anchors of a row. (default: ``2``)
        num_layers (int, optional): The number :math:`L` of layers. (default: ``1``)
        threshold (float, optional): The soft threshold of the fine codebook.
        item_power (float, optional): The exponent :math:`p`. (default: ``0.5``)
        diffusion (float, optional): The weight :math:`\beta`. (default: ``0.0``)
        user_norm (float, optional): The exponent :math:`a` of :math:`\mathbf{A}_{ui} =
            d_u^{-a} d_i^{-b}`. (default: ``0.5``)
        item_norm (float, optional): The exponent :math:`b`. (default: ``0.5``)
        users (str, optional): ``'inductive'`` (the default) or ``'assigned'``.
        dtype (str, optional): How a checkpoint stores numbers, ``'float32'`` (the
            default), ``'float16'`` or ``'packed'``; see :meth:`round_`.

    Raises:
        ValueError: If a size is not positive, an edge does not fit the sizes, there
            is no such kind of users, or inductive users have no layer to live from.

    Example:
        >>> edge_index = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
        >>> model = LinearC2F(edge_index, 3, 4, num_coarse=4, num_fine=2,
        ...                   embedding_dim=4, coarse_links=2, fine_links=1)
        >>> items, scores = model.recommend(history=[0, 2], k=2)
        >>> items.shape
        torch.Size([2])
    """

    edge_index: Tensor
    is_fine: Tensor

    def __init__(
        self,
        edge_index: Tensor,
        num_users: int,
        num_items: int,
        num_coarse: int,
        num_fine: int,
        embedding_dim: int,
        coarse_links: int = 8,
        fine_links: int = 2,
        num_layers: int = 1,
        threshold: float = 0.0,
        item_power: float = 0.5,
        diffusion: float = 0.0,
        user_norm: float = 0.5,
        item_norm: float = 0.5,
        users: Users = 'inductive',
        dtype: Stored = 'float32',
    ) -> None:
        super().__init__()
        check_edges('LinearC2F', edge_index, num_users, num_items, num_layers)
        if users not in get_args(Users):
            raise ValueError(
                f"'LinearC2F' expected users of {get_args(Users)} (got {users})"
            )
        if users == 'inductive' and num_layers < 1:
            raise ValueError("'LinearC2F' with inductive users needs num_layers >= 1")
        self.num_users, self.num_items = int(num_users), int(num_items)
        self.num_coarse, self.num_fine = int(num_coarse), int(num_fine)
        self.embedding_dim = int(embedding_dim)
        self.coarse_links, self.fine_links = int(coarse_links), int(fine_links)
        self.num_layers = int(num_layers)
        self.threshold = float(threshold)
        self.item_power, self.diffusion = float(item_power), float(diffusion)
        self.user_norm, self.item_norm = float(user_norm), float(item_norm)
        self.users: Users = users
        self.dtype: Stored = dtype

        rows = self.num_items + (self.num_users if users == 'assigned' else 0)
        self.coarse = MetaEmbedding(rows, num_coarse, embedding_dim, coarse_links)
        self.fine = MetaEmbedding(rows, num_fine, embedding_dim, fine_links)
        self.soft_threshold = SoftThreshold(threshold)
        self.bias = torch.nn.Parameter(torch.zeros(num_items))
        self.register_buffer('edge_index', edge_index.clone())
        self.register_buffer('is_fine', torch.tensor(False))
        self._interactions: Interactions | None = None
        self.register_load_state_dict_post_hook(lambda model, _: model._forget())

    @property
    def stage(self) -> Stage:
        """``'fine'`` where the fine anchors take part."""
        return 'fine' if self.is_fine else 'coarse'

    def set_stage(self, stage: Stage) -> None:
        """Lets the fine anchors take part, or not.

        Raises:
            ValueError: If there is no such stage.
        """
        if stage not in get_args(Stage):
            raise ValueError(
                f"'LinearC2F' expected a stage of {get_args(Stage)} (got {stage})"
            )
        self.is_fine.fill_(stage == 'fine')

    def set_assignment(
        self, coarse: Assignment | None = None, fine: Assignment | None = None
    ) -> None:
        """Puts other assignments in place (of users, if assigned, then items)."""
        if coarse is not None:
            self.coarse.set_assignment(coarse)
        if fine is not None:
            self.fine.set_assignment(fine)

    @torch.no_grad()
    def round_(self) -> None:
        """Rounds codebooks and scalars to what a checkpoint stores of them."""
        if self.dtype != 'float32':
            for table in (self.coarse.codebook, self.fine.codebook, self.bias):
                table.copy_(table.half().float())

    def _norms(self) -> tuple[float, float]:
        return self.user_norm, self.item_norm

    def needs_graph(self) -> bool:
        """Whether recommending needs more of the train graph than a user's history."""
        return not self._items_are_mixtures() or self.diffusion != 0

    def _items_are_mixtures(self) -> bool:
        # With one layer items hear of users, who say nothing where they have no row.
        return self.num_layers == 0 or (
            self.num_layers == 1 and self.users == 'inductive'
        )

    def interactions(self) -> Interactions:
        """The normalised train interactions (built once)."""
        if self._interactions is None:
            sizes, norms = (self.num_users, self.num_items), self._norms()
            self._interactions = normalized_interactions(
                self.edge_index, *sizes, *norms
            )
        return self._interactions

    def codebook(self) -> Tensor:
        """The features of all anchors: coarse, then fine ones in the fine stage."""
        if self.stage == 'coarse':
            return self.coarse.codebook
        fine = self.soft_threshold(self.fine.codebook)
        return torch.cat([self.coarse.codebook, fine])

    def assignment(self) -> Assignment:
        """The links to :meth:`codebook`, fine ones behind the coarse ones."""
        if self.stage == 'coarse':
            return self.coarse.assignment
        index = torch.cat([self.coarse.index, self.fine.index + self.num_coarse], dim=1)
        weight = [self.coarse.assignment_weight, self.fine.assignment_weight]
        return Assignment(index, torch.cat(weight, dim=1))

    def ego(self) -> tuple[Tensor, Tensor]:
        """The features of users (zeros where inductive) and items, no propagation."""
        x = weighted_sum(self.assignment(), self.codebook())
        if self.users == 'assigned':
            return x[: self.num_users], x[self.num_users :]
        return x.new_zeros(self.num_users, x.size(1)), x

    def propagate(
        self, x: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The propagated features of users and items.

        Args:
            x (Tuple, optional): What to propagate (default: :meth:`ego`).
        """
        user, item = self.ego() if x is None else x
        return self._mean(user, item, self.num_layers)

    def _mean(
        self, user: Tensor, item: Tensor, num_layers: int
    ) -> tuple[Tensor, Tensor]:
        users, items = [user], [item]
        for _ in range(num_layers):
            user, item = _Pass.apply(user, item, self.interactions())
            users.append(user)
            items.append(item)
        return torch.stack(users).mean(dim=0), torch.stack(items).mean(dim=0)

    def mixtures(self, max_bytes: int = 1 << 30) -> tuple[Tensor, Tensor] | None:
        r"""The propagated assignments of users and items: the cache of a training.

        Propagation is linear, so that :math:`\mathbf{H} = \mathbf{Q} \mathbf{E}` with
        :math:`\mathbf{Q} = \frac{1}{L+1} \sum_l \mathbf{A}^l \mathbf{S}` and all
        codebooks :math:`\mathbf{E}`: constant until an assignment changes, so that a
        step of training is two dense products and never touches the graph.

        Args:
            max_bytes (int, optional): The most that :math:`\mathbf{Q}` may take.

        Returns:
            Tuple: The rows of users and items, ``[*, num_anchors]``; or nothing where
            they would take more (then propagate the features instead).
        """
        num_anchors = self.codebook().size(0)
        if 4 * (self.num_users + self.num_items) * num_anchors > max_bytes:
            return None
        index, weight = self.assignment()
        dense = weight.new_zeros(len(index), num_anchors).scatter_add_(1, index, weight)
        if self.users == 'assigned':
            return self.propagate(dense.split([self.num_users, self.num_items]))
        return self.propagate((dense.new_zeros(self.num_users, num_anchors), dense))

    def item_scale(self) -> Tensor:
        r"""The scale :math:`d_i^p` of the items' scores, ``[num_items]``."""
        deg = degree(self.edge_index[1], self.num_items, self.bias.dtype)
        return deg.clamp(min=1) ** self.item_power

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores of pairs of user and item ids, ``[batch_size]`` each."""
        h_user, h_item = self.propagate()
        out = (h_user[users] * h_item[items]).sum(dim=-1)
        if self.diffusion:
            block = self._diffuse(self._train_rows(users))
            out = out + self.diffusion * block[items, torch.arange(len(items))]
        return out * self.item_scale()[items] + self.bias[items]

    @torch.no_grad()
    def scorer(self) -> Callable[[Tensor], Tensor]:
        r"""A function from user ids ``[B]`` to the scores of all items.

        Where items are mixtures of anchors still (one layer and inductive users, or no
        layer) a user scores the anchors first, and an item's score is the mixture of
        its anchors' scores: :math:`\mathbf{S} (\mathbf{E} \mathbf{h}_u)`, a few sums
        an item instead of a dot product of full width.
        """
        h_user, h_item = self.propagate()
        return self._scorer(h_user, h_item, self._train_rows)

    def _scorer(
        self, h_user: Tensor, h_item: Tensor, rows: Callable[[Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        scale, bias = self.item_scale().unsqueeze(1), self.bias.detach().unsqueeze(1)
        mix: CSR | None = None
        codebook = self.codebook().detach()
        if self._items_are_mixtures():
            mix = _links(self.assignment(), self.num_items)
            codebook = codebook / (self.num_layers + 1)

        def score(users: Tensor) -> Tensor:
            parts = []
            for block in users.split(SCORE_BLOCK):
                if mix is None:
                    part = h_item @ h_user[block].T
                else:
                    part = csr_matmul(mix, codebook @ h_user[block].T)
                if self.diffusion:
                    part.add_(self._diffuse(rows(block)), alpha=self.diffusion)
                parts.append(part)
            out = torch.cat(parts, dim=1)
            return out.mul_(scale).add_(bias).T

        return score

    def _train_rows(self, users: Tensor) -> Tensor:
        r"""The users' rows of the normalised interactions, dense, as columns."""
        rowptr, col, weight = self.interactions().by_user
        place, at = ranges(rowptr[users], rowptr[users + 1] - rowptr[users])
        out = weight.new_zeros(self.num_items, len(users))
        out[col[at].long(), place] = weight[at]
        return out

    def _diffuse(self, rows: Tensor) -> Tensor:
        """Two more steps from users' rows, both as columns: items to users to items."""
        by_user, by_item = self.interactions()
        return csr_matmul(by_item, csr_matmul(by_user, rows))

    @torch.no_grad()
    def recommend(
        self,
        users: int | Sequence[int] | Tensor | None = None,
        k: int = 20,
        *,
        history: Sequence[int] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""The best items that are not in a user's train items or history.

        Somebody new enters by a history of items, as a user node without a row,
        :math:`\mathbf{h}_u = \frac{1}{L + 1} \sum_i \hat{a}_{ui} \sum_{l<L}
        \mathbf{h}_i^{(l)}` with :math:`\hat{a}_{ui} = n^{-a} d_i^{-b}`: what an
        inductive user with these train items has (with one layer the same numbers, with
        more the items do not hear of the new user).

        Args:
            users (int or Sequence or Tensor, optional): User ids.
            k (int, optional): The number of items. (default: ``20``)
            history (Sequence or Tensor, optional): Item ids of one unknown person.

        Returns:
            Tuple: Item ids and scores, best first, ``[num_users, k]`` each, or ``[k]``
            for a single user id or a history. Where fewer than ``k`` items are left,
            the ids at the end are -1 and their scores minus infinity.

        Raises:
            ValueError: If not exactly one of users and history is given, an id is out
                of range, the history is empty, or ``k`` is not positive.
        """
        rowptr, col, _ = self.interactions().by_user
        return best_unseen(
            users,
            history,
            k,
            rowptr,
            col,
            self.num_items,
            self.scorer,
            self._score_history,
        )

    def _score_history(self, items: Tensor) -> Tensor:
        deg = degree(self.edge_index[1], self.num_items, self.bias.dtype)[items]
        user_norm, item_norm = self._norms()
        weight = items.numel() ** -user_norm * deg.clamp(min=1) ** -item_norm
        num_layers = max(self.num_layers, 1)
        _, below = self._mean(*self.ego(), num_layers - 1)
        _, h_item = self.propagate()
        h_user = (weight @ below[items] * num_layers / (num_layers + 1)).unsqueeze(0)

        def rows(users: Tensor) -> Tensor:
            out = weight.new_zeros(self.num_items, 1)
            out[items, 0] = weight
            return out

        score = self._scorer(h_user, h_item, rows)
        return score(torch.zeros(1, dtype=torch.long, device=items.device))

    def anchors_in_use(self) -> int:
        """The number of anchors that any row is tied to."""
        index, weight = self.assignment()
        return index[weight != 0].unique().numel()

    def to_hetero_data(self) -> HeteroData:
        """The model's graph, the anchors' features as their ``x``."""
        data = HeteroData()
        data[USER].num_nodes, data[ITEM].num_nodes = self.num_users, self.num_items
        weight = interaction_weight(
            self.edge_index, self.num_users, self.num_items, *self._norms()
        )
        data[RATES].edge_index, data[RATES].edge_weight = self.edge_index, weight
        data[RATED_BY].edge_index = self.edge_index.flip(0)
        data[RATED_BY].edge_weight = weight
        data[COARSE].x = self.coarse.codebook.detach()
        ties = [(self.coarse, USER_COARSE, COARSE_USER, ITEM_COARSE, COARSE_ITEM)]
        if self.stage == 'fine':
            data[FINE].x = self.soft_threshold(self.fine.codebook).detach()
            ties.append((self.fine, USER_FINE, FINE_USER, ITEM_FINE, FINE_ITEM))
        for table, *relations in ties:
            sizes = [len(table.index) - self.num_items, self.num_items]
            parts = [x.split(sizes) for x in table.assignment]
            for side, (index, value) in enumerate(zip(*parts, strict=True)):
                if len(index):
                    pairs, value = assignment_to_edges(Assignment(index, value))
                    there, back = relations[2 * side : 2 * side + 2]
                    data[there].edge_index, data[there].edge_weight = pairs, value
                    data[back].edge_index, data[back].edge_weight = pairs.flip(0), value
        return data

    def _forget(self) -> None:
        self._interactions = None

    def _apply(self, fn, recurse: bool = True) -> 'LinearC2F':  # type: ignore[no-untyped-def]
        self._forget()
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f'{self.num_users}, {self.num_items}, users={self.users!r}'


class _Pass(torch.autograd.Function):
    """One propagation over user-item edges; the matrix is symmetric, so is the grad."""

    @staticmethod
    def forward(ctx, user, item, interactions):  # type: ignore[no-untyped-def]
        ctx.interactions = interactions
        by_user, by_item = interactions
        return csr_matmul(by_user, item), csr_matmul(by_item, user)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        by_user, by_item = ctx.interactions
        user, item = (grad.contiguous() for grad in grads)
        return csr_matmul(by_user, item), csr_matmul(by_item, user), None


def _links(assignment: Assignment, num_items: int) -> CSR:
    """The items' links as CSR, those of weight zero left out."""
    index, weight = (x[-num_items:] for x in assignment)
    row, slot = weight.nonzero(as_tuple=True)
    rowptr = cumsum(torch.bincount(row, minlength=num_items))
    return CSR(rowptr.int(), index[row, slot].int(), weight[row, slot])
