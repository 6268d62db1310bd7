r"""Reading interactions: LightGCN text and tables, plain or gzipped.

Whole files are read and converted in one vectorised go. Lines are only walked to say
where a file is wrong.
"""

import csv
import gzip
import io
import logging
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyg_c2f.typing import InputError

logger = logging.getLogger(__name__)

TEXT_FILES = ('train.txt', 'valid.txt', 'test.txt')
TABLE_SUFFIXES = ('.inter', '.csv', '.parquet')
SHAPE = (
    'train.txt and test.txt [and valid.txt] with lines `user item item ...`, or '
    'NAME.inter, NAME.csv or NAME.parquet, each also as .gz'
)

_MAX_ID = 2**31 - 1
_BOM = b'\xef\xbb\xbf'


class Source(NamedTuple):
    r"""The interactions of a data set as its files hold them.

    A set of interactions is a sorted array of unique keys
    ``user * num_items + item``.
    """

    parts: dict[str, np.ndarray]  # file name -> keys, [n] int64
    num_users: int
    num_items: int
    user_labels: list[str] | None = None  # None: the ids are the file's own
    item_labels: list[str] | None = None
    titles: list[str] | None = None  # one per item


def locate(folder: Path, file_name: str) -> Path | None:
    r"""Returns the path of a file, plain before gzipped, or None."""
    for path in (folder / file_name, folder / f'{file_name}.gz'):
        if path.is_file():
            return path
    return None


def find_files(folder: Path, name: str) -> list[Path]:
    r"""Returns the files that make up a data set; empty if there are none.

    Text files come before tables, and ``.inter`` before ``.csv`` before ``.parquet``.
    """
    texts = [path for file in TEXT_FILES if (path := locate(folder, file))]
    if texts:
        return texts
    tables = (locate(folder, f'{name}{suffix}') for suffix in TABLE_SUFFIXES)
    return [path for path in tables if path][:1]


def plain_name(path: Path) -> str:
    r"""The file name without ``.gz``."""
    return path.name.removesuffix('.gz')


def read_bytes(path: Path) -> bytes:
    r"""Returns the content of a file, decompressed if its name ends in ``.gz``.

    Raises:
        InputError: If the file cannot be read, or the archive is damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f'{path} cannot be read ({error.strerror}); check its permissions'
        ) from error
    if path.suffix != '.gz':
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f'{path} is a truncated or corrupt gzip file; copy or compress it again'
        ) from error


def read_source(
    root: Path,
    name: str,
    user_column: str = 'user_id',
    item_column: str = 'item_id',
) -> Source:
    r"""Reads the data set in the folder ``root/name``.

    Args:
        root (Path): The folder that holds one folder per data set.
        name (str): The name of the folder, and of the table in it.
        user_column (str, optional): The column of user ids in a table.
        item_column (str, optional): The column of item ids in a table.

    Raises:
        InputError: If there is no such data set, or a file of it is wrong.
    """
    folder = data_folder(root, name)
    paths = find_files(folder, name)
    if not paths:
        if not folder.is_dir():
            raise InputError(f'no data set {name!r}: {folder} is no folder; {_mend()}')
        raise InputError(f'{folder} is no data set; {_mend(folder)}')
    if len(paths) == 1 and plain_name(paths[0]) not in TEXT_FILES:
        return _read_table_source(paths[0], name, user_column, item_column)
    for file_name in ('train.txt', 'test.txt'):
        if not locate(folder, file_name):
            raise InputError(f'{folder / file_name} is missing; {_mend(folder)}')
    return _read_text_source(paths)


def data_folder(root: Path, name: str) -> Path:
    r"""Returns ``root/name``.

    Raises:
        InputError: If the name is no plain folder name, the root is a file, or one of
            the two folders cannot be read.
    """
    if name in ('', '.', '..') or '/' in name or '\\' in name:
        raise InputError(
            f'{name!r} is no data set name; give the folder name, and its parent as '
            'the data root'
        )
    if root.exists() and not root.is_dir():
        raise InputError(
            f'the data root {root} is a file; give the folder that holds the folder '
            f'{name!r}'
        )
    folder = root / name
    for path in (root, folder):
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            raise InputError(f'{path} cannot be read; check its permissions')
    return folder


def _mend(folder: Path | None = None) -> str:
    held = ''
    if folder is not None:
        names = sorted(path.name for path in folder.iterdir())
        more = ', ...' if len(names) > 8 else ''
        held = f' (found: {", ".join(names[:8]) or "nothing"}{more})'
    return f'the folder must hold {SHAPE}{held}'


# LightGCN text ----------------------------------------------------------------------


def _read_text_source(paths: list[Path]) -> Source:
    pairs = {path: parse_text(read_bytes(path), path) for path in paths}
    num_users = 1 + max(int(user_ids.max()) for user_ids, _, _ in pairs.values())
    num_items = 1 + max(int(item.max()) for _, _, item in pairs.values())
    parts = {
        plain_name(path): _unique(user * num_items + item, path)
        for path, (_, user, item) in pairs.items()
    }
    return Source(parts, num_users, num_items)


def parse_text(raw: bytes, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Parses lines ``user item item ...``.

    Tokens are separated by any white space. A byte order mark and Windows line ends
    are skipped; blank lines, users without items and users on several lines are read
    as they are meant, and the latter two are logged with their number.

    Args:
        raw (bytes): The content of the file.
        path (Path): The name to use in messages.

    Returns:
        tuple: The users that have a line ``[num_lines]``, and the user ``[n]`` and
        the item ``[n]`` of each interaction in the order of the file, all int64.

    Raises:
        InputError: If a token is no id, or the file holds no interaction.
    """
    raw = raw.removeprefix(_BOM)
    if b'\r' in raw:
        raw = raw.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    byte = np.frombuffer(raw, np.uint8)
    is_digit = byte - ord('0') < 10  # wraps around below '0'
    is_space = (byte == ord(' ')) | (byte - ord('\t') < 5)
    if not (is_digit | is_space).all():
        raise _bad_token(raw, path)

    starts_token = is_digit.copy()
    starts_token[1:] &= ~is_digit[:-1]
    line = np.cumsum(byte == ord('\n'))[starts_token]
    if not line.size:
        raise InputError(f'{path} is empty; it must hold lines `user item item ...`')
    token = np.fromstring(raw, dtype=np.int64, sep=' ')
    starts_line = np.diff(line, prepend=-1) > 0

    limit = min(_MAX_ID, 100 * (token.size - int(starts_line.sum())) + 10**6)
    if token.max() > limit:
        at = int(np.argmax(token > limit))
        raise InputError(
            f'{path}, line {line[at] + 1}: the id {token[at]} is far too large for '
            f'{token.size} numbers in the file; ids must be contiguous from 0'
        )

    users, item = token[starts_line], token[~starts_line]
    if not item.size:
        raise InputError(f'{path} holds no interaction: no line has an item')
    num_line_items = np.diff(np.flatnonzero(starts_line), append=token.size) - 1
    _report(
        path,
        {
            'user lines without items': int((num_line_items == 0).sum()),
            'repeated lines of a user merged': users.size - np.unique(users).size,
        },
    )
    return users, users.repeat(num_line_items), item


def _bad_token(raw: bytes, path: Path) -> InputError:
    for number, line in enumerate(raw.split(b'\n'), start=1):
        for token in line.split():
            if token.isdigit():
                continue
            text = token[:20].decode('ascii', 'backslashreplace')
            what = 'is no integer'
            if token[:1] == b'-' and token[1:].isdigit():
                what = 'is negative'
            return InputError(
                f"{path}, line {number}: the id '{text}' {what}; each line must be "
                '`user item item ...`, ids counted from 0'
            )
    raise AssertionError('the caller has seen a byte that belongs to no id')


def sorted_unique(keys: np.ndarray) -> np.ndarray:
    r"""Returns the sorted unique values of natural numbers.

    :func:`numpy.unique` hashes, which is several times slower on keys that are sorted
    or nearly so.
    """
    keys = np.sort(keys)
    return keys[np.diff(keys, prepend=-1) > 0]


def _unique(keys: np.ndarray, path: Path) -> np.ndarray:
    unique = sorted_unique(keys)
    _report(path, {'duplicate interactions merged': keys.size - unique.size})
    return unique


def _report(path: Path, counts: dict[str, int]) -> None:
    for what, count in counts.items():
        if count:
            logger.warning('%s: %d %s', path, count, what)


# Tables -----------------------------------------------------------------------------


def _read_table_source(
    path: Path, name: str, user_column: str, item_column: str
) -> Source:
    raw = read_bytes(path)
    if plain_name(path).endswith('.parquet'):
        user, item = _read_parquet(raw, path, user_column, item_column)
    else:
        user, item = _read_delimited(raw, path, (user_column, item_column))
    if not user.size:
        raise InputError(f'{path} has no rows; one row per interaction is needed')
    user_id, user_labels = _contiguous(user)
    item_id, item_labels = _contiguous(item)
    keys = _unique(user_id * len(item_labels) + item_id, path)
    return Source(
        {plain_name(path): keys},
        len(user_labels),
        len(item_labels),
        user_labels,
        item_labels,
        _read_titles(path.parent, name, item_column, item_labels),
    )


def _contiguous(labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    r"""Numbers the labels in sorted order: as numbers if all are, else as text."""
    unique, index = np.unique(labels, return_inverse=True)
    if np.strings.isdigit(unique).all():
        # Among digit strings in text order, the shorter is the smaller number.
        order = np.argsort(np.strings.str_len(unique), kind='stable')
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        unique, index = unique[order], rank[index]
    return index, unique.tolist()


def _read_delimited(
    raw: bytes, path: Path, columns: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    text = _decode(raw, path)
    is_inter = plain_name(path).endswith('.inter')
    header_line, names = _header(text, path, is_inter)
    at = [_column(names, column, path) for column in columns]
    try:
        with warnings.catch_warnings():
            # NumPy warns of blank lines and of tables without rows.
            warnings.simplefilter('ignore', UserWarning)
            cells = np.loadtxt(
                io.StringIO(text),
                dtype=str,
                delimiter='\t' if is_inter else ',',
                quotechar=None if is_inter else '"',
                skiprows=header_line,
                usecols=at,
                comments=None,
                ndmin=2,
            )
    except ValueError as error:
        raise _bad_row(text, path, is_inter, at) from error
    cells = np.strings.strip(cells)
    if (cells == '').any():
        raise _bad_row(text, path, is_inter, at)
    return cells[:, 0], cells[:, 1]


def _decode(raw: bytes, path: Path) -> str:
    raw = raw.removeprefix(_BOM)
    if not raw.strip():
        raise InputError(f'{path} is empty; it must hold a header and rows')
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b'\n', 0, error.start)
        raise InputError(
            f'{path}, line {line}: no UTF-8 text; save the table as UTF-8'
        ) from error
    return text.replace('\r\n', '\n').replace('\r', '\n')


def _rows(text: str, is_inter: bool) -> Iterator[tuple[int, list[str]]]:
    r"""Yields the last line number and the cells of each row that is not blank."""
    if is_inter:
        lines = enumerate(text.split('\n'), start=1)
        yield from ((number, line.split('\t')) for number, line in lines if line)
    else:
        reader = csv.reader(io.StringIO(text))
        yield from ((reader.line_num, row) for row in reader if row)


def _header(text: str, path: Path, is_inter: bool) -> tuple[int, list[str]]:
    try:
        line, names = next(_rows(text, is_inter))
    except csv.Error as error:
        raise InputError(f'{path}, line 1: no table header ({error})') from error
    if is_inter:  # RecBole writes `name:type`
        names = [name.partition(':')[0] for name in names]
    return line, [name.strip() for name in names]


def _column(names: list[str], column: str, path: Path) -> int:
    if column not in names:
        present = ascii(', '.join(names)[:200])
        raise InputError(
            f'{path}, line 1: no column {column!r} (columns present: {present}); name '
            'the columns with user_column and item_column (run.py: --columns USER,ITEM)'
        )
    return names.index(column)


def _bad_row(text: str, path: Path, is_inter: bool, at: list[int]) -> InputError:
    with suppress(csv.Error):
        for number, cells in _rows(text, is_inter):
            if len(cells) <= max(at) or not all(cells[i].strip() for i in at):
                return InputError(
                    f'{path}, line {number}: the user or the item is missing; complete '
                    'or delete the row'
                )
    return InputError(f'{path} is no readable table; save it again')


def _read_parquet(
    raw: bytes, path: Path, user_column: str, item_column: str
) -> tuple[np.ndarray, np.ndarray]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f'reading {path} needs pyarrow; pip install pyg-c2f[tables]'
        ) from error
    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        names = list(file.schema_arrow.names)
        for column in (user_column, item_column):
            _column(names, column, path)
        table = file.read(columns=[user_column, item_column])
        columns = [
            table.column(column).cast(pa.string())
            for column in (user_column, item_column)
        ]
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f'{path} is no readable Parquet table; write it again'
        ) from error
    for name, column in zip((user_column, item_column), columns, strict=True):
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise InputError(
                f'{path}, row {row + 1}: no {name!r}; complete or delete the row'
            )
    return columns[0].to_numpy().astype(str), columns[1].to_numpy().astype(str)


def _read_titles(
    folder: Path, name: str, item_column: str, labels: list[str]
) -> list[str] | None:
    r"""Titles from a RecBole file ``NAME.item``; missing ones are empty.

    Titles are a comfort: a file without the columns is reported and left alone.
    """
    path = locate(folder, f'{name}.item')
    if path is None:
        return None
    text = read_bytes(path).removeprefix(_BOM).decode(errors='replace')
    rows = [cells for _, cells in _rows(text.replace('\r\n', '\n'), is_inter=True)]
    header = [cell.partition(':')[0].strip() for cell in rows[0]] if rows else []
    title_at = [i for i, cell in enumerate(header) if 'title' in cell.lower()]
    if not title_at or item_column not in header:
        logger.warning('%s: no columns %r and title, so no titles', path, item_column)
        return None
    at = header.index(item_column)
    title = {row[at]: row[title_at[0]] for row in rows[1:] if len(row) == len(header)}
    return [title.get(label, '') for label in labels]
