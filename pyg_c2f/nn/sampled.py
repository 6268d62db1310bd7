r"""Scores of the given pairs of users and items only, and their gradients."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyg_c2f.sparse import CSR, check_pairs, csr_matmul, pair_keys, rowptr_of
from pyg_c2f.typing import InputError

# Of the columns taken at once: a block of a table then stays near the cores.
BLOCK = 64


class Pairs(NamedTuple):
    """Unique pairs of users and items, sorted by user, then item, and both ways round.

    Made once by :func:`build_pairs`; all entries are int32.

    Example:
        >>> pairs = build_pairs(torch.tensor([[1, 0, 1], [2, 1, 0]]), 2, 3)
        >>> pairs.num_users, pairs.num_items
        (2, 3)
        >>> pairs.row.tolist(), pairs.col.tolist()
        ([0, 1, 1], [1, 0, 2])
    """

    rowptr: Tensor  # [num_users + 1]
    row: Tensor  # [num_pairs], the users
    col: Tensor  # [num_pairs], the items
    perm: Tensor  # [num_pairs], the place of each pair in the edge_index
    colptr: Tensor  # [num_items + 1]
    row_t: Tensor  # [num_pairs], the users, sorted by item, then user
    perm_t: Tensor  # [num_pairs], the pairs in that order

    @property
    def num_users(self) -> int:
        return self.rowptr.numel() - 1

    @property
    def num_items(self) -> int:
        return self.colptr.numel() - 1


def build_pairs(edge_index: Tensor, num_users: int, num_items: int) -> Pairs:
    r"""Sorts pairs of users and items for :func:`sampled_dot`.

    Args:
        edge_index (Tensor): The unique pairs, users in row 0, items in row 1, shape
            ``[2, num_pairs]``.
        num_users (int): The number of users.
        num_items (int): The number of items.

    Raises:
        InputError: If an id is out of range, or a pair occurs twice.

    Example:
        >>> pairs = build_pairs(torch.tensor([[1, 0, 1], [2, 1, 0]]), 2, 3)
        >>> pairs.perm.tolist(), pairs.perm_t.tolist()
        ([1, 2, 0], [1, 0, 2])
    """
    check_pairs(edge_index, num_users, num_items, "'build_pairs'", "'edge_index'")
    key, perm = pair_keys(edge_index, num_items).sort()
    if not key.diff().all():
        raise InputError("'build_pairs': 'edge_index' holds a pair more than once")
    row, col = edge_index[:, perm]
    perm_t = col.argsort(stable=True)
    rowptr, colptr = rowptr_of(row, num_users), rowptr_of(col, num_items)
    fields = (rowptr, row, col, perm, colptr, row[perm_t], perm_t)
    return Pairs(*(field.int() for field in fields))


class _SampledDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.pairs = pairs
        csr = (pairs.rowptr, pairs.col, a.new_zeros(pairs.col.numel()))
        size = (a.size(0), b.size(0))
        out = torch.sparse_csr_tensor(*csr, size, check_invariants=False)
        for x, y in zip(a.split(BLOCK, dim=1), b.split(BLOCK, dim=1), strict=True):
            out = torch.sparse.sampled_addmm(out, x, y.t())
        return out.values().detach()  # No view: torch.compile fails on that of a CSR.

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        pairs, grad = ctx.pairs, grads[0].contiguous()
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_a = csr_matmul(CSR(pairs.rowptr, pairs.col, grad), b)
        if ctx.needs_input_grad[1]:
            grad_t = grad.index_select(0, pairs.perm_t)
            grad_b = csr_matmul(CSR(pairs.colptr, pairs.row_t, grad_t), a)
        return grad_a, grad_b, None


def sampled_dot(pairs: Pairs, a: Tensor, b: Tensor) -> Tensor:
    r"""The dot products of the given pairs of rows (a sampled dense-dense product).

    .. math::
        s_e = \mathbf{a}_{u_e}^{\top} \mathbf{b}_{i_e}, \quad
        \frac{\partial L}{\partial \mathbf{A}} = \mathbf{P}(\mathbf{g}) \mathbf{B},
        \quad
        \frac{\partial L}{\partial \mathbf{B}}
        = \mathbf{P}(\mathbf{g})^{\top} \mathbf{A}

    where :math:`\mathbf{P}(\mathbf{g})` is the sparse matrix of the pairs with the
    incoming gradient :math:`\mathbf{g} = \partial L / \partial \mathbf{s}` as values.

    No tensor of pairs times channels exists. The scores come from
    ``torch.sparse.sampled_addmm``, 64 columns at a time: its kernel goes along a
    user's row and reads each item's row in place. On Gowalla's 810,128 pairs (one
    thread, 128 / 256 columns) that took 25 / 48 ms, all columns at once 34 / 71 ms;
    gathering the rows by blocks of pairs took 71 / 185 ms, and in bfloat16 no less than
    67 / 129 ms. That kernel knows single and double precision: lower ones are
    computed, and come back, in single precision. :func:`torch.compile` breaks its graph
    here: it does not trace sparse tensors.

    Args:
        pairs (Pairs): The pairs, from :func:`build_pairs`.
        a (Tensor): The users' features, shape ``[num_users, channels]``.
        b (Tensor): The items' features, shape ``[num_items, channels]``.

    Returns:
        Tensor: The scores in the order of ``pairs``, shape ``[num_pairs]``.

    Raises:
        ValueError: If the features do not fit the pairs or each other.

    Example:
        >>> pairs = build_pairs(torch.tensor([[0, 1], [1, 0]]), 2, 2)
        >>> a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.eye(2)
        >>> sampled_dot(pairs, a, b).tolist()
        [2.0, 3.0]
    """
    sizes = (pairs.num_users, pairs.num_items)
    if (a.size(0), b.size(0)) != sizes or a.size(1) != b.size(1):
        raise ValueError(
            f"'sampled_dot' expected features of {sizes[0]} users and {sizes[1]} items "
            f'of one width (got shapes {tuple(a.shape)} and {tuple(b.shape)})'
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float)
    return _SampledDot.apply(a.to(dtype), b.to(dtype), pairs)
