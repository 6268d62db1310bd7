import gzip

import pytest

from pyg_c2f.datasets import DataSpec, InteractionDataset, get_dataset, tables
from pyg_c2f.datasets.sources import read_source
from pyg_c2f.typing import RATES, InputError
from tests.memory import peak

TABLE = 'user_id:token\titem_id:token\trating:float\n' + ''.join(
    f'{user}\t{item}\t3\n' for user in (7, 10, 2) for item in (30, 4, 200, 11, 5)
)
CSV = TABLE.replace(':token', '').replace(':float', '').replace('\t', ',')
HEADER = 'user_id,item_id\n'


def read(root, **columns):
    return read_source(DataSpec('toy', root, **columns))


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


def test_text_ids(put, caplog):
    rows = ['zoë,y\n'] + [
        f'{u},"{i}"\n' for u in ('zoë', 'al', 'b') for i in ('x,1', 'y', 'z')
    ]
    table = '\n"who",what\n' + '\n'.join(rows)
    raw = b'\xef\xbb\xbf' + table.replace('\n', '\r\n').encode()
    source = read(put('toy', {'toy.csv': raw}), user_column='who', item_column='what')
    assert source.texts['users'] == ['al', 'b', 'zoë']
    assert source.texts['items'] == ['x,1', 'y', 'z']
    assert source.parts['toy.csv'].size == 9
    assert 'toy.csv: 1 duplicate interactions merged' in caplog.text
    # Digits of other scripts are text, and so are all ids then.
    rows = ''.join(f'{user},1\n' for user in ('10', '9', '²', '٣'))
    users = read(put('toy', {'toy.csv': HEADER + rows})).texts['users']
    assert users == ['10', '9', '²', '٣']


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('inter', '', 'toy.inter is empty'),
        ('csv', b'\xef\xbb\xbf\n', 'toy.csv is empty'),
        ('csv', '""\n', 'toy.csv is empty'),
        ('csv', ',,\n"",\n \n', 'toy.csv is empty'),
        ('inter', TABLE.splitlines()[0] + '\n', 'toy.inter has no rows'),
        ('csv', 'user_id,item_id\n\n', 'toy.csv has no rows'),
        ('csv', 'a,b\n1,2\n', r"line 1: no column 'user_id' \(columns present: 'a, b'"),
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
        ('csv', CSV.replace('\n', '\r').encode() + b'\xff,1\r', 'line 17: not UTF-8'),
        ('csv', CSV.encode() + b'\xed\xa0\x80,1\n', 'toy.csv, line 17: not UTF-8 text'),
    ],
)
def test_bad_table(put, file, content, message):
    root = put('toy', {f'toy.{file}': content})
    with pytest.raises(InputError, match=message) as info:
        InteractionDataset(root, 'toy')
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    ('name', 'text', 'num_users'),
    [
        ('toy.csv', 'user_id,item_id\n   \na, "c"\n,,\nb,d,,\n\n', 2),
        ('toy.inter', ' \n\t\nuser_id:token\titem_id:token\na\tc\t\n\t\nb\td\n', 2),
        ('toy.csv', 'user_id,item_id\n\xa0a\u2003,c\n\na,\x85d\n', 1),
    ],
)
def test_blank_rows_and_white_space(put, name, text, num_users):
    source = read(put('toy', {name: text}))
    assert source.texts['items'] == ['c', 'd'] and source.num_users == num_users


# At once or row by row ----------------------------------------------------------------


def both_ways(put, monkeypatch, name, raw):
    """What a table holds or why not, at once and row by row; the former if it can."""
    root, at_once, used = put('toy', {name: raw}), tables._read_at_once, []

    def spy(*args):
        ids = at_once(*args)
        used.append(ids is not None)
        return ids

    found = []
    for replacement in (spy, lambda *_: None):
        monkeypatch.setattr(tables, '_read_at_once', replacement)
        try:
            source = read(root)
            found.append((source.texts, source.parts[name].tolist()))
        except InputError as error:
            found.append(str(error))
    monkeypatch.setattr(tables, '_read_at_once', at_once)
    return *found, any(used)


@pytest.mark.parametrize(
    ('rows', 'at_once'),
    [
        ('1,2\n3,4', True),
        ('1,2\r\n3,4\r\n', True),
        ('\n\n1,2\n\n\n\n1,4\n\n', True),
        (' 1, 2\n1 ,2 \n\v1\f,\x1c2\n', True),
        ('\xa01,2\u2003\n1\x85,\u20282\n\ufeff1,2\n', True),
        ('12345678 ,1\n12345678,1\n 12345678,1\n123456789,2\n', True),
        ('NA,null\nnan,\\N\n#1,-\nzoë日本,0120\n012,' + '日' * 300, True),
        ('1,2\n' + '\n' * 300 + '3,4\n', True),
        ('1,2\n3,4,\n', False),
        ('1,2,\n3,4,\n', False),
        ('1,2\n,\n3,4\n', False),
        ('1,2\n \n3,4\n', False),
        ('1,2\n3\n', False),
        ('1,2\n3,4,5\n', False),
        ('1,2,3\n4\n', False),
        ('3,\n' * 50_000, False),
        ('1,2\n3, \n', False),
        ('1,2\n3,\u3000\n', False),
        ('1,2\n3,4\0\n', False),
        ('1,2\n3,"4"\n', False),
        ('1,2\n"3,4\n', False),
        ('1,' + 'x' * 131_069 + '\n', True),
        ('1,' + 'x' * 131_072 + '\n', False),
        ('1,' + 'x' * 131_073, False),
        ('\n', False),
        ('', False),
    ],
)
@pytest.mark.parametrize('top', ['user_id,item_id\n', '\n,\nuser_id,item_id\n', ''])
def test_rows_at_once_or_not(put, monkeypatch, top, rows, at_once):
    pytest.importorskip('pyarrow')
    raw = (top + rows).encode()
    fast, slow, used = both_ways(put, monkeypatch, 'toy.csv', raw)
    assert fast == slow
    assert used == (at_once and top.startswith('user_id'))


@pytest.mark.parametrize(
    'rows',
    [
        '1,2\n' * 2**18,
        '\n' * 2**20,
        ''.join(f'{i % 999},{i % 777}\n' for i in range(20_000)) + 'x' * 10**5 + ',1\n',
    ],
    ids=['short', 'blank', 'long'],
)
def test_memory(put, rows):
    root = put('toy', {'toy.csv': f'{HEADER}1,2\n{rows}'})
    assert peak(lambda: read(root)) < 30 * len(rows)


# Titles -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('item', 'titles'),
    [
        (b'item_id:token\tmovie_title:token_seq\n30\tThe Sea\n4\tFire\n11\n',
         ['Fire', '', '', 'The Sea', '']),
        (b'item_id\ttitle\r30\tA\r', ['', '', '', 'A', '']),
        (b'item_id\ttitle\n 30 \tA\0\xff\n4\n4\tB\tC\n', ['', '', '', 'A��', '']),
        (b'item_id\ttitle\n30\tA\n30\tB', ['', '', '', 'B', '']),
        (b'item_id:token\tyear:float\n4\t1999\n', None),
        (b'item_id', None),
        (b'\xff\xfe\0', None),
        (b'', None),
    ],
)  # fmt: skip
def test_titles(put, caplog, item, titles):
    root = put('toy', {'toy.inter': TABLE, 'toy.item': item})
    found = get_dataset('toy', root)['item'].to_dict().get('title')
    assert (found and list(found)) == titles
    assert ('no titles' in caplog.text) == (titles is None)


def test_damaged_archive_of_titles(put):
    root = put('toy', {'toy.inter': TABLE, 'toy.item.gz': b'no gzip'})
    with pytest.raises(InputError, match='toy.item.gz is a truncated or corrupt'):
        read(root)
