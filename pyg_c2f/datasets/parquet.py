r"""Reading the ids of a Parquet table, a file or a folder of files; needs pyarrow.

One reader goes through the rows batch by batch, whatever becomes of them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyg_c2f.datasets.files import (
    Ids,
    find_column,
    find_fault,
    read_bytes,
    unpacked_limit,
)
from pyg_c2f.typing import InputError

# Interactions take about a byte or more; a column of one value takes almost nothing.
_ROWS, _ROWS_PER_BYTE = 10**6, 10
_WHOLE = re.compile(r'u?int\d+|decimal\d+\(\d+, 0\)|null')
# Those of which all values are 64-bit integers.
_INT = re.compile(r'int\d+|uint(8|16|32)')
# Old writers do not say of bytes that they are text.
_TEXT = re.compile(r'(large_)?(string|binary)|(string|binary)_view')
_BATCH = 2**20  # rows held at a time
_BUFFER = 2**20  # bytes of a column read at a time


class Texts(NamedTuple):
    r"""The ids in a column of a batch that are not all integers."""

    labels: Any  # large_binary array of pyarrow: UTF-8, some perhaps more than once
    rows: np.ndarray  # [num_rows] int64, the number of a label


Column = np.ndarray | Texts  # [num_rows] int64, the ids themselves


class ParquetTable:
    r"""The ids in two columns of a Parquet table: whole numbers or text, as they are.

    Args:
        path (Path): A file, gzipped or not, or a folder of part files ``*.parquet``,
            read in the order of their names. What begins with ``_`` or ``.`` in it is
            no part.
        columns (tuple): The names of the columns.

    Raises:
        InputError: If a file is damaged or claims to hold far more than interactions
            of its size would, or a column is missing or of another type.
        ImportError: If there is no pyarrow.
    """

    def __init__(self, path: Path, columns: tuple[str, str]) -> None:
        self.columns = columns
        self.parts = part_files(path) if path.is_dir() else [path]
        self.num_rows = 0
        self.is_int = [True, True]
        self._kinds = []
        for part in self.parts:
            try:
                file, size = _open(part, [])
                kinds = [_kind(file.schema_arrow, name, part) for name in columns]
                _check_size(file.metadata, size, part)
            except (InputError, ImportError):
                raise
            except Exception as error:  # pyarrow's errors have no one base
                raise _unreadable(part) from error
            self.num_rows += file.metadata.num_rows
            self._kinds.append(kinds)
            for side, kind in enumerate(kinds):
                self.is_int[side] &= bool(_INT.fullmatch(kind))

    def batches(self) -> Iterator[tuple[Column, Column]]:
        r"""Yields the users and the items of some rows after the other.

        A column is integers in all batches, or text in all.

        Raises:
            InputError: If a file is damaged, or an id missing or no text.
        """
        for part, kinds in zip(self.parts, self._kinds, strict=True):
            try:
                yield from self._part_batches(part, kinds)
            except InputError:
                raise
            except Exception as error:
                raise _unreadable(part) from error

    def _part_batches(
        self, part: Path, kinds: list[str]
    ) -> Iterator[tuple[Column, Column]]:
        # Text stays a dictionary: written out, a long cell could be there many times.
        both = list(zip(self.columns, kinds, strict=True))
        texts = [column for column, kind in both if _TEXT.fullmatch(kind)]
        file, _ = _open(part, texts)
        row, late = 0, None
        for batch in file.iter_batches(
            batch_size=_BATCH, columns=list(self.columns), use_threads=False
        ):
            out: list[Column] = []
            for side, name in enumerate(self.columns):
                where = part, name, row
                read = _integers if self.is_int[side] else _texts
                try:
                    out.append(read(batch.column(name), *where))
                except InputError as error:
                    if side == 0:
                        raise
                    # As ever, what is wrong with the users comes first.
                    late = late or error
            row += len(batch)
            if late is None:
                yield out[0], out[1]
        if late is not None:
            raise late


def read_parquet(path: Path, columns: tuple[str, str]) -> list[Ids]:
    r"""Reads the ids in two columns of a table into memory.

    Args:
        path (Path): A file or a folder, as for :class:`ParquetTable`.
        columns (tuple): The names of the columns.

    Raises:
        InputError: If a file is wrong, with file, row and what to do.
        ImportError: If there is no pyarrow.
    """
    table = ParquetTable(path, columns)
    import pyarrow as pa  # is there

    known: list[dict[str, int]] = [{}, {}]
    rows: list[list[np.ndarray]] = [[np.empty(0, np.int64)], [np.empty(0, np.int64)]]
    for batch in table.batches():
        for side, column in enumerate(batch):
            if isinstance(column, Texts):
                labels = [label.decode() for label in column.labels.to_pylist()]
                index = column.rows
            else:
                encoded = pa.array(column).dictionary_encode()
                labels = [str(value) for value in encoded.dictionary.to_pylist()]
                index = encoded.indices.to_numpy()
            number = known[side]
            numbers = [number.setdefault(label, len(number)) for label in labels]
            rows[side].append(np.array(numbers, np.int64)[index])
    return [
        Ids(np.concatenate(index), list(number))
        for index, number in zip(rows, known, strict=True)
    ]


def part_files(folder: Path) -> list[Path]:
    r"""Returns the part files of a table that is a folder.

    Raises:
        InputError: If there are none, it cannot be read, or there are folders in it.
    """
    try:
        entries = [x for x in sorted(folder.iterdir()) if x.name[0] not in '_.']
    except OSError as error:
        raise InputError(
            f'{folder} cannot be read ({error.strerror}); check its permissions'
        ) from error
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
            raise InputError(
                f'{part} cannot be read ({error.strerror}); check its permissions'
            ) from error
    file = pq.ParquetFile(
        source,
        read_dictionary=dictionaries,
        buffer_size=_BUFFER,
        page_checksum_verification=True,
    )
    return file, size


def _unreadable(part: Path) -> InputError:
    return InputError(f'{part} is no readable Parquet table; write it again')


def _kind(schema: Any, column: str, path: Path) -> str:
    type_ = schema.field(find_column(schema.names, column, str(path))).type
    if hasattr(type_, 'index_type'):  # a dictionary
        type_ = type_.value_type
    kind = str(type_)
    if not _WHOLE.fullmatch(kind) and not _TEXT.fullmatch(kind):
        raise InputError(
            f'{path}: the column {column!r} is of type {ascii(kind[:100])}; write its '
            'ids as whole numbers or text'
        )
    return kind


def _check_size(metadata: Any, file_size: int, path: Path) -> None:
    # Of all columns: those of damaged chunks pyarrow aborts the process for.
    rows = metadata.num_rows
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    if rows > _ROWS + _ROWS_PER_BYTE * file_size or size > unpacked_limit(file_size):
        raise InputError(
            f'{path} claims to hold {rows:,} rows in {size:,} bytes unpacked, far too '
            f'many for its {file_size:,}; if that is right, write the columns of ids '
            'alone and without compression'
        )


def _integers(column: Any, path: Path, name: str, row: int) -> np.ndarray:
    if hasattr(column.type, 'index_type'):
        index, dictionary = _entries(column)
        has_none = dictionary.is_null().to_numpy(zero_copy_only=False)
        is_none = (index < 0) | np.append(has_none, True)[index]
        values = dictionary.fill_null(0).cast('int64').to_numpy()
        values = np.append(values, 0)[index]
    else:
        is_none = column.is_null().to_numpy(zero_copy_only=False)
        values = column.fill_null(0).cast('int64').to_numpy()
    if is_none.any():
        raise _faulty(path, row + int(is_none.argmax()), find_fault('', name))
    return values


def _texts(column: Any, path: Path, name: str, row: int) -> Texts:
    if not hasattr(column.type, 'index_type'):
        column = column.dictionary_encode()
    index, dictionary = _entries(column)
    # What no row has may be anything.
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
            raise _faulty(path, row + first, faults[at[first]])
    return Texts(labels, number[index])


def _faulty(path: Path, row: int, fault: str | None) -> InputError:
    return InputError(f'{path}, row {row + 1}: {fault}')


def _entries(column: Any) -> tuple[np.ndarray, Any]:
    r"""The numbers of a dictionary's entries, -1 for none, and the dictionary."""
    index = column.indices.cast('int64').fill_null(-1).to_numpy()
    index = np.maximum(index, -1)
    if index.max(initial=-1) >= len(column.dictionary):  # pyarrow does not look at them
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
    if labels.null_count or not _all_text(labels):
        return False
    blob, offsets = buffers(labels)
    return bool((np.diff(offsets) > 0).all() and blob.all())


def _all_text(labels: Any) -> bool:
    r"""Whether all labels are UTF-8."""
    import pyarrow as pa

    try:
        labels.cast('large_string')
    except pa.ArrowInvalid:
        return False
    return True


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
        return f'{name!r} is no UTF-8 text; mend or delete the row'
