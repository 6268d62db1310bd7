"""LightGCN as PyG has it, trained by each loss, its tables whole or compressed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch_geometric.nn import LGConv
from torch_geometric.nn import LightGCN as PyGLightGCN

from methods.base import (
    Baseline,
    Histories,
    Tensors,
    pack_graph,
    prefixed,
    unpack_graph,
    without_prefix,
)
from methods.codec import Codec, Plain
from methods.embedding import CompressedEmbedding
from methods.filters import (
    item_degree,
    low_pass_scorer,
    singular_vectors,
    small_int,
)
from pyg_c2f.evaluate import Score
from pyg_c2f.graph import entity_csr
from pyg_c2f.nn import BPRLoss, SampledSoftmaxLoss, WholeDataLoss, build_pairs
from pyg_c2f.recipes.sampler import TripletSampler
from pyg_c2f.sparse import CSR, csr_matmul, degree
from pyg_c2f.typing import InputError

Loss = Literal['whole', 'softmax', 'bpr']
Start = Literal['spectral', 'random']
Watch = Callable[[int, Score], bool]

START_STD = 0.1
START_SCORE = 0.5  # mean of the interactions' scores at a spectral start


class _SymmetricProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, adj: CSR) -> Tensor:
        ctx.adj = adj
        return csr_matmul(adj, x.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return csr_matmul(ctx.adj, grads[0].contiguous()), None


class SymmetricLGConv(LGConv):
    """PyG's layer for a symmetric CSR matrix, by the product that our training uses.

    Forward and backward of a layer take a fifth of what they take by ``torch.sparse``,
    which transposes the matrix in each backward pass.
    """

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        adj = CSR(adj_t.crow_indices(), adj_t.col_indices(), adj_t.values())
        return _SymmetricProduct.apply(x, adj)


def adjacency(histories: Histories) -> Tensor:
    """The normalised graph of users, then items, as a torch CSR matrix."""
    num_users, num_items = histories.num_users, histories.num_items
    graph = entity_csr(histories.edge_index, num_users, num_items)
    size = num_users + num_items
    return torch.sparse_csr_tensor(graph.rowptr, graph.col, graph.weight, (size, size))


def pyg_lightgcn(num_nodes: int, embedding_dim: int, num_layers: int) -> PyGLightGCN:
    """PyG's model with layers that use our product."""
    model = PyGLightGCN(num_nodes, embedding_dim, num_layers)
    model.convs = torch.nn.ModuleList(
        SymmetricLGConv(normalize=False) for _ in range(num_layers)
    )
    return model


@dataclass(frozen=True)
class LightGCN(Baseline):
    r"""LightGCN: embeddings of users and items, propagated, their dot product a score.

    .. math::
        \mathbf{H} = \frac{1}{L + 1} \sum_{l=0}^{L} \mathbf{A}^l \mathbf{E}, \quad
        s_{ui} = \mathbf{h}_u^{\top} \mathbf{h}_i

    :class:`torch_geometric.nn.LightGCN` in full-graph training by one of three losses:
    all pairs (:class:`~pyg_c2f.nn.WholeDataLoss`), softmax against shared sampled items
    on cosines (:class:`~pyg_c2f.nn.SampledSoftmaxLoss`), or the published
    :class:`~pyg_c2f.nn.BPRLoss`. What is stored are the propagated tables through the
    codec, so that the graph is not needed. Zero layers are matrix factorisation.

    Args:
        embedding_dim (int, optional): The width. (default: ``64``)
        num_layers (int, optional): The number :math:`L` of layers. (default: ``1``)
        loss (str, optional): ``'whole'`` (the default), ``'softmax'`` or ``'bpr'``.
        start (str, optional): ``'random'``, or ``'spectral'`` (the default): the
            singular vectors of the interactions times the square roots of the values,
            and the items' times :math:`d_i^{1/4}`.
        lr (float, optional): The learning rate of Adam. (default: ``0.01``)
        lambda_reg (float, optional): The strength of the penalty of ``'whole'`` and
            ``'bpr'``. (default: ``0.003``)
        alpha (float, optional): The weight of all pairs in ``'whole'``.
            (default: ``0.01``)
        user_power (float, optional): Users weigh :math:`d_u^{-r}` in ``'whole'``, so
            that those with many items do not outvote the others. (default: ``0.5``)
        temperature (float, optional): That of ``'softmax'``. (default: ``0.1``)
        num_neg_samples (int, optional): Shared negatives of ``'softmax'``.
            (default: ``512``)
        batch_size (int, optional): Pairs in a batch of ``'softmax'`` and ``'bpr'``.
            (default: ``8192``)
        epochs (int, optional): Passes over the pairs; one step each of ``'whole'``.
            (default: ``60``)
        eval_every (int, optional): Epochs between two calls of ``watch``.
            (default: ``10``)
        codec (Codec, optional): The stored form of a table. (default: float32)

    Raises:
        InputError: If the loss or the start is unknown, or a size is too small.
    """

    embedding_dim: int = 64
    num_layers: int = 1
    loss: Loss = 'whole'
    start: Start = 'spectral'
    lr: float = 0.01
    lambda_reg: float = 0.003
    alpha: float = 0.01
    user_power: float = 0.5
    temperature: float = 0.1
    num_neg_samples: int = 512
    batch_size: int = 8192
    epochs: int = 60
    eval_every: int = 10
    codec: Codec = Plain()
    serves_anyone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, choices in (('loss', get_args(Loss)), ('start', get_args(Start))):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"'{type(self).__name__}' expected a {name} of {choices} "
                    f'(got {getattr(self, name)!r})'
                )
        sizes = ('embedding_dim', 'num_neg_samples', 'batch_size', 'eval_every')
        for name, least in {'num_layers': 0, **dict.fromkeys(sizes, 1)}.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"'{type(self).__name__}' expected {name} of at least {least} "
                    f'(got {getattr(self, name)})'
                )

    def fit(
        self,
        histories: Histories,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensors:
        """Trains.

        Args:
            histories (Histories): The train interactions.
            generator (torch.Generator, optional): All randomness, on the CPU.
            watch (Callable, optional): Called now and then with the epochs done and
                the scores so far; training ends where it returns true.
        """
        model = self._model(histories, generator)
        adj = adjacency(histories)
        loss = self._losses(model, adj, histories, generator)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        for epoch in range(1, self.epochs + 1):
            for value in loss():
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            if watch is not None and epoch % self.eval_every == 0:
                with torch.no_grad():
                    tables = self._tables(model, adj, histories)
                if watch(epoch, self._table_scorer(*tables, histories)):
                    break
        with torch.no_grad():
            return self._stored(model, adj, histories, generator)

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        user = self.codec.decode(without_prefix('user', stored))
        item = self.codec.decode(without_prefix('item', stored))
        if len(user) != histories.num_users:
            raise InputError(
                f"'{type(self).__name__}' expected the {len(user)} users of the "
                f'training (got {histories.num_users}); for others take a method that '
                'serves anyone'
            )
        return self._table_scorer(user, item, histories)

    def _stored(
        self,
        model: PyGLightGCN,
        adj: Tensor,
        histories: Histories,
        generator: torch.Generator | None,
    ) -> Tensors:
        user, item = self._tables(model, adj, histories)
        stored = prefixed('user', self.codec.encode(user, generator))
        return stored | prefixed('item', self.codec.encode(item, generator))

    def _table_scorer(self, user: Tensor, item: Tensor, histories: Histories) -> Score:
        return lambda users: user[users] @ item.T

    def _model(
        self, histories: Histories, generator: torch.Generator | None
    ) -> PyGLightGCN:
        num_nodes = histories.num_users + histories.num_items
        model = pyg_lightgcn(num_nodes, self.embedding_dim, self.num_layers)
        with torch.no_grad():
            model.embedding.weight.normal_(std=START_STD, generator=generator)
            if self.start == 'spectral':
                self._start(model, histories, generator)
        return model

    def _start(
        self,
        model: PyGLightGCN,
        histories: Histories,
        generator: torch.Generator | None,
    ) -> None:
        user, value, item = singular_vectors(histories, self.embedding_dim, generator)
        rank = len(value)
        deg = item_degree(histories).float().unsqueeze(1)
        x = torch.cat([user, item * deg**0.25]) * value.sqrt()
        weight = model.embedding.weight
        weight[:, :rank] = x
        weight[:, rank:] = 0
        out = model.get_embedding(adjacency(histories))
        out_user, out_item = out.split([histories.num_users, histories.num_items])
        users, items = histories.edge_index
        mean = (out_user[users] * out_item[items]).sum(dim=1).mean()
        weight *= (START_SCORE / mean.clamp(min=1e-12)).sqrt()

    def _tables(
        self, model: PyGLightGCN, adj: Tensor, histories: Histories
    ) -> tuple[Tensor, Tensor]:
        """The propagated features of users and items; unit rows for softmax."""
        out = model.get_embedding(adj)
        if self.loss == 'softmax':
            out = torch.nn.functional.normalize(out, dim=1)
        user, item = out.split([histories.num_users, histories.num_items])
        return user, item

    def _losses(
        self,
        model: PyGLightGCN,
        adj: Tensor,
        histories: Histories,
        generator: torch.Generator | None,
    ) -> Callable[[], Iterator[Tensor]]:
        """A function that goes through the losses of an epoch's batches."""
        edge_index = histories.edge_index
        num_users, num_items = histories.num_users, histories.num_items
        if self.loss == 'whole':
            pairs = build_pairs(edge_index, num_users, num_items)
            whole = WholeDataLoss(self.alpha, self.lambda_reg)
            deg = histories.rowptr.diff().clamp(min=1).float()
            weight = deg**-self.user_power
            weight = weight / weight.mean()

            def whole_data() -> Iterator[Tensor]:
                user, item = self._tables(model, adj, histories)
                yield whole(user, item, pairs, user_weight=weight)

            return whole_data
        if self.loss == 'softmax':
            return lambda: self._softmax(model, adj, histories, generator)

        sampler = TripletSampler(edge_index, num_users, num_items, 1, generator)
        bpr = BPRLoss(self.lambda_reg)

        def triples() -> Iterator[Tensor]:
            batches = (x.split(self.batch_size) for x in sampler.sample_epoch())
            for users, positive, negative in zip(*batches, strict=True):
                user, item = self._tables(model, adj, histories)
                rows = user[users]
                nodes = torch.cat([users, num_users + positive, num_users + negative])
                yield bpr(
                    (rows * item[positive]).sum(dim=1),
                    (rows * item[negative]).sum(dim=1),
                    model.embedding.weight,
                    degree(nodes, num_users + num_items),
                )

        return triples

    def _softmax(
        self,
        model: PyGLightGCN,
        adj: Tensor,
        histories: Histories,
        generator: torch.Generator | None,
    ) -> Iterator[Tensor]:
        edge_index = histories.edge_index
        order = torch.randperm(edge_index.size(1), generator=generator)
        criterion = SampledSoftmaxLoss(self.temperature)
        # Uniform: the proposal is the same for all and drops out of the ranking.
        log_q = torch.full((self.num_neg_samples,), -math.log(histories.num_items))
        for batch in order.split(self.batch_size):
            users, positive = edge_index[:, batch]
            negative = torch.randint(
                histories.num_items, (self.num_neg_samples,), generator=generator
            )
            user, item = self._tables(model, adj, histories)
            rows = user[users]
            yield criterion(
                (rows * item[positive]).sum(dim=1),
                rows @ item[negative].T,
                log_q,
                mask=negative == positive.unsqueeze(1),
            )


@dataclass(frozen=True)
class LightGCNFromItems(LightGCN):
    r"""LightGCN without a table of users: a user is the sum of the items' rows.

    .. math::
        s_{uj} = \Big\langle \sum_{i \in N(u)} d_i^{-1/2} \mathbf{h}_i, \, \mathbf{h}_j
        \Big\rangle

    which is one more step of propagation without the user's own row. What is stored are
    the table of the items and their degrees.
    """

    serves_anyone: ClassVar[bool] = True

    def _stored(
        self,
        model: PyGLightGCN,
        adj: Tensor,
        histories: Histories,
        generator: torch.Generator | None,
    ) -> Tensors:
        _, item = self._tables(model, adj, histories)
        stored = prefixed('item', self.codec.encode(item, generator))
        return stored | {'degree': small_int(item_degree(histories))}

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        item = self.codec.decode(without_prefix('item', stored))
        return low_pass_scorer(item, stored['degree'], 0.0, histories)

    def _table_scorer(self, user: Tensor, item: Tensor, histories: Histories) -> Score:
        return low_pass_scorer(item, item_degree(histories), 0.0, histories)


@dataclass(frozen=True)
class CompressedLightGCN(LightGCN):
    """LightGCN on a compressed table, which is not stored whole in training either.

    What is stored are the parameters of the table and, with layers, the train graph,
    since the propagated table would be whole again. It starts at random, and the table
    has a stored form of its own in place of a codec.

    Args:
        embedding (Callable): Makes the table of a number of rows and a width, such as
            ``partial(HashEmbedding, num_buckets=1000)``.

    Raises:
        InputError: If the start is not random, or a codec is given.
    """

    start: Start = 'random'
    embedding: Callable[[int, int], CompressedEmbedding] = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start != 'random' or self.codec != Plain():
            raise InputError(
                "'CompressedLightGCN' expected a random start and no codec "
                f'(got start={self.start!r}, codec={self.codec})'
            )

    def _model(
        self, histories: Histories, generator: torch.Generator | None
    ) -> PyGLightGCN:
        num_nodes = histories.num_users + histories.num_items
        model = pyg_lightgcn(1, self.embedding_dim, self.num_layers)
        model.num_nodes = num_nodes
        model.embedding = self.embedding(num_nodes, self.embedding_dim)
        model.embedding.reset_parameters(generator)
        return model

    def _stored(
        self,
        model: PyGLightGCN,
        adj: Tensor,
        histories: Histories,
        generator: torch.Generator | None,
    ) -> Tensors:
        stored = prefixed('table', model.embedding.stored())
        if self.num_layers:
            stored |= prefixed('graph', pack_graph(histories))
        return stored

    @torch.no_grad()
    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        model = self._model(histories, None)
        model.embedding.load(without_prefix('table', stored))
        # Without layers there is no graph, and none is needed.
        graph = without_prefix('graph', stored)
        sizes = histories.num_items, histories.num_users
        train = unpack_graph(graph, *sizes) if graph else histories
        tables = self._tables(model, adjacency(train), train)
        return self._table_scorer(*tables, train)
