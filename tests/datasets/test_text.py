import gzip
import logging

import numpy as np
import pytest

from pyg_c2f.datasets import InteractionDataset
from pyg_c2f.datasets.spec import locate
from pyg_c2f.datasets.text import parse_text, read_bytes
from pyg_c2f.typing import RATES, InputError
from tests.memory import peak

TRAIN = '0 0 1 2\n1 1 3\n2 0 3\n'
TEST = '0 3\n1 0 2\n2 1\n'
KEYS = ('edge_index', 'val_edge_label_index', 'test_edge_label_index')


PACKED = gzip.compress(TRAIN.encode() * 9)
DAMAGED = [PACKED[:-9], PACKED[:20] + b'?' * 9 + PACKED[29:], b'no']


def naive_pairs(text):
    return [
        (int(line.split()[0]), int(item))
        for line in text.splitlines()
        for item in line.split()[1:]
    ]


def same(left, right):
    return left.num_nodes_dict == right.num_nodes_dict and all(
        left[RATES][key].equal(right[RATES][key]) for key in KEYS
    )


def test_parse_text_against_naive(tmp_path):
    rng = np.random.default_rng(0)
    text = ''.join(
        ' '.join(map(str, [user, *rng.integers(1000, size=rng.integers(4))])) + '\n'
        for user in rng.integers(300, size=500)
    )
    users, user, item = parse_text(text.encode(), tmp_path)
    assert users.tolist() == [int(line.split()[0]) for line in text.splitlines()]
    assert list(zip(user.tolist(), item.tolist(), strict=True)) == naive_pairs(text)


@pytest.mark.parametrize(
    'change',
    [
        lambda text: text.replace('\n', '\r\n').encode(),
        lambda text: text.replace('\n', '\r').encode(),
        lambda text: b'\xef\xbb\xbf' + text.encode(),
        lambda text: text.replace(' ', '\t').encode(),
        lambda text: text.replace(' ', '   ').replace('\n', ' \n').encode(),
        lambda text: text.replace('\n', '\n\n').encode(),
        lambda text: text.rstrip('\n').encode(),
        lambda text: text.replace('1 ', '01 ').encode(),
    ],
    ids=['crlf', 'cr', 'bom', 'tabs', 'spaces', 'blank', 'no end', 'zeros'],
)
def test_accepted_silently(put, caplog, change):
    root = put('plain', {'train.txt': TRAIN, 'test.txt': TEST})
    put('other', {'train.txt': change(TRAIN), 'test.txt': change(TEST)})
    plain = InteractionDataset(root, 'plain')[0]
    caplog.clear()
    assert same(plain, InteractionDataset(root, 'other')[0])
    assert not [r for r in caplog.records if str(root) in r.getMessage()]


@pytest.mark.parametrize(
    ('train', 'message'),
    [
        (TRAIN + '3\n4\n', 'train.txt: 2 user lines without items'),
        (TRAIN.replace('0 0 1 2', '0 0 1 2 2 0'), '2 duplicate interactions'),
        (TRAIN.replace('0 0 1 2', '0 0 1\n0 2'), '1 repeated lines of a user'),
        (TRAIN.replace('0 0 1 2', '0 0 1 2 3'), '1 test interactions that are also'),
    ],
)
def test_accepted_with_count(put, caplog, train, message):
    root = put('toy', {'train.txt': train, 'test.txt': TEST})
    with caplog.at_level(logging.INFO):
        data = InteractionDataset(root, 'toy')[0]
    assert message in caplog.text
    assert data['user'].num_nodes == 1 + max(
        int(line.split()[0]) for line in (train + TEST).splitlines()
    )
    edges = {tuple(edge) for key in KEYS for edge in data[RATES][key].t().tolist()}
    assert edges == set(naive_pairs(train + TEST))


@pytest.mark.parametrize(
    ('train', 'message'),
    [
        ('', r'train.txt is empty'),
        ('\n \n', r'train.txt is empty'),
        ('0\n1\n', r'train.txt holds no interaction'),
        ('0 1 2\n1 a\n', r"train.txt, line 2: the id 'a' is not an integer"),
        ('0,1,2\n', r"line 1: the id '0,1,2' is not an integer"),
        ('0 1\r\n1 2\r\n2 -3\r\n', r"line 3: the id '-3' is negative"),
        ('0 1 2\n1 3000000000\n', r'line 2: the id 3000000000 is far too large'),
        ('0 1 2\n\n1 2000000\n', r'line 3: the id 2000000 is far too .* contiguous'),
        ('0 1 2\n' * 10**5 + '0 5000000\n', r'line 100001: the id 5000000 is far too'),
        (f'0 1\n9{"9" * 40} 1\n', r'line 2: the id \d+ is far too large'),
        ('0 1\n0 \x1b[31m\n', r"line 2: the id '\\x1b\[31m' is not an integer"),
        (b'\x89PNG\r\n\x1a\n\x00\x00 1 2', r"the id '\\x89PNG' is not an integer"),
        ('0 1 2\n'.encode('utf-16'), r'train.txt, line 1: .* is not an integer'),
        (TEST, r'leaves no test interaction'),
        *((raw, r'train.txt.gz is a truncated or corrupt') for raw in DAMAGED),
        (None, 'train.txt is missing'),
    ],
)
def test_bad_text(put, train, message):
    name = 'train.txt.gz' if train in DAMAGED else 'train.txt'
    files = {'test.txt': TEST} | ({} if train is None else {name: train})
    with pytest.raises(InputError, match=message) as info:
        InteractionDataset(put('toy', files), 'toy')
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    ('root', 'name', 'message'),
    [
        ('.', 'toy', 'test.txt is missing'),
        ('.', 'notes', r'is not a data set; .*found: notes.md'),
        ('.', 'nothing', 'is not a data set; .*found: nothing'),
        ('.', 'nowhere', 'no data set .*must hold train.txt'),
        ('absent', 'toy', 'is not a folder'),
        ('toy/train.txt', 'toy', 'root .* is a file'),
        *(('.', name, 'not a data set name') for name in ('', '.', '..', '../toy')),
        ('.', 'a\\b', 'not a data set name'),
    ],
)
def test_bad_folder(put, root, name, message):
    put('notes', {'notes.md': 'nothing'})
    put('nothing', {})
    there = put('toy', {'train.txt': TRAIN})
    with pytest.raises(InputError, match=message):
        InteractionDataset(there / root, name)


# gzip ---------------------------------------------------------------------------------


def test_gzip(put):
    files = {'train.txt': TRAIN, 'test.txt': TEST, 'valid.txt': '2 2\n'}
    root = put('plain', files)
    put('packed', {f'{k}.gz': gzip.compress(v.encode()) for k, v in files.items()})
    plain = InteractionDataset(root, 'plain')[0]
    assert same(plain, InteractionDataset(root, 'packed')[0])
    assert plain[RATES].val_edge_label_index.tolist() == [[2], [2]]
    put('plain', {'train.txt.gz': b''})
    assert locate(root / 'plain', 'train.txt').name == 'train.txt'


@pytest.mark.parametrize('file', ['train.txt.gz', 'toy.csv.gz', 'toy.parquet.gz'])
def test_gzip_bomb(put, file):
    raw = gzip.compress(bytes(10**8))
    root = put('toy', {file: raw, **({'test.txt': TEST} if 'txt' in file else {})})

    def refused():
        with pytest.raises(
            InputError, match=f'{file} unpacks to more than 33,5.*by hand'
        ):
            InteractionDataset(root, 'toy')

    assert peak(refused) < 10**8


def test_large_gzip_is_read(put):
    # Larger than what any archive may hold, but not larger than its own size allows.
    digits = np.random.default_rng(0).integers(48, 58, 2**25 + 1, np.uint8)
    text = digits.tobytes()
    root = put('toy', {'train.txt.gz': gzip.compress(text, 1)})
    assert read_bytes(root / 'toy' / 'train.txt.gz') == text
