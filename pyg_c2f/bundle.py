r"""Recommends from a bundle; this file needs nothing but NumPy.

A bundle is one small file with everything that a device needs to recommend from a
history of items. Its layout and the formula of the scores are in ``docs/bundle.md``;
``pyg_c2f.export.write_bundle`` writes one from a trained model.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAGIC = b'C2FB'
VERSION = 1
HEADER = struct.Struct('<4s7If')
# The tags in their order: the required ones, and all.
NEEDED = (b'ITEM', b'LINK')
TAGS = (*NEEDED, b'COAR', b'FINE', b'CODE', b'BIAS', b'NAME', b'TITL')
# The largest sizes that the header may hold, in their order.
MOST = {
    'items': 1 << 26,
    'columns': 4096,
    'coarse anchors': 1 << 16,
    'fine anchors': 4096,
    'levels': 64,
}
MOST_VALUES = 1 << 16  # of a table
MOST_FEATURES = 1 << 24  # of the coarse anchors, together

# Entries of a matrix that are processed at once, so that they stay in the cache.
BLOCK = 1 << 16

Ids = Sequence[int | str] | np.ndarray


class BundleError(ValueError):
    """A file that is not a bundle, is damaged or has another version; a wrong call."""


class Bundle:
    r"""A recommender that needs only a bundle and a history.

    Args:
        data (bytes): The content of the file.

    Attributes:
        num_items (int): The number of items.
        item_ids (List[str], optional): Their original ids, if the bundle has them.
        item_titles (List[str], optional): Their titles, if the bundle has them.

    Raises:
        BundleError: If the content breaks a rule of ``docs/bundle.md``.

    Example:
        >>> import torch, tempfile
        >>> from pyg_c2f.export import write_bundle
        >>> from pyg_c2f.nn import LinearC2F
        >>> pairs = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
        >>> model = LinearC2F(pairs, 3, 4, 4, 2, 4, 2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_bundle(model, f'{folder}/model.c2f')
        ...     bundle = Bundle.load(f'{folder}/model.c2f')
        >>> items, scores = bundle.recommend([0, 2], k=2)
        >>> sorted(items.tolist())
        [1, 3]
    """

    def __init__(self, data: bytes) -> None:
        sizes, self._user_norm, sections = _sections(data)
        self.num_items, width, coarse, fine, levels = sizes
        table, self._item_code = sections[b'ITEM'].table(2, self.num_items)
        self._weight, self._scale = table
        self._links = sections[b'LINK'].matrix(self.num_items, coarse)
        self._coarse = self._fine = self._bias = None
        if b'COAR' in sections:
            self._coarse = sections[b'COAR'].matrix(coarse, width)
        self._codes = np.zeros((self.num_items, 0), np.uint16)
        if fine:
            self._fine = sections[b'FINE'].matrix(fine, width)
            per_level = fine // levels
            codes = sections[b'CODE'].packed(self.num_items * levels, per_level)
            # The number among all fine anchors, below 4096.
            self._codes = codes.reshape(-1, levels).astype(np.uint16)
            self._codes += per_level * np.arange(levels, dtype=np.uint16)
        if b'BIAS' in sections:
            (bias,), code = sections[b'BIAS'].table(1, self.num_items)
            self._bias = bias[code]
        self.item_ids, self.item_titles = None, None
        if b'NAME' in sections:
            self.item_ids = sections[b'NAME'].texts(self.num_items)
            if len(set(self.item_ids)) < self.num_items:
                raise _broken('two items have the same id')
        if b'TITL' in sections:
            self.item_titles = sections[b'TITL'].texts(self.num_items)
        for section in sections.values():
            section.done()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> 'Bundle':
        """Reads a file.

        Args:
            path (str or Path): The file.

        Raises:
            BundleError: If it breaks a rule of ``docs/bundle.md``, with its name.
            OSError: If it cannot be read.
        """
        try:
            return cls(Path(path).read_bytes())
        except BundleError as error:
            raise BundleError(f'{path}: {error}') from None

    def recommend(
        self,
        history: Ids,
        k: int = 20,
        exclude_seen: bool = True,
        candidates: Ids | None = None,
    ) -> tuple[np.ndarray | list[str], np.ndarray]:
        """The best items for a person with a history.

        Strings are original ids (the numbers as text, if the bundle has no others), and
        the result then has strings, too. Integers are item numbers.

        Args:
            history (Sequence): The items, in any order; a repeated one counts once.
            k (int, optional): The largest length of the list. (default: ``20``)
            exclude_seen (bool, optional): Whether to leave out the items of the
                history. (default: ``True``)
            candidates (Sequence, optional): The items to choose from. (default: all)

        Returns:
            Tuple: Items and scores, best first, equal scores by lower number; fewer
            than ``k`` if fewer items are left.

        Raises:
            BundleError: If an id is unknown, the history is empty, ``k`` is not
                positive, or a score is not finite.
        """
        items, named = self._numbers(history, 'history')
        _check_length(k)
        with np.errstate(all='ignore'):
            key, factor = self._keys(items)
            finite = np.isfinite(key * factor).all()
        if not finite:
            raise _broken('a score is not finite')
        allowed = np.ones(self.num_items, bool)
        if candidates is not None:
            allowed[:] = False
            allowed[self._numbers(candidates, 'candidates')[0]] = True
        if exclude_seen:
            allowed[items] = False
        best = self._best(key, allowed, k)
        return self._named(best) if named else best, key[best] * factor

    def similar_items(
        self, item: int | str, k: int = 20
    ) -> tuple[np.ndarray | list[str], np.ndarray]:
        """The items with the highest cosine similarity to an item, without itself.

        Args:
            item (int or str): The item; see :meth:`recommend`.
            k (int, optional): The largest length of the list. (default: ``20``)

        Raises:
            BundleError: If the id is unknown or ``k`` is not positive.
        """
        items, named = self._numbers([item], 'item')
        _check_length(k)
        x, norms = self._features(items).ravel(), self._norms
        dots, own = self._products(x), norms[items[0]]
        both = norms * own
        cosine = np.divide(dots, both, out=np.zeros_like(dots), where=both > 0)
        order = np.where(both > 0, cosine, -2.0)  # a zero vector comes last
        allowed = np.ones(self.num_items, bool)
        allowed[items] = False
        best = self._best(order, allowed, k)
        return self._named(best) if named else best, cosine[best]

    def _numbers(self, ids: Ids, what: str) -> tuple[np.ndarray, bool]:
        """The distinct item numbers, ascending, and whether the ids were original."""
        try:
            array = np.asarray(ids)
        except ValueError:  # of rows of unequal length
            array = np.empty(0)
        named = array.dtype.kind == 'U' and all(isinstance(x, str) for x in ids)
        if array.ndim != 1 or not array.size or not (named or array.dtype.kind in 'iu'):
            form = 'one id' if what == 'item' else 'a list of at least one id'
            raise BundleError(f'{what}: expected {form}, all str or all int')
        if named:
            array = np.array([self._number_of.get(str(x), -1) for x in ids])
        outside = ((array < 0) | (array >= self.num_items)).nonzero()[0]
        if outside.size:
            known = f'the numbers 0 to {self.num_items - 1}'
            wrong = str(ids[outside[0]])[:40]
            if named:
                some = ', '.join(repr(x[:40]) for x in list(self._number_of)[:3])
                known, wrong = f'{self.num_items}, such as {some}', repr(wrong)
            raise BundleError(f'{what}: unknown item {wrong}; the bundle knows {known}')
        return np.unique(array).astype(np.int64), named

    @cached_property
    def _number_of(self) -> dict[str, int]:
        names = self.item_ids or map(str, range(self.num_items))
        return {name: number for number, name in enumerate(names)}

    def _named(self, items: np.ndarray) -> list[str]:
        names = self.item_ids
        return [str(x) if names is None else names[x] for x in items.tolist()]

    def _keys(self, items: np.ndarray) -> tuple[np.ndarray, float]:
        """The keys that items are ranked by; scores are keys times the factor."""
        weight = self._weight[self._item_code[items]]
        sent = self._links.rows(items).left_times(weight)
        x = sent if self._coarse is None else self._coarse.left_times(sent)
        if self._fine is not None:
            per_item = np.repeat(weight, self._codes.shape[1])
            codes = self._codes[items].ravel()
            sent = np.bincount(codes, per_item, self._fine.num_rows)
            x = x + self._fine.left_times(sent)
        key = self._products(x) * 0.25
        key *= self._scale[self._item_code]
        if self._bias is not None:
            key += self._bias * _power(len(items), self._user_norm)
        return key, _power(len(items), -self._user_norm)

    def _products(self, x: np.ndarray) -> np.ndarray:
        """The inner products of all items' features with a vector."""
        anchors = x if self._coarse is None else self._coarse.times(x)
        out = self._links.times(anchors)
        if self._fine is not None:
            anchors = self._fine.times(x)
            for codes in self._codes.T:
                out += anchors[codes]
        return out

    def _features(self, items: np.ndarray) -> np.ndarray:
        """The features of items, dense."""
        x = self._links.rows(items).dense()
        if self._coarse is not None:
            x = x @ self._dense_coarse
        if self._fine is not None:
            for codes in self._codes[items].T:
                x += self._fine.rows(codes).dense()
        return x

    @cached_property
    def _dense_coarse(self) -> np.ndarray:
        assert self._coarse is not None
        return self._coarse.dense()

    @cached_property
    def _norms(self) -> np.ndarray:
        """The lengths of the items' features."""
        matrix = self._links if self._coarse is None else self._coarse
        size = max(4 * BLOCK // max(self._links.num_cols, matrix.num_cols), 1)
        blocks = (
            np.arange(first, min(first + size, self.num_items))
            for first in range(0, self.num_items, size)
        )
        return np.concatenate(
            [np.linalg.norm(self._features(block), axis=1) for block in blocks]
        )

    def _best(self, key: np.ndarray, allowed: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` allowed items of the highest keys, of equal ones the lower."""
        items = allowed.nonzero()[0]
        values = key[items]
        if k < len(items):
            least = np.partition(values, len(items) - k)[len(items) - k]
            items = items[values >= least]
            values = key[items]
        # A stable sort: equal keys stay by number.
        return items[np.argsort(-values, kind='stable')[:k]]


class _Matrix(NamedTuple):
    """A sparse matrix by rows; its values are codes of a table."""

    rowptr: np.ndarray  # [num_rows + 1]
    col: np.ndarray
    code: np.ndarray
    table: np.ndarray
    num_cols: int

    @property
    def num_rows(self) -> int:
        return len(self.rowptr) - 1

    def rows(self, index: np.ndarray) -> '_Matrix':
        """The matrix of some of the rows."""
        first, count = self.rowptr[index], np.diff(self.rowptr)[index]
        rowptr = np.concatenate([[0], count.cumsum()])
        at = np.repeat(first - rowptr[:-1], count) + np.arange(rowptr[-1])
        return self._replace(rowptr=rowptr, col=self.col[at], code=self.code[at])

    def blocks(self) -> Iterator[tuple[int, int, slice, np.ndarray]]:
        """Blocks of rows: the first, the number, the entries, and their rows."""
        step = max(BLOCK * self.num_rows // max(len(self.col), 1), 1)
        for first in range(0, self.num_rows, step):
            rowptr = self.rowptr[first : first + step + 1]
            row = np.repeat(np.arange(len(rowptr) - 1), np.diff(rowptr))
            yield first, len(rowptr) - 1, slice(rowptr[0], rowptr[-1]), row

    def times(self, x: np.ndarray) -> np.ndarray:
        """The matrix times a column."""
        out = np.empty(self.num_rows)
        for first, num_rows, part, row in self.blocks():
            terms = self.table[self.code[part]] * x[self.col[part]]
            out[first : first + num_rows] = np.bincount(row, terms, num_rows)
        return out

    def left_times(self, x: np.ndarray) -> np.ndarray:
        """A row times the matrix."""
        terms = self.table[self.code] * np.repeat(x, np.diff(self.rowptr))
        return np.bincount(self.col, terms, self.num_cols)

    def dense(self) -> np.ndarray:
        """The matrix with its zeros."""
        out = np.zeros((self.num_rows, self.num_cols))
        row = np.repeat(np.arange(self.num_rows), np.diff(self.rowptr))
        out[row, self.col] = self.table[self.code]
        return out


def _check_length(k: int) -> None:
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise BundleError(f'k: expected a whole number from 1 up (got {k!r})')


def _power(base: int, exponent: float) -> float:
    """A power from operations that round the same on every machine, unlike ``pow``."""
    if exponent < 0:
        return 1 / _power(base, -exponent)
    out, x, rest = 1.0, float(base), float(np.floor(exponent))
    while rest:
        if rest % 2:
            out *= x
        rest //= 2
        x *= x
    x, rest = float(base), exponent % 1
    while rest:
        x, rest = float(np.sqrt(x)), rest * 2
        if rest >= 1:
            out *= x
            rest -= 1
    return out


def _broken(why: str) -> BundleError:
    return BundleError(f'bundle: {why}; download or export it again')


class _Section:
    """Reads the content of a section from its beginning to its end."""

    def __init__(self, tag: bytes, data: memoryview) -> None:
        self.tag, self.data, self.at = tag, data, 0

    def refuse(self, why: str) -> BundleError:
        return _broken(f'section {self.tag.decode("ascii", "replace")} {why}')

    def take(self, num_bytes: int) -> memoryview:
        if num_bytes > len(self.data) - self.at:
            raise self.refuse('is shorter than it claims')
        self.at += num_bytes
        return self.data[self.at - num_bytes : self.at]

    def done(self) -> None:
        if self.at < len(self.data):
            raise self.refuse('is longer than its content')

    def count(self) -> int:
        return int.from_bytes(self.take(4), 'little')

    def packed(self, num: int, num_values: int) -> np.ndarray:
        """Packed numbers below a bound, in the smallest type that holds them."""
        values = self.bits(num, max((num_values - 1).bit_length(), 1))
        if num and int(values.max()) >= num_values:
            raise self.refuse(f'has a number that is not below {num_values}')
        return values

    def bits(self, num: int, width: int) -> np.ndarray:
        """Packed numbers of ``width`` bits each."""
        data = np.frombuffer(self.take((num * width + 7) // 8), np.uint8)
        if num * width % 8 and data[-1] >> num * width % 8:
            raise self.refuse('has bits after its last number')
        full = next(x for x in (8, 16, 32) if width <= x)
        out = np.empty(num, f'<u{full // 8}')
        # A block of numbers fills whole bytes, whatever their width.
        for first in range(0, num, BLOCK):
            size = min(BLOCK, num - first)
            part = data[first * width // 8 : ((first + size) * width + 7) // 8]
            bits = np.zeros((size, full), np.uint8)
            flat = np.unpackbits(part, count=size * width, bitorder='little')
            bits[:, :width] = flat.reshape(size, width)
            packed = np.packbits(bits, axis=1, bitorder='little')
            out[first : first + size] = packed.view(out.dtype).ravel()
        return out

    def table(self, num_columns: int, num: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The columns of a table, float64, and codes of its rows."""
        size = self.count()
        if not 1 <= size <= MOST_VALUES:
            raise self.refuse(f'has a table of {size} values')
        columns = []
        for _ in range(num_columns):
            values = np.frombuffer(self.take(4 * size), '<f4')
            if not np.isfinite(values).all():
                raise self.refuse('has a value that is not finite')
            columns.append(values.astype(np.float64))
        return columns, self.packed(num, size)

    def matrix(self, num_rows: int, num_cols: int) -> _Matrix:
        """A matrix with its places in Elias-Fano form."""
        num, low_bits = self.count(), self.count()
        if low_bits > 31:
            raise self.refuse(f'has places with {low_bits} low bits')
        # Without low bits, the number is not checked yet: it must cost no memory.
        none = np.broadcast_to(np.uint8(0), num)
        low = self.bits(num, low_bits) if low_bits else none
        high = np.frombuffer(self.take(self.count()), np.uint8)
        (table,), code = self.table(1, num)
        col = np.empty(num, np.uint16 if num_cols <= 1 << 16 else np.uint32)
        count = np.zeros(num_rows, np.int64)
        done, last, most = 0, -1, num_rows * num_cols - 1
        for first in range(0, len(high), BLOCK // 8):
            part = high[first : first + BLOCK // 8]
            bit = np.unpackbits(part, bitorder='little').nonzero()[0] + 8 * first
            if done + len(bit) > num:
                raise self.refuse('has more places than entries')
            bit -= np.arange(done, done + len(bit))
            if (bit > most >> low_bits).any():
                raise self.refuse('has a place outside the matrix')
            place = (bit << low_bits) | low[done : done + len(bit)]
            if len(place):
                if place[0] <= last or (np.diff(place) <= 0).any():
                    raise self.refuse('has places that are not ascending')
                last = int(place[-1])
                if last > most:
                    raise self.refuse('has a place outside the matrix')
                row, col[done : done + len(bit)] = np.divmod(place, num_cols)
                count[row[0] : row[-1] + 1] += np.bincount(row - row[0])
            done += len(bit)
        if done < num:
            raise self.refuse('has fewer places than entries')
        rowptr = np.concatenate([[0], count.cumsum()])
        return _Matrix(rowptr, col, code, table, num_cols)

    def texts(self, num: int) -> list[str]:
        """Texts separated by zero bytes."""
        data = bytes(self.take(len(self.data)))
        if data.count(0) != num - 1:
            raise self.refuse(f'does not hold {num} texts')
        try:
            return data.decode('utf-8').split('\0')
        except UnicodeDecodeError:
            raise self.refuse('is not UTF-8') from None


def _sections(data: bytes) -> tuple[tuple[int, ...], float, dict[bytes, _Section]]:
    """The sizes, the exponent and the sections of a file, with their order checked."""
    if len(data) < 4 or data[:4] != MAGIC:
        raise BundleError(
            'not a bundle: it does not begin with C2FB; name another file'
        )
    if len(data) >= 8 and (version := int.from_bytes(data[4:8], 'little')) != VERSION:
        raise BundleError(
            f'a bundle of version {version}, but this reader knows version {VERSION}; '
            'update pyg_c2f, or export it again'
        )
    if len(data) < HEADER.size + 4:
        raise _broken('truncated')
    _, _, length, *sizes, user_norm = HEADER.unpack_from(data)
    if length != len(data):
        raise _broken(f'{len(data)} bytes instead of {length}')
    if zlib.crc32(memoryview(data)[:-4]) != int.from_bytes(data[-4:], 'little'):
        raise _broken('damaged (checksum)')
    for (name, most), size in zip(MOST.items(), sizes, strict=True):
        least = 0 if name in ('fine anchors', 'levels') else 1
        if not least <= size <= most:
            raise _broken(f'{size} {name}, expected {least} to {most}')
    _, width, coarse, fine, levels = sizes
    if (levels > 0) != (fine > 0) or (fine and fine % levels):
        raise _broken(f'{fine} fine anchors on {levels} levels')
    if not np.isfinite(user_norm):
        raise _broken('the exponent in the header is not finite')
    found = list(_split(memoryview(data)[HEADER.size : -4]))
    tags = [tag for tag, _ in found]
    of_fine = {b'FINE', b'CODE'} if fine else set()
    wanted = [tag for tag in TAGS if tag in {*tags, *NEEDED, *of_fine}]
    if tags != wanted or of_fine != {b'FINE', b'CODE'} & {*tags}:
        names = ' '.join(tag.decode('ascii', 'replace') for tag in tags)
        raise _broken(f'wrong sections ({names[:80]!r})')
    if b'COAR' not in tags and coarse != width:
        raise _broken('coarse anchors without features')
    if b'COAR' in tags and coarse * width > MOST_FEATURES:
        raise _broken(f'{coarse} coarse anchors of {width} columns are too many')
    sections = {tag: _Section(tag, content) for tag, content in found}
    return tuple(sizes), user_norm, sections


def _split(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The tags and contents of sections."""
    at = 0
    while at < len(data):
        tag, length = bytes(data[at : at + 4]), bytes(data[at + 4 : at + 8])
        end = at + 8 + int.from_bytes(length, 'little')
        padded = end + -end % 4
        if len(length) < 4 or padded > len(data) or any(data[end:padded]):
            raise _broken('a section does not end where it says')
        yield tag, data[at + 8 : end]
        at = padded
