"""Scores without training: popularity, low-pass filters and the whole graph."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import scipy.sparse
import torch
from torch import Tensor

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
from pyg_c2f.anchors.spectral import randomized_svd
from pyg_c2f.evaluate import Score
from pyg_c2f.graph import normalized_interactions
from pyg_c2f.packing import small_int_below
from pyg_c2f.sparse import CSR, csr_matmul, degree, take_rows
from pyg_c2f.typing import InputError

MAX_DENSE_ITEMS = 20_000


@dataclass(frozen=True)
class Popularity(Baseline):
    r"""Scores an item by its number of train users, :math:`s_{uj} = d_j`.

    What is stored are the degrees.
    """

    serves_anyone: ClassVar[bool] = True

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        return {'degree': small_int(item_degree(histories))}

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        score = stored['degree'].float()
        return lambda users: score.expand(len(users), -1)


@dataclass(frozen=True)
class LinkProp(Baseline):
    r"""LinkProp: the items of those who share items with the user.

    .. math::
        \mathbf{s}_u = \mathbf{r}_u D_I^{-\beta} R^{\top} D_U^{-\gamma} R \,
        D_I^{-\delta}

    with the binary row :math:`\mathbf{r}_u` of the user (`Fu et al., 2022
    <https://arxiv.org/abs/2203.15789>`_). The factor :math:`d_u^{-\alpha}` of the
    published score changes no list and is left out. What is stored is the train graph.

    With :math:`\beta = \gamma = 1` and :math:`\delta = 1/2` the scores of train users
    are the rows of :math:`\tilde{R} \tilde{R}^{\top} \tilde{R}`, but for such factors,
    where :math:`\tilde{R} = D_U^{-1/2} R D_I^{-1/2}`: two hops of the symmetrically
    normalised graph.

    Args:
        beta (float, optional): The exponent :math:`\beta` of the items that the user
            has. (default: ``0.5``)
        gamma (float, optional): The exponent :math:`\gamma` of the users who share
            them. (default: ``0.5``)
        delta (float, optional): The exponent :math:`\delta` of the items that are
            scored. (default: ``0.5``)
    """

    beta: float = 0.5
    gamma: float = 0.5
    delta: float = 0.5
    serves_anyone: ClassVar[bool] = True

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        return pack_graph(histories)

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        train = unpack_graph(stored, histories.num_items)
        hop = item_graph(train, self.gamma / 2, self.delta)
        # The graph has one exponent on both its sides: what the rows need beside it.
        degree = item_degree(train).clamp(min=1).float().unsqueeze(1)
        scale = degree ** (self.delta - self.beta)
        return lambda users: hop(item_columns(histories, users).mul_(scale)).T


@dataclass(frozen=True)
class LowPass(Baseline):
    r"""The leading singular vectors of the interactions as embeddings of the items.

    .. math::
        s_{uj} = d_j^q \left\langle \sum_{i \in N(u)} d_i^{-b} \mathbf{x}_i, \,
        \mathbf{x}_j \right\rangle, \quad X = V \Sigma^p

    with the singular values and right vectors of :math:`\tilde{R} = D_U^{-a} R
    D_I^{-b}`. What is stored are the degrees and :math:`X` through the codec. With
    :math:`a = b = q = 1/2` and :math:`p = 0` it is the low pass of GF-CF.

    Args:
        embedding_dim (int, optional): The number of singular vectors, at most as many
            as there are users or items. (default: ``256``)
        power (float, optional): The exponent :math:`p`. (default: ``0.0``)
        item_power (float, optional): The exponent :math:`q`. (default: ``0.5``)
        user_norm (float, optional): The exponent :math:`a`. (default: ``0.5``)
        item_norm (float, optional): The exponent :math:`b`. (default: ``0.5``)
        codec (Codec, optional): The stored form of :math:`X`. (default: float32)
    """

    embedding_dim: int = 256
    power: float = 0.0
    item_power: float = 0.5
    user_norm: float = 0.5
    item_norm: float = 0.5
    codec: Codec = Plain()
    serves_anyone: ClassVar[bool] = True

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        norms = self.user_norm, self.item_norm
        _, value, right = singular_vectors(
            histories, self.embedding_dim, generator, *norms
        )
        x = right * value**self.power
        degree = small_int(item_degree(histories))
        return prefixed('item', self.codec.encode(x, generator)) | {'degree': degree}

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        x = self.codec.decode(without_prefix('item', stored))
        return low_pass_scorer(
            x, stored['degree'], self.item_power, histories, self.item_norm
        )


@dataclass(frozen=True)
class GFCF(Baseline):
    r"""GF-CF: the filter through the graph, and a low pass beside it.

    .. math::
        \mathbf{s}_u = \mathbf{r}_u \left( \tilde{R}^{\top} \tilde{R} + w \,
        D_I^{-1/2} V V^{\top} D_I^{1/2} \right)

    with the binary row :math:`\mathbf{r}_u` of the user, :math:`\tilde{R} = D_U^{-1/2}
    R D_I^{-1/2}` and its leading right singular vectors :math:`V` (`Shen et al., 2021
    <https://arxiv.org/abs/2108.07567>`_). What is stored are the train graph and
    :math:`V` through the codec.

    Args:
        rank (int, optional): The number of singular vectors, at most as many as there
            are users or items. (default: ``256``)
        weight (float, optional): The weight :math:`w`. (default: ``0.3``)
        codec (Codec, optional): The stored form of :math:`V`. (default: float32)
    """

    rank: int = 256
    weight: float = 0.3
    codec: Codec = Plain()
    serves_anyone: ClassVar[bool] = True

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        _, _, right = singular_vectors(histories, self.rank, generator)
        item = prefixed('item', self.codec.encode(right, generator))
        return item | prefixed('graph', pack_graph(histories))

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        right = self.codec.decode(without_prefix('item', stored))
        train = unpack_graph(without_prefix('graph', stored), histories.num_items)
        hop = item_graph(train)
        low = low_pass_scorer(right, item_degree(train), 0.5, histories)

        def score(users: Tensor) -> Tensor:
            return (
                low(users).mul_(self.weight).add_(hop(item_columns(histories, users)).T)
            )

        return score


@dataclass(frozen=True)
class ChebyCF(Baseline):
    r"""ChebyCF: a plateau of low frequencies as a polynomial, and a low pass beside it.

    .. math::
        \mathbf{s}_u = \mathbf{r}_u D_I^{-b} \Big( \sum_{k=0}^{8} c_k T_k(L) + w \,
        V V^{\top} \Big) D_I^{b}, \quad L = I - 2 \tilde{R}^{\top} \tilde{R}

    with the binary row :math:`\mathbf{r}_u` of the user, :math:`\tilde{R} = D_U^{-1/2}
    R D_I^{-1/2}`, its leading right singular vectors :math:`V` and the Chebyshev
    polynomials :math:`T_k` (`Kim et al., 2025 <https://arxiv.org/abs/2505.00552>`_).
    The coefficients are those of :func:`plateau`. What is stored are the train graph
    and :math:`V` through the codec.

    Args:
        rank (int, optional): The number of singular vectors, at most as many as there
            are users or items; with 0 nothing but the graph is stored.
            (default: ``512``)
        weight (float, optional): The weight :math:`w`. (default: ``0.2``)
        item_norm (float, optional): The exponent :math:`b`. (default: ``0.4``)
        flatness (float, optional): The exponent of the plateau. (default: ``1.5``)
        codec (Codec, optional): The stored form of :math:`V`. (default: float32)
    """

    rank: int = 512
    weight: float = 0.2
    item_norm: float = 0.4
    flatness: float = 1.5
    codec: Codec = Plain()
    serves_anyone: ClassVar[bool] = True

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        stored = prefixed('graph', pack_graph(histories))
        if self.rank:
            _, _, right = singular_vectors(histories, self.rank, generator)
            stored |= prefixed('item', self.codec.encode(right, generator))
        return stored

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        train = unpack_graph(without_prefix('graph', stored), histories.num_items)
        hop, first = item_graph(train), plateau(self.flatness)
        degree = item_degree(train).clamp(min=1).float().unsqueeze(1)
        scale = degree**self.item_norm
        # Without vectors the low pass is zero.
        right = torch.zeros(histories.num_items, 1)
        if self.rank:
            right = self.codec.decode(without_prefix('item', stored))
        exponents = self.item_norm, histories, self.item_norm
        low = low_pass_scorer(right, item_degree(train), *exponents)

        def score(users: Tensor) -> Tensor:
            x = item_columns(histories, users).div_(scale)
            # T_0 x and T_1 x; then T_{k+1} = 2 L T_k - T_{k-1}.
            last, now = x, torch.sub(x, hop(x), alpha=2)
            out = first[0] * last + first[1] * now
            for c in first[2:]:
                last, now = now, (now - 2 * hop(now)).mul_(2).sub_(last)
                out.add_(now, alpha=c)
            return low(users).mul_(self.weight).add_(out.mul_(scale).T)

        return score


def plateau(flatness: float, order: int = 8) -> list[float]:
    r"""The Chebyshev coefficients of ChebyCF's filter.

    .. math::
        f(x) = \tfrac{1}{2} - \tfrac{1}{2} \, \mathrm{sign}(x) \, |x|^{\varphi}

    is 1 at the lowest frequency, -1, and 0 at the highest, 1. As published, the
    polynomial takes the values of :math:`f` at :math:`-\cos(j \pi / K)` in the nodes
    :math:`-\cos((j + 1/2) \pi / (K + 1))`, which lie beside them.

    Args:
        flatness (float): The exponent :math:`\varphi`.
        order (int, optional): The degree :math:`K`. (default: ``8``)
    """
    place = torch.arange(order + 1).double()
    x = -(place * math.pi / order).cos()
    value = 0.5 - 0.5 * x.sign() * x.abs() ** flatness
    angle = math.pi - (place + 0.5) * math.pi / (order + 1)
    out = (place.unsqueeze(1) * angle).cos() @ value * 2 / (order + 1)
    out[0] /= 2
    return out.tolist()


@dataclass(frozen=True)
class TurboCF(Baseline):
    r"""Turbo-CF: a polynomial of the item graph.

    .. math::
        \mathbf{s}_u = \mathbf{r}_u f(\bar{P}), \quad
        \bar{P} = (\tilde{R}^{\top} \tilde{R})^{\circ s}, \quad
        \tilde{R} = D_U^{-\alpha} R D_I^{\alpha - 1}

    with the binary row :math:`\mathbf{r}_u` of the user and the entries of the item
    graph raised to the power :math:`s` (`Park et al., 2024
    <https://arxiv.org/abs/2404.14243>`_). The filters are

    .. math::
        f(P) = P, \quad f(P) = 2 P - P^2, \quad
        f(P) = P + 0.01 \, (-P^3 + 10 P^2 - 29 P)

    for ``'linear'``, ``'second'`` and ``'third'``. What is stored is the train graph,
    which is smaller than :math:`\bar{P}`. Where :math:`s = 1` the scores are products
    with the sparse :math:`\tilde{R}`, otherwise :math:`\bar{P}` is made, as a dense
    matrix, when the scorer is.

    Args:
        alpha (float, optional): The exponent :math:`\alpha`. (default: ``0.5``)
        power (float, optional): The exponent :math:`s`, above 0. (default: ``1.0``)
        filter (str, optional): The polynomial. (default: ``'linear'``)
    """

    alpha: float = 0.5
    power: float = 1.0
    filter: Literal['linear', 'second', 'third'] = 'linear'
    serves_anyone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.filter not in ('linear', 'second', 'third'):
            raise InputError(
                "'TurboCF' expected a filter 'linear', 'second' or 'third' "
                f'(got {self.filter!r})'
            )

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        self._check(histories.num_items)
        return pack_graph(histories)

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        self._check(histories.num_items)
        train = unpack_graph(stored, histories.num_items)
        hop = item_graph(train, self.alpha, 1 - self.alpha)
        if self.power != 1:
            by_user = interactions(train, self.alpha, 1 - self.alpha)
            matrix = as_scipy(by_user, train.num_items)
            graph = torch.from_numpy((matrix.T @ matrix).toarray()).pow_(self.power)
            hop = graph.matmul

        def score(users: Tensor) -> Tensor:
            # P is symmetric: r P = (P r')', step by step and without powers of P.
            first = hop(item_columns(histories, users))
            if self.filter == 'linear':
                return first.T
            second = hop(first)
            if self.filter == 'second':
                return first.mul_(2).sub_(second).T
            third = hop(second)
            return first.mul_(0.71).add_(second, alpha=0.1).sub_(third, alpha=0.01).T

        return score

    def _check(self, num_items: int) -> None:
        if self.power != 1:
            check_dense(num_items, 'TurboCF', 'use power=1')


def small_int(values: Tensor) -> Tensor:
    """Whole numbers from 0 up in the smallest type that holds them."""
    most = int(values.max()) if values.numel() else 0
    return small_int_below(values, most + 1)


def item_degree(histories: Histories) -> Tensor:
    """The number of users of each item, ``[num_items]``."""
    return degree(histories.col, histories.num_items)


def check_dense(num_items: int, name: str, way_out: str) -> None:
    """Checks that a dense matrix of all pairs of items is not too large.

    Raises:
        InputError: If it is: how large, and what to do.
    """
    if num_items > MAX_DENSE_ITEMS:
        raise InputError(
            f"'{name}' expected at most {MAX_DENSE_ITEMS} items (got {num_items}, a "
            f'matrix of {4e-9 * num_items**2:.1f} GB): {way_out}'
        )


def history_rows(histories: Histories, users: Tensor) -> CSR:
    """Binary rows of users, sparse, ``[B, num_items]``."""
    rowptr, place = take_rows(histories.rowptr, users)
    return CSR(rowptr.int(), histories.col[place].int(), torch.ones(len(place)))


def as_scipy(matrix: CSR, num_cols: int) -> scipy.sparse.csr_matrix:
    """A CSR matrix for SciPy, which multiplies sparse matrices with each other."""
    rowptr, col, weight = (x.numpy() for x in matrix)
    return scipy.sparse.csr_matrix((weight, col, rowptr), (len(rowptr) - 1, num_cols))


def interactions(
    histories: Histories, user_norm: float = 0.5, item_norm: float = 0.5
) -> CSR:
    r"""The interactions :math:`D_U^{-a} R D_I^{-b}`, ``[num_users, num_items]``."""
    sizes = histories.num_users, histories.num_items
    return normalized_interactions(histories.edge_index, *sizes, user_norm, item_norm)


def item_graph(
    train: Histories, user_norm: float = 0.5, item_norm: float = 0.5
) -> Callable[[Tensor], Tensor]:
    r"""The product with :math:`\tilde{R}^{\top} \tilde{R}` of columns."""
    by_user = interactions(train, user_norm, item_norm)
    by_item = by_user.transpose(train.num_items)
    return lambda x: csr_matmul(by_item, csr_matmul(by_user, x))


def item_columns(histories: Histories, users: Tensor) -> Tensor:
    """Binary columns of users, ``[num_items, B]``."""
    return histories.rows(users).T.contiguous()


def singular_vectors(
    histories: Histories,
    rank: int,
    generator: torch.Generator | None,
    user_norm: float = 0.5,
    item_norm: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading left vectors, values and right vectors of the interactions.

    There are at most as many as users or items.
    """
    train, num_items = (
        interactions(histories, user_norm, item_norm),
        histories.num_items,
    )
    rank = min(rank, histories.num_users, num_items)
    return randomized_svd(train, num_items, rank, generator)


def low_pass_scorer(
    x: Tensor,
    degree: Tensor,
    item_power: float,
    histories: Histories,
    item_norm: float = 0.5,
) -> Score:
    r"""Scores :math:`d_j^q \langle \sum_{i \in N(u)} d_i^{-b} \mathbf{x}_i, \,
    \mathbf{x}_j \rangle` from vectors of the items and their degrees.
    """
    degree = degree.clamp(min=1).float().unsqueeze(1)
    source = x * degree**-item_norm
    target = (x * degree**item_power).T
    return lambda users: csr_matmul(history_rows(histories, users), source) @ target
