import io

import numpy as np
import pytest

from pyg_c2f.datasets import DataSpec, InteractionDataset, describe
from pyg_c2f.datasets.sources import read_source
from pyg_c2f.typing import RATES, InputError

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')


def parquet_bytes(user, item, **options):
    sink = io.BytesIO()
    pq.write_table(pa.table({'user_id': user, 'item_id': item}), sink, **options)
    return sink.getvalue()


@pytest.fixture
def read(put):
    """Reads a table of the given bytes, or of the given columns."""

    def read_table(*table, **options):
        raw = table[0] if len(table) == 1 else parquet_bytes(*table, **options)
        return read_source(DataSpec('toy', put('toy', {'toy.parquet': raw})))

    return read_table


TEXT, WHOLE = pa.array(['b', 'a', 'a']), pa.array([2**63, 7, 7], pa.uint64())


@pytest.mark.parametrize(
    'user',
    [
        TEXT,
        TEXT.cast(pa.large_string()),
        TEXT.cast(pa.string_view()),
        TEXT.cast(pa.binary()),
        TEXT.dictionary_encode(),
    ],
    ids=lambda user: str(user.type),
)
def test_types(read, user):
    for item in (WHOLE, WHOLE.cast(pa.decimal128(20, 0))):
        source = read(user, item, row_group_size=1)
        assert source.texts == {'users': ['a', 'b'], 'items': ['7', str(2**63)]}
        assert source.parts['toy.parquet'].tolist() == [0, 3]


@pytest.mark.parametrize(
    ('item', 'kind'),
    [
        (pa.array([1, 2, 3]).cast(pa.decimal128(30, 2)), 'decimal'),
        (pa.array([1, 2, 3]).cast(pa.timestamp('us')), 'timestamp'),
        (pa.array([1, 2, 3], pa.date32()), 'date32'),
        (pa.array([1.5, 2, 3]), 'double'),
        (pa.array([True] * 3), 'bool'),
        (pa.array([[1]] * 3), 'list<'),
        (pa.array([{'a': 1}] * 3), 'struct<'),
    ],
)
def test_other_types(read, item, kind):
    with pytest.raises(InputError, match=f"'item_id' is of type '{kind}.*; write its"):
        read(TEXT, item)


CELLS = pa.array([b'a', b'\xff', b'b'])


@pytest.mark.parametrize(
    ('user', 'message'),
    [
        (['a', None, 'b'], "row 2: no 'user_id'; complete"),
        (['a', '', 'b'], "row 2: no 'user_id'"),
        ([1, None, 3], "row 2: no 'user_id'"),
        (pa.array([1, None, 3]).dictionary_encode(), "row 2: no 'user_id'"),
        (['a', 'b\0', 'b'], "row 2: 'user_id' holds a NUL"),
        (CELLS, "row 2: 'user_id' is not UTF-8 text"),
        (
            pa.Array.from_buffers(pa.string(), 3, CELLS.buffers()),
            "row 2: 'user_id' is not UTF-8 text",
        ),
    ],
)
@pytest.mark.parametrize('size', [1, 3])
def test_bad_rows(read, user, message, size):
    with pytest.raises(InputError, match=message):
        read(user, pa.array([1, 2, 3]), row_group_size=size)


def test_bad_tables(read):
    for raw in (b'PAR1 and no more', b''):
        with pytest.raises(InputError, match='toy.parquet is not a readable Parquet'):
            read(raw)
    sink, names = io.BytesIO(), ['user_id', 'item_id', 'user_id']
    pq.write_table(pa.table([pa.array([1])] * 3, names), sink)
    with pytest.raises(InputError, match="parquet: 2 columns are named 'user_id'"):
        read(sink.getvalue())
    sink = io.BytesIO()
    pq.write_table(pa.table({'a': [1], 'b': [2]}), sink)
    with pytest.raises(InputError, match=r"parquet: no column .*present: 'a, b'"):
        read(sink.getvalue())
    with pytest.raises(InputError, match='has no rows'):
        read(pa.array([], pa.string()), pa.array([], pa.int64()))
    raw = parquet_bytes(['a', 'b'], [1, 2], write_page_checksum=True, compression=None)
    damaged = raw.replace(b'\x01\0\0\0a\x01\0\0\0b', b'\x01\0\0\0a\x01\0\0\0c')
    assert damaged != raw
    with pytest.raises(InputError, match='is not a readable Parquet table'):
        read(damaged)


def test_unused_entries_may_be_anything(read):
    words = pa.array(['a', '', 'b\0', 'b'])
    user = pa.DictionaryArray.from_arrays(pa.array([0, 3, 3, 0, 3]), words)
    assert read(user, pa.array([1, 2, 3, 2, 1])).texts['users'] == ['a', 'b']


@pytest.mark.parametrize(
    ('num_rows', 'cell', 'options', 'message'),
    [
        (3 * 10**6, 'x', {}, r'claims to hold 3,000,000 rows'),
        (500, 'x' * 10**5, {'use_dictionary': False}, r'in 50,\d+,\d+ bytes unpacked'),
        (10**5, 'x' * 10**5, {}, None),
    ],
    ids=['rows', 'pages', 'cells'],
)
def test_large_claims(read, num_rows, cell, options, message):
    item = pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int32), [cell])
    user = pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int32), ['u'])
    if not options.get('use_dictionary', True):
        item = item.cast(pa.string())
    raw = parquet_bytes(user, item, compression='zstd', **options)
    if message is None:
        assert read(raw).texts['items'] == [cell]
        # Written out they would be 10 GB.
        assert pa.default_memory_pool().max_memory() < 10**9
    else:
        with pytest.raises(InputError, match=message):
            read(raw)


# Folders of part files ----------------------------------------------------------------


def put_parts(root, parts, name='toy'):
    folder = root / name / f'{name}.parquet'
    folder.mkdir(parents=True)
    for file, raw in parts.items():
        (folder / file).write_bytes(raw)
    return root


def test_folder(tmp_path):
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
    for key in ('edge_index', 'val_edge_label_index', 'test_edge_label_index'):
        assert one[RATES][key].equal(data[RATES][key])
    assert data['user'].raw_id == one['user'].raw_id
    assert data['item'].raw_id == one['item'].raw_id
    (file,) = describe('toy', tmp_path)['files']
    assert file['file'] == 'toy.parquet' and file['bytes'] > len(whole)
    # Other tables come first.
    (tmp_path / 'toy' / 'toy.csv').write_text('user_id,item_id\n1,1\n1,2\n1,3\n')
    assert InteractionDataset(tmp_path, 'toy')[0]['user'].num_nodes == 1


@pytest.mark.parametrize(
    ('part', 'message'),
    [
        (b'', r'toy.parquet/p1.parquet is not a readable Parquet table'),
        (([1, 2, None], [1, 2, 3]), r"toy.parquet/p1.parquet, row 3: no 'user_id'"),
        (([0.5], [1]), r"p1.parquet: the column 'user_id' is of type 'double'"),
        (([1] * 3 * 10**6,) * 2, r'p1.parquet claims to hold 3,000,000 rows'),
    ],
    ids=['damaged', 'gap', 'type', 'size'],
)
def test_bad_part(tmp_path, part, message):
    raw = part if isinstance(part, bytes) else parquet_bytes(*part)
    good = parquet_bytes([1, 1, 1], [1, 2, 3])
    put_parts(tmp_path, {'p0.parquet': good, 'p1.parquet': raw})
    with pytest.raises(InputError, match=message) as info:
        InteractionDataset(tmp_path, 'toy')
    assert '\n' not in str(info.value)


def test_bad_folder(tmp_path):
    put_parts(tmp_path, {'_SUCCESS': b'', 'part-0.csv': b''})
    with pytest.raises(InputError, match=r'toy.parquet holds no part file \*.parquet'):
        InteractionDataset(tmp_path, 'toy')
    (tmp_path / 'toy' / 'toy.parquet' / 'date=1').mkdir()
    with pytest.raises(InputError, match='date=1 is a folder; .*without partitions'):
        InteractionDataset(tmp_path, 'toy')
