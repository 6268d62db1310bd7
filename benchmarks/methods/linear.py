"""Linear models between items, in closed form: EASE, EDLAE and a sparse inverse."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from methods.base import (
    Baseline,
    Histories,
    Tensors,
    pack_matrix,
    prefixed,
    unpack_matrix,
    without_prefix,
)
from methods.filters import as_scipy, check_dense, history_rows, item_degree
from methods.items import best_of_rows, check_kept, sparse_scorer
from pyg_c2f.evaluate import Score
from pyg_c2f.packing import pack_bits, round_weights, unpack_bits, weights_of
from pyg_c2f.sparse import csr_matmul, degree, pair_keys, rowptr_of
from pyg_c2f.typing import InputError

MAX_DOUBLE_ITEMS = 8_000
BATCH = 4_000_000  # entries of the systems that are solved at a time
COLUMN_BITS = 8


@dataclass(frozen=True)
class Linear(Baseline):
    r"""What linear models between items have in common: the matrix they invert.

    .. math::
        A = R^{\top} D_U^{-a} R + \lambda I + \frac{p}{1 - p} D_I, \quad
        s_{uj} = d_j^q \sum_{i \in N(u)} d_i^{-b} B_{ij}

    Without exponents and dropout it is that of EASE (`Steck, 2019
    <https://arxiv.org/abs/1905.03375>`_). The second penalty is what random dropout of
    a share :math:`p` of the input comes to: EDLAE (`Steck, 2020
    <https://proceedings.neurips.cc/paper/2020/hash/e33d974aae13e4d877477d51d8bafdc4-Abstract.html>`_).
    The exponents are those of data-aware normalisation (`Park et al., 2025
    <https://arxiv.org/abs/2504.05805>`_), which has :math:`b = q`.

    Args:
        l2 (float, optional): The penalty :math:`\lambda`. (default: ``100.0``)
        dropout (float, optional): The share :math:`p`. (default: ``0.0``)
        user_norm (float, optional): The exponent :math:`a`. (default: ``0.0``)
        item_norm (float, optional): The exponent :math:`b`. (default: ``0.0``)
        item_power (float, optional): The exponent :math:`q`. (default: ``0.0``)
        num_neighbors (float, optional): The stored entries, per item on average;
            without it all. (default: :obj:`None`)
        weight_bits (int, optional): Bits of a stored entry, where not all are.
            (default: ``8``)

    Raises:
        InputError: If the penalty is not above 0, the dropout not a share below 1, or
            nothing is kept.
    """

    l2: float = 100.0
    dropout: float = 0.0
    user_norm: float = 0.0
    item_norm: float = 0.0
    item_power: float = 0.0
    num_neighbors: float | None = None
    weight_bits: int = 8
    serves_anyone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.l2 <= 0:
            raise InputError(f"'{name}' expected l2 above 0 (got {self.l2})")
        if not 0 <= self.dropout < 1:
            raise InputError(
                f"'{name}' expected dropout from 0 to below 1 (got {self.dropout})"
            )
        if self.num_neighbors is not None:
            check_kept(name, self.num_neighbors, self.weight_bits)

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        return self.kept(self.whole(histories), histories)

    @abstractmethod
    def whole(self, histories: Histories) -> Tensors:
        """The model before anything is scaled, left out or rounded."""

    @abstractmethod
    def kept(self, whole: Tensors, histories: Histories) -> Tensors:
        """What is stored of a whole model."""

    def most(self, histories: Histories) -> int | None:
        """The number of entries that are stored, if not all."""
        if self.num_neighbors is None:
            return None
        return max(round(self.num_neighbors * histories.num_items), 1)

    def gram(self, histories: Histories) -> scipy.sparse.csr_matrix:
        r"""The matrix :math:`R^{\top} D_U^{-a} R`, sparse, float64."""
        weight = user_weight(histories, self.user_norm).sqrt()
        weight = weight.repeat_interleave(histories.rowptr.diff())
        rated = as_scipy(histories.matrix(weight), histories.num_items)
        gram = (rated.T @ rated).tocsr()
        gram.sort_indices()
        return gram

    def ridge(self, histories: Histories) -> Tensor:
        """The penalty of each item, float64, ``[num_items]``."""
        share = self.dropout / (1 - self.dropout)
        return self.l2 + share * item_degree(histories).double()


@dataclass(frozen=True)
class EASE(Linear):
    r"""The weights between items that predict each item from the others best.

    .. math::
        B = I - P \, \mathrm{diag}(P)^{-1}, \quad P = A^{-1}

    with the matrix :math:`A` and the scores of :class:`Linear`: the least squares of
    :math:`\| R - R B \|^2` and the penalties of :math:`B` with a diagonal of zeros. It
    is EDLAE where the dropout is above 0. What is stored is all of :math:`B` as
    float16, or as many of its entries as wanted. The entries that go are those which
    cost the least (optimal brain surgeon), :math:`B_{ij}^2 / P_{ii}`; each column is
    then fitted again to those that stay.
    """

    def whole(self, histories: Histories) -> Tensors:
        return {'weight': ease_weights(histories, self).half()}

    def kept(self, whole: Tensors, histories: Histories) -> Tensors:
        weight, most = whole['weight'].float(), self.most(histories)
        count = item_degree(histories).clamp(min=1).float()
        source, target = count**-self.item_norm, count**self.item_power
        if most is None:
            return {'weight': (weight * source.unsqueeze(1) * target).half()}
        gram, ridge = self.gram(histories), self.ridge(histories)
        # By column, since a column is a regression.
        cost = weight.square().mul_(precision(gram, ridge, weight).unsqueeze(1)).T
        col, row = largest(cost, most).nonzero(as_tuple=True)
        fitted = regressions(gram, ridge, col, row).weight
        order = pair_keys((row, col), len(weight)).argsort()
        row, col, fitted = row[order], col[order], fitted[order]
        scaled = fitted.float() * source[row] * target[col]
        return pack_matrix(row, col, scaled, len(weight), self.weight_bits)

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        if self.num_neighbors is not None:
            size = histories.num_items
            return sparse_scorer(unpack_matrix(stored, size, size), histories)
        weight = stored['weight'].float()
        return lambda users: csr_matmul(history_rows(histories, users), weight)


def user_weight(histories: Histories, user_norm: float) -> Tensor:
    """The weight of each user in the matrix of :class:`Linear`, float64."""
    return histories.rowptr.diff().clamp(min=1).double() ** -user_norm


def ease_weights(histories: Histories, settings: Linear) -> Tensor:
    """The matrix B of :class:`EASE`, ``[num_items, num_items]``, float32.

    Raises:
        InputError: If the items are too many.
    """
    num_items = histories.num_items
    check_dense(num_items, 'EASE', "take 'FSAI', which makes no dense matrix")
    dtype = torch.double if num_items < MAX_DOUBLE_ITEMS else torch.float
    ridge = settings.ridge(histories)
    # Large enough to matter: each of these takes the place of the one before it.
    if histories.num_users < num_items:
        # The matrix has the rank of the users, whose inverse is smaller (Woodbury).
        rated = as_scipy(histories.matrix(), num_items).astype(np.float64)
        scaled = rated.multiply(ridge.reciprocal().numpy()).tocsr()
        left = torch.from_numpy((rated @ scaled.T).toarray())
        left.diagonal().add_(user_weight(histories, settings.user_norm).reciprocal())
        root = torch.linalg.cholesky(left)
        half = torch.from_numpy(scaled.toarray())
        half = torch.linalg.solve_triangular(root, half, upper=False).to(dtype)
        inverse = (half.T @ half).neg_()
        inverse.diagonal().add_(ridge.reciprocal())
    else:
        inverse = torch.from_numpy(settings.gram(histories).toarray()).to(dtype)
        inverse.diagonal().add_(ridge)
        torch.linalg.cholesky(inverse, out=inverse)
        torch.cholesky_inverse(inverse, out=inverse)
    scale = inverse.diagonal().reciprocal().neg_()
    return inverse.mul_(scale).fill_diagonal_(0).float()


def precision(gram: scipy.sparse.csr_matrix, ridge: Tensor, weight: Tensor) -> Tensor:
    r"""The numbers :math:`1 / P_{ii}` that belong to EASE's weights, ``[num_items]``.

    They are :math:`A_{ii} - \sum_j A_{ij} B_{ji}`, since :math:`A P = I`.
    """
    row, col, value = entries(gram)
    explained = torch.bincount(row, value * weight[col, row], minlength=len(ridge))
    return (torch.from_numpy(gram.diagonal()) + ridge - explained).float()


def largest(weight: Tensor, num_entries: int) -> Tensor:
    """Which entries of a matrix are the largest by their size."""
    drop = weight.numel() - num_entries
    if drop <= 0:
        return weight != 0
    # NumPy's partition works in place, where kthvalue makes indices of twice the size.
    size = weight.abs().flatten().numpy()
    size.partition(drop)
    return (weight.abs() >= size[drop].item()) & (weight != 0)


@dataclass(frozen=True)
class FSAI(Linear):
    r"""EASE by a sparse factor of the inverse: a factorised sparse approximate inverse.

    .. math::
        P \approx G^{\top} G, \quad G = D_v^{-1/2} (I - W), \quad
        B = I - P \, \mathrm{diag}(P)^{-1}

    with the matrix :math:`A = P^{-1}` and the scores of :class:`Linear`. Items are in
    the order of their degrees. Row :math:`i` of :math:`W` is the regression, with the
    penalties, of item :math:`i` on its :math:`m` nearest items before it, those of the
    highest :math:`A_{ij}^2 / A_{jj}`, and :math:`v_i` is what it leaves over: of all
    factors with these entries the one with the least :math:`\| I - G L \|`, where
    :math:`A = L L^{\top}` (`Kolotilina and Yeremin, 1993
    <https://doi.org/10.1137/0614004>`_). Where all pairs of items share a user and
    :math:`m` is the number of items it is EASE exactly. No matrix of all pairs of items
    is made but the sparse :math:`R^{\top} D_U^{-a} R`.
    SANSA (`Spišák et al., 2023 <https://doi.org/10.1145/3604915.3608827>`_) has the
    same form; it makes an incomplete factor of :math:`A` first and inverts that.

    What is stored are :math:`W`, rounded, and a byte each for :math:`v` and the
    degrees. Where fewer entries are
    wanted, those go which add the least to the sum of :math:`\log v_i`, and each row is
    fitted again.

    Args:
        num_candidates (int, optional): The number :math:`m`. (default: ``100``)
        popular_first (bool, optional): Whether the degrees fall. (default: :obj:`True`)
    """

    num_candidates: int = 100
    popular_first: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_candidates < 1:
            raise InputError(
                f"'FSAI' expected num_candidates from 1 up (got {self.num_candidates})"
            )

    def whole(self, histories: Histories) -> Tensors:
        gram, ridge = self.gram(histories), self.ridge(histories)
        row, col = self._candidates(histories, gram, ridge)
        weight, cost, variance = regressions(gram, ridge, row, col)
        return {
            'row': row.int(),
            'col': col.int(),
            'weight': weight.float(),
            'cost': (cost / variance[row]).float(),
            'variance': variance,
        }

    def kept(self, whole: Tensors, histories: Histories) -> Tensors:
        row, col = whole['row'].long(), whole['col'].long()
        weight, variance, most = (
            whole['weight'],
            whole['variance'],
            self.most(histories),
        )
        if most is not None and most < len(row):
            kept = whole['cost'].topk(most).indices.sort().values
            row, col = row[kept], col[kept]
            system = self.gram(histories), self.ridge(histories)
            weight, _, variance = regressions(*system, row, col)
        matrix = pack_matrix(
            row, col, weight.float(), histories.num_items, self.weight_bits
        )
        degree = item_degree(histories).clamp(min=1)
        return (
            prefixed('matrix', matrix)
            | prefixed('variance', pack_column(variance))
            | prefixed('degree', pack_column(degree))
        )

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        size = histories.num_items
        matrix = unpack_matrix(without_prefix('matrix', stored), size, size)
        variance, degree = (
            unpack_column(without_prefix(x, stored), size).numpy()
            for x in ('variance', 'degree')
        )
        factor = scipy.sparse.identity(size, np.float32) - as_scipy(matrix, size)
        factor = scipy.sparse.diags(variance**-0.5) @ factor
        source, target = degree**-self.item_norm, degree**self.item_power
        inverse = factor.power(2).sum(axis=0).A1
        before, after = factor.T.tocsr(), factor.tocsr()

        def score(users: Tensor) -> Tensor:
            rows = as_scipy(history_rows(histories, users), size)
            rows.data *= source[rows.indices]
            out = rows.toarray() - (rows @ before @ after).toarray() / inverse
            return torch.from_numpy((out * target).astype(np.float32))

        return score

    def _candidates(
        self, histories: Histories, gram: scipy.sparse.csr_matrix, ridge: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Items and those before them that they are regressed on, sorted by both."""
        degree = item_degree(histories)
        order = degree.argsort(descending=self.popular_first, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        row, col, value = entries(gram)
        before = rank[col] < rank[row]
        row, col, value = row[before], col[before], value[before]
        diagonal = torch.from_numpy(gram.diagonal()) + ridge
        kept = best_of_rows(row, value.square() / diagonal[col], self.num_candidates)
        kept = kept[pair_keys((row[kept], col[kept]), len(order)).argsort()]
        return row[kept], col[kept]


class Regressions(NamedTuple):
    """Items as regressions on others."""

    weight: Tensor  # [num_entries]
    cost: Tensor  # [num_entries], what the loss rises by without the entry
    variance: Tensor  # [num_items], what is left over, with the penalties


def regressions(
    gram: scipy.sparse.csr_matrix, ridge: Tensor, target: Tensor, source: Tensor
) -> Regressions:
    r"""The regressions of items on a few others each, float64.

    With the members :math:`S` of item :math:`j` and :math:`A` the matrix plus the
    penalties,

    .. math::
        \mathbf{w}_j = A_{SS}^{-1} A_{Sj}, \quad
        v_j = A_{jj} - A_{jS} \mathbf{w}_j, \quad
        c_{ij} = w_{ij}^2 / (A_{SS}^{-1})_{ii}

    Args:
        gram (scipy.sparse.csr_matrix): The matrix without penalties, symmetric, its
            indices sorted.
        ridge (Tensor): The penalties, ``[num_items]``.
        target (Tensor): The items, rising, one for each entry.
        source (Tensor): The items that they are regressed on.
    """
    num_items = len(ridge)
    row, col, value = entries(gram)
    keys = pair_keys((row, col), num_items)

    def at(row: Tensor, col: Tensor) -> Tensor:
        # SciPy's own look-up took up to ten times as long on Gowalla.
        wanted = pair_keys((row, col), num_items)
        place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
        return torch.where(keys[place] == wanted, value[place], 0.0)

    count = degree(target, num_items)
    start = rowptr_of(target, num_items)
    weight = torch.zeros(len(target), dtype=torch.double)
    cost = torch.zeros_like(weight)
    variance = torch.from_numpy(gram.diagonal()) + ridge
    # Systems of about one size are solved together, the largest first.
    order = count.argsort(descending=True, stable=True)
    order = order[count[order] > 0]
    while len(order):
        size = int(count[order[0]])
        items, order = order.tensor_split([max(BATCH // size**2, 1)])
        place = torch.arange(size).expand(len(items), -1)
        alive = place < count[items].unsqueeze(1)
        place = torch.where(alive, place + start[items].unsqueeze(1), 0)
        member = source[place]
        left = at(member.unsqueeze(2), member.unsqueeze(1))
        left *= alive.unsqueeze(2) & alive.unsqueeze(1)
        left.diagonal(dim1=1, dim2=2).add_(torch.where(alive, ridge[member], 1.0))
        right = at(items.unsqueeze(1), member) * alive
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(left))
        found = (inverse @ right.unsqueeze(2)).squeeze(2)
        weight[place[alive]] = found[alive]
        loss = found.square() / inverse.diagonal(dim1=1, dim2=2)
        cost[place[alive]] = loss[alive]
        variance[items] -= (right * found).sum(dim=1)
    return Regressions(weight, cost, variance)


def entries(matrix: scipy.sparse.csr_matrix) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of a sparse matrix, by row."""
    rowptr, col = (torch.from_numpy(x).long() for x in (matrix.indptr, matrix.indices))
    row = torch.repeat_interleave(rowptr.diff())
    return row, col, torch.from_numpy(matrix.data)


def pack_column(values: Tensor) -> Tensors:
    """A positive number of each item in a byte, on a logarithmic grid."""
    codes, grid = round_weights(values, COLUMN_BITS)
    return {'codes': pack_bits(codes, COLUMN_BITS), 'grid': torch.tensor(grid)}


def unpack_column(stored: Tensors, num_items: int) -> Tensor:
    """The numbers that :func:`pack_column` packed, float32."""
    codes = unpack_bits(stored['codes'], COLUMN_BITS, num_items)
    low, high = stored['grid'].tolist()
    return weights_of(codes, COLUMN_BITS, (low, high))
