from math import ceil

import numpy as np
import pytest

from pyg_c2f.datasets import DataSpec
from pyg_c2f.datasets.splits import count_splits, draw_per_user, hold_out, split
from pyg_c2f.typing import InputError

NUM_ITEMS = 400


def random_keys(seed, num_users=60):
    rng = np.random.default_rng(seed)
    keys = rng.choice(num_users * NUM_ITEMS, size=1500, replace=False)
    # User 1 has one interaction, user 2 none.
    user = keys // NUM_ITEMS
    return np.sort(np.append(keys[(user != 1) & (user != 2)], NUM_ITEMS))


def per_user(keys):
    return np.bincount(keys // NUM_ITEMS, minlength=60)


def disjoint(*parts):
    return np.unique(np.concatenate(parts)).size == sum(part.size for part in parts)


def split_files(files, protocol='standard', seed=0):
    names = ('train.txt', 'valid.txt', 'test.txt')
    parts = {name: x for name, x in zip(names, files, strict=True) if x is not None}
    spec = DataSpec('toy', protocol=protocol, split_seed=seed)
    return split(parts, NUM_ITEMS, spec)


@pytest.fixture
def files():
    train, test = random_keys(0), random_keys(1)
    valid = np.setdiff1d(random_keys(2), np.union1d(train, test))
    return train, valid, np.setdiff1d(test, train)


def test_draw_is_uniform():
    user = np.repeat([0, 1, 3], [3, 1, 6])
    rng = np.random.default_rng(0)
    draws = [draw_per_user(user, lambda n: (n + 1) // 2, rng) for _ in range(2000)]
    share = np.mean(draws, axis=0)
    expected = [ceil(n / 2) / n for n in (3, 1, 6) for _ in range(n)]
    assert np.abs(share - expected).max() < 0.05
    assert all(np.bincount(user[mask]).tolist() == [2, 1, 0, 3] for mask in draws)


@pytest.mark.parametrize('protocol', ['c2f', 'standard'])
def test_single_file(protocol):
    keys = random_keys(0)
    spec = DataSpec('toy', protocol=protocol, split_seed=3)
    train, test = hold_out(keys, NUM_ITEMS, spec.generator())
    assert disjoint(train, test)
    assert np.union1d(train, test).tolist() == keys.tolist()
    expected = [int(n / 5 + 0.5) for n in per_user(keys).tolist()]
    assert per_user(test).tolist() == expected
    out = split({'toy.csv': keys}, NUM_ITEMS, spec)
    assert disjoint(*out)
    parts = (test, out.val, out.test) if protocol == 'c2f' else (train, *out[:2])
    assert np.union1d(*parts[1:]).tolist() == parts[0].tolist()
    assert count_splits(per_user(keys), protocol) == tuple(map(len, out))


def test_c2f(files):
    train, _, test = files
    out = split_files(files, 'c2f')
    assert out.train.tolist() == train.tolist()
    assert disjoint(*out)
    assert np.union1d(out.val, out.test).tolist() == test.tolist()
    expected = [max(1, ceil(n / 3)) if n else 0 for n in per_user(test).tolist()]
    assert per_user(out.val).tolist() == expected


def test_standard(files):
    train, _, test = files
    for part, file in zip(split_files(files), files, strict=True):
        assert part.tolist() == file.tolist()
    out = split_files((train, None, test))
    assert out.test.tolist() == test.tolist()
    assert disjoint(*out)
    assert np.union1d(out.train, out.val).tolist() == train.tolist()
    expected = [int(n / 10 + 0.5) for n in per_user(train).tolist()]
    assert per_user(out.val).tolist() == expected
    assert (per_user(out.train) > 0).tolist() == (per_user(train) > 0).tolist()


@pytest.mark.parametrize('protocol', ['c2f', 'standard'])
def test_overlaps_are_dropped(files, caplog, protocol):
    train, valid, test = files
    more_test = np.union1d(test, train[:7])
    more_valid = np.union1d(valid, np.concatenate([train[:5], test[:3]]))
    clean = split_files(files, protocol)
    assert not caplog.records
    mixed = split_files((train, more_valid, more_test), protocol)
    for left, right in zip(clean, mixed, strict=True):
        assert left.tolist() == right.tolist()
    assert 'toy: 7 test interactions that are also in train' in caplog.text
    if protocol == 'standard':
        assert '5 validation interactions that are also in train' in caplog.text
        assert '3 validation interactions that are also in test' in caplog.text


def test_nothing_left(files, caplog):
    train, _, _ = files
    one = np.array([0]), None, np.array([1])
    for wrong, protocol in ((one, 'c2f'), ((train, None, train), 'standard')):
        with pytest.raises(InputError, match='no test interaction'):
            split_files(wrong, protocol)
    split_files(one)
    assert 'toy: protocol standard leaves no validation' in caplog.text


@pytest.mark.parametrize('protocol', ['c2f', 'standard'])
def test_seed(files, protocol):
    files = files[0], None, files[2]
    val = [split_files(files, protocol, seed).val.tolist() for seed in (3, 3, 4)]
    assert val[0] == val[1] != val[2]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'protocol': 'lightgcn'},
            "unknown protocol 'lightgcn'; choose one of c2f, standard",
        ),
        ({'split_seed': -1}, 'must not be negative'),
        ({'split_seed': 0.5}, 'must be an integer'),
        ({'split_seed': True}, 'must be an integer'),
        ({'user_column': 'item_id'}, "both be in the column 'item_id'"),
    ],
)
def test_wrong_spec(options, message):
    with pytest.raises(InputError, match=message):
        DataSpec('toy', **options)
