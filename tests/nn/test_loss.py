import math

import pytest
import torch

from pyg_c2f.nn import BPRLoss


def naive(positive, negative, ego, count, lambda_reg):
    ranking = [
        math.log(1 + math.exp(n - p))
        for p, n in zip(positive.tolist(), negative.tolist(), strict=True)
    ]
    penalty = sum(
        times * sum(x * x for x in row)
        for row, times in zip(ego.tolist(), count.tolist(), strict=True)
    )
    return (sum(ranking) + lambda_reg * penalty) / len(ranking)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(7), torch.randn(7), torch.randn(5, 3)


def test_bpr_loss(batch):
    positive, negative, ego = batch
    count = torch.tensor([3, 0, 1, 2, 1])
    loss = BPRLoss(0.1)(positive, negative, ego, count)
    assert loss.dim() == 0
    assert float(loss) == pytest.approx(naive(positive, negative, ego, count, 0.1))


def test_bpr_loss_counts_each_row_once(batch):
    positive, negative, ego = batch
    loss = BPRLoss(0.1)(positive, negative, ego)
    once = torch.ones(5)
    assert float(loss) == pytest.approx(naive(positive, negative, ego, once, 0.1))


def test_bpr_loss_without_a_penalty(batch):
    positive, negative, ego = batch
    theirs = naive(positive, negative, ego, torch.ones(5), 0)
    assert float(BPRLoss(0.1)(positive, negative)) == pytest.approx(theirs)
    assert float(BPRLoss(0)(positive, negative, ego)) == pytest.approx(theirs)


def test_bpr_loss_gradient(batch):
    positive, negative, ego = batch
    ego[2] = 0  # the norm has no gradient there, its square has
    ego.requires_grad_()
    count = torch.tensor([3, 0, 1, 2, 1])
    BPRLoss(0.1)(positive, negative, ego, count).backward()
    expected = 2 * 0.1 * count.unsqueeze(1) * ego.detach() / 7
    torch.testing.assert_close(ego.grad, expected)


def test_bpr_loss_of_far_apart_scores():
    loss = BPRLoss(0)(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
    assert float(loss) == pytest.approx(1e4)


def test_bpr_loss_str():
    assert str(BPRLoss(0.1)) == 'BPRLoss(lambda_reg=0.1)'
