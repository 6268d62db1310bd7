"""Nearest neighbours of the items, by the library implicit."""

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import (
    Baseline,
    Histories,
    Tensors,
    Watch,
    check_kept,
    pack_matrix,
    unpack_matrix,
)
from methods.filters import as_scipy, history_rows, item_degree
from pyg_c2f.evaluate import Score
from pyg_c2f.sparse import CSR, degree, pair_keys
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
        InputError: If there is no such measure, or nothing is kept.
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
        self,
        histories: Histories,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensors:
        row, col, weight = self._neighbors(histories)
        weight = weight * item_degree(histories)[col] ** self.item_power
        return pack_matrix(row, col, weight, histories.num_items, self.weight_bits)

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        num_items = histories.num_items
        return sparse_scorer(unpack_matrix(stored, num_items, num_items), histories)

    def _neighbors(self, histories: Histories) -> tuple[Tensor, Tensor, Tensor]:
        """Items, their neighbours and the similarities, sorted by both."""
        try:
            from implicit import nearest_neighbours
        except ImportError as error:
            raise ImportError(
                "'ItemKNN' needs implicit: pip install pyg-c2f[bench]"
            ) from error
        recommender = {
            'cosine': nearest_neighbours.CosineRecommender,
            'tfidf': nearest_neighbours.TFIDFRecommender,
            'bm25': nearest_neighbours.BM25Recommender,
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
        order = weight.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        count = degree(row, histories.num_items)
        rank = torch.arange(len(row)) - (count.cumsum(0) - count)[row[order]]
        kept = order[rank < self.num_neighbors]
        kept = kept[pair_keys((row[kept], col[kept]), histories.num_items).argsort()]
        return row[kept], col[kept], weight[kept]


def sparse_scorer(matrix: CSR, histories: Histories) -> Score:
    """Scores of binary rows times a sparse matrix ``[num_items, num_items]``."""
    num_items = histories.num_items
    weights = as_scipy(matrix, num_items)

    def score(users: Tensor) -> Tensor:
        rows = as_scipy(history_rows(histories, users), num_items)
        return torch.from_numpy((rows @ weights).toarray())

    return score
