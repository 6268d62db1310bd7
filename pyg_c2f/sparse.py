r"""The sparse matrix: pairs of rows and columns, compressed by row."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import cumsum

from pyg_c2f.typing import InputError

# Neighbouring columns whose scores are searched through their maximum first.
TILE_SIZE = 64


def check_pairs(
    pairs: Tensor, num_users: int, num_items: int, where: str, what: str
) -> None:
    """Checks that pairs of users and items fit the numbers of both.

    Raises:
        InputError: If an id is out of range: ``where``, and of which pairs (``what``).
    """
    for name, ids, size in zip(
        ('user', 'item'), pairs, (num_users, num_items), strict=True
    ):
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= size):
            raise InputError(
                f'{where}: {name} ids {int(ids.min())} to {int(ids.max())} of {what} '
                f'do not fit num_{name}s={size}; number the {name}s from 0'
            )


def pair_keys(pairs: Any, num_cols: int) -> Any:
    """One whole number for each pair of a row and a column, rising by row, then column.

    The pairs are a tensor ``[2, num_pairs]``, or two tensors or NumPy arrays.
    """
    row, col = pairs
    return row * num_cols + col


def split_keys(keys: Any, num_cols: int) -> tuple[Any, Any]:
    """The rows and columns of :func:`pair_keys`."""
    return keys // num_cols, keys % num_cols


def are_rising(keys: Tensor) -> bool:
    """Whether each number is larger than the one before."""
    return bool((keys[1:] > keys[:-1]).all())


def unique_pairs(edge_index: Tensor, num_items: int) -> Tensor:
    """The distinct pairs of users and items, sorted by user, then item.

    Args:
        edge_index (Tensor): The pairs, users in row 0, items in row 1.
        num_items (int): The number of items.

    Returns:
        Tensor: The pairs; the given tensor itself, where they are so already.
    """
    keys = pair_keys(edge_index, num_items)
    if are_rising(keys):
        return edge_index
    return torch.stack(split_keys(torch.unique(keys), num_items))


def pairs_of(edge_index: Tensor, first: int, last: int) -> Tensor:
    """The pairs of the users from ``first`` to before ``last``, of pairs by user."""
    ends = edge_index.new_tensor([first, last])
    begin, end = torch.searchsorted(edge_index[0].contiguous(), ends).tolist()
    return edge_index[:, begin:end]


def degree(index: Tensor, num_nodes: int) -> Tensor:
    """How often each of the numbers below ``num_nodes`` occurs, int64."""
    return torch.bincount(index, minlength=num_nodes)


def rowptr_of(row: Tensor, num_rows: int) -> Tensor:
    """Where each row begins once the entries are sorted by row, ``[num_rows + 1]``."""
    return cumsum(degree(row, num_rows))


def take_rows(rowptr: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Some rows of a CSR matrix: their ``rowptr``, and the places of their entries."""
    start = rowptr[rows]
    count = rowptr[rows + 1] - start
    taken = cumsum(count)
    row = torch.repeat_interleave(count)
    place = torch.arange(row.numel(), device=row.device)
    return taken, place + (start - taken[:-1])[row]


class CSR(NamedTuple):
    """A sparse matrix in compressed rows.

    Its number of columns is not kept: methods that need it take it.

    Example:
        >>> pairs, weight = torch.tensor([[1, 0, 1], [2, 1, 0]]), torch.ones(3)
        >>> csr = CSR.from_pairs(pairs, weight, num_rows=2, num_cols=3)
        >>> csr.rowptr.tolist(), csr.col.tolist()
        ([0, 1, 3], [1, 0, 2])
        >>> csr.transpose(num_cols=3).row.tolist()
        [0, 1, 2]
    """

    rowptr: Tensor  # [num_rows + 1]
    col: Tensor  # [num_edges]
    weight: Tensor  # [num_edges]

    @classmethod
    def from_pairs(
        cls, pairs: Tensor, weight: Tensor, num_rows: int, num_cols: int
    ) -> 'CSR':
        """The matrix of distinct pairs in any order, with 32-bit indices.

        Args:
            pairs (Tensor): Rows and columns, ``[2, num_edges]``.
            weight (Tensor): The entries, ``[num_edges]``.
            num_rows (int): The number of rows.
            num_cols (int): The number of columns.
        """
        row, col = pairs
        keys = pair_keys(pairs, num_cols)
        # The sort is most of the time. A compiler cannot follow what the keys decide.
        if torch.compiler.is_compiling() or not are_rising(keys):
            perm = keys.argsort()
            col, weight = col[perm], weight[perm]
        return cls.from_sorted(row, col, weight, num_rows)

    @classmethod
    def from_sorted(
        cls, row: Tensor, col: Tensor, weight: Tensor, num_rows: int
    ) -> 'CSR':
        """The matrix of entries that are sorted by row, with 32-bit indices.

        Of ``row`` only the counts are looked at: it may be in another order.
        """
        return cls(rowptr_of(row, num_rows).int(), col.int(), weight)

    @property
    def num_rows(self) -> int:
        return self.rowptr.numel() - 1

    @property
    def row(self) -> Tensor:
        """The row of each entry, ``[num_edges]``."""
        return torch.repeat_interleave(self.rowptr.diff())

    def select(self, rows: Tensor) -> 'CSR':
        """Rows by number, in the given order."""
        rowptr, place = take_rows(self.rowptr, rows)
        return CSR(rowptr, self.col[place], self.weight[place])

    def between(self, first: int, last: int) -> 'CSR':
        """The rows from ``first`` to before ``last``; the entries are views."""
        rowptr = self.rowptr[first : last + 1]
        begin, end = int(rowptr[0]), int(rowptr[-1])
        return CSR(rowptr - begin, self.col[begin:end], self.weight[begin:end])

    def transpose(self, num_cols: int) -> 'CSR':
        """The transposed matrix, the entries of a row in the order of their columns."""
        row, perm = self.col.sort(stable=True)
        rowptr = rowptr_of(row, num_cols).to(row.dtype)
        return CSR(rowptr, self.row[perm], self.weight[perm])

    def to(self, dtype: torch.dtype) -> 'CSR':
        """The matrix with entries of another type."""
        return self._replace(weight=self.weight.to(dtype))


def csr_matmul(csr: CSR, x: Tensor) -> Tensor:
    r"""The product of a CSR matrix with a dense one.

    On the CPU it is an embedding bag, whose kernel prefetches the gathered rows: on
    real interaction graphs it takes less than half the time of ``torch.sparse``. That
    kernel is float32 only, and on a GPU ``torch.sparse`` is faster.
    """
    rowptr, col, weight = csr
    if x.is_cuda:
        size = (rowptr.numel() - 1, x.size(0))
        return torch.sparse_csr_tensor(rowptr, col, weight, size) @ x
    return F.embedding_bag(
        col,
        x,
        rowptr.to(col.dtype),
        mode='sum',
        per_sample_weights=weight,
        include_last_offset=True,
    )


def top_items(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns and values of the ``k`` highest scores of each row, best first.

    Equal scores are ordered by column, lowest first; NaN is higher than any number.

    Long rows are cut into tiles of neighbouring columns. The ``k`` best columns lie in
    the ``k`` best tiles, a tile being as good as its best column (a tie between tiles
    goes to the lower one, whose columns are all lower too), or in the columns behind
    the last whole tile. Only these are searched.

    Args:
        scores (Tensor): The scores, ``[num_rows, num_columns]``.
        k (int): The number of columns, at most ``num_columns``.
    """
    num_tiles, rest = divmod(scores.size(1), TILE_SIZE)
    if num_tiles <= 2 * k:
        return _top_columns(scores, k)
    tiles = scores[:, : num_tiles * TILE_SIZE].unflatten(1, (-1, TILE_SIZE))
    tile = _top_columns(tiles.amax(dim=2), k)[0].sort(dim=1).values
    column = torch.arange(scores.size(1), device=scores.device)
    behind = column[scores.size(1) - rest :].expand(len(scores), -1)
    column = tile.unsqueeze(2) * TILE_SIZE + column[:TILE_SIZE]
    column = torch.cat([column.flatten(1), behind], dim=1)
    place, top = _top_columns(scores.gather(1, column), k)
    return column.gather(1, place), top


def _top_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # Of equal scores 'topk' takes any. One place more tells the rows where that may
    # have left out a lower column; they are few, and sorted whole.
    top, ids = scores.topk(min(k + 1, scores.size(1)))
    if top.size(1) > k > 0:
        cut = top[:, k - 1] == top[:, k]
        if bool(cut.any()):
            whole = scores[cut].sort(dim=1, descending=True, stable=True).indices
            ids[cut] = whole[:, : k + 1]
    ids = ids[:, :k].sort(dim=1).values
    top, order = scores.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), top
