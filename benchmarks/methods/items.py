"""Models of items alone: nearest neighbours and iALS."""

import warnings
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import ClassVar, Literal

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
from methods.codec import Codec, Plain
from methods.filters import as_scipy, history_rows, item_degree
from pyg_c2f.evaluate import Score
from pyg_c2f.sparse import CSR, pair_keys, rowptr_of
from pyg_c2f.typing import InputError


@dataclass(frozen=True)
class ItemKNN(Baseline):
    r"""Each item of a history votes for its nearest neighbours.

    .. math::
        s_{uj} = \sum_{i \in N(u), \, j \in N_k(i)} d_j^q \, \mathrm{sim}(i, j)

    Similarities and neighbours are those of :mod:`implicit`, an item itself left out:
    its score matters to nobody who has it. The factor of the degree is put into the
    weights that are stored.

    Args:
        num_neighbors (int, optional): The number :math:`k` of neighbours of an item.
            (default: ``20``)
        measure (str, optional): How the users of items are weighted: ``'cosine'``,
            ``'tfidf'`` (the cosine of weighted ones) or ``'bm25'`` (an inner product).
            (default: ``'cosine'``)
        item_power (float, optional): The exponent :math:`q`. (default: ``0.0``)
        weight_bits (int, optional): Bits of a stored weight. (default: ``8``)

    Raises:
        InputError: If the measure is unknown, or nothing is kept.
    """

    num_neighbors: int = 20
    measure: Literal['cosine', 'tfidf', 'bm25'] = 'cosine'
    item_power: float = 0.0
    weight_bits: int = 8
    serves_anyone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.measure not in ('cosine', 'tfidf', 'bm25'):
            raise InputError(
                "'ItemKNN' expected a measure 'cosine', 'tfidf' or 'bm25' "
                f'(got {self.measure!r})'
            )
        check_kept('ItemKNN', self.num_neighbors, self.weight_bits)

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        row, col, weight = self._neighbors(histories)
        weight = weight * item_degree(histories)[col] ** self.item_power
        return pack_matrix(row, col, weight, histories.num_items, self.weight_bits)

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        num_items = histories.num_items
        return sparse_scorer(unpack_matrix(stored, num_items, num_items), histories)

    def _neighbors(self, histories: Histories) -> tuple[Tensor, Tensor, Tensor]:
        """Items, their neighbours and the similarities, sorted by both."""
        library = _implicit('ItemKNN', 'implicit.nearest_neighbours')
        recommender = {
            'cosine': library.CosineRecommender,
            'tfidf': library.TFIDFRecommender,
            'bm25': library.BM25Recommender,
        }[self.measure]
        # One more, since an item is mostly the nearest to itself.
        model = recommender(self.num_neighbors + 1, num_threads=torch.get_num_threads())
        alive = torch.ones(histories.col.numel())
        if self.measure == 'tfidf':
            # The weight of a user with all items but one is zero, and so is the length
            # of an item that only such users have, which implicit divides by.
            count = histories.rowptr.diff()
            alive = (count != histories.num_items - 1).repeat_interleave(count).float()
        rated = as_scipy(histories.matrix(alive), histories.num_items)
        rated.eliminate_zeros()
        with warnings.catch_warnings():
            # It warns of the form that its own weighting gives the matrix.
            warnings.simplefilter('ignore')
            model.fit(rated, show_progress=False)
        found = model.similarity.tocoo()
        row, col = (torch.from_numpy(x).long() for x in (found.row, found.col))
        weight = torch.from_numpy(found.data)
        other = row != col
        row, col, weight = row[other], col[other], weight[other]
        # Where it is not, one neighbour is too many.
        kept = best_of_rows(row, weight, self.num_neighbors)
        kept = kept[pair_keys((row[kept], col[kept]), histories.num_items).argsort()]
        return row[kept], col[kept], weight[kept]


def best_of_rows(row: Tensor, value: Tensor, most: int) -> Tensor:
    """The entries of a sparse matrix with the ``most`` highest values of each row.

    They are sorted by row; of equal values the first ones are taken.
    """
    order = value.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    rowptr = rowptr_of(row, int(row.max()) + 1 if row.numel() else 0)
    rank = torch.arange(len(row)) - rowptr[row[order]]
    return order[rank < most]


def sparse_scorer(matrix: CSR, histories: Histories) -> Score:
    """Scores of binary rows times a sparse matrix ``[num_items, num_items]``."""
    num_items = histories.num_items
    weights = as_scipy(matrix, num_items)

    def score(users: Tensor) -> Tensor:
        rows = as_scipy(history_rows(histories, users), num_items)
        return torch.from_numpy((rows @ weights).toarray())

    return score


@dataclass(frozen=True)
class IALS(Baseline):
    r"""iALS: weighted factorisation, a user solved for from his items.

    .. math::
        \mathbf{x}_u = \Big( Y^{\top} Y + \sum_{i \in N(u)} (\alpha - 1) \,
        \mathbf{y}_i \mathbf{y}_i^{\top} + \lambda I \Big)^{-1} \sum_{i \in N(u)} \alpha
        \, \mathbf{y}_i, \quad s_{uj} = \mathbf{x}_u^{\top} \mathbf{y}_j

    `"Collaborative Filtering for Implicit Feedback Datasets"
    <https://doi.org/10.1109/ICDM.2008.22>`_, as :mod:`implicit` trains it. What is
    stored is the table of the items through the codec: users, known or not, are solved
    for when they ask.

    Args:
        embedding_dim (int, optional): The width. (default: ``64``)
        alpha (float, optional): The confidence :math:`\alpha` of an interaction, that
            of all other pairs being 1. (default: ``10.0``)
        lambda_reg (float, optional): The penalty :math:`\lambda`. (default: ``10.0``)
        epochs (int, optional): Rounds of users and items. (default: ``15``)
        codec (Codec, optional): The stored form of a table. (default: float32)
    """

    embedding_dim: int = 64
    alpha: float = 10.0
    lambda_reg: float = 10.0
    epochs: int = 15
    codec: Codec = Plain()
    serves_anyone: ClassVar[bool] = True

    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        library = _implicit('IALS', 'implicit.cpu.als')
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        model = library.AlternatingLeastSquares(
            self.embedding_dim,
            regularization=self.lambda_reg,
            alpha=self.alpha,
            iterations=self.epochs,
            num_threads=torch.get_num_threads(),
            random_state=seed,
        )
        rated = as_scipy(histories.matrix(), histories.num_items)
        model.fit(rated, show_progress=False)
        item = torch.from_numpy(model.item_factors)
        return prefixed('item', self.codec.encode(item, generator))

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        item = self.codec.decode(without_prefix('item', stored))
        # Of items that lie close together the sums below leave few digits to a user.
        y, dim = item.double(), item.size(1)
        fixed = y.T @ y + self.lambda_reg * torch.eye(dim, dtype=y.dtype)
        rowptr, col = histories.rowptr.tolist(), histories.col

        def score(users: Tensor) -> Tensor:
            x = y.new_empty(len(users), dim)
            for row, user in zip(x, users.tolist(), strict=True):
                seen = y[col[rowptr[user] : rowptr[user + 1]]]
                left = torch.addmm(fixed, seen.T, seen, alpha=self.alpha - 1)
                row.copy_(torch.linalg.solve(left, self.alpha * seen.sum(dim=0)))
            return (x @ y.T).to(item)

        return score


def check_kept(name: str, num_neighbors: float, weight_bits: int) -> None:
    """Checks what is kept of a matrix of items: how many entries, in how many bits.

    Raises:
        InputError: If nothing is, or a weight has no bit beside its sign.
    """
    if num_neighbors <= 0:
        raise InputError(
            f"'{name}' expected num_neighbors above 0 (got {num_neighbors})"
        )
    if weight_bits < 2:
        raise InputError(
            f"'{name}' expected at least 2 weight_bits, the sign among them "
            f'(got {weight_bits})'
        )


def _implicit(method: str, module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"'{method}' needs implicit: pip install pyg-c2f[bench]"
        ) from error
