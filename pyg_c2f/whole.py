r"""The whole-data loss of users who live from their items, in blocks of users."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyg_c2f.distributed import Group, Rows, one_thread_each
from pyg_c2f.graph import (
    CSR,
    assignment_to_edges,
    csr_matmul,
    csr_of,
    interaction_weight,
)
from pyg_c2f.nn import Pairs, build_pairs, sampled_dot
from pyg_c2f.spectral import pairs_of
from pyg_c2f.typing import Assignment


class Block(NamedTuple):
    """The interactions of a block of users, who are numbered from 0 on in it."""

    pairs: Pairs
    weight: Tensor  # [num_pairs], the normalised interactions
    first_pair: int  # of all pairs of all processes


class Mixtures:
    """The items' features as sums of their anchors', by their links alone.

    An assignment is as wide as the row with most links needs, which may be ten times
    the mean. The links do not change in a training, nor does their transpose.

    Args:
        assignment (Assignment): The links of all items.
        num_anchors (int): The number of anchors.
    """

    def __init__(self, assignment: Assignment, num_anchors: int) -> None:
        (item, anchor), weight = assignment_to_edges(assignment)
        order = anchor.argsort(stable=True)
        self.by_item = csr_of(item, anchor, weight, len(assignment.index))
        self.by_anchor = csr_of(anchor[order], item[order], weight[order], num_anchors)

    def __call__(self, codebook: Tensor) -> Tensor:
        """The features ``[num_items, channels]``."""
        return _Mix.apply(codebook, self)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codebook: Tensor, mixtures: Mixtures) -> Tensor:
        ctx.mixtures = mixtures
        return csr_matmul(mixtures.by_item, codebook.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return csr_matmul(ctx.mixtures.by_anchor, grads[0].contiguous()), None


class HistoryLoss:
    r""":class:`~pyg_c2f.nn.WholeDataLoss` of users who are the sum of their items.

    With the items' features :math:`\mathbf{x}_i`, one layer and inductive users,

    .. math::
        \mathbf{h}_u = \tfrac{1}{2} \sum_i \tilde{R}_{ui} \mathbf{x}_i, \quad
        \mathbf{h}_i = \tfrac{1}{2} d_i^p \mathbf{x}_i

    and the user of a positive pair is taken without the item itself, or the loss learns
    to copy. Users come and go block by block: the memory is that of a block, of the
    items, and of 28 bytes a pair. A block's features, loss and gradients are computed
    at once, for all that a block needs of the others is
    :math:`\sum_i \mathbf{h}_i \mathbf{h}_i^{\top}`, and all that the items need of the
    users is :math:`\sum_u \mathbf{h}_u \mathbf{h}_u^{\top}`.

    With several processes each has its users' pairs and the features of all items; the
    sums over users and over items are added up. The value is the whole loss in each of
    them; the gradient is the part of its users and items, and the parts are to be added
    up (of the codebooks, which are small).

    Args:
        edge_index (Tensor): The pairs of the own users, sorted by user, then item.
        users (Rows): The users.
        item_degree (Tensor): The items' degrees among all users.
        norms (Tuple): The exponents of a user's and an item's degree.
        alpha (float): The weight of all pairs.
        lambda_reg (float): The strength of the penalty.
    """

    def __init__(
        self,
        edge_index: Tensor,
        users: Rows,
        item_degree: Tensor,
        norms: tuple[float, float],
        alpha: float,
        lambda_reg: float,
    ) -> None:
        self.users, self.items = users, users.group.rows(len(item_degree))
        self.degree = item_degree
        self.alpha, self.lambda_reg = alpha, lambda_reg
        self.num_pairs = int(item_degree.sum())
        counts = torch.zeros(users.group.num_blocks, dtype=torch.long)
        own = []
        for block in users.blocks:
            first, last = block.start + users.start, block.stop + users.start
            pairs = pairs_of(edge_index, first, last)
            own.append(pairs - pairs.new_tensor([[first], [0]]))
        users.group.own(counts).copy_(torch.tensor([x.size(1) for x in own]))
        counts = users.group.sum_(counts.to(edge_index.device)).cumsum(0)
        ends = users.group.own(counts).tolist()
        self.blocks = []
        for block, pairs, end in zip(users.blocks, own, ends, strict=True):
            sizes = block.stop - block.start, len(item_degree)
            weight = interaction_weight(pairs, *sizes, *norms, item_degree)
            first_pair = end - pairs.size(1)
            self.blocks.append(Block(build_pairs(pairs, *sizes), weight, first_pair))

    @property
    def group(self) -> Group:
        """The processes."""
        return self.users.group

    def __call__(self, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """The loss.

        Args:
            x (Tensor): The features of all items, ``[num_items, channels]``.
            scale (Tensor): Their scales :math:`d_i^p`, ``[num_items]``.
            bias (Tensor): Their scalars, ``[num_items]``.
        """
        h_item = x * (scale / 2).unsqueeze(1)
        return _Loss.apply(h_item, bias, scale, self)

    @torch.no_grad()
    def mean_score(self, x: Tensor, scale: Tensor, num_pairs: int) -> float:
        """The mean score of about so many of the pairs, without scalars."""
        h_item = x * (scale / 2).unsqueeze(1)
        stride = -(-self.num_pairs // num_pairs)
        sums = []
        for block in self.blocks:
            h_user = self.user_features(block, x / 2)
            some = slice(-block.first_pair % stride, None, stride)
            user, item = block.pairs.row[some].long(), block.pairs.col[some].long()
            score = (h_user[user] * h_item[item]).sum(dim=1)
            score = score.double()
            sums.append(torch.stack([score.sum(), score.new_tensor(len(score))]))
        total, count = self.group.sum(sums).tolist()
        return total / count

    def user_features(self, block: Block, x: Tensor) -> Tensor:
        """The features of the users of a block, from the halves of the items'."""
        csr = CSR(block.pairs.rowptr, block.pairs.col, block.weight)
        return csr_matmul(csr, x)


class _Loss(torch.autograd.Function):
    """Both at once: the loss, and the gradients that its backward pass hands on."""

    @staticmethod
    def forward(
        ctx: Any, h_item: Tensor, bias: Tensor, scale: Tensor, loss: HistoryLoss
    ) -> Tensor:
        group, rows, alpha = loss.group, loss.items, loss.alpha
        h_item, bias = (x.detach().requires_grad_() for x in (h_item, bias))
        own_h, own_b = rows.own(h_item).detach(), rows.own(bias).detach()
        # What the users need of the items: sums of h h', b h, and b^2.
        gram = rows.product(own_h, own_h)
        mixed = rows.product(own_h, own_b.unsqueeze(1)).squeeze(1)
        squares = group.sum(own_b[block].square().sum() for block in rows.blocks)
        frequency = loss.users.num_rows * squares
        parts, grams, sums = [], [], []
        sent = torch.zeros_like(h_item)
        x = h_item.detach() / scale.unsqueeze(1)
        # What an item's own part in its users' features adds to a positive's score.
        own = (h_item.detach() * x).sum(dim=1).requires_grad_()
        with torch.enable_grad():
            for block in loss.blocks:
                pairs = block.pairs
                h_user = loss.user_features(block, x).requires_grad_()
                score = sampled_dot(pairs, h_user, h_item)
                score = score + (bias.index_select(0, pairs.col))
                score = score - block.weight * own.index_select(0, pairs.col)
                error = (1 - score).square().sum()
                error = error + _penalty(loss, h_user, pairs.rowptr.diff(), rows)
                seen = h_user.detach()
                grams += one_thread_each([partial(torch.mm, seen.T, seen)])
                sums.append(seen.sum(dim=0))
                every = ((h_user @ gram) * h_user).sum() + 2 * (h_user @ mixed).sum()
                parts.append(error.detach())
                (error + alpha * every).backward()
                by_item = CSR(
                    pairs.colptr, pairs.row_t, block.weight[pairs.perm_t.long()]
                )
                sent += csr_matmul(by_item, _gradient(h_user))
            # What the items need of the users.
            user_gram, user_sum = group.sum(grams), group.sum(sums)
            own_h, own_b = rows.own(h_item), rows.own(bias)
            every = ((own_h @ user_gram) * own_h).sum()
            every = every + 2 * (own_b * (own_h @ user_sum)).sum()
            every = every + loss.users.num_rows * own_b.square().sum()
            penalty = _penalty(loss, own_h, rows.own(loss.degree), loss.users)
            (alpha * every + penalty).backward()
        sent /= scale.unsqueeze(1)
        sent.addcmul_(x, _gradient(own).unsqueeze(1), value=2)
        gradient = _gradient(h_item).add_(sent)
        ctx.save_for_backward(
            gradient.div_(loss.num_pairs), _gradient(bias) / loss.num_pairs
        )
        all_pairs = (gram * user_gram).sum() + 2 * mixed @ user_sum + frequency
        penalty = group.sum_(penalty.detach().double()).to(gram.dtype)
        return (group.sum(parts) + alpha * all_pairs + penalty) / loss.num_pairs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        h_item, bias = ctx.saved_tensors
        return grads[0] * h_item, grads[0] * bias, None, None


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def _penalty(loss: HistoryLoss, x: Tensor, degree: Tensor, others: Rows) -> Tensor:
    """The penalty on rows, of frequencies to the power of one."""
    if not loss.lambda_reg:
        return x.new_zeros(())
    frequency = degree.to(x.dtype) + loss.alpha * others.num_rows
    return loss.lambda_reg * (frequency * x.square().sum(dim=1)).sum()
