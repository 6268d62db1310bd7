import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss


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
        # A norm per row: one pass over the table forward, and one backward.
        square = torch.linalg.vector_norm(ego, dim=-1).square()
        penalty = square.sum() if count is None else (count * square).sum()
        return loss + self.lambda_reg * penalty / positive.numel()

    def extra_repr(self) -> str:
        return f'lambda_reg={self.lambda_reg}'
