r"""Interactions that do not fit in memory: prepared once, then mapped from the disk.

A table is never in memory as a whole. What is there at a time is a batch of its rows, a
range of users with about ``BUCKET`` interactions, and the ids themselves: the rows are
numbered, sorted by runs, and the runs are merged by ranges of users. Held-out
interactions are drawn with the same numbers as in memory, from the same generator.

The form is a folder ``built-PROTOCOL-SEED`` beside the files:

* ``edges.i64``: users, items and users again of the train interactions, three rows of
  int64, so that both directions are views of one mapping;
* ``val.i64``, ``test.i64``: users and items, two rows of int64;
* ``users.bin``, ``items.bin``, ``titles.bin``: texts in UTF-8, one after the other, and
  their offsets in ``users.offsets.i64`` and so on, where the files have them;
* ``meta.json``, written last: sizes, what it was made from, and a checksum.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyg_c2f.datasets.files import (
    TEXT_FILES,
    check_columns,
    data_folder,
    find_files,
    locate,
    no_rows,
    plain_name,
    read_source,
    read_titles,
    sorted_unique,
)
from pyg_c2f.datasets.parquet import Column, ParquetTable, Texts, buffers, part_files
from pyg_c2f.datasets.splits import (
    draw_per_user,
    fifth,
    hold_out,
    make_generator,
    split,
    tenth,
    third,
)
from pyg_c2f.typing import InputError, Protocol

logger = logging.getLogger(__name__)

FORMAT = 'pyg_c2f built 1'
META = 'meta.json'
PAIRS = ('edges', 'val', 'test')
TEXTS = ('users', 'items', 'titles')
BUCKET = 2**21  # interactions sorted at a time
_META_BYTES = 2**24  # a line for each of a hundred thousand part files
_MOST = 2**59  # of anything: the bytes can still be counted
_SPARSE = 8  # ids are looked up in a table of so many entries for each
_LABELS = 2**18  # texts encoded at a time


class Meta(NamedTuple):
    r"""What ``meta.json`` says, checked."""

    protocol: str
    split_seed: int
    columns: list[str] | None  # None: of a source without columns
    num_users: int
    num_items: int
    num_train: int
    num_val: int
    num_test: int
    text_bytes: dict[str, int]  # of those of TEXTS that there are
    sources: list[list[Any]]  # file name, bytes and mtime_ns of each
    data_sha256: str


class Built(NamedTuple):
    r"""The built form of a data set, mapped into memory."""

    meta: Meta
    edges: Tensor  # [3, num_train]: users, items, users
    val: Tensor  # [2, num_val]
    test: Tensor  # [2, num_test]
    texts: dict[str, tuple[np.ndarray, np.ndarray]]  # bytes and offsets


def built_folder(folder: Path, protocol: str, split_seed: int) -> Path:
    r"""Returns where the built form of a data set is, or would be."""
    return folder / f'built-{protocol}-{int(split_seed)}'


def is_built(folder: Path, protocol: str, split_seed: int) -> bool:
    r"""Whether there is a built form of a data set, right or not."""
    return (built_folder(folder, protocol, split_seed) / META).exists()


# Reading ------------------------------------------------------------------------------


def find_built(
    folder: Path,
    name: str,
    protocol: Protocol,
    split_seed: int,
    user_column: str = 'user_id',
    item_column: str = 'item_id',
) -> Path | None:
    r"""Returns the folder of the built form for a protocol and a seed, if there is one.

    Args:
        folder (Path): The folder of the data set.
        name (str): The name of the data set.
        protocol (str): ``'c2f'`` or ``'standard'``.
        split_seed (int): The seed of the split.
        user_column (str, optional): The column of user ids that is asked for.
        item_column (str, optional): The column of item ids that is asked for.

    Raises:
        InputError: If it is damaged, was made from other columns, or from files that
            have changed since. Files that are gone are not missed.
    """
    make_generator(protocol, split_seed)  # a wrong call names no folder
    if not is_built(folder, protocol, split_seed):
        return None
    built = built_folder(folder, protocol, split_seed)
    meta = read_meta(built)
    if (meta.protocol, meta.split_seed) != (protocol, split_seed):
        raise _damaged(built, f'it is of {meta.protocol}, {meta.split_seed}')
    if meta.columns not in (None, [user_column, item_column]):
        raise InputError(
            f'{built} was made from the columns {ascii(",".join(meta.columns or []))}, '
            f'not {user_column},{item_column}; ask for these (run.py: --columns), or '
            f'{_MEND}'
        )
    found = find_files(folder, name)
    if found and _fingerprint(folder, name, found) != meta.sources:
        raise InputError(
            f'{built} was made from other files than those in {folder} (name, size or '
            f'time of one has changed); {_MEND}'
        )
    return built


_MEND = 'build it again (run.py data --build), or delete that folder'


def read_meta(folder: Path) -> Meta:
    r"""Returns what ``meta.json`` says of a built form, without reading the rest.

    Args:
        folder (Path): The folder ``built-PROTOCOL-SEED``.

    Raises:
        InputError: If it is damaged, or does not fit the sizes of the files beside it.
    """
    path = folder / META
    try:
        if path.stat().st_size > _META_BYTES:
            raise ValueError('it is too large')
        content = json.loads(path.read_text(encoding='utf-8'))
        if content.pop('format') != FORMAT:
            raise ValueError(f'its format is not {FORMAT!r}')
        meta = Meta(**content)
        _check_meta(meta)
        for file, size in _sizes(meta).items():
            if (folder / file).stat().st_size != size:
                raise ValueError(f'{file} should have {size:,} bytes')
    except OSError as error:
        raise _damaged(folder, f'{error.filename}: {error.strerror}') from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise _damaged(folder, ascii(str(error)[:200])) from error
    return meta


def _damaged(folder: Path, what: str) -> InputError:
    return InputError(f'{folder} is damaged ({what}); {_MEND}')


def _check_meta(meta: Meta) -> None:
    def check(is_right: bool, what: str) -> None:
        if not is_right:
            raise ValueError(f'{what} is wrong')

    def is_size(value: Any, least: int = 0) -> bool:
        return type(value) is int and least <= value < _MOST

    def is_list(value: Any, types: tuple[type, ...]) -> bool:
        return isinstance(value, list) and tuple(map(type, value)) == types

    check(meta.protocol in get_args(Protocol), 'protocol')
    check(type(meta.split_seed) is int and meta.split_seed >= 0, 'split_seed')
    check(meta.columns is None or is_list(meta.columns, (str, str)), 'columns')
    for key in ('num_users', 'num_items', 'num_train', 'num_val', 'num_test'):
        check(is_size(getattr(meta, key)), key)
    # So do all readers number them.
    check(0 < meta.num_users < 2**31 and 0 < meta.num_items < 2**31, 'num_users')
    check(isinstance(meta.text_bytes, dict), 'text_bytes')
    check(set(meta.text_bytes) in _SETS_OF_TEXTS, 'text_bytes')
    check(all(map(is_size, meta.text_bytes.values())), 'text_bytes')
    check(isinstance(meta.sources, list), 'sources')
    check(all(is_list(x, (str, int, int)) for x in meta.sources), 'sources')
    check(isinstance(meta.data_sha256, str), 'data_sha256')


_SETS_OF_TEXTS: list[set[str]] = [set(), {'users', 'items'}, set(TEXTS)]


def _sizes(meta: Meta) -> dict[str, int]:
    r"""The bytes that each file has."""
    counts = (3 * meta.num_train, 2 * meta.num_val, 2 * meta.num_test)
    sizes = {f'{key}.i64': 8 * count for key, count in zip(PAIRS, counts, strict=True)}
    for key, size in meta.text_bytes.items():
        num = meta.num_users if key == 'users' else meta.num_items
        sizes |= {f'{key}.bin': size, f'{key}.offsets.i64': 8 * (num + 1)}
    return sizes


def read_built(folder: Path) -> Built:
    r"""Maps a built form into memory; what is in it is only read when it is used.

    Args:
        folder (Path): The folder ``built-PROTOCOL-SEED``.

    Raises:
        InputError: If it is damaged, as far as the sizes of its files tell.
    """
    meta = read_meta(folder)
    try:
        pairs = [
            torch.from_file(
                str(folder / f'{key}.i64'),
                shared=False,
                size=rows * num,
                dtype=torch.int64,
            ).view(rows, num)
            for key, rows, num in (
                ('edges', 3, meta.num_train),
                ('val', 2, meta.num_val),
                ('test', 2, meta.num_test),
            )
        ]
        texts = {key: _map_texts(folder, key) for key in meta.text_bytes}
    except (OSError, RuntimeError) as error:
        raise _damaged(folder, ascii(str(error)[:200])) from error
    return Built(meta, pairs[0], pairs[1], pairs[2], texts)


def _map_texts(folder: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    blob = _map(folder / f'{key}.bin', np.uint8)
    offsets = _map(folder / f'{key}.offsets.i64', np.int64)
    if offsets[0] != 0 or offsets[-1] != len(blob):
        raise _damaged(folder, f'the offsets of {key} do not fit')
    return blob, offsets


def _map(path: Path, dtype: type) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, 'r'))


# Building -----------------------------------------------------------------------------


def build_dataset(
    root: str | Path,
    name: str,
    protocol: Protocol = 'standard',
    split_seed: int = 2024,
    user_column: str = 'user_id',
    item_column: str = 'item_id',
    progress: bool = False,
) -> Path:
    r"""Prepares the data set in ``root/name`` for being mapped into memory.

    From then on :class:`InteractionDataset` takes it, for this protocol and this seed,
    in the folder ``root/name/built-PROTOCOL-SEED``, and the graph is the same. A
    Parquet table may be far larger than the memory, of which the ids need a few times
    their size; other files are read as a whole. A built form of the files as they are
    is left alone. An interrupted call leaves nothing that would be taken for one.

    Args:
        root (str or Path): The folder that holds one folder per data set.
        name (str): The name of the data set: its folder, and the table in it.
        protocol (str, optional): ``'c2f'`` or ``'standard'``.
            (default: :obj:`'standard'`)
        split_seed (int, optional): The seed of the split. (default: :obj:`2024`)
        user_column (str, optional): The column of user ids in a table.
            (default: :obj:`'user_id'`)
        item_column (str, optional): The column of item ids in a table.
            (default: :obj:`'item_id'`)
        progress (bool, optional): Whether to show progress bars.
            (default: :obj:`False`)

    Returns:
        Path: The folder of the built form.

    Raises:
        InputError: If the data set is missing or a file is wrong.
        OSError: If the folder cannot be written; the disk is full, say.
    """
    make_generator(protocol, split_seed)  # a wrong call writes nothing
    split_seed = int(split_seed)
    root = Path(root).expanduser()
    folder = data_folder(root, name)
    target = built_folder(folder, protocol, split_seed)
    asked = folder, name, protocol, split_seed, user_column, item_column
    with suppress(InputError):  # one that is of no use is made anew
        if find_built(*asked):
            logger.info('%s: is there already', target)
            return target
    found = find_files(folder, name)
    if not found:
        read_source(root, name)  # says what is missing
    sources = _fingerprint(folder, name, found)
    is_table = plain_name(found[0]) not in TEXT_FILES
    with _whole_folder(target) as part:
        if plain_name(found[0]).endswith('.parquet'):
            columns = check_columns(found[0], user_column, item_column)
            sizes = _build_table(
                part, found[0], name, columns, protocol, split_seed, progress
            )
        else:
            sizes = _build_in_memory(
                part, root, name, protocol, split_seed, user_column, item_column
            )
        if _fingerprint(folder, name, found) != sources:
            raise InputError(f'{folder}: its files change; build when they are whole')
        content = {
            'format': FORMAT,
            'protocol': protocol,
            'split_seed': split_seed,
            'columns': [user_column, item_column] if is_table else None,
            **sizes,
            'sources': sources,
            'data_sha256': _digest(part, sizes['num_train']),
        }
        with _new_file(part / META) as file:
            file.write(json.dumps(content, indent=1).encode() + b'\n')
        read_meta(part)
    return target


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    r"""Gives a folder to write to that becomes ``target`` in one step, or nothing."""
    part = target.with_name(f'{target.name}-part')
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        # Another build, which takes this one for a leftover, has a mark of its own.
        mark = part / secrets.token_hex()
        mark.touch()
        try:
            yield part
            if not mark.exists():
                raise OSError('another build of the same data has taken over')
            mark.unlink()
            if target.exists():
                shutil.rmtree(target)
            os.replace(part, target)
        except BaseException:
            if mark.exists():
                shutil.rmtree(part, ignore_errors=True)
            raise
    except OSError as error:
        raise OSError(
            f'{target}: cannot be written ({error.strerror or error}); make room, or '
            'mend its permissions, and build again'
        ) from error


@contextmanager
def _new_file(path: Path) -> Iterator[Any]:
    r"""Opens a file to write that is on the disk once it is closed."""
    with path.open('wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _fingerprint(folder: Path, name: str, found: list[Path]) -> list[list[Any]]:
    r"""Name, size and time of the files that a data set is read from."""
    paths = [path for x in found for path in (part_files(x) if x.is_dir() else [x])]
    titles = locate(folder, f'{name}.item')
    if titles and plain_name(found[0]) not in TEXT_FILES:
        paths.append(titles)
    states = ((path, path.stat()) for path in paths)
    return [
        [path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns]
        for path, state in states
    ]


def _digest(part: Path, num_train: int) -> str:
    r"""The SHA-256 of the bytes of all edges; of the train ones the third row is none.

    It is that of the tensors in memory, train, validation and test.
    """
    digest = hashlib.sha256()
    for key in PAIRS:
        path = part / f'{key}.i64'
        left = 16 * num_train if key == 'edges' else path.stat().st_size
        with path.open('rb') as file:
            while block := file.read(min(left, 2**22)):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


class _PairFile:
    r"""A file of pairs, row by row, to which interactions are appended.

    Args:
        path (Path): The file.
        num_pairs (int): The number of interactions it will hold.
        sides (tuple): What is in each row: 0 for users, 1 for items.
    """

    def __init__(self, path: Path, num_pairs: int, sides: tuple[int, ...]) -> None:
        self.sides, self.left = sides, num_pairs
        path.touch()
        # One handle for each row: no row is seeked for, and a full disk is an error,
        # which it would not be of a mapped file.
        with ExitStack() as stack:
            self.files = [stack.enter_context(path.open('r+b')) for _ in sides]
            for row, file in enumerate(self.files):
                file.seek(8 * row * num_pairs)
            self.stack = stack.pop_all()

    def __enter__(self) -> '_PairFile':
        return self

    def __exit__(self, *_: object) -> None:
        with self.stack:
            for file in self.files:
                file.flush()
                os.fsync(file.fileno())

    def append(self, keys: np.ndarray, num_items: int, first_user: int = 0) -> None:
        r"""Appends interactions, given as keys of users counted from a first one."""
        users, items = np.divmod(keys, num_items)
        users += first_user
        for side, file in zip(self.sides, self.files, strict=True):
            file.write((items if side else users).data)
        self.left -= len(keys)


@contextmanager
def _pair_files(part: Path, counts: Iterable[int]) -> Iterator[list[_PairFile]]:
    r"""The files of train, validation and test interactions, of given lengths."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(_PairFile(part / f'{key}.i64', count, sides))
            for key, count, sides in zip(
                PAIRS, counts, ((0, 1, 0), (0, 1), (0, 1)), strict=True
            )
        ]


def _write_texts(
    part: Path, key: str, blocks: Iterable[tuple[np.ndarray, np.ndarray]]
) -> int:
    r"""Writes texts, given as bytes and offsets; returns the number of bytes."""
    size = 0
    with (
        _new_file(part / f'{key}.bin') as blob_file,
        _new_file(part / f'{key}.offsets.i64') as offset_file,
    ):
        offset_file.write(bytes(8))
        for blob, offsets in blocks:
            blob_file.write(np.ascontiguousarray(blob).data)
            offset_file.write((offsets[1:] + size).data)
            size += len(blob)
    return size


def encode_texts(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    r"""Returns the bytes of texts one after the other and the ``[n + 1]`` offsets."""
    encoded = [text.encode(errors='surrogatepass') for text in texts]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return np.frombuffer(b''.join(encoded), np.uint8), offsets


def _blocks_of(texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(texts), _LABELS):
        yield encode_texts(texts[start : start + _LABELS])


def _sizes_of(
    num_users: int, num_items: int, counts: Iterable[int], text_bytes: dict[str, int]
) -> dict[str, Any]:
    num_train, num_val, num_test = counts
    return {
        'num_users': num_users,
        'num_items': num_items,
        'num_train': num_train,
        'num_val': num_val,
        'num_test': num_test,
        'text_bytes': text_bytes,
    }


def _build_in_memory(
    part: Path,
    root: Path,
    name: str,
    protocol: Protocol,
    split_seed: int,
    user_column: str,
    item_column: str,
) -> dict[str, Any]:
    r"""Writes the built form of files that fit in memory."""
    from pyg_c2f.datasets.interactions import split_source  # imports this module

    source = read_source(root, name, user_column, item_column)
    rng = make_generator(protocol, split_seed)
    splits = split_source(source, protocol, rng, name)
    counts = [len(keys) for keys in splits]
    with _pair_files(part, counts) as files:
        for keys, file in zip(splits, files, strict=True):
            for start in range(0, len(keys), BUCKET):
                file.append(keys[start : start + BUCKET], source.num_items)
    found = source.user_labels, source.item_labels, source.titles
    text_bytes = {
        key: _write_texts(part, key, _blocks_of(texts))
        for key, texts in zip(TEXTS, found, strict=True)
        if texts is not None
    }
    return _sizes_of(source.num_users, source.num_items, counts, text_bytes)


def _build_table(
    part: Path,
    path: Path,
    name: str,
    columns: tuple[str, str],
    protocol: Protocol,
    split_seed: int,
    progress: bool,
) -> dict[str, Any]:
    r"""Writes the built form of a Parquet table."""
    table = ParquetTable(path, columns)
    if not table.num_rows:
        raise no_rows(path)
    users, items = _collect(table, progress)
    num_users, num_items = len(users.keys), len(items.keys)
    runs, per_user = _write_runs(part / 'runs', table, users, items, progress)
    text_bytes = {
        'users': _write_texts(part, 'users', [buffers(users.labels())]),
        'items': _write_texts(part, 'items', [buffers(items.labels())]),
    }
    if locate(path.parent, f'{name}.item'):
        labels = items.labels().cast('large_string').to_pylist()
        titles = read_titles(path.parent, name, columns[1], labels)
        if titles is not None:
            text_bytes['titles'] = _write_texts(part, 'titles', _blocks_of(titles))
    del users, items
    bounds = _bounds(per_user)
    _merge_runs(part, runs, bounds, num_items, per_user, progress)
    if num_merged := table.num_rows - int(per_user.sum()):
        logger.warning('%s: %d duplicate interactions merged', path, num_merged)
    counts = _divide(
        part, bounds, per_user, num_items, protocol, split_seed, name, progress
    )
    return _sizes_of(num_users, num_items, counts, text_bytes)


# Of a table: numbering the ids --------------------------------------------------------


class _Integers:
    r"""Collects the distinct ids of a column of integers, and then numbers them."""

    def __init__(self) -> None:
        self.keys = np.empty(0, np.int64)  # sorted, once all are collected
        self._parts: list[np.ndarray] = []
        self._num_parts = 0

    def add(self, column: Column) -> None:
        self._parts.append(_unique(column))
        self._num_parts += len(self._parts[-1])
        if self._num_parts > max(len(self.keys), BUCKET):
            self._merge()

    def _merge(self) -> None:
        self.keys = _unique(np.concatenate([self.keys, *self._parts]))
        self._parts, self._num_parts = [], 0

    def finish(self) -> None:
        r"""Orders them: as numbers, or as text if there are negative ones."""
        import pyarrow.compute as pc

        self._merge()
        self._order = None
        number = np.arange(len(self.keys), dtype=np.int64)
        if self.keys[0] < 0:
            texts = self._texts(self.keys).cast('large_binary')
            self._order = pc.array_sort_indices(texts).to_numpy()
            number[self._order] = number.copy()
        self._number = number
        low, high = int(self.keys[0]), int(self.keys[-1])
        self._table = None
        if high - low < _SPARSE * len(self.keys):
            self._table = np.full(high - low + 1, -1, np.int32)
            self._table[self.keys - low] = number

    def number(self, column: Column) -> np.ndarray:
        assert isinstance(column, np.ndarray)
        low, high = self.keys[0], self.keys[-1]
        if column.min() < low or column.max() > high:
            raise _changes()
        if self._table is not None:
            number = self._table[column - low].astype(np.int64)
            if number.min() < 0:
                raise _changes()
            return number
        # Looked up in order, what is needed of a large table is in the cache.
        unique, rows = np.unique(column, return_inverse=True)
        at = self.keys.searchsorted(unique)
        if (self.keys[at] != unique).any():
            raise _changes()
        return self._number[at][rows]

    @staticmethod
    def _texts(keys: np.ndarray) -> Any:
        import pyarrow as pa

        return pa.array(keys).cast('large_string')

    def labels(self) -> Any:
        r"""Returns their texts in the order of their numbers."""
        return self._texts(self.keys if self._order is None else self.keys[self._order])


class _Strings:
    r"""Collects the distinct ids of a column of text, and then numbers them."""

    def __init__(self) -> None:
        import pyarrow as pa

        self.keys = pa.array([], pa.large_binary())  # sorted, once all are collected
        self._parts: list[Any] = []
        self._num_parts = 0

    def add(self, column: Column) -> None:
        assert isinstance(column, Texts)
        self._parts.append(column.labels)
        self._num_parts += len(column.labels)
        if self._num_parts > max(len(self.keys), BUCKET):
            self._merge()

    def _merge(self) -> None:
        import pyarrow as pa

        self.keys = pa.concat_arrays([self.keys, *self._parts]).unique()
        self._parts, self._num_parts = [], 0

    def finish(self) -> None:
        r"""Orders them: as numbers, if all of them are, else as text."""
        import pyarrow as pa
        import pyarrow.compute as pc

        self._merge()
        blob, offsets = buffers(self.keys)
        columns, by = [self.keys], [('text', 'ascending')]
        if (blob - ord('0') < 10).all():  # wraps around below '0'
            # Of digits in the order of text, the shorter are the smaller number.
            columns.append(pa.array(np.diff(offsets)))
            by.insert(0, ('size', 'ascending'))
        table = pa.table(columns, ['text', 'size'][: len(columns)])
        self.keys = self.keys.take(pc.sort_indices(table, sort_keys=by))

    def number(self, column: Column) -> np.ndarray:
        import pyarrow.compute as pc

        assert isinstance(column, Texts)
        at = pc.index_in(column.labels, value_set=self.keys)
        if at.null_count:
            raise _changes()
        return at.to_numpy().astype(np.int64)[column.rows]

    def labels(self) -> Any:
        r"""Returns them in the order of their numbers."""
        return self.keys


_Numbers = _Integers | _Strings


def _unique(values: Any) -> np.ndarray:
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def _changes() -> InputError:
    return InputError('the files of the data set change; build when they are whole')


def _collect(table: ParquetTable, progress: bool) -> tuple[_Numbers, _Numbers]:
    r"""Numbers the ids of a table in the order that they have in memory."""
    users, items = (_Integers() if is_int else _Strings() for is_int in table.is_int)
    with _bar('ids', table.num_rows, progress) as bar:
        for batch in table.batches():
            users.add(batch[0])
            items.add(batch[1])
            bar.update(_num_rows(batch[0]))
    users.finish()
    items.finish()
    return users, items


def _num_rows(column: Column) -> int:
    return len(column.rows if isinstance(column, Texts) else column)


def _bar(what: str, total: int, progress: bool) -> Any:
    return tqdm(
        desc=what, total=total, unit_scale=True, leave=False, disable=not progress
    )


# Of a table: sorting and splitting ----------------------------------------------------


def _write_runs(
    path: Path, table: ParquetTable, users: _Numbers, items: _Numbers, progress: bool
) -> tuple[list[int], np.ndarray]:
    r"""Writes sorted runs of keys.

    Returns:
        tuple: The lengths of the runs, and how many interactions each user has at the
        most: some are in several runs.
    """
    num_users, num_items = len(users.keys), len(items.keys)
    lengths, per_user = [], np.zeros(num_users, np.int64)
    with path.open('wb') as file, _bar('sort', table.num_rows, progress) as bar:
        for batch in _runs_of(table.batches()):
            keys = users.number(batch[0]) * num_items
            keys += items.number(batch[1])
            keys = sorted_unique(keys)
            per_user += np.bincount(keys // num_items, minlength=num_users)
            file.write(keys.data)
            lengths.append(len(keys))
            bar.update(_num_rows(batch[0]))
    return lengths, per_user


def _runs_of(
    batches: Iterator[tuple[Column, Column]],
) -> Iterator[tuple[Column, Column]]:
    r"""Joins batches to ones of at least ``BUCKET`` rows."""
    parts: list[tuple[Column, Column]] = []
    size = 0
    for batch in batches:
        parts.append(batch)
        size += _num_rows(batch[0])
        if size >= BUCKET:
            yield _join([x for x, _ in parts]), _join([x for _, x in parts])
            parts, size = [], 0
    if size:
        yield _join([x for x, _ in parts]), _join([x for _, x in parts])


def _join(columns: list[Any]) -> Column:
    if not isinstance(columns[0], Texts):
        return np.concatenate(columns)
    import pyarrow as pa

    first = np.cumsum([0, *(len(column.labels) for column in columns)])
    rows = [column.rows + at for column, at in zip(columns, first, strict=False)]
    labels = pa.concat_arrays([column.labels for column in columns])
    return Texts(labels, np.concatenate(rows))


def _bounds(per_user: np.ndarray) -> list[int]:
    r"""Divides the users into ranges of one, or of ``BUCKET`` interactions at most."""
    total, bounds = np.cumsum(per_user), [0]
    while (first := bounds[-1]) < len(per_user):
        before = int(total[first - 1]) if first else 0
        end = int(total.searchsorted(before + BUCKET, side='right'))
        bounds.append(max(end, first + 1))
    return bounds


def _merge_runs(
    part: Path,
    lengths: list[int],
    bounds: list[int],
    num_items: int,
    per_user: np.ndarray,
    progress: bool,
) -> None:
    r"""Merges the runs to the file ``keys``, and counts the interactions of users."""
    runs = np.memmap(part / 'runs', np.int64, 'r')
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    with (part / 'runs').open('rb') as file, (part / 'keys').open('wb') as out:
        for first, end in _bar_of(bounds, 'merge', progress):
            keys, parts, size = np.empty(0, np.int64), [], 0
            for run, start in enumerate(starts):
                stop = start + int(
                    runs[start : ends[run]].searchsorted(end * num_items)
                )
                file.seek(8 * start)
                parts.append(np.fromfile(file, np.int64, stop - start))
                size += stop - start
                starts[run] = stop
                if size > BUCKET:  # of one user alone, who is in many runs
                    keys, parts = sorted_unique(np.concatenate([keys, *parts])), []
                    size = 0
            keys = sorted_unique(np.concatenate([keys, *parts]))
            out.write(keys.data)
            users = keys // num_items - first
            per_user[first:end] = np.bincount(users, minlength=end - first)
    del runs
    (part / 'runs').unlink()


def _bar_of(bounds: list[int], what: str, progress: bool) -> Iterator[tuple[int, int]]:
    with _bar(what, len(bounds) - 1, progress) as bar:
        for first, end in zip(bounds, bounds[1:], strict=False):
            yield first, end
            bar.update()


def _divide(
    part: Path,
    bounds: list[int],
    per_user: np.ndarray,
    num_items: int,
    protocol: Protocol,
    split_seed: int,
    name: str,
    progress: bool,
) -> list[int]:
    r"""Writes train, validation and test interactions; returns how many they are.

    They are what :func:`hold_out` and :func:`split` draw of all interactions together.
    Each of them draws a number for every interaction it is given, in their order, so
    that two generators, the second that much further, can go from range to range.
    """
    num_test = fifth(per_user)
    num_train = per_user - num_test
    num_val = third(num_test) if protocol == 'c2f' else tenth(num_train)
    num_held = int(num_test.sum())
    if protocol == 'c2f':
        num_test -= num_val
    else:
        num_train -= num_val
    counts = [int(x.sum()) for x in (num_train, num_val, num_test)]
    first_rng, second_rng = (make_generator(protocol, split_seed) for _ in range(2))
    if not (counts[1] and counts[2]):  # says so, as for data in memory
        none, some = np.empty(0, np.int64), np.zeros(min(num_held, 1), np.int64)
        split(none, None, some, 1, protocol, make_generator(protocol, 0), name)
    second_rng.bit_generator.advance(int(per_user.sum()))  # type: ignore[attr-defined]
    ends = np.cumsum(per_user)
    with (part / 'keys').open('rb') as file, _pair_files(part, counts) as files:
        start = 0
        for first, end in _bar_of(bounds, 'split', progress):
            keys = np.fromfile(file, np.int64, int(ends[end - 1]) - start)
            start += len(keys)
            keys -= first * num_items
            train, test = hold_out(keys, num_items, first_rng)
            if protocol == 'c2f':
                mask = draw_per_user(test // num_items, third, second_rng)
                val, test = test[mask], test[~mask]
            else:
                mask = draw_per_user(train // num_items, tenth, second_rng)
                train, val = train[~mask], train[mask]
            for out, drawn in zip(files, (train, val, test), strict=True):
                out.append(drawn, num_items, first)
    (part / 'keys').unlink()
    return counts
