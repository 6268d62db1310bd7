"""Alternating least squares on implicit feedback, by the library implicit."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.base import (
    Baseline,
    Histories,
    Tensors,
    Watch,
    prefixed,
    without_prefix,
)
from methods.codec import Codec, Plain
from methods.filters import as_scipy
from pyg_c2f.evaluate import Score


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
        self,
        histories: Histories,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensors:
        try:
            from implicit.cpu.als import AlternatingLeastSquares
        except ImportError as error:
            raise ImportError(
                "'IALS' needs implicit: pip install pyg-c2f[bench]"
            ) from error
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        model = AlternatingLeastSquares(
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
