import math

import pytest
import torch
import torch.nn.functional as F

from pyg_c2f.nn import BPRLoss, SampledSoftmaxLoss, WholeDataLoss, build_pairs
from tests.hard import tables


def naive(positive, negative, ego, count, lambda_reg):
    ranking = (1 + (negative - positive).exp()).log().sum()
    penalty = (count * ego.square().sum(dim=1)).sum()
    return float((ranking + lambda_reg * penalty).detach()) / len(positive)


def test_bpr_loss():
    torch.manual_seed(0)
    positive, negative, ego = torch.randn(7), torch.randn(7), torch.randn(5, 3)
    ego[2] = 0  # The norm has no gradient there, but its square has.
    count, once = torch.tensor([3, 0, 1, 2, 1]), torch.ones(5)
    ego.requires_grad_()
    loss = BPRLoss(0.1)
    out = loss(positive, negative, ego, count)
    assert out.dim() == 0
    (grad,) = torch.autograd.grad(out, ego)
    torch.testing.assert_close(grad, 0.2 / 7 * count.unsqueeze(1) * ego.detach())
    assert out.item() == pytest.approx(naive(positive, negative, ego, count, 0.1))
    expected = naive(positive, negative, ego, once, 0.1)
    assert loss(positive, negative, ego).item() == pytest.approx(expected)
    no_penalty = naive(positive, negative, ego, once, 0)
    assert float(loss(positive, negative)) == pytest.approx(no_penalty)
    assert BPRLoss(0)(positive, negative, ego).item() == pytest.approx(no_penalty)


# The squares of entries near 1e15 overflow in single precision.
HARD = {name: table for name, table in tables(300, 8).items() if '1e+15' not in name}


@pytest.mark.parametrize('name', HARD)
def test_whole_data_loss_of_hard_tables(name):
    user, item = HARD[name], HARD[name].flip(0)[:200]
    positive = torch.rand(300, 200, generator=torch.Generator().manual_seed(0)) < 0.05
    pairs = build_pairs(positive.nonzero().t(), 300, 200)
    criterion = WholeDataLoss(0.1, 0.1)

    def found(dtype):
        x = [table.to(dtype, copy=True).requires_grad_() for table in (user, item)]
        loss = criterion(*x, pairs)
        loss.backward()
        return [loss.detach().double(), *(table.grad.double() for table in x)]

    for ours, theirs in zip(found(torch.float), found(torch.double), strict=True):
        size = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * size)


U, V, D = 6, 8, 4


@pytest.fixture
def whole():
    torch.manual_seed(0)
    positive = torch.rand(U, V) < 0.3
    positive[-1] = False
    table = {
        'user': torch.randn(U, D),
        'item': torch.randn(V, D),
        'bias': torch.randn(V),
        'offset': torch.randn(int(positive.sum())),
        'user_weight': torch.rand(U) + 0.1,
        'item_weight': torch.rand(V) + 0.1,
    }
    table = {key: value.double().requires_grad_() for key, value in table.items()}
    return positive, build_pairs(positive.nonzero().t(), U, V), table


def dense_loss(loss, positive, user, item, **options):
    score = user @ item.t() + options.get('bias', 0)
    weight = torch.ones(U, V).double() * options.get('item_weight', 1)
    if 'user_weight' in options:
        weight = weight * options['user_weight'].unsqueeze(1)
    left_out = torch.zeros(U, V).double()
    if 'offset' in options:
        left_out = left_out.masked_scatter(positive, options['offset'])
    out = (weight * (1 - score + left_out) ** 2)[positive].sum()
    out = out + loss.alpha * (weight * score**2).sum()
    for u in range(U):
        scale = (positive[u].sum() + loss.alpha * V) ** loss.nu
        out = out + loss.lambda_reg * scale * (user[u] ** 2).sum()
    for i in range(V):
        scale = (positive[:, i].sum() + loss.alpha * U) ** loss.nu
        out = out + loss.lambda_reg * scale * (item[i] ** 2).sum()
    return out / positive.sum()


OPTIONS = ('bias', 'offset', 'user_weight', 'item_weight')


@pytest.mark.parametrize('options', [(), *zip(OPTIONS, strict=True), OPTIONS])
@pytest.mark.parametrize('lambda_reg, nu', [(0.0, 1.0), (0.2, 0.0), (0.2, 0.7)])
def test_whole_data_loss(whole, options, lambda_reg, nu):
    positive, pairs, table = whole
    loss = WholeDataLoss(0.3, lambda_reg, nu)
    chosen = {key: table[key] for key in ('user', 'item', *options)}
    ours = loss(pairs=pairs, **chosen)
    theirs = dense_loss(loss, positive, **chosen)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, list(chosen.values())),
        torch.autograd.grad(theirs, list(chosen.values())),
    )


@pytest.mark.parametrize(
    ('temperature', 'weighted'), [(1.0, False), (0.2, False), (0.2, True)]
)
def test_sampled_softmax_of_all_items(temperature, weighted):
    torch.manual_seed(0)
    score = torch.randn(U, V).double().requires_grad_()
    label = torch.randint(V, (U,))
    weight = torch.rand(U).double() if weighted else None
    positive = score.gather(1, label.unsqueeze(1)).flatten()
    mask = label.unsqueeze(1) == torch.arange(V)
    loss = SampledSoftmaxLoss(temperature)
    ours = loss(positive, score, mask=mask, weight=weight)
    theirs = F.cross_entropy(score / temperature, label, reduction='none')
    theirs = (theirs if weight is None else weight * theirs).mean()
    torch.testing.assert_close(ours, theirs)
    (grad,) = torch.autograd.grad(ours, score, retain_graph=True)
    torch.testing.assert_close(grad, *torch.autograd.grad(theirs, score))
    # A uniform proposal corrects to each item once.
    log_q = torch.full((V,), -math.log(V)).double()
    torch.testing.assert_close(loss(positive, score, log_q, mask, weight), ours)


def test_sampled_softmax_partition_is_unbiased():
    torch.manual_seed(0)
    score, popularity = torch.randn(V), torch.arange(1.0, V + 1)
    q = popularity**0.75 / (popularity**0.75).sum()
    positive, loss = int(score.argmax()), SampledSoftmaxLoss()
    partition = []
    for _ in range(2000):
        negative = torch.multinomial(q, 5, replacement=True)
        mask = (negative == positive).unsqueeze(0)
        out = loss(
            score[[positive]], score[negative].unsqueeze(0), q[negative].log(), mask
        )
        partition.append((out + score[positive]).exp())
    partition = torch.stack(partition)
    error = float(partition.std()) / math.sqrt(len(partition))
    assert abs(float(partition.mean() - score.exp().sum())) < 4 * error
    # The error is small enough that the test fails without the mask.
    assert error < 0.1 * float(score[positive].exp())


def test_sampled_softmax_with_every_negative_masked():
    positive = torch.tensor([0.5, -1.0], requires_grad=True)
    negative = torch.randn(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss = SampledSoftmaxLoss()(positive, negative, mask=mask)
    loss.backward()
    assert loss.item() == 0 and not negative.grad.any() and not positive.grad.any()


def test_scores_that_are_far_apart():
    far = torch.tensor([1e4, -1e4])
    assert float(BPRLoss(0)(-far, far)) == pytest.approx(1e4)
    loss = SampledSoftmaxLoss()(far, torch.zeros(2, 1))
    assert float(loss) == pytest.approx(5e3)


def test_texts_and_arguments():
    assert str(BPRLoss(0.1)) == 'BPRLoss(lambda_reg=0.1)'
    assert str(WholeDataLoss(0.1)) == 'WholeDataLoss(alpha=0.1, lambda_reg=0.0, nu=1.0)'
    assert str(SampledSoftmaxLoss(0.1)) == 'SampledSoftmaxLoss(temperature=0.1)'
    with pytest.raises(ValueError, match=r'expected temperature > 0 \(got 0\)'):
        SampledSoftmaxLoss(0)
