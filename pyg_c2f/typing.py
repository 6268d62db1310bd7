"""Names of node and edge types, what scores are, and the one error for bad input."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # The command line reads settings before torch is there.
    from torch import Tensor

USER, ITEM, COARSE, FINE = 'user', 'item', 'coarse', 'fine'

RATES = (USER, 'rates', ITEM)
RATED_BY = (ITEM, 'rated_by', USER)
COARSE_USER = (COARSE, 'anchors', USER)
COARSE_ITEM = (COARSE, 'anchors', ITEM)
FINE_COARSE = (FINE, 'anchors', COARSE)

EdgeType = tuple[str, str, str]
Protocol = Literal['c2f', 'standard']
Split = Literal['val', 'test']
Stage = Literal['coarse', 'fine']
Stored = Literal['packed', 'float32']

Score = Callable[['Tensor'], 'Tensor']
"""Maps users ``[B]`` to the scores of all items, ``[B, num_items]``."""

KS = (5, 10, 20, 50)
SELECTION = 'ndcg@5'  # of the validation items: what models are chosen by


class InputError(ValueError):
    """A wrong call or bad input: one line saying what, where and how to mend it."""


class Assignment(NamedTuple):
    """A sparse row-wise assignment of nodes to anchors, ``t`` entries a row.

    A zero weight is not a link.
    """

    index: 'Tensor'  # type: ignore[assignment]  # [num_nodes, t], int64, anchor ids
    weight: 'Tensor'  # [num_nodes, t], float
