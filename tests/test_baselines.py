"""ItemKNN and EASE against their definitions, and what a run computes of them."""

import json

import pytest
import torch

import run
from pyg_c2f import baselines, report
from pyg_c2f.baselines import ease_score, evaluate_baselines, item_knn_score
from pyg_c2f.datasets import SyntheticHierarchy, with_validation_in_train
from pyg_c2f.evaluate import evaluate_split, popularity_score, with_sampled_users
from pyg_c2f.shards import one_block_each
from pyg_c2f.typing import RATES, InputError

U, I = 30, 20  # noqa: E741


@pytest.fixture
def pairs():
    """Repeated pairs in any order; the last item and the last user have none."""
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(U - 1, (200,), generator=generator)
    item = torch.randint(I - 1, (200,), generator=generator)
    return torch.stack([user, item])


@pytest.fixture(scope='module')
def data():
    return SyntheticHierarchy(200, 80, 3000, 2, 4)[0]


def matrix(pairs):
    rated = torch.zeros(U, I, dtype=torch.double)
    rated[pairs[0], pairs[1]] = 1
    return rated


def all_scores(score):
    return score(torch.arange(U)).double()


def nearest(similarity, k):
    """The k largest entries above zero of each row, of equal ones the first."""
    kept = torch.zeros_like(similarity)
    for item, row in enumerate(similarity.tolist()):
        order = sorted(range(len(row)), key=lambda x: (-row[x], x))
        for near in order[:k]:
            kept[item, near] = row[near]
    return kept


def dense_knn(pairs, k, shrinkage):
    rated = matrix(pairs)
    both, degree = rated.T @ rated, rated.sum(0)
    length = (degree.unsqueeze(0) * degree.unsqueeze(1)).sqrt() + shrinkage
    similarity = torch.where(both > 0, both / length, 0).fill_diagonal_(0)
    return rated @ nearest(similarity, k).T


@pytest.mark.parametrize(('k', 'shrinkage'), [(1, 0), (3, 0), (3, 7.5), (100, 2)])
@pytest.mark.parametrize('block', [1, 40, 1 << 23])
def test_item_knn(pairs, k, shrinkage, block, monkeypatch):
    monkeypatch.setattr(baselines, 'BLOCK_PRODUCTS', block)
    score = item_knn_score(pairs, U, I, k=k, shrinkage=shrinkage)
    torch.testing.assert_close(
        all_scores(score), dense_knn(pairs, k, shrinkage), rtol=1e-5, atol=1e-6
    )
    some = torch.tensor([4, 4, U - 1])
    assert torch.equal(score(some), score(torch.arange(U))[some])
    assert not score(some)[2].any() and not score(torch.arange(U))[:, I - 1].any()


def test_of_equal_neighbours_the_first_are_kept():
    """Two users have all five items and five more have one each: all are as near."""
    both = torch.cartesian_prod(torch.arange(2), torch.arange(5)).T
    pairs = torch.cat([both, torch.stack([torch.arange(2, 7), torch.arange(5)])], dim=1)
    scores = item_knn_score(pairs, 7, 5, k=2)(torch.arange(2, 7))
    # The two first others of item 0 are 1 and 2, of item 4 they are 0 and 1.
    voters = [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert (scores.T > 0).tolist() == [[x in some for x in range(5)] for some in voters]


@pytest.mark.parametrize('l2', [0.5, 30.0])
def test_ease(pairs, l2):
    """Each column is a ridge regression on the other items."""
    rated, weight = matrix(pairs), torch.zeros(I, I, dtype=torch.double)
    for item in range(I):
        others = [x for x in range(I) if x != item]
        x, y = rated[:, others], rated[:, item]
        eye = torch.eye(I - 1, dtype=torch.double)
        weight[others, item] = torch.linalg.solve(x.T @ x + l2 * eye, x.T @ y)
    score = ease_score(pairs, U, I, l2)
    torch.testing.assert_close(all_scores(score), rated @ weight, rtol=1e-4, atol=1e-5)


def test_wrong_settings_and_too_many_items(pairs, monkeypatch):
    for wrong in ({'k': 0}, {'shrinkage': -1.0}):
        with pytest.raises(InputError, match='item_knn_score: k='):
            item_knn_score(pairs, U, I, **wrong)
    with pytest.raises(InputError, match='ease_score: l2=0'):
        ease_score(pairs, U, I, 0)
    monkeypatch.setattr(baselines, 'MOST_ITEMS', I)
    assert ease_score(pairs, U, I) is not None
    assert ease_score(pairs, U, I + 1) is None


def rows_of(data):
    return one_block_each(False).rows(data['user'].num_nodes)


def test_settings_are_chosen_on_validation_items(data):
    """Test items change nothing of them, and they are at least as good as the first."""
    found = evaluate_baselines(data, rows_of(data))
    assert [*found.figures] == [*found.scores] == [*baselines.GRIDS]
    assert found.left_out == {}
    make = {'item_knn': item_knn_score, 'ease': ease_score}
    for name, build in make.items():
        figures, grid = found.figures[name], baselines.GRIDS[name]
        settings = figures['settings']
        assert all(value in grid[key] for key, value in settings.items())
        first = {key: values[0] for key, values in grid.items()}
        tried = {
            key: build(data[RATES].edge_index, 200, 80, **value)
            for key, value in {'first': first, 'chosen': settings}.items()
        }
        for split in ('val', 'test'):
            ours = evaluate_split(tried['chosen'], data, split)
            assert figures[split] == pytest.approx(ours, abs=1e-6)
        least = evaluate_split(tried['first'], data, 'val')
        assert figures['val']['ndcg@20'] >= least['ndcg@20'] - 1e-6
    other = data.clone()
    other[RATES].test_edge_label_index = data[RATES].test_edge_label_index[:, ::3]
    again = evaluate_baselines(other, rows_of(data))
    for name in make:
        assert again.figures[name]['settings'] == found.figures[name]['settings']
        assert again.figures[name]['val'] == found.figures[name]['val']


def test_a_refit_knows_validation_items(data):
    final = with_validation_in_train(data)
    found = evaluate_baselines(data, rows_of(data), final)
    before = evaluate_baselines(data, rows_of(data))
    popular = popularity_score(final[RATES].edge_index, 80)
    expected = evaluate_split(popular, data, 'test')
    assert found.figures['popularity']['test'] == expected
    for name, figures in found.figures.items():
        assert figures['val'] == before.figures[name]['val']
        assert figures['test'] != before.figures[name]['test']


def test_sampled_users(data, monkeypatch):
    """The figures are of these users, and so is the choice, of some of them."""
    sample = with_sampled_users(data, 50, 0)
    monkeypatch.setattr(baselines, 'CHOICE_USERS', 10)
    drawn = baselines._choice_sample(sample)['user'].is_ranked
    assert int(drawn.sum()) == 10 and sample['user'].is_ranked[drawn].all()
    assert int(sample['user'].is_ranked.sum()) == 50
    found = evaluate_baselines(sample, rows_of(data))
    for name, score in found.scores.items():
        expected = evaluate_split(score, sample, 'test')
        assert found.figures[name]['test'] == expected


@pytest.mark.parametrize(
    ('limit', 'value', 'out'),
    [
        ('MOST_PAIRS', 100, {'item_knn', 'ease'}),
        ('MOST_PRODUCTS', 100, {'item_knn', 'ease'}),
        ('MOST_ITEMS', 79, {'ease'}),
    ],
)
def test_limits(data, limit, value, out, monkeypatch):
    monkeypatch.setattr(baselines, limit, value)
    found = evaluate_baselines(data, rows_of(data))
    assert found.left_out.keys() == out
    assert found.figures.keys() == baselines.GRIDS.keys() - out


def test_data_that_do_not_fit_are_not_read(data, monkeypatch):
    monkeypatch.setattr(baselines, 'MOST_PAIRS', 10)

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(baselines, '_rows', refuse)
    monkeypatch.setattr(baselines, 'degree', refuse)
    assert [*evaluate_baselines(data, rows_of(data)).figures] == ['popularity']


def test_a_run_says_if_a_baseline_is_better(tmp_path, capsys):
    """Few columns are worse than ItemKNN; what is printed is also in the report."""
    call = ['--quiet', '--set', 'embedding_dim=2', 'num_fine=2', '--out', str(tmp_path)]
    assert run.main(call) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    ours = metrics['val']['ndcg@20']
    best = max(x['val']['ndcg@20'] for x in metrics['baselines'].values())
    line = f'this model by validation NDCG@20 ({best:.4f} against {ours:.4f})'
    page = (tmp_path / 'report.html').read_text()
    assert best > ours and line in printed and line in page
    for more in ('--seconds 60', 'ItemKNN: shrinkage '):
        assert more in printed and more in page
    good = metrics | {'val': {'ndcg@20': best}, 'left_out': {'ease': 'so much'}}
    assert 'better' not in report.baselines_note(good)
    assert report.baselines_note(good).endswith('No EASE: so much.')
    for change, what in (
        ({'recipe': 'paper'}, 'try --recipe fast.'),
        ({'search': {}}, 'try more --seconds, or a larger --size.'),
    ):
        assert report.baselines_note(metrics | change).endswith(what)
