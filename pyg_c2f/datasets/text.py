r"""The bytes of files, and interactions in LightGCN text."""

import gzip
import io
import logging
import zlib
from pathlib import Path

import numpy as np

from pyg_c2f.typing import InputError

logger = logging.getLogger(__name__)

_MAX_ID = 2**31 - 1
_BOM = b'\xef\xbb\xbf'
# Small files may unpack to so many bytes, larger ones to so many times their size.
_UNPACKED_BYTES, _UNPACKED_TIMES = 2**25, 20


def read_bytes(path: Path) -> bytes:
    r"""Returns the content of a file, decompressed if its name ends in ``.gz``."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
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


def unreadable(path: Path, error: OSError) -> InputError:
    r"""The error for a file or folder that cannot be read."""
    return InputError(
        f'{path} cannot be read ({error.strerror}); check its permissions'
    )


def unpacked_limit(size: int) -> int:
    r"""Returns how many bytes a file of a given size may unpack to."""
    return max(_UNPACKED_BYTES, _UNPACKED_TIMES * size)


def plain_lines(raw: bytes) -> bytes:
    r"""Returns the content of a file without byte order mark, lines ended by LF."""
    raw = raw.removeprefix(_BOM)
    if b'\r' in raw:
        raw = raw.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    return raw


def parse_text(raw: bytes, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Parses lines ``user item item ...``.

    Tokens are separated by any white space. A byte order mark, Windows line endings and
    blank lines are skipped. Users without items and users on several lines are
    accepted; their number is logged.

    Returns:
        tuple: The users that have a line ``[num_lines]``, and the user ``[n]`` and
        the item ``[n]`` of each interaction in the order of the file, all int64.
    """
    raw = plain_lines(raw)
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
    log_count(path, int((num_line_items == 0).sum()), 'user lines without items')
    num_repeated = users.size - np.unique(users).size
    log_count(path, num_repeated, 'repeated lines of a user merged')
    return users, users.repeat(num_line_items), item


def _bad_token(raw: bytes, path: Path) -> InputError:
    for number, line in enumerate(raw.split(b'\n'), start=1):
        for token in line.split():
            if token.isdigit():
                continue
            text = ascii(token[:20].decode('latin-1'))
            what = 'is not an integer'
            if token[:1] == b'-' and token[1:].isdigit():
                what = 'is negative'
            return InputError(
                f'{path}, line {number}: the id {text} {what}; each line must be '
                '`user item item ...`, ids counted from 0'
            )
    raise AssertionError('the caller has seen a byte that belongs to no id')


def sorted_unique(values: np.ndarray) -> np.ndarray:
    r"""Returns the sorted unique values of an array.

    :func:`numpy.unique` hashes, which is several times slower on integers that are
    sorted or nearly so.
    """
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def unique_keys(keys: np.ndarray, path: Path) -> np.ndarray:
    r"""Returns the sorted unique keys of a file's interactions; logs the others."""
    unique = sorted_unique(keys)
    log_count(path, keys.size - unique.size, 'duplicate interactions merged')
    return unique


def log_count(path: Path, count: int, what: str) -> None:
    r"""Logs how many things in a file were tolerated, if there are any."""
    if count:
        logger.warning('%s: %d %s', path, count, what)
