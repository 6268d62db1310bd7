import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from pyg_c2f.nn.sampled import Pairs, sampled_dot


class BPRLoss(_Loss):
    r"""Bayesian personalised ranking with a penalty on the batch's ego embeddings.

    .. math::
        \mathcal{L} = \frac{1}{B} \sum_{b=1}^{B} \mathrm{softplus}(s^-_b - s^+_b)
        + \frac{\lambda}{B} \sum_i n_i \| \mathbf{e}_i \|_2^2

    where :math:`n_i` is how often node :math:`i` occurs in the batch, as user, positive
    or negative item.

    SPEC section 2; `"BPR: Bayesian Personalized Ranking from Implicit Feedback"
    <https://arxiv.org/abs/1205.2618>`_. Unlike
    :class:`torch_geometric.nn.models.lightgcn.BPRLoss` the penalty sums over the rows
    of the batch with their repetitions, without the factor 1/2.

    Args:
        lambda_reg (float, optional): The strength :math:`\lambda` of the penalty.
            (default: ``5e-4``, the published 5 times 1e-4)

    Shapes:
        - **input:** scores of the positive and of the negative pairs :math:`(B)`; ego
          embeddings :math:`(N, F)` *(optional)* and how often each occurs :math:`(N)`
          *(optional: once)*
        - **output:** a scalar

    Example:
        >>> loss = BPRLoss()(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]))
        >>> round(loss.item(), 4)
        0.41
    """

    def __init__(self, lambda_reg: float = 5e-4) -> None:
        super().__init__()
        self.lambda_reg = lambda_reg

    def forward(
        self,
        positive: Tensor,
        negative: Tensor,
        ego: Tensor | None = None,
        count: Tensor | None = None,
    ) -> Tensor:
        loss = F.softplus(negative - positive).mean()
        if ego is None:
            return loss
        return loss + self.penalty(ego, count) / positive.numel()

    def penalty(self, ego: Tensor, count: Tensor | None = None) -> Tensor:
        r"""The penalty :math:`\lambda \sum_i n_i \| \mathbf{e}_i \|_2^2`.

        It adds up over blocks of columns.
        """
        # A norm per row: one pass over the table forward, and one backward.
        square = torch.linalg.vector_norm(ego, dim=-1).square()
        total = square.sum() if count is None else (count * square).sum()
        return self.lambda_reg * total

    def extra_repr(self) -> str:
        return f'lambda_reg={self.lambda_reg}'


class WholeDataLoss(_Loss):
    r"""The implicit squared loss over all pairs of users and items, without sampling.

    .. math::
        \mathcal{L} = \frac{1}{|R|} \Big[
        \sum_{(u,i) \in R} p_u q_i (1 - s_{ui} + o_{ui})^2
        + \alpha \sum_{u=1}^{U} \sum_{i=1}^{I} p_u q_i s_{ui}^2
        + \lambda \Big( \sum_u (d_u + \alpha I)^{\nu} \| \mathbf{h}_u \|_2^2
        + \sum_i (d_i + \alpha U)^{\nu} \| \mathbf{h}_i \|_2^2 \Big) \Big]

    with the scores :math:`s_{ui} = \mathbf{h}_u^{\top} \mathbf{h}_i + b_i`, the
    positives :math:`R` and how many of them, :math:`d`, a user or an item has. It is
    divided by the number of positives, so that learning rates carry over between data
    sets.

    No score outside :math:`R` is computed. With :math:`\mathbf{x}_u = [\mathbf{h}_u ;
    1]` and :math:`\mathbf{y}_i = [\mathbf{h}_i ; b_i]`, the score is
    :math:`\mathbf{x}_u^{\top} \mathbf{y}_i`, its square
    :math:`\langle \mathbf{x}_u \mathbf{x}_u^{\top},
    \mathbf{y}_i \mathbf{y}_i^{\top} \rangle`, and the sum over all pairs factors into
    the inner product of two small Gram matrices:

    .. math::
        \sum_u \sum_i p_u q_i s_{ui}^2 = \Big\langle
        \sum_u p_u \mathbf{x}_u \mathbf{x}_u^{\top},
        \sum_i q_i \mathbf{y}_i \mathbf{y}_i^{\top} \Big\rangle

    `"Revisiting the Performance of iALS on Item Recommendation Benchmarks"
    <https://arxiv.org/abs/2110.14037>`_, with its frequency-scaled penalty; there
    without the scalars :math:`b`, the weights :math:`p, q` and the offsets :math:`o`.

    Args:
        alpha (float, optional): The weight :math:`\alpha` of all pairs beside the
            positives. (default: ``0.01``)
        lambda_reg (float, optional): The strength :math:`\lambda` of the penalty.
            (default: ``0.0``)
        nu (float, optional): The exponent :math:`\nu` of the penalty's frequencies:
            ``0`` treats all rows alike. (default: ``1.0``)

    Shapes:
        - **input:** users :math:`(U, F)`; items :math:`(I, F)`; the positives as
          :class:`Pairs`; scalars :math:`b` :math:`(I)` *(optional)*; offsets
          :math:`o` :math:`(|R|)` in the pairs' order *(optional)*; weights :math:`p`
          :math:`(U)` and :math:`q` :math:`(I)`, not negative *(optional: 1)*. An
          offset leaves out the part of a positive's score that comes from the pair
          itself, as where a user's features are made from its items; the sum over all
          pairs takes the scores as they are.
        - **output:** a scalar

    Raises:
        ValueError: If users or items do not fit the pairs or each other.

    Example:
        >>> pairs = build_pairs(torch.tensor([[0, 1], [1, 0]]), 2, 2)
        >>> user, item = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(2)
        >>> WholeDataLoss(alpha=0.1)(user, item, pairs).item()  # (1 + 1 + .1 * 5) / 2
        1.25
    """

    def __init__(
        self, alpha: float = 0.01, lambda_reg: float = 0.0, nu: float = 1.0
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.lambda_reg = lambda_reg
        self.nu = nu

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        pairs: Pairs,
        bias: Tensor | None = None,
        offset: Tensor | None = None,
        user_weight: Tensor | None = None,
        item_weight: Tensor | None = None,
    ) -> Tensor:
        score = sampled_dot(pairs, user, item)
        all_pairs = (_gram(user, user_weight) * _gram(item, item_weight)).sum()
        if bias is not None:
            score = score + bias.index_select(0, pairs.col)
            # The last row and column of the Gram matrices, on their own: products of
            # 2^k + 1 columns are slow.
            p = user.new_ones(pairs.num_users) if user_weight is None else user_weight
            q = item.new_ones(pairs.num_items) if item_weight is None else item_weight
            mixed = (p @ user) @ ((q * bias) @ item)
            all_pairs = all_pairs + 2 * mixed + p.sum() * (q @ bias.square())
        if offset is not None:
            score = score - offset
        error = (1 - score).square()
        if user_weight is not None:
            error = error * user_weight.index_select(0, pairs.row)
        if item_weight is not None:
            error = error * item_weight.index_select(0, pairs.col)
        loss = error.sum() + self.alpha * all_pairs
        if self.lambda_reg:
            penalty = self._penalty(user, pairs.rowptr, pairs.num_items)
            penalty = penalty + self._penalty(item, pairs.colptr, pairs.num_users)
            loss = loss + self.lambda_reg * penalty
        return loss / pairs.col.numel()

    def _penalty(self, x: Tensor, ptr: Tensor, num_others: int) -> Tensor:
        scale = (ptr.diff().to(x.dtype) + self.alpha * num_others) ** self.nu
        return (scale * torch.linalg.vector_norm(x, dim=-1).square()).sum()

    def extra_repr(self) -> str:
        return f'alpha={self.alpha}, lambda_reg={self.lambda_reg}, nu={self.nu}'


def _gram(x: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted Gram matrix of the rows."""
    return _Gram.apply(x if weight is None else x * weight.sqrt().unsqueeze(1))


class _Gram(torch.autograd.Function):
    """Its gradient goes through one factor for both: one product of three less."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.t() @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # Under autocast the product forward was in lower precision.
        return x @ (grads[0] + grads[0].t()).to(x.dtype)


class SampledSoftmaxLoss(_Loss):
    r"""Softmax cross entropy of positives against sampled, shared negative items.

    .. math::
        \mathcal{L} = -\frac{1}{B} \sum_{b=1}^{B} w_b \log
        \frac{\exp(s^+_b / \tau)}{\exp(s^+_b / \tau) + \sum_{n=1}^{N}
        \exp(s^-_{bn} / \tau - \log(N q_n))}

    With negatives drawn with replacement from the proposal :math:`q`, the corrected sum
    has the expectation of the sum over all items that are not masked: masking the
    positive among the negatives (an accidental hit) makes the denominator an unbiased
    estimate of the full softmax's.

    After `"On Using Very Large Target Vocabulary for Neural Machine Translation"
    <https://arxiv.org/abs/1412.2007>`_. The positive is there in every draw, and so
    needs no correction.

    Args:
        temperature (float, optional): The temperature :math:`\tau`. (default: ``1.0``)

    Shapes:
        - **input:** scores of the positives :math:`(B)` and of the negatives
          :math:`(B, N)`; :math:`\log q_n` of the negatives :math:`(N)` *(optional:
          without it each negative counts once)*; mask :math:`(B, N)`, true where a
          negative is left out *(optional)*; weights :math:`w` :math:`(B)`
          *(optional: 1)*
        - **output:** a scalar

    Raises:
        ValueError: If the temperature is not positive.

    Example:
        >>> q = torch.tensor([3.0, 1.0, 4.0]) ** 0.5  # popularity to a power
        >>> log_q = (q / q.sum()).log()
        >>> negative = torch.multinomial(q, 5, replacement=True)
        >>> score, positive = torch.zeros(2, 3), torch.tensor([0, 2])
        >>> loss = SampledSoftmaxLoss()(
        ...     score.gather(1, positive.unsqueeze(1)).flatten(),
        ...     score[:, negative],
        ...     log_q[negative],
        ...     mask=negative == positive.unsqueeze(1),
        ... )
        >>> loss.shape
        torch.Size([])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(
                f"'{type(self).__name__}' expected temperature > 0 (got {temperature})"
            )
        self.temperature = temperature

    def forward(
        self,
        positive: Tensor,
        negative: Tensor,
        log_q: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        negative = negative / self.temperature
        if log_q is not None:
            negative = negative - (log_q + math.log(negative.size(1)))
        if mask is not None:
            negative = negative.masked_fill(mask, -torch.inf)
        loss = F.softplus(negative.logsumexp(dim=1) - positive / self.temperature)
        return (loss if weight is None else weight * loss).mean()

    def extra_repr(self) -> str:
        return f'temperature={self.temperature}'
