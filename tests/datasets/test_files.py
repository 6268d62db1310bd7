import gzip
import logging

import numpy as np
import pytest

from pyg_c2f.datasets import InteractionDataset, get_dataset
from pyg_c2f.datasets.files import locate, parse_text, read_source, sorted_unique
from pyg_c2f.typing import RATES, InputError

TRAIN = '0 0 1 2\n1 1 3\n2 0 3\n'
TEST = '0 3\n1 0 2\n2 1\n'
TABLE = 'user_id:token\titem_id:token\trating:float\n' + ''.join(
    f'{user}\t{item}\t3\n' for user in (7, 10, 2) for item in (30, 4, 200, 11, 5)
)
CSV = TABLE.replace(':token', '').replace(':float', '').replace('\t', ',')


def naive_pairs(text):
    return [
        (int(line.split()[0]), int(item))
        for line in text.splitlines()
        for item in line.split()[1:]
    ]


def same(left, right):
    keys = ('edge_index', 'val_edge_label_index', 'test_edge_label_index')
    return left.num_nodes_dict == right.num_nodes_dict and all(
        left[RATES][key].equal(right[RATES][key]) for key in keys
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
def test_tolerated_silently(put, caplog, change):
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
def test_tolerated_with_count(put, caplog, train, message):
    root = put('toy', {'train.txt': train, 'test.txt': TEST})
    with caplog.at_level(logging.INFO):
        data = InteractionDataset(root, 'toy')[0]
    assert message in caplog.text
    assert data['user'].num_nodes == 1 + max(
        int(line.split()[0]) for line in (train + TEST).splitlines()
    )
    edges = {
        tuple(edge)
        for key in ('edge_index', 'val_edge_label_index', 'test_edge_label_index')
        for edge in data[RATES][key].t().tolist()
    }
    assert edges == set(naive_pairs(train + TEST))


@pytest.mark.parametrize(
    ('train', 'message'),
    [
        ('', r'train.txt is empty'),
        ('\n \n', r'train.txt is empty'),
        ('0\n1\n', r'train.txt holds no interaction'),
        ('0 1 2\n1 a\n', r"train.txt, line 2: the id 'a' is no integer"),
        ('0 1 2\n1 2.0\n', r"line 2: the id '2.0' is no integer"),
        ('user item\n0 1\n', r"line 1: the id 'user' is no integer"),
        ('0,1,2\n', r"line 1: the id '0,1,2' is no integer"),
        ('0 1\r\n1 2\r\n2 -3\r\n', r"line 3: the id '-3' is negative"),
        ('0 1 2\n1 3000000000\n', r'line 2: the id 3000000000 is far too large'),
        ('0 1 2\n\n1 2000000\n', r'line 3: the id 2000000 is far too .* contiguous'),
        (f'0 1\n9{"9" * 40} 1\n', r'line 2: the id \d+ is far too large'),
        (b'\x89PNG\r\n\x1a\n\x00\x00 1 2', r"line 1: the id '\\x89PNG' is no integer"),
        ('0 1 2\n'.encode('utf-16'), r'train.txt, line 1: .* is no integer'),
        (TEST, r'leaves no test interaction'),
    ],
)
def test_bad_text(put, train, message):
    root = put('toy', {'train.txt': train, 'test.txt': TEST})
    with pytest.raises(InputError, match=message) as info:
        InteractionDataset(root, 'toy')
    assert '\n' not in str(info.value)


def test_bad_line_in_test_file(put):
    root = put('toy', {'train.txt': TRAIN, 'test.txt': '0 1\nx 1\n'})
    with pytest.raises(InputError, match=r'test.txt, line 2'):
        InteractionDataset(root, 'toy')


@pytest.mark.parametrize('missing', ['train.txt', 'test.txt'])
def test_missing_file(put, missing):
    files = {'train.txt': TRAIN, 'test.txt': TEST}
    del files[missing]
    root = put('toy', files)
    with pytest.raises(InputError, match=f'{missing} is missing'):
        InteractionDataset(root, 'toy')


def test_missing_folder(put, tmp_path):
    put('empty', {'notes.md': 'nothing'})
    with pytest.raises(InputError, match='no data set .*must hold train.txt'):
        InteractionDataset(tmp_path, 'nowhere')
    with pytest.raises(InputError, match=r'is no data set; .*found: notes.md'):
        InteractionDataset(tmp_path, 'empty')
    with pytest.raises(InputError, match='is no folder'):
        InteractionDataset(tmp_path / 'absent', 'toy')
    with pytest.raises(InputError, match='root .* is a file'):
        InteractionDataset(tmp_path / 'empty' / 'notes.md', 'toy')


@pytest.mark.parametrize('name', ['', '.', '..', '../toy', 'a\\b'])
def test_bad_name(tmp_path, name):
    with pytest.raises(InputError, match='no data set name'):
        InteractionDataset(tmp_path, name)


def test_gzip(put):
    files = {'train.txt': TRAIN, 'test.txt': TEST, 'valid.txt': '2 2\n'}
    root = put('plain', files)
    put('packed', {f'{k}.gz': gzip.compress(v.encode()) for k, v in files.items()})
    plain = InteractionDataset(root, 'plain')[0]
    assert same(plain, InteractionDataset(root, 'packed')[0])
    assert plain[RATES].val_edge_label_index.tolist() == [[2], [2]]


@pytest.mark.parametrize(
    'damage', [lambda raw: raw[:-9], lambda raw: raw[:20] + b'?' * 9 + raw[29:], len]
)
def test_damaged_gzip(put, damage):
    damaged = damage(gzip.compress(TRAIN.encode() * 9))
    damaged = damaged if isinstance(damaged, bytes) else b'no gzip'
    root = put('toy', {'train.txt.gz': damaged, 'test.txt': TEST})
    with pytest.raises(InputError, match=r'train.txt.gz is a truncated or corrupt'):
        InteractionDataset(root, 'toy')


def test_plain_before_gzip(put):
    root = put('toy', {'train.txt': TRAIN, 'train.txt.gz': b''})
    assert locate(root / 'toy', 'train.txt').name == 'train.txt'


def write_parquet(path, text):
    csv = pytest.importorskip('pyarrow.csv')
    parquet = pytest.importorskip('pyarrow.parquet')
    path.with_suffix('.tmp').write_text(text)
    parquet.write_table(csv.read_csv(path.with_suffix('.tmp')), path)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('suffix', ['inter', 'csv', 'parquet'])
def test_table(put, suffix, packed):
    root = put('toy', {})
    path = root / 'toy' / f'toy.{suffix}'
    if suffix == 'parquet':
        write_parquet(path, CSV)
    else:
        path.write_text(TABLE if suffix == 'inter' else CSV)
    if packed:
        path.with_name(f'{path.name}.gz').write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    data = InteractionDataset(root, 'toy')[0]
    user, item = data['user'].raw_id, data['item'].raw_id
    assert list(user) == ['2', '7', '10']
    assert list(item) == ['4', '5', '11', '30', '200']
    edges = {
        (user[u], item[i])
        for key in ('edge_index', 'val_edge_label_index', 'test_edge_label_index')
        for u, i in data[RATES][key].t().tolist()
    }
    rows = (line.split('\t') for line in TABLE.splitlines()[1:])
    assert edges == {(row[0], row[1]) for row in rows}


def test_table_of_text_ids(put):
    rows = [f'{u},"{i}"\n' for u in ('zoë', 'al', 'b') for i in ('x,1', 'y', 'z')]
    table = '\n"who",what\n' + '\n'.join(rows)
    root = put(
        'toy', {'toy.csv': b'\xef\xbb\xbf' + table.replace('\n', '\r\n').encode()}
    )
    source = read_source(root, 'toy', 'who', 'what')
    assert source.user_labels == ['al', 'b', 'zoë']
    assert source.item_labels == ['x,1', 'y', 'z']
    assert source.parts['toy.csv'].size == 9


def test_table_duplicates(put, caplog):
    root = put('toy', {'toy.inter': TABLE + '7\t30\t1\n'})
    read_source(root, 'toy')
    assert 'toy.inter: 1 duplicate interactions merged' in caplog.text


def test_titles(put, caplog):
    item = 'item_id:token\tmovie_title:token_seq\n30\tThe Sea\n4\tFire\n11\n'
    root = put('toy', {'toy.inter': TABLE, 'toy.item': item})
    data = get_dataset('toy', root)
    assert list(data['item'].title) == ['Fire', '', '', 'The Sea', '']
    assert 'toy.item' not in caplog.text
    put('toy', {'toy.item': 'item_id:token\tyear:float\n4\t1999\n'})
    assert 'title' not in get_dataset('toy', root)['item']
    assert 'no titles' in caplog.text


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('inter', '', 'toy.inter is empty'),
        ('csv', b'\xef\xbb\xbf\n', 'toy.csv is empty'),
        ('inter', TABLE.splitlines()[0] + '\n', 'toy.inter has no rows'),
        ('csv', 'user_id,item_id\n\n', 'toy.csv has no rows'),
        ('csv', 'a,b\n1,2\n', r"line 1: no column 'user_id' \(columns present: 'a, b'"),
        ('inter', '1\t2\n', "line 1: no column 'user_id'"),
        ('inter', TABLE.replace('item_id', 'item'), "no column 'item_id'"),
        ('inter', TABLE + '\n5\n', 'line 18: the user or the item is missing'),
        ('csv', CSV + '\n5, ,3\n', 'line 18: the user or the item is missing'),
        ('csv', 'user_id,item_id\n1,"2\n3,4\n', 'toy: .* no test interaction'),
        ('csv', 'user_id,item_id\n"' + 'x' * 200000, 'toy.csv is no readable table'),
        ('csv', '"' + 'x' * 200000, 'line 1: no table header'),
        ('csv', CSV.encode() + b'\xff\xfe,1\n', 'toy.csv, line 17: no UTF-8 text'),
        ('parquet', b'PAR1 and no more', 'toy.parquet is no readable Parquet table'),
        ('parquet', b'', 'toy.parquet is no readable Parquet table'),
    ],
)
def test_bad_table(put, file, content, message):
    if file == 'parquet':
        pytest.importorskip('pyarrow')
    root = put('toy', {f'toy.{file}': content})
    with pytest.raises(InputError, match=message) as info:
        InteractionDataset(root, 'toy')
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a,b\n1,2\n', r"no column 'user_id' \(columns present: 'a, b'"),
        ('user_id,item_id\n1,2\n3,\n', "row 2: no 'item_id'"),
        ('user_id,item_id\n', 'has no rows'),
    ],
)
def test_bad_parquet(put, text, message):
    root = put('toy', {})
    write_parquet(root / 'toy' / 'toy.parquet', text)
    with pytest.raises(InputError, match=message):
        InteractionDataset(root, 'toy')


def test_sorted_unique():
    keys = np.random.default_rng(0).integers(50, size=100)
    assert sorted_unique(keys).tolist() == sorted(set(keys.tolist()))
