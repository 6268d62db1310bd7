import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.graph import (
    add_assignment,
    add_relation,
    assignment_to_edges,
    interaction_weight,
    normalized_interactions,
    power,
)
from pyg_c2f.nn.embedding import MetaEmbedding, SoftThreshold
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.nn.recommender import InnerProducts, Recommender
from pyg_c2f.nn.stored import (
    check_settings,
    check_sizes,
    fill_codebook,
    graph_tensors,
    sparse_codebook,
    stored_edges,
)
from pyg_c2f.packing import (
    WEIGHT_BITS,
    num_bits,
    pack_bits,
    round_weights,
    small_int_below,
    unpack_bits,
    weights_of,
)
from pyg_c2f.sparse import CSR, csr_matmul, degree
from pyg_c2f.typing import (
    COARSE,
    FINE,
    ITEM,
    RATED_BY,
    RATES,
    USER,
    Assignment,
    InputError,
    Score,
    Stage,
    Stored,
)

# Users whose anchor scores, one column each, stay in a core's cache.
SCORE_BLOCK = 128


class LinearC2F(Recommender):
    r"""Coarse and fine anchors without a nonlinearity: the model of recipe ``fast``.

    An item is a sparse mixture of coarse anchors plus one fine anchor of each level,
    which says what the coarse ones leave over; a user has no row and is
    represented by the items it interacted with, by one layer of propagation:

    .. math::
        \mathbf{x} = \mathbf{S}_1 \mathbf{E}_c + \mathbf{S}_2 \, \mathrm{soft}(
        \mathbf{E}_f), \quad
        \mathbf{h}_i = \tfrac{1}{2} \mathbf{x}_i, \quad
        \mathbf{h}_u = \tfrac{1}{2} \sum_i A_{ui} \mathbf{x}_i

    with :math:`A_{ui} = d_u^{-a} d_i^{-b}` for train pairs, and scores

    .. math::
        s_{ui} = d_i^{p} \left( \mathbf{h}_u^{\top} \mathbf{h}_i + \beta
        (\mathbf{A} \mathbf{A}^{\top} \mathbf{A})_{ui} \right) + b_i

    The second term, the diffusion channel, is the propagation of a one-hot identity
    feature beside the meta-embeddings: it has no parameter but needs the train graph.

    It differs from :class:`C2F` (the published model) in four ways: no tanh; anchors
    send to their nodes only, and get nothing back; items are assigned to the fine
    anchors directly; and users need no row. Without a diffusion channel a history of
    items is enough to recommend, without the graph.

    Args:
        edge_index (Tensor): The unique train pairs, ``[2, num_edges]``.
        num_users (int): The number of users.
        num_items (int): The number of items.
        num_coarse (int): The number of coarse anchors.
        num_fine (int): The number of fine anchors, of all levels together.
        embedding_dim (int): The width of the codebooks.
        max_coarse_per_item (int, optional): The most coarse anchors of an item.
            (default: ``8``)
        fine_per_item (int, optional): Fine anchors of an item. (default: ``2``)
        threshold (float, optional): The soft threshold of the fine codebook.
        score_power (float, optional): The exponent :math:`p`. (default: ``0.5``)
        diffusion (float, optional): The weight :math:`\beta`. (default: ``0.0``)
        user_norm (float, optional): The exponent :math:`a`. (default: ``0.5``)
        item_norm (float, optional): The exponent :math:`b`. (default: ``0.5``)
        dtype (str, optional): How a checkpoint stores numbers, ``'float32'`` (the
            default) or ``'packed'``; see :meth:`round_`.
        item_degree (Tensor, optional): The items' numbers of train users, for a model
            that does not hold the pairs. (default: counted)

    Raises:
        ValueError: If a size is not positive, or an edge does not fit the sizes.

    Example:
        >>> edge_index = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
        >>> model = LinearC2F(edge_index, 3, 4, num_coarse=4, num_fine=2,
        ...                   embedding_dim=4, max_coarse_per_item=2, fine_per_item=1)
        >>> items, scores = model.recommend(history=[0, 2], k=2)
        >>> items.shape
        torch.Size([2])
    """

    def __init__(  # noqa: PLR0913
        self,
        edge_index: Tensor,
        num_users: int,
        num_items: int,
        num_coarse: int,
        num_fine: int,
        embedding_dim: int,
        max_coarse_per_item: int = 8,
        fine_per_item: int = 2,
        threshold: float = 0.0,
        score_power: float = 0.5,
        diffusion: float = 0.0,
        user_norm: float = 0.5,
        item_norm: float = 0.5,
        dtype: Stored = 'float32',
        item_degree: Tensor | None = None,
    ) -> None:
        super().__init__(
            edge_index, num_users, num_items, num_coarse, num_fine, embedding_dim
        )
        self.max_coarse_per_item = int(max_coarse_per_item)
        self.fine_per_item = int(fine_per_item)
        self.threshold = float(threshold)
        self.score_power, self.diffusion = float(score_power), float(diffusion)
        self.user_norm, self.item_norm = float(user_norm), float(item_norm)
        self.dtype: Stored = dtype

        self.coarse = MetaEmbedding(
            num_items, num_coarse, embedding_dim, max_coarse_per_item
        )
        self.fine = MetaEmbedding(num_items, num_fine, embedding_dim, fine_per_item)
        self.soft_threshold = SoftThreshold(threshold)
        self.bias = torch.nn.Parameter(torch.zeros(num_items))
        self._item_degree = item_degree
        self._by_user: CSR | None = None
        self._by_item: CSR | None = None
        self.set_stage('coarse')

    @classmethod
    def blank(cls, edge_index: Tensor, *args: Any, **kwargs: Any) -> Self:
        """A model of zeros, on the device of the pairs, whose tables are filled later.

        Drawing a start that nobody needs takes longer than reading a large model.
        """
        with torch.device('meta'):
            model = cls(edge_index[:, :0], *args, **kwargs)
        model._check_edges(edge_index)
        model.to_empty(device=edge_index.device)
        for x in (*model.parameters(), *model.buffers()):
            x.detach().zero_()
        model.edge_index = edge_index.clone()
        model.set_stage('coarse')
        return model

    def reset_parameters(self) -> None:
        r"""Resets everything: codebooks from :math:`\mathcal{N}(0, 1)`, random
        links, :math:`b = 0`, stage coarse.
        """
        self.coarse.reset_parameters()
        self.fine.reset_parameters()
        torch.nn.init.zeros_(self.bias)
        self.set_stage('coarse')

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

    def needs_graph(self) -> bool:
        return self.diffusion != 0

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
        if self._by_user is None:
            rows = normalized_interactions(self.edge_index, *self._sizes_and_norms())
            self._by_user = rows.to(self.bias.dtype)
        return self._by_user

    def by_item(self) -> CSR:
        """The transpose of :meth:`by_user` (built once)."""
        if self._by_item is None:
            self._by_item = self.by_user().transpose(self.num_items)
        return self._by_item

    def _sizes_and_norms(self) -> tuple[int, int, float, float]:
        return self.num_users, self.num_items, self.user_norm, self.item_norm

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

    def ego(self) -> Tensor:
        r"""The features :math:`\mathbf{x}` of the items, before propagation."""
        return weighted_sum(self.assignment(), self.codebook())

    def propagate(self) -> tuple[Tensor, Tensor]:
        """The propagated features of users and items."""
        item = self.ego() / 2
        return _Histories.apply(item, self.by_user(), self.by_item()), item

    def item_scale(self) -> Tensor:
        r"""The scale :math:`d_i^p` of the items' scores, ``[num_items]``."""
        return self.item_degree() ** self.score_power

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores of pairs of user and item ids, ``[batch_size]`` each."""
        h_user, h_item = self.propagate()
        out = (h_user[users] * h_item[items]).sum(dim=-1)
        if self.diffusion:
            rows = self.by_user().select(users)
            block = self._diffuse(_columns(rows, self.num_items))
            out = out + self.diffusion * block[items, torch.arange(len(items))]
        return out * self.item_scale()[items] + self.bias[items]

    @torch.no_grad()
    def scorer(self) -> Score:
        r"""A function from user ids ``[B]`` to the scores of all items.

        A user scores the anchors first, and an item's score is the mixture of its
        anchors' scores: :math:`\mathbf{S} (\mathbf{E} \mathbf{h}_u)`, a few sums an
        item instead of a dot product of full width.
        """
        rows = self.by_user()
        return self._scorer(rows, self._new_features(rows))

    @torch.no_grad()
    def history_scorer(self, rowptr: Tensor, col: Tensor) -> Score:
        r"""The scores of all items for people unknown to the model.

        A new person is a user node with edges to the items of the history:

        .. math::
            \mathbf{h}_u = \tfrac{1}{2} \sum_{i \in \mathcal{N}(u)} n^{-a} d_i^{-b}
            \mathbf{x}_i

        with :math:`n` items in the history. A user with these train items has the same
        numbers.
        """
        rows = self._history_rows(rowptr, col)
        return self._scorer(rows, self._new_features(rows))

    def user_scorer(self, users: Tensor, rowptr: Tensor, col: Tensor) -> Score:
        # Only the items of these users are needed: no pass over the graph.
        return self.history_scorer(rowptr, col)

    def _scorer(self, rows: CSR, features: Callable[[Tensor], Tensor]) -> Score:
        """Scores from people's features and, for the diffusion, their interactions."""
        scale, bias = self.item_scale().unsqueeze(1), self.bias.detach().unsqueeze(1)
        (row, col), weight = assignment_to_edges(self.assignment())
        mix = CSR.from_sorted(row, col, weight, self.num_items)
        codebook = self.codebook().detach() / 2

        def score(people: Tensor) -> Tensor:
            parts = []
            for block in people.split(SCORE_BLOCK):
                part = csr_matmul(mix, codebook @ features(block).T)
                if self.diffusion:
                    dense = _columns(rows.select(block), self.num_items)
                    part.add_(self._diffuse(dense), alpha=self.diffusion)
                parts.append(part)
            out = torch.cat(parts, dim=1)
            return out.mul_(scale).add_(bias).T

        return score

    def _history_rows(self, rowptr: Tensor, col: Tensor) -> CSR:
        """The normalised interactions of histories."""
        count = rowptr.diff()
        of_user = power(count.clamp(min=1), -self.user_norm).to(self.bias)
        of_item = power(self.item_degree(), -self.item_norm).to(self.bias)
        weight = torch.repeat_interleave(of_user, count) * of_item[col.long()]
        return CSR(rowptr, col, weight)

    def _new_features(
        self, rows: CSR, sent: Callable[[Tensor], Tensor] | None = None
    ) -> Callable[[Tensor], Tensor]:
        """From row numbers to the features of people with these interactions."""
        # Only the items that any of them has: few, where few people ask.
        col = rows.col.long()
        is_there = torch.zeros(self.num_items, dtype=torch.bool, device=col.device)
        is_there[col] = True
        place = (is_there.cumsum(0) - 1)[col].to(rows.col.dtype)
        x = (self._sent() if sent is None else sent)(is_there.nonzero().flatten())
        rows = rows._replace(col=place)
        return lambda block: csr_matmul(rows.select(block), x)

    def _sent(self) -> Callable[[Tensor], Tensor]:
        """From item ids to what these items send to a person, before the weight."""
        # Only the items that are asked for are mixed.
        links, codebook = self.assignment(), self.codebook().detach() / 2

        def sent(items: Tensor) -> Tensor:
            return weighted_sum(Assignment(*(x[items] for x in links)), codebook)

        return sent

    def train_items(self) -> tuple[Tensor, Tensor]:
        rowptr, col, _ = self.by_user()
        return rowptr, col

    def item_features(self) -> Tensor:
        return self.ego() / 2

    @torch.no_grad()
    def inner_products(self) -> InnerProducts:
        """The scores as inner products, the scale in the items' vectors."""
        if self.diffusion:
            raise ValueError(
                f"'LinearC2F' expected diffusion=0 for an index (got {self.diffusion}):"
                ' with a diffusion channel scores are not inner products'
            )
        by_user, sent = self.by_user(), self._sent()
        items = self.item_features() * self.item_scale().unsqueeze(1)

        def new(rows: CSR) -> Tensor:
            block = torch.arange(rows.num_rows, device=rows.rowptr.device)
            return self._new_features(rows, sent)(block)

        return InnerProducts(
            torch.cat([items, self.bias.unsqueeze(1)], dim=1),
            items.new_zeros(self.num_users),
            lambda users: new(by_user.select(users)),
            lambda rowptr, col: new(self._history_rows(rowptr, col)),
        )

    def _diffuse(self, rows: Tensor) -> Tensor:
        """Two more steps from users' rows, both as columns: items to users to items."""
        return csr_matmul(self.by_item(), csr_matmul(self.by_user(), rows))

    def anchors_in_use(self) -> int:
        index, weight = self.assignment()
        return index[weight != 0].unique().numel()

    def to_hetero_data(self) -> HeteroData:
        """The model's graph, the anchors' features as their ``x``."""
        data = HeteroData()
        data[USER].num_nodes, data[ITEM].num_nodes = self.num_users, self.num_items
        weight = interaction_weight(self.edge_index, *self._sizes_and_norms())
        add_relation(data, RATES, RATED_BY, (self.edge_index, weight))
        data[COARSE].x = self.coarse.codebook.detach()
        add_assignment(data, ITEM, COARSE, self.coarse.assignment)
        if self.stage == 'fine':
            data[FINE].x = self.soft_threshold(self.fine.codebook).detach()
            add_assignment(data, ITEM, FINE, self.fine.assignment)
        return data

    def _forget(self) -> None:
        self._by_user = self._by_item = None

    def settings(self) -> dict[str, Any]:
        _, grid = round_weights(self.coarse.assignment_weight, WEIGHT_BITS)
        return super().settings() | {'weight_grid': grid}

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors that stand for the model in a file, in the form of its ``dtype``.

        Links of weight zero are left out, and the number of links of a row kept
        instead. ``'packed'`` keeps indices in as few bits as number the anchors, and
        the weights of coarse links as 6-bit codes
        (:func:`~pyg_c2f.packing.round_weights`). Fine anchors, one of each level with
        weight one, are stored by their number in the level. Axes as coarse anchors are
        no codebook. The scale of an item's scores comes from its degree.

        Raises:
            InputError: If an item has other fine anchors than one of each level with
                weight one.
            ValueError: If the model does not hold the train pairs.
        """
        self.check_pairs()
        is_packed = self.dtype == 'packed'
        wide = torch.float16 if is_packed else torch.float32
        weight = self.coarse.assignment_weight.cpu()
        is_link = weight != 0
        index, count = self.coarse.index.cpu()[is_link], is_link.sum(dim=1)
        packed = pack_bits(round_weights(weight, WEIGHT_BITS)[0], WEIGHT_BITS)
        deg = degree(self.edge_index[1].cpu(), self.num_items)
        tensors = graph_tensors(self.edge_index, self.num_items) | {
            'coarse.index': self._pack(index, self.num_coarse),
            'coarse.count': small_int_below(count, self.max_coarse_per_item + 1),
            'coarse.weight': packed if is_packed else weight[is_link],
            'degree': small_int_below(deg, int(deg.max()) + 1),
        }
        if not is_axes(self.coarse.codebook.detach()):
            tensors['coarse.codebook'] = self.coarse.codebook.detach().to(wide)
        if self.bias.any():
            tensors['bias'] = self.bias.detach().to(wide)
        if self.stage == 'fine':
            if not are_codes(self.fine.assignment, self.num_fine):
                raise InputError(
                    'a checkpoint of LinearC2F has one fine anchor of each level for '
                    'each item, with weight one; this model has others: set the codes '
                    'of pyg_c2f.anchors.codes.residual_codes'
                )
            per_level = self.num_fine // self.fine_per_item
            tensors |= sparse_codebook(self.fine.codebook, self.threshold)
            tensors['fine.value'] = tensors['fine.value'].to(wide)
            local = self.fine.index.cpu() % per_level
            tensors['fine.index'] = self._pack(local.flatten(), per_level)
        return tensors

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any], stage: Stage
    ) -> Self:
        sizes = check_settings(settings, cls.setting_kinds())
        num_items = sizes['num_items']
        per_item = max(sizes['max_coarse_per_item'], sizes['fine_per_item'])
        items = num_items, len(tensors['degree'])
        check_sizes(tensors, sizes, items, num_items * per_item)
        model = cls.blank(stored_edges(tensors, sizes['num_items']), **sizes)
        model.set_stage(stage)
        count, weight = tensors['coarse.count'].long(), tensors['coarse.weight']
        num_links = int(count.sum())
        if model.dtype == 'packed':
            low, high = settings['weight_grid']
            codes = unpack_bits(weight, WEIGHT_BITS, num_links)
            weight = weights_of(codes, WEIGHT_BITS, (low, high))
        place = torch.arange(model.max_coarse_per_item) < count.unsqueeze(1)
        coarse = torch.zeros(place.shape).long(), torch.zeros(place.shape)
        packed = tensors['coarse.index']
        coarse[0][place] = model._unpack(packed, model.num_coarse, num_links)
        coarse[1][place] = weight.float()
        model.set_assignment(Assignment(*coarse))
        with torch.no_grad():
            axes = torch.eye(model.num_coarse, model.embedding_dim)
            model.coarse.codebook.copy_(tensors.get('coarse.codebook', axes))
            if 'bias' in tensors:
                model.bias.copy_(tensors['bias'])
            if stage == 'fine':
                fill_codebook(model.fine.codebook, tensors)
                model.set_assignment(fine=model._levels(tensors['fine.index']))
        return model

    def _pack(self, index: Tensor, num: int) -> Tensor:
        if self.dtype == 'packed':
            return pack_bits(index, num_bits(num))
        return small_int_below(index, num)

    def _unpack(self, index: Tensor, num: int, num_values: int) -> Tensor:
        if self.dtype == 'packed':
            return unpack_bits(index, num_bits(num), num_values)
        return index.long()

    def _levels(self, local: Tensor) -> Assignment:
        """The assignment of codes, one anchor of each level with weight one."""
        size = self.num_items, self.fine_per_item
        per_level = self.num_fine // self.fine_per_item
        index = self._unpack(local, per_level, math.prod(size)).view(size)
        index = index + per_level * torch.arange(self.fine_per_item)
        return Assignment(index, torch.ones(size))

    def extra_repr(self) -> str:
        return f'{self.num_users}, {self.num_items}'


def is_axes(codebook: Tensor) -> bool:
    """Whether anchors are the columns themselves, so that no codebook is needed."""
    size = codebook.size(0)
    return codebook.shape == (size, size) and bool(
        (codebook == torch.eye(size, device=codebook.device)).all()
    )


def are_codes(assignment: Assignment, num_anchors: int) -> bool:
    """Whether every row has one anchor of each level, in order, with weight one."""
    index, weight = assignment
    num_levels = index.size(1)
    level = index.div(num_anchors // num_levels, rounding_mode='floor')
    in_order = level == torch.arange(num_levels, device=index.device)
    return bool((weight == 1).all() and in_order.all())


class _Histories(torch.autograd.Function):
    """The sums that users receive from the items of their histories."""

    @staticmethod
    def forward(ctx, item, by_user, by_item):  # type: ignore[no-untyped-def]
        ctx.by_item = by_item
        return csr_matmul(by_user, item)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        return csr_matmul(ctx.by_item, grads[0].contiguous()), None, None


def _columns(csr: CSR, num_cols: int) -> Tensor:
    """The rows of a matrix, dense, as columns."""
    out = csr.weight.new_zeros(num_cols, csr.num_rows)
    out[csr.col.long(), csr.row] = csr.weight
    return out
