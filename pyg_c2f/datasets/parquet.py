r"""Reading the ids of a Parquet table, a file or a folder of files; needs pyarrow."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pyg_c2f.datasets.tables import find_column, find_fault
from pyg_c2f.datasets.text import (
    read_bytes,
    sorted_unique,
    unpacked_limit,
    unreadable,
)
from pyg_c2f.typing import InputError

# Interactions take about a byte or more; a column of one value takes almost nothing.
_ROWS, _ROWS_PER_BYTE = 10**6, 10
_WHOLE = re.compile(r'u?int\d+|decimal\d+\(\d+, 0\)|null')
# Types whose values are all 64-bit integers.
_INT = re.compile(r'int\d+|uint(8|16|32)')
# Old writers do not mark bytes as text.
_TEXT = re.compile(r'(large_)?(string|binary)|(string|binary)_view')
_BATCH = 2**20  # rows held at a time, twice that many when they are numbered
_SPARSE = 8  # ids are looked up in a table with up to so many entries for each
_BUFFER = 2**20  # bytes of a column read at a time


class Texts(NamedTuple):
    r"""The ids in a column of a batch, unless all of them are integers."""

    labels: Any  # large_binary array of pyarrow: UTF-8, some perhaps more than once
    rows: np.ndarray  # [num_rows] int64, the number of a label


Column = np.ndarray | Texts  # [num_rows] int64, the ids themselves


class ParquetTable:
    r"""The ids in two columns of a Parquet table: whole numbers or text, as they are.

    The table is a file, gzipped or not, or a folder of :func:`part_files`.
    """

    def __init__(
        self, path: Path, columns: tuple[str, str], progress: bool = False
    ) -> None:
        self.columns, self.progress = columns, progress
        self.num_rows = 0
        self.is_int = [True, True]
        self._parts = {}  # path -> types of the columns
        for part in part_files(path) if path.is_dir() else [path]:
            with _reading(part):
                file, size = _open(part, [])
                kinds = [_kind(file.schema_arrow, name, part) for name in columns]
                _check_size(file.metadata, size, part)
            self.num_rows += file.metadata.num_rows
            self._parts[part] = kinds
            for side, kind in enumerate(kinds):
                self.is_int[side] &= bool(_INT.fullmatch(kind))

    def batches(self, what: str) -> Iterator[tuple[Column, Column]]:
        r"""Yields the users and items of the rows, batch by batch.

        A column is integers in all batches, or text in all.
        """
        with tqdm(
            desc=what,
            total=self.num_rows,
            unit_scale=True,
            leave=False,
            disable=not self.progress,
        ) as bar:
            for part, kinds in self._parts.items():
                with _reading(part):
                    for batch in self._part_batches(part, kinds):
                        yield batch
                        bar.update(_num_rows(batch[0]))

    def _part_batches(
        self, part: Path, kinds: list[str]
    ) -> Iterator[tuple[Column, Column]]:
        # Text stays a dictionary: a long cell would be copied to every row.
        both = zip(self.columns, kinds, strict=True)
        file, _ = _open(part, [name for name, kind in both if _TEXT.fullmatch(kind)])
        row = 0
        for batch in file.iter_batches(
            batch_size=_BATCH, columns=list(self.columns), use_threads=False
        ):
            out: list[Column] = []
            for side, name in enumerate(self.columns):
                read = _integers if self.is_int[side] else _texts
                out.append(read(batch.column(name), f'{part}, row', name, row))
            row += len(batch)
            yield out[0], out[1]

    def number_ids(self) -> tuple['NumberedIds', 'NumberedIds']:
        r"""Numbers the users and the items."""
        users, items = map(NumberedIds, self.is_int)
        for batch in self.batches('ids'):
            users.add(batch[0])
            items.add(batch[1])
        users.finish()
        items.finish()
        return users, items

    def keys(self, users: 'NumberedIds', items: 'NumberedIds') -> Iterator[np.ndarray]:
        r"""Yields the keys ``user * num_items + item`` of the rows."""
        parts: list[tuple[Column, Column]] = []
        size = 0
        for batch in itertools.chain(self.batches('keys'), [None]):
            # Joined: looking up texts takes a table of all ids each time.
            if batch is not None:
                parts.append(batch)
                size += _num_rows(batch[0])
            if size >= 2 * _BATCH or (size and batch is None):
                keys = users.number(_join([x for x, _ in parts])) * len(items.keys)
                keys += items.number(_join([x for _, x in parts]))
                yield keys
                parts, size = [], 0


def part_files(folder: Path) -> list[Path]:
    r"""Returns the part files ``*.parquet`` of a folder in the order of their names.

    Names that begin with ``_`` or ``.`` are ignored.
    """
    try:
        entries = [x for x in sorted(folder.iterdir()) if x.name[0] not in '_.']
    except OSError as error:
        raise unreadable(folder, error) from error
    for entry in entries:
        if entry.is_dir():
            raise InputError(
                f'{entry} is a folder; the part files of a table must lie side by '
                'side: write it again without partitions'
            )
    parts = [entry for entry in entries if entry.suffix == '.parquet']
    if not parts:
        raise InputError(f'{folder} holds no part file *.parquet; write it again')
    return parts


def _open(part: Path, dictionaries: list[str]) -> tuple[Any, int]:
    r"""Opens a file; returns also its size in bytes, unpacked by gzip."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f'reading {part} needs pyarrow; pip install pyg-c2f[tables]'
        ) from error
    if part.suffix == '.gz':
        raw = read_bytes(part)
        source, size = pa.BufferReader(raw), len(raw)
    else:
        try:
            source, size = pa.OSFile(str(part)), part.stat().st_size
        except OSError as error:
            raise unreadable(part, error) from error
    file = pq.ParquetFile(
        source,
        read_dictionary=dictionaries,
        buffer_size=_BUFFER,
        page_checksum_verification=True,
    )
    return file, size


@contextmanager
def _reading(part: Path) -> Iterator[None]:
    r"""Turns pyarrow's errors, which have no common base, into one of ours."""
    try:
        yield
    except (InputError, ImportError):
        raise
    except Exception as error:
        raise InputError(
            f'{part} is not a readable Parquet table; write it again'
        ) from error


def _kind(schema: Any, column: str, path: Path) -> str:
    type_ = schema.field(find_column(schema.names, column, str(path))).type
    kind = str(type_.value_type if hasattr(type_, 'index_type') else type_)
    if not _WHOLE.fullmatch(kind) and not _TEXT.fullmatch(kind):
        raise InputError(
            f'{path}: the column {column!r} is of type {ascii(kind[:100])}; write its '
            'ids as whole numbers or text'
        )
    return kind


def _check_size(metadata: Any, file_size: int, path: Path) -> None:
    # All columns: pyarrow aborts the process for damaged chunks of any.
    rows = metadata.num_rows
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    if rows > _ROWS + _ROWS_PER_BYTE * file_size or size > unpacked_limit(file_size):
        raise InputError(
            f'{path} claims to hold {rows:,} rows in {size:,} bytes unpacked, far too '
            f'many for its {file_size:,}; if that is right, write the columns of ids '
            'alone and without compression'
        )


def _integers(column: Any, where: str, name: str, row: int) -> np.ndarray:
    if hasattr(column.type, 'index_type'):
        column = column.dictionary.take(column.indices)
    if column.null_count:
        first = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        raise InputError(f'{where} {row + first + 1}: {find_fault("", name)}')
    return column.cast('int64').to_numpy()


def _texts(column: Any, where: str, name: str, row: int) -> Texts:
    if not hasattr(column.type, 'index_type'):
        column = column.dictionary_encode()
    index, dictionary = _entries(column)
    # Entries that no row has may be anything.
    used = np.zeros(len(dictionary) + 1, dtype=bool)
    used[index] = True
    number = np.cumsum(used) - 1
    labels = _encoded(dictionary.take(np.flatnonzero(used[:-1])))
    if used[-1] or not _is_right(labels):
        faults = [_find_fault(label, name) for label in labels.to_pylist()]
        faults.append(find_fault('', name))  # of index -1
        is_faulty = np.array([fault is not None for fault in faults])
        at = np.where(index < 0, -1, number[index])
        if is_faulty[at].any():
            first = int(is_faulty[at].argmax())
            raise InputError(f'{where} {row + first + 1}: {faults[at[first]]}')
    return Texts(labels, number[index])


def _entries(column: Any) -> tuple[np.ndarray, Any]:
    r"""The numbers of a dictionary's entries, -1 for none, and the dictionary."""
    index = column.indices.cast('int64').fill_null(-1).to_numpy()
    index = np.maximum(index, -1)
    if index.max(initial=-1) >= len(column.dictionary):  # pyarrow does not check them
        raise ValueError('an index beyond its dictionary')
    return index, column.dictionary


def _encoded(dictionary: Any) -> Any:
    r"""The entries of a dictionary as UTF-8."""
    import pyarrow as pa

    if _TEXT.fullmatch(str(dictionary.type)):
        return dictionary.cast('large_binary')
    values = dictionary.to_pylist()
    texts = [None if value is None else str(value).encode() for value in values]
    return pa.array(texts, pa.large_binary())


def _is_right(labels: Any) -> bool:
    r"""Whether all labels are text, none of them empty and none with NUL."""
    import pyarrow as pa

    try:
        labels.cast('large_string')  # raises unless all are UTF-8
    except pa.ArrowInvalid:
        return False
    blob, offsets = buffers(labels)
    return not labels.null_count and bool((np.diff(offsets) > 0).all() and blob.all())


def buffers(labels: Any) -> tuple[np.ndarray, np.ndarray]:
    r"""The bytes of labels one after the other, and the ``[n + 1]`` offsets in them."""
    _, offset_buffer, data = labels.buffers()
    if not len(labels):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(offset_buffer, np.int64)
    offsets = offsets[labels.offset : labels.offset + len(labels) + 1]
    blob = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return blob[offsets[0] : offsets[-1]], offsets - offsets[0]


def _find_fault(value: bytes | None, name: str) -> str | None:
    try:
        return find_fault('' if value is None else value.decode(), name)
    except UnicodeDecodeError:
        return f'{name!r} is not UTF-8 text; correct or delete the row'


def _num_rows(column: Column) -> int:
    return len(column.rows if isinstance(column, Texts) else column)


def _join(columns: list[Any]) -> Column:
    if not isinstance(columns[0], Texts):
        return np.concatenate(columns)
    import pyarrow as pa

    labels = [column.labels for column in columns]
    first = np.cumsum([0, *map(len, labels)])
    rows = [column.rows + at for column, at in zip(columns, first, strict=False)]
    return Texts(pa.concat_arrays(labels), np.concatenate(rows))


class NumberedIds:
    r"""Collects the distinct ids of a column, and then numbers them.

    Their order is that of numbers if all of them consist of digits, else of text.
    """

    def __init__(self, is_int: bool) -> None:
        import pyarrow as pa

        self.keys = pa.array([], pa.int64() if is_int else pa.large_binary())
        self._parts: list[Any] = []
        self._num_parts = 0
        self._table: np.ndarray | None = None

    def add(self, column: Any) -> None:
        import pyarrow as pa

        is_text = isinstance(column, Texts)
        part = column.labels if is_text else pa.array(sorted_unique(column))
        self._parts.append(part)
        self._num_parts += len(part)
        if self._num_parts > max(len(self.keys), 2 * _BATCH):
            self._merge()

    def _merge(self) -> None:
        import pyarrow as pa

        self.keys = pa.concat_arrays([self.keys, *self._parts]).unique()
        self._parts, self._num_parts = [], 0

    def finish(self) -> None:
        r"""Orders the keys and, as ``labels``, their texts."""
        import pyarrow as pa
        import pyarrow.compute as pc

        self._merge()
        is_int = pa.types.is_integer(self.keys.type)
        labels = self.keys.cast('large_string').cast('large_binary')
        blob, offsets = buffers(labels)
        columns, by = {'key': labels}, [('key', 'ascending')]
        if (blob - ord('0') < 10).all():  # wraps around below '0'
            # Of digits in the order of text, the shorter are the smaller number.
            columns['size'] = pa.array(np.diff(offsets))
            by.insert(0, ('size', 'ascending'))
        order = pc.sort_indices(pa.table(columns), sort_keys=by)
        self.keys, self.labels = self.keys.take(order), labels.take(order)
        if is_int:
            keys = self.keys.to_numpy()
            self._low, high = int(keys.min()), int(keys.max())
            if high - self._low < _SPARSE * len(keys):
                self._table = np.full(high - self._low + 1, -1, np.int32)
                self._table[keys - self._low] = np.arange(len(keys))

    def number(self, column: Any) -> np.ndarray:
        r"""Returns the numbers of the ids in a column."""
        import pyarrow as pa
        import pyarrow.compute as pc

        is_text = isinstance(column, Texts)
        labels = column.labels if is_text else column
        if self._table is not None:
            at = labels - self._low
            is_known = at.min() >= 0 and at.max() < len(self._table)
            number = self._table[at] if is_known else np.array([-1])
        else:
            found = pc.index_in(pa.array(labels), value_set=self.keys)
            number = found.fill_null(-1).to_numpy()
        if number.min() < 0:
            raise InputError(
                'the files of the data set are changing; build when they are complete'
            )
        number = number.astype(np.int64)
        return number[column.rows] if is_text else number
