r"""Reading tables of text: ``.inter`` and ``.csv``, and titles from ``.item``.

pyarrow reads most tables at once. Without it, and where there are quotes, faults or
other rare things, the rows are read one by one, which tells their lines.
"""

import csv
import io
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyg_c2f.datasets.spec import locate, plain_name
from pyg_c2f.datasets.text import logger, plain_lines, read_bytes
from pyg_c2f.typing import InputError


class Ids(NamedTuple):
    r"""The ids in a column of a table."""

    rows: np.ndarray  # [num_rows] int64, the number of a label
    labels: list[str]  # each once


def read_delimited(raw: bytes, path: Path, columns: tuple[str, str]) -> list[Ids]:
    r"""Reads the ids in two columns of a ``.inter`` or ``.csv`` file, by its name."""
    is_inter = plain_name(path).endswith('.inter')
    raw = plain_lines(raw)
    rows = _read_rows(raw, path, is_inter)
    header_line, names = next(rows, (0, []))
    if not names:
        raise InputError(f'{path} is empty; it must hold a header and rows')
    if is_inter:  # RecBole writes `name:type`
        names = [name.partition(':')[0] for name in names]
    names = [name.strip() for name in names]
    where = f'{path}, line {header_line}'
    user_at, item_at = (find_column(names, column, where) for column in columns)
    if header_line == 1:
        at = user_at, item_at
        if ids := _read_at_once(raw, is_inter, len(names), at):
            return ids
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_index, item_index = array('q'), array('q')
    for line, cells in rows:
        if len(cells) < len(names) or any(map(str.strip, cells[len(names) :])):
            raise InputError(
                f'{path}, line {line}: the row has {len(cells)} cells, the header '
                f'{len(names)}; complete or delete the row'
            )
        user, item = cells[user_at].strip(), cells[item_at].strip()
        if user not in users or item not in items:
            for text, column in zip((user, item), columns, strict=True):
                if fault := find_fault(text, column):
                    raise InputError(f'{path}, line {line}: {fault}')
        user_index.append(users.setdefault(user, len(users)))
        item_index.append(items.setdefault(item, len(items)))
    return [
        Ids(np.array(index, np.int64), list(known))
        for index, known in ((user_index, users), (item_index, items))
    ]


def _read_rows(
    raw: bytes, path: Path, is_inter: bool
) -> Iterator[tuple[int, list[str]]]:
    r"""Yields the first line and the cells of each row that is not blank."""
    try:
        if not raw.isascii():
            raw.decode()
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b'\n', 0, error.start)
        raise InputError(
            f'{path}, line {line}: not UTF-8 text; save the table as UTF-8'
        ) from error
    lines = io.TextIOWrapper(io.BytesIO(raw), encoding='utf-8', newline='\n')
    if is_inter:
        reader = csv.reader(lines, delimiter='\t', quoting=csv.QUOTE_NONE)
    else:
        # Strict: an open quote would swallow the rows after it.
        reader = csv.reader(lines, strict=True, skipinitialspace=True)
    line = 1
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f'{path}, line {line}: the row cannot be read ({error}); close its quotes, '
            'shorten or delete it'
        ) from error


def _read_at_once(
    raw: bytes, is_inter: bool, num_cells: int, at: tuple[int, int]
) -> list[Ids] | None:
    r"""Reads the ids of all rows after the first line by pyarrow.

    None without pyarrow, and for tables with quotes, NUL characters, rows with another
    number of cells, long lines or missing ids: these are read, or refused, row by row.
    """
    try:
        import pyarrow as pa
        from pyarrow import csv as pa_csv
    except ImportError:
        return None
    if b'\0' in raw or (b'"' in raw and not is_inter):
        return None
    ends = np.flatnonzero(np.frombuffer(raw, np.uint8) == ord('\n'))
    # Shorter lines have no cell that is too long for the csv module.
    if np.diff(ends, prepend=-1, append=len(raw)).max() > csv.field_size_limit():
        return None
    names = [str(number) for number in range(num_cells)]
    # With a dictionary, a long cell is not copied to every row.
    kind = pa.dictionary(pa.int32(), pa.string())
    chosen = [names[side] for side in at]
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(raw),
            pa_csv.ReadOptions(skip_rows=1, column_names=names),
            pa_csv.ParseOptions(delimiter='\t' if is_inter else ',', quote_char=False),
            pa_csv.ConvertOptions(
                include_columns=chosen, column_types=dict.fromkeys(chosen, kind)
            ),
        )
    except pa.ArrowInvalid:
        return None
    ids = []
    for column in table.unify_dictionaries().columns:
        rows = [chunk.indices.to_numpy() for chunk in column.chunks]
        texts = column.chunk(0).dictionary.to_pylist() if rows else []
        if '' in (texts := [text.strip() for text in texts]) or not texts:
            return None
        known: dict[str, int] = {}
        numbers = [known.setdefault(text, len(known)) for text in texts]
        ids.append(Ids(np.array(numbers)[np.concatenate(rows)], list(known)))
    return ids


def find_column(names: list[str], column: str, where: str) -> int:
    r"""Returns the position of a column, of which there must be one."""
    if column not in names:
        present = ascii(', '.join(names)[:200])
        mend = 'name the columns with user_column and item_column (run.py: --columns '
        mend += 'USER,ITEM)'
        if len(names) == 1:
            mend = 'separate the cells by commas, in .inter by tabs'
        raise InputError(
            f'{where}: no column {column!r} (columns present: {present}); {mend}'
        )
    if names.count(column) > 1:
        raise InputError(
            f'{where}: {names.count(column)} columns are named {column!r}; rename all '
            'but one'
        )
    return names.index(column)


def find_fault(text: str, column: str) -> str | None:
    r"""Returns what is wrong with an id of a table; None if it is right."""
    if not text:
        return f'no {column!r}; complete or delete the row'
    if '\0' in text:  # separates ids in a checkpoint
        return f'{column!r} holds a NUL character; correct or delete the row'
    return None


def read_titles(
    folder: Path, name: str, item_column: str, labels: Iterable[str]
) -> list[str] | None:
    r"""Returns titles from a RecBole file ``NAME.item``; missing ones are empty.

    Titles are optional: a file without the columns is logged and ignored, and bytes
    that are not text are replaced.
    """
    path = locate(folder, f'{name}.item')
    if path is None:
        return None
    text = plain_lines(read_bytes(path)).decode(errors='replace')
    # NUL separates titles in a checkpoint.
    lines = text.replace('\0', '\N{REPLACEMENT CHARACTER}').split('\n')
    rows = [line.split('\t') for line in lines if line]
    header = [cell.partition(':')[0].strip() for cell in rows[0]] if rows else []
    title_at = [i for i, cell in enumerate(header) if 'title' in cell.lower()]
    if not title_at or item_column not in header:
        logger.warning('%s: no columns %r and title, so no titles', path, item_column)
        return None
    at = header.index(item_column)
    title = {
        row[at].strip(): row[title_at[0]] for row in rows[1:] if len(row) == len(header)
    }
    return [title.get(label, '') for label in labels]
