r"""The interface of a method: a fit, the tensors of its file, and scores from these.

A method's scores come from the tensors that :meth:`Baseline.fit` returns and from the
items of the person who asks, and from nothing else, so that the size of the file with
these tensors is the size of the method.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from pyg_c2f.evaluate import Score
from pyg_c2f.packing import (
    pack_bits,
    pack_sorted,
    round_weights,
    unpack_bits,
    unpack_sorted,
    weights_of,
)
from pyg_c2f.sparse import (
    CSR,
    check_pairs,
    pair_keys,
    rowptr_of,
    split_keys,
    take_rows,
    unique_pairs,
)
from pyg_c2f.typing import InputError

Tensors = dict[str, Tensor]


class Histories(NamedTuple):
    """The items of each user, rising.

    Of the train users for :meth:`Baseline.fit`, of whoever asks for
    :meth:`Baseline.scorer`.
    """

    rowptr: Tensor  # [num_users + 1], int64
    col: Tensor  # [num_edges], int64
    num_items: int

    @property
    def num_users(self) -> int:
        return self.rowptr.numel() - 1

    @property
    def edge_index(self) -> Tensor:
        """The pairs, users in row 0, items in row 1, ``[2, num_edges]``."""
        user = torch.repeat_interleave(self.rowptr.diff())
        return torch.stack([user, self.col])

    def rows(self, users: Tensor) -> Tensor:
        """Binary rows of users, ``[B, num_items]``."""
        taken, place = take_rows(self.rowptr, users)
        out = torch.zeros(len(users), self.num_items)
        out[torch.repeat_interleave(taken.diff()), self.col[place]] = 1
        return out

    def matrix(self, weight: Tensor | None = None) -> CSR:
        """The users' rows as a CSR matrix, with the given weights of pairs or ones."""
        weight = torch.ones(self.col.numel()) if weight is None else weight
        return CSR(self.rowptr.int(), self.col.int(), weight)


def histories_of(edge_index: Tensor, num_users: int, num_items: int) -> Histories:
    """Sorts pairs of users and items, each pair once.

    Raises:
        InputError: If the pairs are not whole numbers, or an id is out of range.
    """
    if edge_index.shape[:-1] != (2,) or edge_index.is_floating_point():
        raise InputError(
            "'histories_of' expected pairs of shape [2, num_edges], whole numbers "
            f'(got shape {list(edge_index.shape)}, {edge_index.dtype})'
        )
    check_pairs(edge_index, num_users, num_items, 'histories_of', 'edge_index')
    user, item = unique_pairs(edge_index, num_items)
    return Histories(rowptr_of(user, num_users), item, num_items)


class Baseline(ABC):
    """A method and its settings, which are the fields of a frozen dataclass."""

    serves_anyone: ClassVar[bool]
    """Whether a list needs a history only, not a user of the training."""

    @abstractmethod
    def fit(
        self, histories: Histories, generator: torch.Generator | None = None
    ) -> Tensors:
        """Fits to the train interactions.

        Args:
            histories (Histories): The train interactions.
            generator (torch.Generator, optional): All randomness, on the CPU.

        Returns:
            Dict: All that :meth:`scorer` needs beside a history, in its stored form.
        """

    @abstractmethod
    def scorer(self, stored: Tensors, histories: Histories) -> Score:
        """Scores from what is stored.

        Args:
            stored (Dict): What :meth:`fit` returned.
            histories (Histories): The items of those who ask. Where the method does
                not serve anyone, these have to be the users of the training.

        Returns:
            Callable: Maps user ids ``[B]`` (rows of the histories) to scores
            ``[B, num_items]``.
        """


def file_bytes(stored: Tensors) -> bytes:
    """The file that stands for a method: its tensors as safetensors."""
    return to_bytes({name: x.contiguous() for name, x in stored.items()})


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    """Names below a prefix, ``'prefix.name'``."""
    return {f'{prefix}.{name}': x for name, x in tensors.items()}


def without_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names have the prefix, without it."""
    prefix += '.'
    return {
        name.removeprefix(prefix): x
        for name, x in tensors.items()
        if name.startswith(prefix)
    }


def pack_pairs(row: Tensor, col: Tensor, num_cols: int) -> Tensors:
    """The places of a sparse matrix's entries (sorted), by :func:`pack_sorted`."""
    low, high, width = pack_sorted(pair_keys((row, col), num_cols))
    return {'low': low, 'high': high, 'width': width}


def unpack_pairs(stored: Tensors, num_cols: int) -> tuple[Tensor, Tensor]:
    """Rows and columns that :func:`pack_pairs` packed."""
    key = unpack_sorted(stored['low'], stored['high'], stored['width'])
    return split_keys(key, num_cols)


def pack_graph(histories: Histories) -> Tensors:
    """The train graph in compact form: about 12.5 bits an interaction on Gowalla."""
    user, item = histories.edge_index
    return pack_pairs(user, item, histories.num_items)


def unpack_graph(stored: Tensors, num_items: int, num_users: int = 0) -> Histories:
    """The train interactions that :func:`pack_graph` packed.

    The packed form does not contain the number of users; pass it if users after the
    last one with items matter.
    """
    user, item = unpack_pairs(stored, num_items)
    return Histories(rowptr_of(user, num_users), item, num_items)


def pack_matrix(
    row: Tensor, col: Tensor, weight: Tensor, num_cols: int, num_bits: int = 8
) -> Tensors:
    """A sparse matrix: places as :func:`pack_pairs`, weights on a logarithmic grid.

    Args:
        row (Tensor): Rows, rising.
        col (Tensor): Columns, rising in a row.
        weight (Tensor): Weights; zeros are left out.
        num_cols (int): The number of columns.
        num_bits (int, optional): Bits of a weight, its sign among them.
            (default: ``8``)
    """
    alive = weight != 0
    codes, grid = round_weights(weight[alive], num_bits)
    stored = pack_pairs(row[alive], col[alive], num_cols)
    return stored | {
        'weight': pack_bits(codes, num_bits),
        'grid': torch.tensor(grid),
        'bits': torch.tensor([num_bits], dtype=torch.uint8),
    }


def unpack_matrix(stored: Tensors, num_rows: int, num_cols: int) -> CSR:
    """The matrix that :func:`pack_matrix` packed, its weights rounded."""
    row, col = unpack_pairs(stored, num_cols)
    num_bits = int(stored['bits'])
    codes = unpack_bits(stored['weight'], num_bits, len(row))
    low, high = stored['grid'].tolist()
    weight = weights_of(codes, num_bits, (low, high))
    return CSR.from_sorted(row, col, weight, num_rows)
