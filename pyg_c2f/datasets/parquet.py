r"""Reading the ids of a Parquet table; needs pyarrow."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from pyg_c2f.datasets.files import Ids, find_column, find_fault, unpacked_limit
from pyg_c2f.typing import InputError

# Interactions take about a byte or more; a column of one value takes almost nothing.
_ROWS, _ROWS_PER_BYTE = 10**6, 10
_WHOLE = re.compile(r'u?int\d+|decimal\d+\(\d+, 0\)|null')
# Old writers do not say of bytes that they are text.
_TEXT = re.compile(r'(large_)?(string|binary)|(string|binary)_view')


def read_parquet(raw: bytes, path: Path, columns: tuple[str, str]) -> list[Ids]:
    r"""Reads the ids in two columns: whole numbers or text, exactly as they are.

    Args:
        raw (bytes): The content of the file.
        path (Path): The name to use in messages.
        columns (tuple): The names of the columns.

    Raises:
        InputError: If the file is damaged or claims to hold far more than interactions
            of its size would, or a column is missing, of another type or has a gap.
        ImportError: If there is no pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f'reading {path} needs pyarrow; pip install pyg-c2f[tables]'
        ) from error

    def open_file(dictionaries: list[str]) -> Any:
        return pq.ParquetFile(
            pa.BufferReader(raw),
            read_dictionary=dictionaries,
            page_checksum_verification=True,
        )

    try:
        file = open_file([])
        kinds = {column: _kind(file.schema_arrow, column, path) for column in columns}
        _check_size(file.metadata, raw, path)
        # Text stays a dictionary: written out, a long cell could be there many times.
        texts = [column for column, kind in kinds.items() if _TEXT.fullmatch(kind)]
        table = open_file(texts).read(columns=list(kinds))
        return [_ids(table.column(column), path, column) for column in columns]
    except InputError:
        raise
    except Exception as error:  # pyarrow's errors for damaged files have no one base
        raise InputError(
            f'{path} is no readable Parquet table; write it again'
        ) from error


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


def _check_size(metadata: Any, raw: bytes, path: Path) -> None:
    # Of all columns: those of damaged chunks pyarrow aborts the process for.
    rows = metadata.num_rows
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    if rows > _ROWS + _ROWS_PER_BYTE * len(raw) or size > unpacked_limit(raw):
        raise InputError(
            f'{path} claims to hold {rows:,} rows in {size:,} bytes unpacked, far too '
            f'many for its {len(raw):,}; if that is right, write the columns of ids '
            'alone and without compression'
        )


def _ids(column: Any, path: Path, name: str) -> Ids:
    if not hasattr(column.type, 'index_type'):
        column = column.dictionary_encode()
    # Of all chunks, whose dictionaries differ, and damaged ones have an entry twice.
    known: dict[str, int] = {}
    rows = [np.empty(0, np.int64)]
    for chunk in column.chunks:
        index = chunk.indices.cast('int64').fill_null(-1).to_numpy()
        values = _values(chunk.dictionary)
        if index.max(initial=-1) >= len(values):  # pyarrow does not look at them
            raise ValueError('an index beyond its dictionary')
        entry, first, inverse = np.unique(index, return_index=True, return_inverse=True)
        number = np.empty(len(entry), dtype=np.int64)
        order = np.argsort(first)
        for i, at in zip(order.tolist(), entry[order].tolist(), strict=True):
            value = None if at < 0 else values[at]
            try:
                text = value.decode() if isinstance(value, bytes) else str(value)
                fault = find_fault('' if value is None else text, name)
            except UnicodeDecodeError:
                fault = f'{name!r} is no UTF-8 text; mend or delete the row'
            if fault:
                row = 1 + sum(map(len, rows)) + int(first[i])
                raise InputError(f'{path}, row {row}: {fault}')
            number[i] = known.setdefault(text, len(known))
        rows.append(number[inverse])
    return Ids(np.concatenate(rows), list(known))


def _values(dictionary: Any) -> list[Any]:
    is_text = _TEXT.fullmatch(str(dictionary.type))
    return dictionary.cast('large_binary' if is_text else dictionary.type).to_pylist()
