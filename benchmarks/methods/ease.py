"""EASE: a linear model between items in closed form, whole or pruned."""

from dataclasses import dataclass
from typing import ClassVar

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
from methods.filters import as_scipy, check_dense, history_rows
from methods.neighbors import sparse_scorer
from pyg_c2f.evaluate import Score
from pyg_c2f.sparse import csr_matmul
from pyg_c2f.typing import InputError

MAX_DOUBLE_ITEMS = 8_000


@dataclass(frozen=True)
class EASE(Baseline):
    r"""The items' weights that tell each item from the others best.

    .. math::
        \mathbf{s}_u = \mathbf{r}_u B, \quad
        B = I - P \, \mathrm{diag}(P)^{-1}, \quad P = (R^{\top} R + \lambda I)^{-1}

    the least squares of :math:`\| R - R B \|^2 + \lambda \| B \|^2` with a diagonal of
    zeros (`Steck, 2019 <https://arxiv.org/abs/1905.03375>`_). What is stored is all of
    :math:`B` as float16, or its largest entries.

    Args:
        l2 (float, optional): The penalty :math:`\lambda`. (default: ``100.0``)
        num_neighbors (float, optional): The stored entries, per item on average;
            without it all. (default: :obj:`None`)
        weight_bits (int, optional): Bits of a stored entry, where not all are.
            (default: ``8``)

    Raises:
        InputError: If the penalty is not above 0, or nothing is kept.
    """

    l2: float = 100.0
    num_neighbors: float | None = None
    weight_bits: int = 8
    serves_anyone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.l2 <= 0:
            raise InputError(f"'EASE' expected l2 above 0 (got {self.l2})")
        if self.num_neighbors is not None:
            check_kept('EASE', self.num_neighbors, self.weight_bits)

    def fit(
        self,
        histories: Histories,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensors:
        return self.stored(ease_weights(histories, self.l2))

    def stored(self, weight: Tensor) -> Tensors:
        """What is kept of the matrix B."""
        if self.num_neighbors is None:
            return {'weight': weight.half()}
        kept = largest(weight, max(round(self.num_neighbors * len(weight)), 1))
        row, col = kept.nonzero(as_tuple=True)
        return pack_matrix(row, col, weight[row, col], len(weight), self.weight_bits)

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        if self.num_neighbors is not None:
            size = histories.num_items
            return sparse_scorer(unpack_matrix(stored, size, size), histories)
        weight = stored['weight'].float()
        return lambda users: csr_matmul(history_rows(histories, users), weight)


def ease_weights(histories: Histories, l2: float) -> Tensor:
    """The matrix B of :class:`EASE`, ``[num_items, num_items]``, float32.

    Raises:
        InputError: If the items are too many.
    """
    check_dense(
        histories.num_items, 'EASE', 'leave out the items of the fewest interactions'
    )
    rated = as_scipy(histories.matrix(), histories.num_items)
    gram = torch.from_numpy((rated.T @ rated).toarray())
    gram = gram.double() if len(gram) < MAX_DOUBLE_ITEMS else gram
    gram.diagonal().add_(l2)
    # Large enough to matter: each of these takes the place of the one before it.
    torch.linalg.cholesky(gram, out=gram)
    torch.cholesky_inverse(gram, out=gram)
    scale = gram.diagonal().reciprocal().neg_()
    gram.mul_(scale).fill_diagonal_(0)
    return gram.float()


def largest(weight: Tensor, num_entries: int) -> Tensor:
    """Which entries of a matrix are the largest by their size."""
    drop = weight.numel() - num_entries
    if drop <= 0:
        return weight != 0
    # NumPy's partition works in place, where kthvalue makes indices of twice the size.
    size = weight.abs().flatten().numpy()
    size.partition(drop)
    return (weight.abs() >= size[drop].item()) & (weight != 0)
