"""The same list for everyone: the items that most users have."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from methods.base import Baseline, Histories, Tensors, Watch
from methods.filters import item_degree, small_int
from pyg_c2f.evaluate import Score


@dataclass(frozen=True)
class Popularity(Baseline):
    r"""Scores an item by its number of train users, :math:`s_{uj} = d_j`.

    What is stored are the degrees.
    """

    serves_anyone: ClassVar[bool] = True

    def fit(
        self,
        histories: Histories,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensors:
        return {'degree': small_int(item_degree(histories))}

    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        degree = stored['degree'].float()
        return lambda users: degree.expand(len(users), -1)
