import copy
import errno
import gzip
import json
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch

import run
from pyg_c2f.datasets import (
    DataSpec,
    InteractionDataset,
    build_dataset,
    describe,
    get_dataset,
)
from pyg_c2f.datasets import cache as module
from pyg_c2f.datasets import parquet as parquet_module
from pyg_c2f.datasets.cache import read_meta
from pyg_c2f.experiment import data_digest
from pyg_c2f.typing import ITEM, RATED_BY, RATES, USER, InputError
from tests.memory import peak

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')

BOTH = pytest.mark.parametrize('protocol', ['c2f', 'standard'])


def same(left, right):
    """Whether two graphs agree in all they hold."""
    assert left.to_dict().keys() == right.to_dict().keys()
    for store, other in zip(left.stores, right.stores, strict=True):
        assert set(store.keys()) == set(other.keys())
        for key in store.keys():
            assert type(store[key]) is type(other[key])
            if torch.is_tensor(store[key]):
                assert store[key].dtype == other[key].dtype
                assert store[key].equal(other[key]), key
            else:
                assert store[key] == other[key], key
    return True


def write_table(root, users, items, num_parts=3, rows=200, name='toy'):
    """A folder of part files with small row groups."""
    folder = root / name / f'{name}.parquet'
    folder.mkdir(parents=True)
    table = pa.table({'user_id': users, 'item_id': items})
    (folder / '_SUCCESS').touch()
    step = -(-len(table) // num_parts)
    for number in range(num_parts):
        part = table.slice(number * step, step)
        pq.write_table(part, folder / f'part-{number}.parquet', row_group_size=rows)
    return root


def random_pairs(seed=0, num=2000, num_users=200, num_items=150):
    """Skewed, with repeated pairs and users of one item."""
    rng = np.random.default_rng(seed)
    users = (num_users * rng.random(num) ** 3).astype(np.int64)
    return users, rng.integers(num_items, size=num)


def texts(numbers):
    return pa.array([f'{"äz🙂a"[x % 4]}{x % 7}x{x}' for x in numbers.tolist()])


KINDS = {
    'ints': lambda x: pa.array(x * 3 + 5),
    'far apart': lambda x: pa.array(x * 10**15 + 1),
    'negative': lambda x: pa.array(x - 20),
    'extreme': lambda x: pa.array(np.where(x == 3, 2**63 - 1, -(2**62) + x)),
    'int8': lambda x: pa.array((x % 100).astype(np.int8)),
    'uint64': lambda x: pa.array(x.astype(np.uint64) + np.uint64(2**63)),
    'text': texts,
    'digits': lambda x: pa.array([f'{"0" * (y % 3)}{y}' for y in x.tolist()]),
    'categories': lambda x: texts(x).dictionary_encode(),
    'categories of ints': lambda x: pa.array(x).dictionary_encode(),
    'decimals': lambda x: pa.array(x - 7).cast(pa.decimal128(20, 0)),
    'views': lambda x: texts(x).cast(pa.string_view()),
}


SOURCES = {
    'text files': lambda rows: {
        'train.txt': ''.join(f'{u} {i}\n' for u, i in rows if (u + i) % 4),
        'test.txt.gz': gzip.compress(
            ''.join(f'{u} {i}\n' for u, i in rows if not (u + i) % 4).encode()
        ),
    },
    'validation': lambda rows: {
        f'{name}.txt': ''.join(f'{u} {i}\n' for u, i in rows if (u + i) % 3 == part)
        for part, name in enumerate(('train', 'valid', 'test'))
    },
    'csv': lambda rows: {
        'toy.csv': 'user_id,item_id\n' + ''.join(f'ü{u},i{i}\n' for u, i in rows)
    },
    'inter': lambda rows: {
        'toy.inter': 'user_id:token\titem_id:token\n'
        + ''.join(f'{u}\t{i}\n' for u, i in rows),
        'toy.item': 'item_id:token\ttitle:token_seq\n1\tThe Sea\n3\tZoë\n',
    },
}


def write_mixed(root):
    """Part files whose columns are of other types."""
    folder = root / 'toy' / 'toy.parquet'
    folder.mkdir(parents=True)
    users, items = random_pairs()
    for number, kind in enumerate((pa.int32(), pa.string(), pa.int64())):
        pairs = {'user_id': pa.array(users + number).cast(kind), 'item_id': items}
        pq.write_table(pa.table(pairs), folder / f'{number}.parquet')


@BOTH
@pytest.mark.parametrize('kind', [*KINDS, 'mixed', *SOURCES])
def test_same_as_in_memory(put, tmp_path, monkeypatch, caplog, kind, protocol):
    # Many buckets and batches of little data.
    monkeypatch.setattr(module, 'BUCKET', 61)
    monkeypatch.setattr(parquet_module, '_BATCH', 37)
    pairs = random_pairs()
    if kind in KINDS:
        write_table(tmp_path, *map(KINDS[kind], pairs))
    elif kind == 'mixed':
        write_mixed(tmp_path)
    else:
        put('toy', SOURCES[kind](list(zip(*(x.tolist() for x in pairs), strict=True))))
    for seed in (7, 8):
        spec = DataSpec('toy', tmp_path, protocol, seed)
        caplog.clear()
        expected = get_dataset(spec)
        told = caplog.messages.copy()
        caplog.clear()
        folder = build_dataset(spec)
        assert caplog.messages == told
        assert folder == tmp_path / 'toy' / f'built-{protocol}-{seed}'
        data = get_dataset(spec)
        assert same(expected, data)
        assert data_digest(data) == read_meta(folder).data_sha256
        assert ('title' in data[ITEM]) == (kind == 'inter')


def test_it_is_mapped(tmp_path):
    root = write_table(tmp_path, *random_pairs(num=200_000, num_users=5000))
    folder = build_dataset('toy', root)
    held = []
    assert peak(lambda: held.append(InteractionDataset(root, 'toy')[0])) < 10**6
    (data,) = held
    forth, back = data[RATES].edge_index, data[RATED_BY].edge_index
    assert forth.untyped_storage().data_ptr() == back.untyped_storage().data_ptr()
    assert back.equal(forth.flip(0)) and forth.is_contiguous() and back.is_contiguous()
    before = (folder / 'edges.i64').read_bytes()
    forth[0, 0] = 99  # it is the reader's own
    assert (folder / 'edges.i64').read_bytes() == before
    data.validate()
    labels = data[USER].raw_id
    values = list(labels)
    assert values == [labels[i] for i in range(len(labels))]
    assert labels[-1] == labels[np.int64(len(labels) - 1)] == values[-1]
    assert pickle.loads(pickle.dumps(labels)) == labels
    assert copy.deepcopy(labels) is labels
    with pytest.raises(IndexError):
        labels[len(labels)]


# Sources and calls --------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    return write_table(tmp_path, *random_pairs())


def entries(root):
    return sorted(x.name for x in (root / 'toy').iterdir())


def test_deleted_sources(root):
    expected, facts = get_dataset('toy', root), describe('toy', root)
    other = get_dataset('toy', root, split_seed=1)
    build_dataset('toy', root)
    assert describe('toy', root) == facts
    # Another split is still read from the sources, while they are there.
    assert same(other, get_dataset('toy', root, split_seed=1))
    shutil.rmtree(root / 'toy' / 'toy.parquet')
    assert same(expected, get_dataset('toy', root))
    assert describe('toy', root) == facts | {'files': []}
    assert build_dataset('toy', root).is_dir()


def test_deleted_files_of_a_published_data_set(put, offline):
    root = put('gowalla', {'train.txt': '0 0 1 2\n1 1 3 4 5 0\n', 'test.txt': '0 3\n'})
    expected = get_dataset('gowalla', root)
    build_dataset('gowalla', root)
    for file in ('train.txt', 'test.txt'):
        (root / 'gowalla' / file).unlink()
    assert same(expected, get_dataset('gowalla', root))
    for read in (get_dataset, build_dataset):
        with pytest.raises(InputError, match='cannot be downloaded'):
            read('gowalla', root, split_seed=3)


def test_changed_sources(root):
    titles = root / 'toy' / 'toy.item'
    titles.write_text('item_id\ttitle\n3\tZoë\n')
    expected = get_dataset('toy', root)
    folder = build_dataset('toy', root)
    data = get_dataset('toy', root)
    assert same(expected, data) and data[ITEM].title[3] == 'Zoë'
    state = (folder / 'meta.json').stat()
    build_dataset('toy', root)  # is there already
    assert (folder / 'meta.json').stat() == state
    part = root / 'toy' / 'toy.parquet' / 'part-0.parquet'
    for change in (
        lambda: titles.write_text('item_id\ttitle\n3\tanother\n'),
        lambda: os.utime(part, (1, 1)),
        part.unlink,
    ):
        change()
        for read in (get_dataset, describe):
            with pytest.raises(InputError, match='other files .*data --build'):
                read('toy', root)
        num_train = read_meta(build_dataset('toy', root)).num_train
        assert get_dataset('toy', root)[RATES].edge_index.size(1) == num_train
    assert num_train < data[RATES].edge_index.size(1)


def test_other_columns(put):
    rows = ''.join(f'{u},{i},{i % 5}\n' for u in range(9) for i in range(20))
    root = put('toy', {'toy.csv': 'user_id,item_id,kind\n' + rows})
    build_dataset('toy', root)
    spec = DataSpec('toy', root, item_column='kind')
    for read in (get_dataset, describe):
        with pytest.raises(InputError, match='from the columns .*not user_id,kind'):
            read(spec)
    build_dataset(spec)
    assert get_dataset(spec)[ITEM].num_nodes == 5


def test_too_few_interactions_and_faulty_rows(tmp_path):
    root = write_table(tmp_path, [1, 2, 3], [1, 2, 3])
    for read in (get_dataset, build_dataset):
        with pytest.raises(InputError, match='toy: .*leaves no test interaction'):
            read('toy', root)
    root = write_table(tmp_path, [1] * 3, [1, 2, 3], name='few')
    expected = get_dataset('few', root)
    build_dataset('few', root)
    assert same(expected, get_dataset('few', root))
    root = write_table(tmp_path, *[pa.array([], pa.int64())] * 2, 1, name='none')
    with pytest.raises(InputError, match='none.parquet has no rows'):
        build_dataset('none', root)
    write_table(tmp_path, [*range(99), None], [*range(100)], name='gap')
    for read in (get_dataset, build_dataset):
        with pytest.raises(InputError, match=r"part-2.parquet, row 32: no 'user_id'"):
            read('gap', root)
    assert [x.name for x in (root / 'gap').iterdir()] == ['gap.parquet']


# Interrupted and damaged --------------------------------------------------------------


@pytest.mark.parametrize(
    ('step', 'error'),
    [
        ('_TableBuild.write_keys', KeyboardInterrupt()),
        ('_TableBuild.write_splits', KeyboardInterrupt()),
        ('_digest', KeyboardInterrupt()),
        ('read_meta', KeyboardInterrupt()),
        ('_PairFile.append', OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    ],
)
def test_interrupted(root, monkeypatch, step, error):
    def stop(*_):
        raise error

    monkeypatch.setattr(f'pyg_c2f.datasets.cache.{step}', stop)
    with pytest.raises(type(error)) as info:
        build_dataset('toy', root)
    if isinstance(error, OSError):
        assert re.search('No space left on device.*make room', str(info.value))
    assert '\n' not in str(info.value)
    assert entries(root) == ['toy.parquet']


def test_leftovers_are_replaced(root):
    expected = get_dataset('toy', root)
    part = root / 'toy' / 'built-standard-2024-part'
    shutil.move(build_dataset('toy', root), part)  # killed before it had its name
    (part / 'keys').write_text('no keys')
    assert same(expected, get_dataset('toy', root))
    folder = build_dataset('toy', root)
    assert not part.exists() and not (folder / 'keys').exists()
    assert same(expected, get_dataset('toy', root))


def test_two_builds_at_once(root, monkeypatch):
    digest = module._digest

    def overtaken(part, num_train):
        out = digest(part, num_train)
        shutil.move(part, part.with_name('away'))
        part.mkdir()
        shutil.copy(part.with_name('away') / 'edges.i64', part)
        return out

    monkeypatch.setattr(module, '_digest', overtaken)
    with pytest.raises((OSError, InputError)):
        build_dataset('toy', root)
    assert not (root / 'toy' / 'built-standard-2024').exists()


def test_files_that_change_meanwhile(root, monkeypatch):
    number_ids = module.ParquetTable.number_ids

    def then_write(table):
        out = number_ids(table)
        users, items = random_pairs(1, num_users=900)
        (root / 'toy' / 'toy.parquet').rename(root / 'old')
        write_table(root / 'x', users, items)
        (root / 'x' / 'toy' / 'toy.parquet').rename(root / 'toy' / 'toy.parquet')
        return out

    monkeypatch.setattr(module.ParquetTable, 'number_ids', then_write)
    with pytest.raises(InputError, match='chang.*build when they are complete'):
        build_dataset('toy', root)


@pytest.mark.parametrize(
    'file', ['edges.i64', 'val.i64', 'test.i64', 'users.bin', 'items.offsets.i64']
)
def test_damaged(root, file):
    expected = get_dataset('toy', root)
    folder = build_dataset('toy', root)
    whole = (folder / file).read_bytes()
    for content in (whole[:-8], whole[:-1], whole + b'x', b''):
        (folder / file).write_bytes(content)
        with pytest.raises(InputError, match=f'damaged .*{file} .*--build'):
            get_dataset('toy', root)
    if 'offsets' in file:
        offsets = np.frombuffer(whole, np.int64)
        for at, value in ((0, 1), (-1, 2**40), (-1, -5)):
            wrong = offsets.copy()
            wrong[at] = value
            wrong.tofile(folder / file)
            with pytest.raises(InputError, match='the offsets of items do not fit'):
                get_dataset('toy', root)
    (folder / file).unlink()
    with pytest.raises(InputError, match=f'damaged .*{file}: No such file'):
        get_dataset('toy', root)
    build_dataset('toy', root)
    assert same(expected, get_dataset('toy', root))


COUNTS = [-1, 2**62, 2**70, 5.0, '3', None, 0]
HOSTILE = {
    'format': ['pyg_c2f built 0', None, 1],
    'protocol': ['standard2', None, 3, 'c2f', ['standard']],
    'split_seed': [-1, 1.5, '2024', True, 7, None],
    'columns': ['user_id', ['user_id'], [1, 2], ['a', 'b'], {}],
    'num_users': [*COUNTS, 2**31, [1], True, 17],
    'num_items': [*COUNTS, 2**31, {}, 1e300, 17],
    **dict.fromkeys(('num_train', 'num_val', 'num_test'), COUNTS),
    'text_bytes': [{'users': 3}, {'../x': 1}, {'users': -1, 'items': 2}, [], 3, None]
    + [{'users': 'a', 'items': 1}, {'users': 2**70, 'items': 1}],
    'sources': [3, None, [1], [['toy']], [[1, 2, 3]], {}, [], 'x'],
    'data_sha256': [3, None, []],
    'more': [1],
}
RAW = [b'', b'{', b'[]', b'null', b'\xff\xfe', b'[' * 10**5, b'9' * 10**5]
RAW += [b'{"format": NaN}', bytes(2**24 + 1)]


def test_hostile_meta(root):
    path = build_dataset('toy', root) / 'meta.json'
    meta = json.loads(path.read_text())
    for key, values in HOSTILE.items():
        for value in values:
            path.write_text(json.dumps(meta | {key: value}))
            with pytest.raises(InputError, match='--build') as info:
                get_dataset('toy', root)
            assert '\n' not in str(info.value)
        if key in meta:
            path.write_text(json.dumps({k: meta[k] for k in meta if k != key}))
            with pytest.raises(InputError, match='is damaged'):
                get_dataset('toy', root)
    for raw in RAW:
        path.write_bytes(raw)
        for read in (get_dataset, describe):
            with pytest.raises(InputError, match='is damaged'):
                read('toy', root)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match='is damaged'):
        get_dataset('toy', root)


# From the command line ----------------------------------------------------------------


def test_command(root, capsys):
    call = ['data', '--dataset', 'toy', '--data-root', str(root)]
    assert run.main(call) == 0
    facts = capsys.readouterr().out
    assert run.main([*call, '--build']) == 0
    first, _, rest = capsys.readouterr().out.partition('\n')
    assert first.endswith('built-standard-2024') and rest == facts
    assert (root / 'toy' / 'built-standard-2024' / 'meta.json').exists()
    build_dataset('toy', root, 'c2f', progress=True)
    assert 'sort' in capsys.readouterr().err
    assert 'toy.parquet' in facts
    for wrong, message in (
        (['--dataset', 'synthetic'], 'there is nothing to build'),
        (['--dataset', 'nowhere'], 'unknown data set'),
        (['--columns', 'a,b'], "made from the columns|no column 'a'"),
        (['--columns', 'a,a'], "both be in the column 'a'"),
        (['--columns', 'a'], 'expected two names'),
    ):
        assert run.main([*call, '--build', *wrong]) == 2
        out = capsys.readouterr()
        assert not out.out and out.err.count('\n') == 1
        assert re.search(message, out.err)
