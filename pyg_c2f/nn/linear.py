from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.graph import (
    CSR,
    assignment_to_edges,
    csr_matmul,
    csr_of,
    interaction_weight,
    power,
)
from pyg_c2f.nn.embedding import MetaEmbedding, SoftThreshold
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.nn.recommend import (
    InnerProducts,
    Recommender,
    check_edges,
    take_rows,
)
from pyg_c2f.spectral import (
    Interactions,
    interactions_by_user,
    normalized_interactions,
)
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
    Score,
    Stored,
    Users,
)

# Users whose anchor scores, one column each, stay in a core's cache.
SCORE_BLOCK = 128


class LinearC2F(Recommender):
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
        item_degree (Tensor, optional): The items' numbers of train users, for a model
            that does not hold the pairs. (default: counted)

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
        item_degree: Tensor | None = None,
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
        self._item_degree = item_degree
        self._by_user: CSR | None = None
        self._interactions: Interactions | None = None
        self.set_stage('coarse')

    @classmethod
    def blank(cls, edge_index: Tensor, *args: Any, **kwargs: Any) -> 'LinearC2F':
        """A model of zeros, on the device of the pairs, for who fills its tables.

        To draw a start that nobody needs takes longer than to read a large model.
        """
        with torch.device('meta'):
            model = cls(edge_index[:, :0], *args, **kwargs)
        sizes = model.num_users, model.num_items, model.num_layers
        check_edges('LinearC2F', edge_index, *sizes)
        model.to_empty(device=edge_index.device)
        for x in (*model.parameters(), *model.buffers()):
            x.detach().zero_()
        model.edge_index = edge_index.clone()
        model.set_stage('coarse')
        return model

    def reset_parameters(self) -> None:
        r"""Draws everything anew: codebooks from :math:`\mathcal{N}(0, 1)`, random
        links, :math:`b = 0`, stage coarse.
        """
        self.coarse.reset_parameters()
        self.fine.reset_parameters()
        torch.nn.init.zeros_(self.bias)
        self.set_stage('coarse')

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

    def item_degree(self) -> Tensor:
        if self._item_degree is None:
            return super().item_degree()
        return self._item_degree.clamp(min=1).to(self.bias)

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

    def check_pairs(self) -> None:
        """Checks that the model holds its train pairs.

        Raises:
            ValueError: If it does not: of several processes the first one has them.
        """
        if self._item_degree is not None:
            raise ValueError(
                "'LinearC2F' was made with the items' degrees in place of the train "
                'pairs, as on all processes of a run but the first one: save it, and '
                'ask it for lists, there'
            )

    def by_user(self) -> CSR:
        """The normalised train interactions of the users (built once).

        Raises:
            ValueError: If the model does not hold the train pairs.
        """
        self.check_pairs()
        if self._interactions is not None:
            return self._interactions.by_user
        if self._by_user is None:
            sizes, norms = (self.num_users, self.num_items), self._norms()
            rows = interactions_by_user(self.edge_index, *sizes, *norms)
            self._by_user = rows._replace(weight=rows.weight.to(self.bias.dtype))
        return self._by_user

    def interactions(self) -> Interactions:
        """The normalised train interactions, both ways round (built once)."""
        self.check_pairs()
        if self._interactions is None:
            self._by_user = None
            sizes, norms = (self.num_users, self.num_items), self._norms()
            both = normalized_interactions(self.edge_index, *sizes, *norms)
            self._interactions = Interactions(
                *(csr._replace(weight=csr.weight.to(self.bias.dtype)) for csr in both)
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
        return self.item_degree() ** self.item_power

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores of pairs of user and item ids, ``[batch_size]`` each."""
        h_user, h_item = self.propagate()
        out = (h_user[users] * h_item[items]).sum(dim=-1)
        if self.diffusion:
            rows = _take(self.interactions().by_user, users)
            block = self._diffuse(_columns(rows, self.num_items))
            out = out + self.diffusion * block[items, torch.arange(len(items))]
        return out * self.item_scale()[items] + self.bias[items]

    @torch.no_grad()
    def scorer(self) -> Score:
        r"""A function from user ids ``[B]`` to the scores of all items.

        Where items are mixtures of anchors still (one layer and inductive users, or no
        layer) a user scores the anchors first, and an item's score is the mixture of
        its anchors' scores: :math:`\mathbf{S} (\mathbf{E} \mathbf{h}_u)`, a few sums
        an item instead of a dot product of full width.
        """
        rows = self.by_user()
        if self.users_are_histories():
            return self._scorer(rows, self._new_features(rows))
        h_user, h_item = self.propagate()
        return self._scorer(rows, lambda users: h_user[users], h_item)

    @torch.no_grad()
    def history_scorer(self, rowptr: Tensor, col: Tensor) -> Score:
        r"""The scores of all items for people whom the model has never seen.

        Somebody new enters by a history of items, as a user node without a row,

        .. math::
            \mathbf{h}_u = \frac{1}{L + 1} \sum_{i \in \mathcal{N}(u)} n^{-a} d_i^{-b}
            \sum_{l=0}^{L-1} \mathbf{h}_i^{(l)}

        with :math:`n` items in the history (and :math:`L = 1` where a model has no
        layer). This is what an inductive user with these train items has: with one
        layer the same numbers, with more the items do not hear of the new user.

        Args:
            rowptr (Tensor): The starts of the histories, ``[num_histories + 1]``.
            col (Tensor): Their items, each once in a history; none is empty.

        Returns:
            Callable: Maps row numbers ``[B]`` to ``[B, num_items]``.
        """
        rows = self._history_rows(rowptr, col)
        return self._scorer(rows, self._new_features(rows))

    def user_scorer(self, users: Tensor, rowptr: Tensor, col: Tensor) -> Score:
        # Nothing but the items of these users is looked at: no pass over the graph.
        if self.users_are_histories():
            return self.history_scorer(rowptr, col)
        return super().user_scorer(users, rowptr, col)

    def users_are_histories(self) -> bool:
        """Whether a user's features are the sum of what the train items send."""
        return self.num_layers == 1 and self.users == 'inductive'

    def _scorer(
        self,
        rows: CSR,
        features: Callable[[Tensor], Tensor],
        h_item: Tensor | None = None,
    ) -> Score:
        """Scores from people's features and, for the diffusion, their interactions."""
        scale, bias = self.item_scale().unsqueeze(1), self.bias.detach().unsqueeze(1)
        score_items = self._item_products(h_item)

        def score(people: Tensor) -> Tensor:
            parts = []
            for block in people.split(SCORE_BLOCK):
                part = score_items(features(block).T)
                if self.diffusion:
                    dense = _columns(_take(rows, block), self.num_items)
                    part.add_(self._diffuse(dense), alpha=self.diffusion)
                parts.append(part)
            out = torch.cat(parts, dim=1)
            return out.mul_(scale).add_(bias).T

        return score

    def _item_products(self, h_item: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The products of all items with people's features, one column each."""
        if self._items_are_mixtures():
            mix = _links(self.assignment(), self.num_items)
            codebook = self.codebook().detach() / (self.num_layers + 1)
            return lambda h_user_t: csr_matmul(mix, codebook @ h_user_t)
        item = self.propagate()[1] if h_item is None else h_item
        return lambda h_user_t: item @ h_user_t

    def _history_rows(self, rowptr: Tensor, col: Tensor) -> CSR:
        """The normalised interactions of histories."""
        user_norm, item_norm = self._norms()
        count = rowptr.diff()
        of_user = power(count.clamp(min=1), -user_norm).to(self.bias)
        of_item = power(self.item_degree(), -item_norm).to(self.bias)
        weight = torch.repeat_interleave(of_user, count) * of_item[col.long()]
        return CSR(rowptr, col, weight)

    def _new_features(
        self, rows: CSR, sent: Callable[[Tensor], Tensor] | None = None
    ) -> Callable[[Tensor], Tensor]:
        """From row numbers to the features of people with these interactions.

        Args:
            rows (CSR): The normalised interactions of all of them.
            sent (Callable, optional): The output of :meth:`_sent`, if at hand.
        """
        # Only the items that any of them has: few, where few people ask.
        col = rows.col.long()
        is_there = torch.zeros(self.num_items, dtype=torch.bool, device=col.device)
        is_there[col] = True
        place = (is_there.cumsum(0) - 1)[col].to(rows.col.dtype)
        x = (self._sent() if sent is None else sent)(is_there.nonzero().flatten())
        rows = rows._replace(col=place)
        return lambda block: csr_matmul(_take(rows, block), x)

    def _sent(self) -> Callable[[Tensor], Tensor]:
        """From item ids to what these items send to a person, before the weight."""
        num_layers = self.num_layers
        if num_layers > 1:
            below = self._mean(*self.ego(), num_layers - 1)[1]
            below = below * (num_layers / (num_layers + 1))
            return lambda items: below[items]
        # Items as they are before propagation: only those asked for are mixed.
        links, codebook = self._item_links(), self.codebook().detach() / 2

        def sent(items: Tensor) -> Tensor:
            return weighted_sum(Assignment(*(x[items] for x in links)), codebook)

        return sent

    def _item_links(self) -> Assignment:
        return Assignment(*(x[-self.num_items :] for x in self.assignment()))

    def train_items(self) -> tuple[Tensor, Tensor]:
        rowptr, col, _ = self.by_user()
        return rowptr, col

    def item_features(self) -> Tensor:
        if self._items_are_mixtures():
            x = weighted_sum(self._item_links(), self.codebook())
            return x / (self.num_layers + 1)
        return self.propagate()[1]

    @torch.no_grad()
    def inner_products(self) -> InnerProducts:
        """The scores as inner products, the scale in the items' vectors.

        Raises:
            ValueError: If the model has a diffusion channel, whose scores are none.
        """
        if self.diffusion:
            raise ValueError(
                "'LinearC2F' expected diffusion=0 for an index: with a diffusion "
                f'channel scores are no inner products (got diffusion={self.diffusion})'
            )
        by_user, sent = self.by_user(), self._sent()
        h_user = None if self.users_are_histories() else self.propagate()[0]
        items = self.item_features() * self.item_scale().unsqueeze(1)

        def new(rows: CSR) -> Tensor:
            block = torch.arange(rows.rowptr.numel() - 1, device=rows.rowptr.device)
            return self._new_features(rows, sent)(block)

        return InnerProducts(
            torch.cat([items, self.bias.unsqueeze(1)], dim=1),
            items.new_zeros(self.num_users),
            lambda users: (
                new(_take(by_user, users)) if h_user is None else h_user[users]
            ),
            lambda rowptr, col: new(self._history_rows(rowptr, col)),
        )

    def _diffuse(self, rows: Tensor) -> Tensor:
        """Two more steps from users' rows, both as columns: items to users to items."""
        by_user, by_item = self.interactions()
        return csr_matmul(by_item, csr_matmul(by_user, rows))

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
        self._by_user = self._interactions = None

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


def _take(csr: CSR, rows: Tensor) -> CSR:
    """Some rows of a matrix."""
    rowptr, at = take_rows(csr.rowptr, rows)
    return CSR(rowptr, csr.col[at], csr.weight[at])


def _columns(csr: CSR, num_cols: int) -> Tensor:
    """The rows of a matrix, dense, as columns."""
    rowptr, col, weight = csr
    out = weight.new_zeros(num_cols, rowptr.numel() - 1)
    out[col.long(), torch.repeat_interleave(rowptr.diff())] = weight
    return out


def _links(assignment: Assignment, num_items: int) -> CSR:
    """The items' links as CSR, those of weight zero left out."""
    index, weight = (x[-num_items:] for x in assignment)
    row, slot = weight.nonzero(as_tuple=True)
    return csr_of(row, index[row, slot], weight[row, slot], num_items)
