r"""Reading interactions: LightGCN text and tables, plain or gzipped.

Text and plain tables are converted in one vectorised go. Their lines are only walked to
say where they are wrong, or if a table has quotes or other rare things. The size of a
file bounds the memory, whatever it claims to hold.
"""

import csv
import gzip
import io
import logging
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyg_c2f.sparse import pair_keys
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
# What a file may unpack to: small ones to this, others to that many times their size.
_UNPACKED_BYTES, _UNPACKED_TIMES = 2**25, 20
# Of a table, what is looked at in one go: small enough for the cache.
_BLOCK_BYTES = 2**17
_LONGEST_ID = 255  # bytes, in a plain table
_FIRST_BYTES = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


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
    r"""Returns the path of a file, plain before gzipped, or None.

    A Parquet table may be a folder of part files.
    """
    for path in (folder / file_name, folder / f'{file_name}.gz'):
        if path.is_file() or (path.suffix == '.parquet' and path.is_dir()):
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
        InputError: If the file cannot be read, or the archive is damaged or unpacks to
            far more than interactions would.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f'{path} cannot be read ({error.strerror}); check its permissions'
        ) from error
    if path.suffix != '.gz':
        return raw
    limit, size, blocks = unpacked_limit(len(raw)), 0, []
    try:
        with gzip.open(io.BytesIO(raw)) as file:
            while size <= limit and (block := file.read(2**20)):
                blocks.append(block)
                size += len(block)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f'{path} is a truncated or corrupt gzip file; copy or compress it again'
        ) from error
    if size > limit:
        raise InputError(
            f'{path} unpacks to more than {limit:,} bytes, far too many for its '
            f'{len(raw):,}; if that is right, unpack it by hand'
        )
    return b''.join(blocks)


def unpacked_limit(size: int) -> int:
    r"""Returns the most bytes that the content of a file of a size may unpack to."""
    return max(_UNPACKED_BYTES, _UNPACKED_TIMES * size)


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
        plain_name(path): _unique(pair_keys((user, item), num_items), path)
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
    raw = _plain_lines(raw)
    byte = np.frombuffer(raw, np.uint8)
    is_digit = byte - ord('0') < 10  # wraps around below '0'
    is_space = (byte == ord(' ')) | (byte - ord('\t') < 5)
    if not (is_digit | is_space).all():
        raise _bad_token(raw, path)

    starts_token = is_digit.copy()
    starts_token[1:] &= ~is_digit[:-1]
    start = np.flatnonzero(starts_token)
    if not start.size:
        raise InputError(f'{path} is empty; it must hold lines `user item item ...`')
    token = np.fromstring(raw, dtype=np.int64, sep=' ')
    line = np.searchsorted(np.flatnonzero(byte == ord('\n')), start)
    starts_line = np.diff(line, prepend=-1) > 0

    limit = min(_MAX_ID, 10 * (token.size - int(starts_line.sum())) + 10**6)
    if token.max() > limit:
        at = int(np.argmax(token > limit))
        id_ = raw[start[at] : start[at] + 40].split()[0].decode()
        raise InputError(
            f'{path}, line {line[at] + 1}: the id {id_} is far too large for '
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
            text = ascii(token[:20].decode('latin-1'))
            what = 'is no integer'
            if token[:1] == b'-' and token[1:].isdigit():
                what = 'is negative'
            return InputError(
                f'{path}, line {number}: the id {text} {what}; each line must be '
                '`user item item ...`, ids counted from 0'
            )
    raise AssertionError('the caller has seen a byte that belongs to no id')


def _plain_lines(raw: bytes) -> bytes:
    raw = raw.removeprefix(_BOM)
    if b'\r' in raw:
        raw = raw.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    return raw


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


class Ids(NamedTuple):
    r"""The ids in a column of a table."""

    rows: np.ndarray  # [num_rows] int64, the number of a label
    labels: list[str]  # each once


def _read_table_source(
    path: Path, name: str, user_column: str, item_column: str
) -> Source:
    from pyg_c2f.datasets.parquet import read_parquet  # imports this module

    names = check_columns(path, user_column, item_column)
    if plain_name(path).endswith('.parquet'):
        columns = read_parquet(path, names)
    else:
        columns = _read_delimited(read_bytes(path), path, names)
    if not columns[0].rows.size:
        raise no_rows(path)
    users, items = (_sorted(ids) for ids in columns)
    keys = _unique(users.rows * len(items.labels) + items.rows, path)
    return Source(
        {plain_name(path): keys},
        len(users.labels),
        len(items.labels),
        users.labels,
        items.labels,
        read_titles(path.parent, name, item_column, items.labels),
    )


def check_columns(path: Path, user_column: str, item_column: str) -> tuple[str, str]:
    r"""Returns the names of two columns.

    Raises:
        InputError: If they are the same.
    """
    if user_column == item_column:
        raise InputError(
            f'{path}: users and items are both to be in the column {user_column!r}; '
            'name two columns'
        )
    return user_column, item_column


def no_rows(path: Path) -> InputError:
    r"""The error for a table that holds nothing."""
    return InputError(f'{path} has no rows; one row per interaction is needed')


def _sorted(ids: Ids) -> Ids:
    r"""Numbers the labels in sorted order: as numbers if all are, else as text."""
    labels = ids.labels
    order = sorted(range(len(labels)), key=labels.__getitem__)
    if all(label.isascii() and label.isdigit() for label in labels):
        # Of digits in the order of text, the shorter are the smaller number.
        order.sort(key=[len(label) for label in labels].__getitem__)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels))
    return Ids(rank[ids.rows], [labels[i] for i in order])


def _read_delimited(raw: bytes, path: Path, columns: tuple[str, str]) -> list[Ids]:
    is_inter = plain_name(path).endswith('.inter')
    raw = _plain_lines(raw)
    rows = _rows(raw, path, is_inter)
    header_line, names = next(rows, (0, []))
    if not names:
        raise InputError(f'{path} is empty; it must hold a header and rows')
    if is_inter:  # RecBole writes `name:type`
        names = [name.partition(':')[0] for name in names]
    names = [name.strip() for name in names]
    user_at, item_at = (
        find_column(names, column, f'{path}, line {header_line}') for column in columns
    )
    if header_line == 1:
        at = user_at, item_at
        if ids := _read_plain_rows(raw, is_inter, len(names), at):
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


def _rows(raw: bytes, path: Path, is_inter: bool) -> Iterator[tuple[int, list[str]]]:
    r"""Yields the number of the first line and the cells of each row not blank."""
    try:
        if not raw.isascii():
            raw.decode()
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b'\n', 0, error.start)
        raise InputError(
            f'{path}, line {line}: no UTF-8 text; save the table as UTF-8'
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


def _read_plain_rows(
    raw: bytes, is_inter: bool, num_cells: int, at: tuple[int, int]
) -> list[Ids] | None:
    r"""Reads the ids of all rows after the first line without a look at each.

    Returns:
        list: The ids; None if there are quotes, NUL characters, rows with another
        number of cells, long lines, long ids or none: things to read, or to refuse,
        row by row.
    """
    if b'\0' in raw or (b'"' in raw and not is_inter):
        return None
    separator = '\t' if is_inter else ','
    # A cell that the csv module finds too long is in no line of this length.
    longest_line = min(csv.field_size_limit(), _BLOCK_BYTES)
    # Of each cell where it starts, its size and its hash. A row has at least 4 bytes.
    most = min(raw.count(b'\n'), len(raw) // 4) + 1
    start = np.empty((2, most), np.int64)
    size = np.empty((2, most), np.uint8)
    key = np.empty((2, most), np.uint64)
    num_rows = 0
    end = raw.find(b'\n') + 1 or len(raw)
    while end < len(raw):
        begin = end
        end = raw.rfind(b'\n', begin, begin + longest_line) + 1
        if not end:
            if len(raw) - begin >= longest_line:
                return None
            end = len(raw)  # nothing ends the last line
        # The end of the line before, whole lines, and what fills up the last words.
        block = raw[begin - 1 : end].removesuffix(b'\n') + b'\n' + bytes(8)
        bounds = _find_bounds(np.frombuffer(block, np.uint8), separator, num_cells)
        if bounds is None:
            return None
        first = bounds[:-1].reshape(-1, num_cells)[:, at].T + 1
        length = bounds[1:].reshape(-1, num_cells)[:, at].T - first
        if not ((length > 0) & (length <= _LONGEST_ID)).all():
            return None
        rows = slice(num_rows, num_rows + first.shape[1])
        start[:, rows] = first + (begin - 1)
        size[:, rows] = length
        key[:, rows] = _hash(_words(block), first, length)
        num_rows = rows.stop
    if not num_rows:
        return None
    rows = slice(num_rows)
    users = _number(raw, start[0, rows], size[0, rows], key[0, rows])
    items = users and _number(raw, start[1, rows], size[1, rows], key[1, rows])
    return [users, items] if users and items else None


def _find_bounds(byte: np.ndarray, separator: str, num_cells: int) -> np.ndarray | None:
    r"""Returns between what the cells are: a line end, then what ends each of them.

    None if a line has another number of cells. Blank lines are taken as white space
    before the next line.
    """
    ends_line = byte == ord('\n')
    ends_cell = ends_line | (byte == ord(separator))
    ends_cell[1:] &= ~(ends_line[1:] & ends_line[:-1])
    bounds = np.flatnonzero(ends_cell)
    num_rows, rest = divmod(bounds.size - 1, num_cells)
    is_line = ends_line[bounds]
    if rest or np.count_nonzero(is_line) != num_rows + 1:
        return None
    return bounds if is_line[::num_cells].all() else None


def _words(text: bytes) -> np.ndarray:
    r"""Returns the eight bytes from each on as a number."""
    return np.ndarray(len(text) - 7, '<u8', text, strides=(1,))


def _hash(words: np.ndarray, first: np.ndarray, size: np.ndarray) -> np.ndarray:
    r"""Returns a number for each cell; up to eight bytes, none NUL, are their own."""
    key = words[first] & _FIRST_BYTES[np.minimum(size, 8)]
    for skip in range(8, int(size.max(initial=0)), 8):
        long = np.nonzero(size > skip)
        kept = _FIRST_BYTES[np.minimum(size[long] - skip, 8)]
        key[long] = key[long] * _HASH_FACTOR + (words[first[long] + skip] & kept)
    return key


def _number(
    text: bytes, start: np.ndarray, size: np.ndarray, key: np.ndarray
) -> Ids | None:
    r"""Numbers cells by their text, white space around it left out.

    None if two texts have the same hash, or one is no id.
    """
    twin = _find_twins(key)
    if size.max() > 8 and not _have_same_text(text, start, size, twin):
        return None
    chosen = np.flatnonzero(twin == np.arange(twin.size))
    known: dict[str, int] = {}
    texts = _texts(text, start[chosen], size[chosen])
    labels = (known.setdefault(label, len(known)) for label in texts)
    number = np.empty(twin.size, np.int64)
    number[chosen] = np.fromiter(labels, np.int64, chosen.size)
    return None if '' in known else Ids(number[twin], list(known))


def _texts(text: bytes, start: np.ndarray, size: np.ndarray) -> Iterator[str]:
    # In parts: lists of all places would take more than the file.
    for i in range(0, start.size, 2**12):
        part = slice(i, i + 2**12)
        end = start[part] + size[part]
        for first, last in zip(start[part].tolist(), end.tolist(), strict=True):
            yield text[first:last].decode().strip()


def _find_twins(key: np.ndarray) -> np.ndarray:
    r"""Returns for each key the place of one that is the same, for all of these."""
    bits = key.size.bit_length()
    slot = ((key * _HASH_FACTOR) >> np.uint64(64 - bits)).view(np.int64)
    table = np.empty(2**bits, np.int64)
    table[slot] = np.arange(key.size)
    twin = table[slot]
    del slot, table
    # Another key has taken the slot; sorting finds the twins of these few.
    lost = np.flatnonzero(key[twin] != key)
    _, at, inverse = np.unique(key[lost], return_index=True, return_inverse=True)
    twin[lost] = lost[at][inverse]
    return twin


def _have_same_text(
    text: bytes, start: np.ndarray, size: np.ndarray, twin: np.ndarray
) -> bool:
    if (size != size[twin]).any():
        return False
    words = _words(text + bytes(8))
    other = start[twin]
    for skip in range(0, int(size.max()), 8):
        long = np.flatnonzero(size > skip)
        differ = words[start[long] + skip] ^ words[other[long] + skip]
        if (differ & _FIRST_BYTES[np.minimum(size[long] - skip, 8)]).any():
            return False
    return True


def find_column(names: list[str], column: str, where: str) -> int:
    r"""Returns which of the columns has a name.

    Raises:
        InputError: If none has, or several.
    """
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
    r"""Returns what is wrong with an id of a table; None if nothing is."""
    if not text:
        return f'no {column!r}; complete or delete the row'
    if '\0' in text:  # stands between two ids in a checkpoint
        return f'{column!r} holds a NUL character; mend or delete the row'
    return None


def read_titles(
    folder: Path, name: str, item_column: str, labels: Iterable[str]
) -> list[str] | None:
    r"""Titles from a RecBole file ``NAME.item``; missing ones are empty.

    Titles are a comfort: a file without the columns is reported and left alone, and
    what is no text in it is replaced.
    """
    path = locate(folder, f'{name}.item')
    if path is None:
        return None
    text = _plain_lines(read_bytes(path)).decode(errors='replace')
    # NUL stands between two titles in a checkpoint.
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
