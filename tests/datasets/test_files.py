import csv
import gzip
import io
import logging

import numpy as np
import pytest

from pyg_c2f.datasets import InteractionDataset, describe, files, get_dataset
from pyg_c2f.datasets.files import (
    locate,
    parse_text,
    read_bytes,
    read_source,
    sorted_unique,
)
from pyg_c2f.typing import RATES, InputError
from tests.memory import peak

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
        ('0 1\n0 \x1b[31m\n', r"line 2: the id '\\x1b\[31m' is no integer"),
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
        ('inter', '\n\n1\t2\n', "line 3: no column 'user_id'"),
        ('inter', TABLE + '\n5\n', 'line 18: the row has 1 cells, the header 3'),
        ('inter', TABLE + '5\t6\t7\t8\n', 'line 17: the row has 4 cells, the header 3'),
        ('inter', TABLE + '\t6\t7\n', "line 17: no 'user_id'; complete"),
        ('csv', CSV + '\n5, ,3\n', "line 18: no 'item_id'; complete"),
        ('csv', CSV + '5,6\0,3\n', "line 17: 'item_id' holds a NUL character"),
        ('csv', f'{CSV}"a\n\nb",,3\n', "line 17: no 'item_id'"),
        ('csv', f'{CSV}"a\n\nb",6,3\n7\n', 'line 20: the row has 1 cells'),
        ('csv', 'user_id,item_id\n1,"2\n3,4\n', 'line 2: the row cannot be .*quotes'),
        ('csv', 'user_id,item_id\n1,"2"3\n3,4\n', 'line 2: the row cannot be read'),
        ('csv', 'user_id,item_id\n"' + 'x' * 200000, 'line 2: the row cannot be read'),
        ('inter', TABLE + 'x' * 200000, 'line 17: the row cannot be read .*shorten'),
        ('csv', '"' + 'x' * 200000, 'line 1: the row cannot be read'),
        ('csv', 'user_id,item_id,user_id\n', "line 1: 2 columns are named 'user_id'"),
        ('csv', CSV.replace('\n', '\r').encode() + b'\xff,1\r', 'line 17: no UTF-8'),
        ('csv', CSV.encode() + b'\xed\xa0\x80,1\n', 'line 17: no UTF-8'),
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
        ('a,b\n1,2\n', r"parquet: no column 'user_id' \(columns present: 'a, b'"),
        ('user_id,item_id\n1,2\n3,\n', "row 2: no 'item_id'"),
        ('user_id,item_id\n1,2\n"",a\n', "row 2: no 'user_id'"),
        ('user_id,item_id\n', 'has no rows'),
        ('user_id,item_id\n,1\n', "row 1: no 'user_id'"),
        ('user_id,item_id\n1,1.5\n', "column 'item_id' is of type 'double'; write its"),
        ('user_id,item_id\n1,2020-02-02\n', "is of type 'date32"),
        ('user_id,item_id\n1,true\n', "is of type 'bool'"),
    ],
)
def test_bad_parquet(put, text, message):
    root = put('toy', {})
    write_parquet(root / 'toy' / 'toy.parquet', text)
    with pytest.raises(InputError, match=message):
        InteractionDataset(root, 'toy')


def parquet_bytes(user, item, **options):
    pa = pytest.importorskip('pyarrow')
    sink = io.BytesIO()
    table = pa.table({'user_id': user, 'item_id': item})
    pytest.importorskip('pyarrow.parquet').write_table(table, sink, **options)
    return sink.getvalue()


def test_parquet_types(put):
    pa = pytest.importorskip('pyarrow')
    text, whole = pa.array(['b', 'a', 'a']), pa.array([2**63, 7, 7], pa.uint64())
    for user in (
        text,
        text.cast(pa.large_string()),
        text.cast(pa.string_view()),
        text.cast(pa.binary()),
        text.dictionary_encode(),
    ):
        raw = parquet_bytes(user, whole, row_group_size=1)
        source = read_source(put('toy', {'toy.parquet': raw}), 'toy')
        assert source.user_labels == ['a', 'b']
        assert source.item_labels == ['7', str(2**63)]
        assert source.parts['toy.parquet'].tolist() == [0, 3]
    raw = parquet_bytes(text, whole.cast(pa.decimal128(20, 0)))
    assert read_source(put('toy', {'toy.parquet': raw}), 'toy').item_labels[0] == '7'
    for kind in (pa.decimal128(30, 2), pa.timestamp('us'), pa.float64()):
        raw = parquet_bytes(text, pa.array([1, 2, 3]).cast(kind))
        with pytest.raises(InputError, match="'item_id' is of type"):
            read_source(put('toy', {'toy.parquet': raw}), 'toy')
    for column in ([[1]] * 3, [{'a': 1}] * 3):
        with pytest.raises(InputError, match="'item_id' is of type '(list|struct)<"):
            root = put('toy', {'toy.parquet': parquet_bytes(text, pa.array(column))})
            read_source(root, 'toy')


def test_parquet_text_that_is_none(put):
    pa = pytest.importorskip('pyarrow')
    cells = pa.array([b'a', b'\xff', b'b'])
    for user in (cells, pa.Array.from_buffers(pa.string(), 3, cells.buffers())):
        raw = parquet_bytes(user, pa.array([1, 2, 3]), row_group_size=1)
        with pytest.raises(InputError, match="row 2: 'user_id' is no UTF-8 text"):
            read_source(put('toy', {'toy.parquet': raw}), 'toy')
    raw = parquet_bytes(pa.array(['a', 'b\0', 'b']), pa.array([1, 2, 3]))
    with pytest.raises(InputError, match="row 2: 'user_id' holds a NUL"):
        read_source(put('toy', {'toy.parquet': raw}), 'toy')


def test_parquet_column_twice(put):
    pa = pytest.importorskip('pyarrow')
    parquet, sink = pytest.importorskip('pyarrow.parquet'), io.BytesIO()
    names = ['user_id', 'item_id', 'user_id']
    parquet.write_table(pa.table([pa.array([1])] * 3, names), sink)
    with pytest.raises(InputError, match="parquet: 2 columns are named 'user_id'"):
        read_source(put('toy', {'toy.parquet': sink.getvalue()}), 'toy')


def test_parquet_page_with_another_checksum(put):
    raw = parquet_bytes(['a', 'b'], [1, 2], write_page_checksum=True, compression=None)
    damaged = raw.replace(b'\x01\0\0\0a\x01\0\0\0b', b'\x01\0\0\0a\x01\0\0\0c')
    assert damaged != raw
    with pytest.raises(InputError, match='is no readable Parquet table'):
        read_source(put('toy', {'toy.parquet': damaged}), 'toy')


def put_parts(root, parts, name='toy'):
    folder = root / name / f'{name}.parquet'
    folder.mkdir(parents=True)
    for file, raw in parts.items():
        (folder / file).write_bytes(raw)
    return root


def test_parquet_folder(tmp_path):
    rng = np.random.default_rng(0)
    user, item = rng.integers(30, size=500), rng.integers(50, size=500)
    whole = parquet_bytes(user, item)
    put_parts(tmp_path, {
        'part-1.snappy.parquet': parquet_bytes(user[300:], item[300:]),
        'part-0.snappy.parquet': parquet_bytes(user[:300], item[:300]),
        'part-2.parquet': parquet_bytes(user[:0], item[:0]),
        '_SUCCESS': b'',
        '_metadata.parquet': b'no table',
        '.part-0.snappy.parquet.crc': b'crc',
        '.hidden.parquet': b'no table',
        'README.txt': b'not read',
    })  # fmt: skip
    (tmp_path / 'one').mkdir()
    (tmp_path / 'one' / 'one.parquet').write_bytes(whole)
    one = InteractionDataset(tmp_path, 'one')[0]
    data = InteractionDataset(tmp_path, 'toy')[0]
    assert same(one, data)
    assert data['user'].raw_id == one['user'].raw_id
    assert data['item'].raw_id == one['item'].raw_id
    (file,) = describe('toy', tmp_path)['files']
    assert file['file'] == 'toy.parquet' and file['bytes'] > len(whole)


def test_parquet_folder_after_other_tables(tmp_path):
    put_parts(tmp_path, {})
    (tmp_path / 'toy' / 'toy.csv').write_text(CSV)
    assert InteractionDataset(tmp_path, 'toy')[0]['user'].num_nodes == 3


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'p1.parquet': b''}, r'toy.parquet/p1.parquet is no readable Parquet table'),
        (
            {'p1.parquet': lambda: parquet_bytes([1, 2, None], [1, 2, 3])},
            r"toy.parquet/p1.parquet, row 3: no 'user_id'; complete",
        ),
        (
            {'p1.parquet': lambda: parquet_bytes([1, 2, 3], ['a', 'b', 'c\0'])},
            r"p1.parquet, row 3: 'item_id' holds a NUL character",
        ),
        (
            {'p1.parquet': lambda: parquet_bytes([0.5], [1])},
            r"p1.parquet: the column 'user_id' is of type 'double'",
        ),
        (
            {'p1.parquet': lambda: parquet_bytes([1] * (3 * 10**6), [1] * 3 * 10**6)},
            r'p1.parquet claims to hold 3,000,000 rows',
        ),
    ],
    ids=['damaged', 'gap', 'NUL', 'type', 'size'],
)
def test_bad_part(tmp_path, change, message):
    parts = {'p0.parquet': parquet_bytes([1, 1, 1], [1, 2, 3])}
    parts |= {k: v if isinstance(v, bytes) else v() for k, v in change.items()}
    put_parts(tmp_path, parts)
    with pytest.raises(InputError, match=message) as info:
        InteractionDataset(tmp_path, 'toy')
    assert '\n' not in str(info.value)


def test_bad_folder_of_parts(tmp_path):
    pytest.importorskip('pyarrow')
    put_parts(tmp_path, {'_SUCCESS': b'', 'part-0.csv': b''})
    with pytest.raises(InputError, match=r'toy.parquet holds no part file \*.parquet'):
        InteractionDataset(tmp_path, 'toy')
    (tmp_path / 'toy' / 'toy.parquet' / 'date=1').mkdir()
    with pytest.raises(InputError, match='date=1 is a folder; .*without partitions'):
        InteractionDataset(tmp_path, 'toy')
    put_parts(tmp_path, {'a.parquet': parquet_bytes([1][:0], [1][:0])}, 'no')
    with pytest.raises(InputError, match="'user_id' is of type|no.parquet has no rows"):
        InteractionDataset(tmp_path, 'no')


def test_what_no_row_has_may_be_anything(put):
    pa = pytest.importorskip('pyarrow')
    words = pa.array(['a', '', 'b\0', 'b'])
    user = pa.DictionaryArray.from_arrays(pa.array([0, 3, 3, 0, 3]), words)
    raw = parquet_bytes(user, pa.array([1, 2, 3, 2, 1]))
    source = read_source(put('toy', {'toy.parquet': raw}), 'toy')
    assert source.user_labels == ['a', 'b']


@pytest.mark.parametrize(
    ('name', 'text', 'pairs'),
    [
        ('toy.csv', 'user_id,item_id\n   \na, "c"\n,,\nb,d,,\n\n', 2),
        ('toy.inter', ' \n\t\nuser_id:token\titem_id:token\na\tc\t\n\t\nb\td\n', 2),
    ],
)
def test_blank_rows_and_cells_at_the_end(put, name, text, pairs):
    source = read_source(put('toy', {name: text.encode()}), 'toy')
    assert source.item_labels == ['c', 'd'] and source.num_users == pairs


@pytest.mark.parametrize(
    ('num_rows', 'cell', 'options', 'message'),
    [
        (3 * 10**6, 'x', {}, r'claims to hold 3,000,000 rows'),
        (500, 'x' * 10**5, {'use_dictionary': False}, r'in 50,\d+,\d+ bytes unpacked'),
        (10**5, 'x' * 10**5, {}, None),
    ],
    ids=['rows', 'pages', 'cells'],
)
def test_parquet_that_claims_much(put, num_rows, cell, options, message):
    pa = pytest.importorskip('pyarrow')
    item = pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int32), [cell])
    user = pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int32), ['u'])
    if not options.get('use_dictionary', True):
        item = item.cast(pa.string())
    raw = parquet_bytes(user, item, compression='zstd', **options)
    root = put('toy', {'toy.parquet': raw})
    if message is None:
        assert read_source(root, 'toy').item_labels == [cell]
        # Written out they would be 10 GB.
        assert pa.default_memory_pool().max_memory() < 10**9
    else:
        with pytest.raises(InputError, match=message):
            read_source(root, 'toy')


def both_ways(put, monkeypatch, name, raw):
    """What a table holds or why not, in one go and row by row; the former if it can."""
    root, plain_rows, in_one_go = put('toy', {name: raw}), files._read_plain_rows, []

    def spy(*args):
        ids = plain_rows(*args)
        in_one_go.append(ids is not None)
        return ids

    found = []
    for read in (spy, lambda *_: None):
        monkeypatch.setattr(files, '_read_plain_rows', read)
        try:
            source = read_source(root, 'toy')
            pairs = source.parts[name].tolist()
            found.append((source.user_labels, source.item_labels, pairs))
        except InputError as error:
            found.append(str(error))
    monkeypatch.setattr(files, '_read_plain_rows', plain_rows)
    return *found, any(in_one_go)


IDS = {
    'numbers': '12345678',
    'zeros': '0120',
    'nine': '123456789',
    'letters': 'A2SUAM1J3GNN3B',
    'three words': 'bv2nCi5Qv5vroFiqKGopiw',
    'script': 'zoë日本',
    'quote': 'a"b',
    'longest': 'x' * 254,
    'longer': 'x' * 255,
    'wide': '日' * 85,
}


@pytest.mark.parametrize('text', IDS.values(), ids=IDS)
@pytest.mark.parametrize('separator', [',', '\t'], ids=['csv', 'inter'])
@pytest.mark.parametrize('block', [64, 600, 2**17])
def test_rows_in_one_go(put, monkeypatch, text, separator, block):
    monkeypatch.setattr(files, '_BLOCK_BYTES', block)
    # Texts that begin, end or go on as another does.
    ids = sorted({text[:i] + end for i in range(len(text)) for end in '12'} - {''})
    rng = np.random.default_rng(len(text))
    rows = [(rng.choice(ids), rng.choice(ids)) for _ in range(300)]
    lines = ['user_id,rating,item_id', *(f'{user},4.5,{item}' for user, item in rows)]
    raw = '\n'.join(lines).replace(',', separator).encode()
    name = 'toy.csv' if separator == ',' else 'toy.inter'
    fast, slow, in_one_go = both_ways(put, monkeypatch, name, raw)
    assert fast == slow
    is_plain = separator == '\t' or '"' not in text
    fits = len(ids[-1].encode()) <= 255 and max(map(len, raw.split(b'\n'))) < block
    assert in_one_go == (is_plain and fits)
    users, items = (sorted({row[side] for row in rows}) for side in range(2))
    if text.isdigit():
        users, items = sorted(users, key=len), sorted(items, key=len)
    assert slow[:2] == (users, items)
    pairs = {users.index(user) * len(items) + items.index(item) for user, item in rows}
    assert slow[2] == sorted(pairs)


@pytest.mark.parametrize(
    ('rows', 'in_one_go'),
    [
        ('1,2\n3,4', True),
        ('1,2\r\n3,4\r\n', True),
        ('\n\n1,2\n\n\n\n1,4\n\n', True),
        (' 1, 2\n1 ,2 \n\v1\f,\x1c2\n', True),
        ('\xa01,2\u2003\n1\x85,\u20282\n\ufeff1,2\n', True),
        ('12345678 ,1\n12345678,1\n 12345678,1\n123456789,2\n', True),
        ('1,2\n3,4,\n', False),
        ('1,2,\n3,4,\n', False),
        ('1,2\n,\n3,4\n', False),
        ('1,2\n \n3,4\n', False),
        ('1,2\n' + '\n' * 300 + '3,4\n', False),
        ('1,2\n3\n', False),
        ('1,2\n3,4,5\n', False),
        ('1,2,3\n4\n', False),
        ('1,2\n3,\n', False),
        ('3,\n' * 50_000, False),
        ('1,2\n3, \n', False),
        ('1,2\n3,\u3000\n', False),
        ('1,2\n3,4\0\n', False),
        ('1,2\n3,"4"\n', False),
        ('1,2\n"3,4\n', False),
        ('1,' + 'x' * 131_069 + '\n', False),
        ('1,' + 'x' * 131_072 + '\n', False),
        ('1,' + 'x' * 131_073, False),
        ('\n', False),
        ('', False),
    ],
)
@pytest.mark.parametrize('top', ['user_id,item_id\n', '\n,\nuser_id,item_id\n', ''])
def test_rows_in_one_go_or_not(put, monkeypatch, top, rows, in_one_go):
    raw = (top + rows).encode()
    fast, slow, used = both_ways(put, monkeypatch, 'toy.csv', raw)
    assert fast == slow
    assert used == (in_one_go and top.startswith('user_id'))


@pytest.mark.parametrize(('length', 'used'), [(8, True), (9, False)])
def test_texts_of_one_hash(put, monkeypatch, length, used):
    # All keys have one slot in the table, and long cells the same key.
    monkeypatch.setattr(files, '_HASH_FACTOR', np.uint64(0))
    rows = ''.join(f'{i:0{length - 1}}x,{i % 7}\n' for i in range(50))
    fast, slow, in_one_go = both_ways(
        put, monkeypatch, 'toy.csv', f'user_id,item_id\n{rows}'
    )
    assert fast == slow and len(fast[0]) == 50 and in_one_go == used


def test_the_limit_of_the_csv_module_is_kept(put, monkeypatch):
    raw = 'user_id,item_id\n' + 'abcdefgh,1234567890123\n' * 9
    limit = csv.field_size_limit(12)
    try:
        fast, slow, in_one_go = both_ways(put, monkeypatch, 'toy.csv', raw)
    finally:
        csv.field_size_limit(limit)
    assert fast == slow and not in_one_go and 'line 2: the row cannot be read' in fast


@pytest.mark.parametrize('row', ['1,2\n', '\n'], ids=['short', 'blank'])
def test_short_rows_take_little_memory(put, row):
    rows = row * (2**20 // len(row))
    root = put('toy', {'toy.csv': f'user_id,item_id\n1,2\n{rows}'})
    assert peak(lambda: read_source(root, 'toy')) < 30 * len(rows)


def test_a_long_cell_makes_no_wide_column(put):
    rows = ''.join(f'{i % 999},{i % 777}\n' for i in range(20_000))
    raw = f'user_id,item_id\n{rows}{"x" * 100_000},1\n'
    root = put('toy', {'toy.csv': raw})
    assert peak(lambda: read_source(root, 'toy')) < 30 * len(raw)


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


def test_gzip_of_much_is_read(put):
    # Larger than what any archive may hold, but not larger than its own size allows.
    digits = np.random.default_rng(0).integers(48, 58, 2**25 + 1, np.uint8)
    text = digits.tobytes()
    root = put('toy', {'train.txt.gz': gzip.compress(text, 1)})
    assert read_bytes(root / 'toy' / 'train.txt.gz') == text


def test_one_large_id_makes_no_large_table(put):
    root = put('toy', {'train.txt': '0 1 2\n' * 10**5, 'test.txt': '0 5000000\n'})
    with pytest.raises(InputError, match='test.txt, line 1: the id 5000000 is far too'):
        read_source(root, 'toy')


@pytest.mark.parametrize(
    ('item', 'titles'),
    [
        (b'item_id\ttitle\r30\tA\r', ['', '', '', 'A', '']),
        (b'item_id\ttitle\n 30 \tA\0\xff\n4\n4\tB\tC\n', ['', '', '', 'A��', '']),
        (b'item_id\ttitle\n30\tA\n30\tB', ['', '', '', 'B', '']),
        (b'item_id', None),
        (b'\xff\xfe\0', None),
        (b'', None),
    ],
)
def test_damaged_titles(put, item, titles):
    root = put('toy', {'toy.inter': TABLE, 'toy.item': item})
    assert read_source(root, 'toy').titles == titles


def test_damaged_archive_of_titles(put):
    root = put('toy', {'toy.inter': TABLE, 'toy.item.gz': b'no gzip'})
    with pytest.raises(InputError, match='toy.item.gz is a truncated or corrupt'):
        read_source(root, 'toy')


def test_digits_of_other_scripts_are_text(put):
    rows = ''.join(f'{user},1\n' for user in ('10', '9', '²', '٣'))
    root = put('toy', {'toy.csv': f'user_id,item_id\n{rows}'})
    assert read_source(root, 'toy').user_labels == ['10', '9', '²', '٣']


def test_what_is_white_space_in_a_table(put):
    text = 'user_id,item_id\n\xa01\u2003,2\n\n1,\x852\n'
    root = put('toy', {'toy.csv': text})
    source = read_source(root, 'toy')
    assert (source.user_labels, source.item_labels) == (['1'], ['2'])
    assert source.parts['toy.csv'].tolist() == [0]


def test_sorted_unique():
    keys = np.random.default_rng(0).integers(50, size=100)
    assert sorted_unique(keys).tolist() == sorted(set(keys.tolist()))


@pytest.mark.parametrize('text', ['""\n', ',,\n"",\n', ' , \n'])
def test_blank_rows_alone(put, text):
    with pytest.raises(InputError, match='toy.csv is empty'):
        read_source(put('toy', {'toy.csv': text.encode()}), 'toy')
