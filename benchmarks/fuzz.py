r"""Damaged files in the readers of interactions: read for what they say, or refused.

    python benchmarks/fuzz.py
    python benchmarks/fuzz.py --readers csv --cases 500

Small valid data sets in each of the four forms (LightGCN text, ``.inter``, csv,
parquet), some of them gzipped before or after they are damaged: bits flipped, cut,
pieces doubled, removed, swapped or of another file, odd bytes and numbers inserted,
lines moved. :class:`pyg_c2f.datasets.InteractionDataset` reads each, in a process that
has 1 GB beside what it starts with, and so does a slow reader here that is written from
the documentation. Either both see the very same interactions, or both refuse the files,
the first with one line that names file, line and reason.

Case ``i`` of a reader depends on the seed and on ``i`` alone: ``--first i --cases 1``
repeats it. ``tests/slow/test_fuzz.py`` does some of them.
"""

import argparse
import gzip
import io
import json
import logging
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tqdm import tqdm

from pyg_c2f.datasets import InteractionDataset
from pyg_c2f.files import write_json, write_text
from pyg_c2f.typing import RATES, InputError

READERS = ('text', 'inter', 'csv', 'parquet')
GIGABYTE = 10**9
SLOW = 5.0  # seconds: more is a failure
HUNG = 60  # seconds after which a process is ended
EDGES = ('edge_index', 'val_edge_label_index', 'test_edge_label_index')
ID_TYPES = {
    'null', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64',
    'string', 'large_string', 'string_view', 'binary', 'large_binary', 'binary_view',
}  # fmt: skip
LONGEST_CELL = 131_072  # characters; the limit of Python's csv module

Files = dict[str, bytes]
Pair = tuple[str, str]


# Valid data sets ----------------------------------------------------------------------

LABELS: tuple[Callable[[int], str], ...] = (
    str,
    lambda i: str(i * 37 % 1000),
    lambda i: f'{i:04}',
    lambda i: f'u{i}',
    lambda i: ('zoë', '日本', 'x-y', 'B', '²')[i % 5] + str(i),
)


def valid_files(rng: random.Random, reader: str) -> Files:
    """A small data set without a fault, as files of a folder ``toy``."""
    sizes = rng.randint(2, 6), rng.randint(5, 12)
    pairs = [
        (user, item)
        for user in range(sizes[0])
        for item in rng.sample(range(sizes[1]), rng.randint(3, 5))
    ]
    if reader == 'text':
        return text_files(rng, pairs)
    label = rng.choice(LABELS), rng.choice(LABELS)
    rows = [(label[0](user), label[1](item)) for user, item in pairs]
    if reader == 'parquet':
        return {'toy.parquet': parquet_file(rng, rows)}
    rng.shuffle(rows)
    return inter_files(rng, rows) if reader == 'inter' else csv_files(rng, rows)


def text_files(rng: random.Random, pairs: list[tuple[int, int]]) -> Files:
    """LightGCN text."""
    names = ['train.txt', 'test.txt', *['valid.txt'] * rng.randint(0, 1)]
    files = {}
    for at, name in enumerate(names):
        lines: dict[int, list[int]] = {}
        for number, (user, item) in enumerate(pairs):
            if number % 5 % len(names) == at:
                lines.setdefault(user, [user]).append(item)
        end = rng.choice(('\n', '\n', '\r\n'))
        text = end.join(' '.join(map(str, line)) for line in lines.values())
        files[name] = (text + end).encode(rng.choice(('utf-8', 'utf-8-sig')))
    return files


def inter_files(rng: random.Random, rows: list[Pair]) -> Files:
    """The RecBole form, sometimes with titles."""
    more = rng.choice((('rating:float', '3.5'), ('', ''), ('timestamp:float', '88')))
    head = '\t'.join(filter(None, ('user_id:token', 'item_id:token', more[0])))
    lines = ['\t'.join(filter(None, (*row, more[1]))) for row in rows]
    files = {'toy.inter': '\n'.join([head, *lines, '']).encode()}
    if rng.random() < 0.2:
        items = sorted({item for _, item in rows})
        titles = ['item_id:token\ttitle:seq', *(f'{x}\tThe {x}' for x in items)]
        files['toy.item'] = '\n'.join(titles).encode()
    return files


def csv_files(rng: random.Random, rows: list[Pair]) -> Files:
    """Comma-separated values, some of them quoted."""
    end = rng.choice(('\n', '\n', '\r\n'))

    def cell(text: str) -> str:
        kind = rng.random()
        if kind < 0.1:
            text = text + rng.choice((',', '"', '\n', ' ')) + 'x'
        quoted = kind < 0.3 or set(text) & set(',"\n')
        return '"' + text.replace('"', '""') + '"' if quoted else text

    lines = ['rating,user_id,item_id' if (rated := rng.random() < 0.5) else
             'user_id,item_id']  # fmt: skip
    lines += [('4,' if rated else '') + ','.join(map(cell, row)) for row in rows]
    return {'toy.csv': end.join([*lines, '']).encode()}


def parquet_file(rng: random.Random, rows: list[Pair]) -> bytes:
    """A Parquet table; one in six has ids of a type that cannot be an id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = []
    for side in range(2):
        column = pa.array([row[side] for row in rows])
        kinds: list[Callable[[], Any]] = [
            lambda column=column: column,
            lambda column=column: column.dictionary_encode(),
            lambda column=column: column.cast(pa.large_string()),
            lambda column=column: column.cast(pa.binary()),
        ]
        if all(row[side].isascii() and row[side].isdigit() for row in rows):
            whole = column.cast(pa.int64())
            kinds += [lambda x=whole, t=t: x.cast(t) for t in (pa.int32(), pa.uint64())]
            if rng.random() < 0.15:
                kinds = [
                    lambda x=whole: x.cast(pa.float64()),
                    lambda x=whole: x.cast(pa.timestamp('us')),
                    lambda x=whole: x.cast(pa.decimal128(20, 0)),
                    lambda x=whole: pa.array([[y] for y in x.to_pylist()]),
                    lambda x=whole: pa.array([{'a': y} for y in x.to_pylist()]),
                ]
        columns.append(rng.choice(kinds)())  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(
        pa.table({'user_id': columns[0], 'item_id': columns[1]}),
        sink,
        compression=rng.choice(('none', 'snappy', 'zstd', 'gzip')),
        use_dictionary=rng.random() < 0.5,
        data_page_version=rng.choice(('1.0', '2.0')),
        write_page_checksum=rng.random() < 0.3,
        row_group_size=rng.choice((5, 1000)),
        store_schema=rng.random() < 0.8,
    )
    return sink.getvalue()


# Damage -------------------------------------------------------------------------------

ODD = [x.encode() for x in (
    '0', '7', '-', '-1', '+', '+1', '.', '1.5', '1e9', 'e9', '1_0', '0x1F', 'nan',
    'NULL', ',', '\t', ' ', ';', ':', '#', '%', '\\', '"', '""', '"""', "'", '\n', '\r',
    '\r\n', '\n\n', '\n \n', '\0', '\ufeff', '\xa0', '\x85', '\x1c', '\v', '\f',
    '\u2028', '\u3000', '\u200b', '²', '٣', '４', 'ß', '日', '999999', '1000001',
    '2147483647', '2147483648', '4294967296', '9223372036854775807',
    '9223372036854775808', '1' * 30, '0' * 30 + '1', '7' * 400, 'x' * 3000,
)]  # fmt: skip
ODD += [b'\xff', b'\xc3', b'\xed\xa0\x80', b'\xf4\x90\x80\x80', b'\xff\xff\xff\xff']


def span(rng: random.Random, raw: bytes) -> tuple[int, int]:
    """A piece, mostly a short one."""
    start = rng.randrange(len(raw) + 1)
    longest = rng.choice((1, 4, 16, len(raw)))
    return start, min(len(raw), start + rng.randint(0, longest))


def flip_bits(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Other bits, one to four of them."""
    out = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def set_byte(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Another byte."""
    at = rng.randrange(len(raw))
    return (
        raw[:at]
        + bytes([rng.choice((0, 0x7F, 0x80, 255, rng.randrange(256)))])
        + (raw[at + 1 :])
    )


def cut(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """The beginning or the end alone."""
    at = rng.randrange(len(raw))
    return raw[:at] if rng.random() < 0.8 else raw[at:]


def remove(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Without a piece."""
    start, end = span(rng, raw)
    return raw[:start] + raw[end:]


def double(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """A piece again, there or elsewhere."""
    start, end = span(rng, raw)
    at = rng.choice((end, rng.randrange(len(raw) + 1)))
    return raw[:at] + raw[start:end] * rng.choice((1, 1, 2, 30)) + raw[at:]


def swap(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Two pieces in each other's place."""
    a, b, c, d = sorted(rng.randrange(len(raw) + 1) for _ in range(4))
    return raw[:a] + raw[c:d] + raw[b:c] + raw[a:b] + raw[d:]


def insert(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Something odd, often at an end or beside a separator."""
    places = [m.start() for m in re.finditer(rb'[\s,]', raw)] or [0]
    at = rng.choice((0, len(raw), rng.choice(places), rng.randrange(len(raw) + 1)))
    return raw[:at] + rng.choice(ODD) + raw[at:]


def replace(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Something odd for a word."""
    words = list(re.finditer(rb'[^\s,"]+', raw))
    word = rng.choice(words) if words else re.match(b'', raw)
    assert word is not None
    return raw[: word.start()] + rng.choice(ODD) + raw[word.end() :]


def move_lines(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Lines removed, doubled, joined, swapped or shuffled."""
    lines = raw.splitlines(keepends=True)
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.randrange(5)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(to, lines[at])
    elif what == 2:
        lines[at] = lines[at].rstrip(b'\r\n')
    elif what == 3:
        lines[at], lines[to] = lines[to], lines[at]
    else:
        rng.shuffle(lines)
    return b''.join(lines)


def splice(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    return raw[: rng.randrange(len(raw) + 1)] + other[rng.randrange(len(other) + 1) :]


def overwrite(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """A piece of the same length from elsewhere."""
    start, end = span(rng, raw)
    source = rng.choice((raw, other))
    at = rng.randrange(len(source) + 1)
    piece = source[at : at + end - start]
    return raw[:start] + piece + raw[start + len(piece) :]


DAMAGE = (
    flip_bits, set_byte, cut, remove, double, swap, insert, insert, replace, replace,
    move_lines, splice, overwrite,
)  # fmt: skip
# A binary file hardly survives what moves its parts.
IN_PLACE = (flip_bits, set_byte, overwrite)


def case(seed: int, reader: str, number: int) -> Files:
    """The files of a case."""
    rng = random.Random(f'{seed} {reader} {number}')
    files = valid_files(rng, reader)
    name = rng.choice(list(files))
    other_reader = reader if rng.random() < 0.8 else rng.choice(READERS)
    other = rng.choice(list(valid_files(rng, other_reader).values()))
    raw, packed = files.pop(name), rng.random()
    if packed < 0.08:
        raw, name = gzip.compress(raw, mtime=0), f'{name}.gz'
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if raw:
            stays = reader == 'parquet' and rng.random() < 0.7
            raw = rng.choice(IN_PLACE if stays else DAMAGE)(rng, raw, other)
    if 0.08 <= packed < 0.16:
        raw, name = gzip.compress(raw, mtime=0), f'{name}.gz'
    return files | {name: raw}


# The slow reader ----------------------------------------------------------------------


class Wrong(Exception):
    """What is wrong: the file (none: the split), and the line where there is one."""

    def __init__(self, file: str | None, line: int | None = None) -> None:
        self.file, self.line = file, line


class Expected(NamedTuple):
    """What a data set says."""

    pairs: set[Pair]
    num_users: int
    num_items: int
    titles: dict[str, str] | None = None


def expected(files: Files) -> Expected:
    """Reads a data set, slowly.

    Raises:
        Wrong: If it is to be refused.
    """
    contents = {}
    for name, raw in files.items():
        if name.endswith('.gz'):
            try:
                raw = gzip.decompress(raw)
            except (OSError, EOFError, zlib.error):
                raw = None
        contents[name.removesuffix('.gz')] = name, raw
    if 'train.txt' in contents:
        return expected_text(contents)
    name = next(x for x in contents if x != 'toy.item')
    file, raw = contents[name]
    if raw is None:
        raise Wrong(file)
    rows = parquet_rows(raw, file) if name == 'toy.parquet' else table_rows(raw, file)
    pairs, titles = set(rows), None
    if not pairs:
        raise Wrong(file)
    if 'toy.item' in contents:
        titles = expected_titles(*contents['toy.item'])
    most = max(Counter(user for user, _ in pairs).values())
    if most < 3:  # a fifth, rounded
        raise Wrong(None)
    users, items = ({pair[side] for pair in pairs} for side in range(2))
    return Expected(pairs, len(users), len(items), titles)


def expected_text(contents: dict[str, tuple[str, bytes | None]]) -> Expected:
    """LightGCN text."""
    parts, users = {}, set()
    for name in ('train.txt', 'valid.txt', 'test.txt'):
        if name in contents and contents[name][1] is None:
            raise Wrong(contents[name][0])
    for name in ('train.txt', 'valid.txt', 'test.txt'):
        if name in contents:
            parts[name], present = text_pairs(*contents[name])
            users |= present
    if not parts['test.txt'] - parts['train.txt']:
        raise Wrong(None)
    pairs = set.union(*parts.values())
    return Expected(
        {(str(user), str(item)) for user, item in pairs},
        1 + max(users),
        1 + max(item for _, item in pairs),
    )


def text_pairs(file: str, raw: bytes | None) -> tuple[set[tuple[int, int]], set[int]]:
    """The interactions of a text, and its users."""
    lines = [line.split() for line in lines_of(raw or b'')]
    for number, words in enumerate(lines, start=1):
        if not all(word.isdigit() for word in words):
            raise Wrong(file, number)
    limit = min(2**31 - 1, 10**6 + 10 * sum(len(x) - 1 for x in lines if x))
    for number, words in enumerate(lines, start=1):
        if any(int(word) > limit for word in words):
            raise Wrong(file, number)
    ids = [[int(word) for word in words] for words in lines if words]
    pairs = {(user, item) for user, *items in ids for item in items}
    if not pairs:
        raise Wrong(file)
    return pairs, {line[0] for line in ids}


def lines_of(raw: bytes) -> list[bytes]:
    """The lines of a file of whatever system."""
    return re.split(b'\r\n|\r|\n', raw.removeprefix(b'\xef\xbb\xbf'))


def table_rows(raw: bytes, file: str) -> Iterator[Pair]:
    """The interactions of a delimited table."""
    lines = []
    if not raw.removeprefix(b'\xef\xbb\xbf').strip():
        raise Wrong(file)
    for number, line in enumerate(lines_of(raw), start=1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            raise Wrong(file, number) from None
    is_inter = file.startswith('toy.inter')
    rows = tab_rows(lines, file) if is_inter else comma_rows('\n'.join(lines), file)
    number, names = next(rows, (0, []))
    if not names:
        raise Wrong(file)
    if is_inter:
        names = [name.split(':')[0] for name in names]
    names = [name.strip() for name in names]
    if names.count('user_id') != 1 or names.count('item_id') != 1:
        raise Wrong(file, number)
    at = names.index('user_id'), names.index('item_id')
    for number, cells in rows:
        if len(cells) < len(names) or any(x.strip() for x in cells[len(names) :]):
            raise Wrong(file, number)
        user, item = (cells[i].strip() for i in at)
        if not user or not item or '\0' in user + item:
            raise Wrong(file, number)
        yield user, item


def tab_rows(lines: list[str], file: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of tab-separated cells, and the number of their line."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            cells = line.split('\t')
            if any(len(x) > LONGEST_CELL for x in cells):
                raise Wrong(file, number)
            yield number, cells


def comma_rows(text: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of comma-separated cells (RFC 4180), and the number of their first line."""
    at, line = 0, 1
    while at < len(text):
        first, cells, ended = line, [], False
        while not ended:
            while text[at : at + 1] == ' ':
                at += 1
            if text[at : at + 1] == '"':
                match = re.compile(r'"((?:[^"]|"")*)"(?=[,\n]|\Z)').match(text, at)
                if match is None:
                    raise Wrong(file, first)
                cell = match[1].replace('""', '"')
            else:
                match = re.compile(r'[^,\n]*').match(text, at)
                assert match is not None
                cell = match[0]
            if len(cell) > LONGEST_CELL:
                raise Wrong(file, first)
            cells.append(cell)
            line += match[0].count('\n')
            ended = text[match.end() : match.end() + 1] != ','
            at = match.end() + 1
        line += 1
        if any(cell.strip() for cell in cells):
            yield first, cells


def parquet_rows(raw: bytes, file: str) -> Iterator[Pair]:
    """The interactions of a Parquet table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = pa.types
    try:
        source = pq.ParquetFile(pa.BufferReader(raw), page_checksum_verification=True)
        names = source.schema_arrow.names
        if names.count('user_id') != 1 or names.count('item_id') != 1:
            raise Wrong(file)
        columns = []
        for name in ('user_id', 'item_id'):
            kind = source.schema_arrow.field(name).type
            if types.is_dictionary(kind):
                kind = kind.value_type
            is_decimal = types.is_decimal(kind) and kind.scale == 0
            if str(kind) not in ID_TYPES and not is_decimal:
                raise Wrong(file)
            values = source.read(columns=[name]).column(name).to_pylist()
            columns.append([x.decode() if isinstance(x, bytes) else x for x in values])
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        raise Wrong(file) from None
    if len(columns[0]) != len(columns[1]):
        raise Wrong(file)
    for column in columns:
        for number, value in enumerate(column, start=1):
            if value is None or value == '' or '\0' in str(value):
                raise Wrong(file, number)
    yield from zip(*(map(str, column) for column in columns), strict=True)


def expected_titles(file: str, raw: bytes | None) -> dict[str, str] | None:
    """The titles of a file beside a table; none if it has no such columns."""
    if raw is None:
        raise Wrong(file)
    lines = [x.decode(errors='replace') for x in lines_of(raw) if x]
    rows = [line.replace('\0', '\ufffd').split('\t') for line in lines]
    head = [cell.split(':')[0].strip() for cell in rows[0]] if rows else []
    found = [i for i, name in enumerate(head) if 'title' in name.lower()]
    if not found or 'item_id' not in head:
        return None
    at = head.index('item_id')
    return {x[at].strip(): x[found[0]] for x in rows[1:] if len(x) == len(head)}


# Judgement ----------------------------------------------------------------------------


def judge(files: Files, root: Path) -> tuple[str, str]:
    """Puts the files into ``root/toy``, reads them, and says what became of them.

    Returns:
        Tuple: ``'read'`` or ``'refused'``, or what is not as it should be; and what
        there is to say of it.
    """
    folder = root / 'toy'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    data, refusal = None, ''
    try:
        data = InteractionDataset(root, 'toy')[0]
    except InputError as error:
        refusal = str(error)
    except Exception as error:
        return 'another error', repr(error)
    try:
        truth = expected(files)
    except Wrong as wrong:
        if data is not None:
            return 'read, but wrong', f'{wrong.file}, line {wrong.line}'
        start = 'toy: ' if wrong.file is None else str(folder / wrong.file)
        where = '' if wrong.line is None else f' {wrong.line}: '
        is_clear = refusal.startswith(start) and where in refusal
        if not is_clear or '\n' in refusal or not 20 < len(refusal) < 600:
            return 'unclear refusal', f'{refusal} ({wrong.file}, line {wrong.line})'
        return 'refused', refusal.removeprefix(start)
    if data is None:
        return 'refused, but right', refusal
    return ('read', '') if says(data, truth) else ('other interactions', str(truth))


def says(data: Any, truth: Expected) -> bool:
    """Whether a graph is what it should be, each interaction there once."""
    names: list[Any] = [data[kind].get('raw_id') for kind in ('user', 'item')]
    pairs = [pair for key in EDGES for pair in data[RATES][key].t().tolist()]
    if names[0] is not None:
        pairs = [(names[0][user], names[1][item]) for user, item in pairs]
        if any(list(x) != sorted(x, key=rank(list(x))) for x in names):
            return False
    else:
        pairs = [(str(user), str(item)) for user, item in pairs]
    titles = data['item'].get('title')
    if truth.titles is not None:
        expected_list = [truth.titles.get(item, '') for item in names[1]]
        if titles is None or list(titles) != expected_list:
            return False
    return (
        len(pairs) == len(truth.pairs)
        and set(pairs) == truth.pairs
        and data['user'].num_nodes == truth.num_users
        and data['item'].num_nodes == truth.num_items
        and (titles is None) == (truth.titles is None)
    )


def rank(labels: list[str]) -> Callable[[str], tuple[int, str]]:
    """What labels are sorted by: their number if all are numbers, else their text."""
    numbers = all(re.fullmatch('[0-9]+', x) for x in labels)
    return lambda x: (len(x) if numbers else 0, x)


# All cases ----------------------------------------------------------------------------


def work(seed: int, reader: str, first: int, cases: int) -> None:
    """Judges cases within limits, and prints a line of JSON for each."""
    logging.disable()
    with TemporaryDirectory() as root:
        judge(valid_files(random.Random(0), reader), Path(root))  # imports and warms up
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        limit = pages * resource.getpagesize() + GIGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, first + cases):
            files = case(seed, reader, number)
            signal.alarm(HUNG)
            start = time.perf_counter()
            kind, detail = judge(files, Path(root))
            seconds = time.perf_counter() - start
            if seconds > SLOW:
                kind, detail = 'slow', f'{seconds:.1f} s'
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(json.dumps([number, kind, detail, seconds, 1024 * peak]), flush=True)


def run(seed: int, reader: str, first: int, cases: int) -> Iterator[list[Any]]:
    """Lines of :func:`work`, and one for each case that ended its process."""
    end = first + cases
    while first < end:
        call = [sys.executable, __file__, '--work', '--seed', str(seed)]
        call += ['--readers', reader, '--first', str(first)]
        call += ['--cases', str(end - first)]
        with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
                first += 1
        if first < end:
            what = 'hung' if process.returncode == -signal.SIGALRM else 'crash'
            yield [first, what, f'exit {process.returncode}', 0.0, 0]
            first += 1


def reason(detail: str) -> str:
    """A refusal without what is special to the case."""
    out = re.sub(r'^,? ?(line|row) \d+: ', '', detail).split(' (columns')[0]
    out = re.sub(r"""(['"]).*\1""", '…', out)
    out = re.split(r' \(|;|, far too', out)[0]
    return re.sub(r'(?<![-\w])\d[\d,]*', '#', out).strip(' :')


def text(result: dict[str, Any]) -> str:
    """The outcome as Markdown."""
    out = [
        '# Damaged files in the readers of interactions\n',
        f'`{result["call"]}`; seed {result["seed"]}; {result["date"]}; '
        f'{result["with"]}.',
        '\nEach is read for the interactions of a slow reader that is written from the '
        'documentation, or refused\nwith file, line and reason where that refuses it; '
        'anything else would be a failure. One process has 1 GB\nof address space '
        f'beside what it starts with, and {SLOW:g} s for a case.\n',
        '| reader | cases | read | refused | failures | slowest, ms | memory, MB |',
        '|---|---|---|---|---|---|---|',
    ]
    for name, x in result['readers'].items():
        row = [name, *(f'{x[key]:,}' for key in ('cases', 'read', 'refused'))]
        row += [
            str(len(x['failures'])),
            f'{x["slowest_ms"]:.0f}',
            f'{x["peak_mb"]:.0f}',
        ]
        out.append('| ' + ' | '.join(row) + ' |')
    for name, x in result['readers'].items():
        out += [f'\n## Refusals, {name}\n', '| reason | cases |', '|---|---|']
        out += [f'| {why} | {count:,} |' for why, count in x['reasons'].items()]
    return '\n'.join(out) + '\n'


def main(argv: Sequence[str] | None = None) -> None:
    """Judges the cases of the readers."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--readers', nargs='+', choices=READERS, default=list(READERS))
    parser.add_argument('--cases', type=int, default=10_000, help='for each reader')
    parser.add_argument('--first', type=int, default=0, help='the first case')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='benchmarks/results', type=Path)
    parser.add_argument('--work', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        work(args.seed, args.readers[0], args.first, args.cases)
        return
    import numpy
    import pyarrow

    result: dict[str, Any] = {
        'call': shlex.join(['python', 'benchmarks/fuzz.py', *argv]),
        'seed': args.seed,
        'date': time.strftime('%Y-%m-%d'),
        'with': f'numpy {numpy.__version__}, pyarrow {pyarrow.__version__}',
        'readers': {},
    }
    for reader in args.readers:
        kinds, reasons, failures = Counter(), Counter(), []
        slowest, peak = 0.0, 0
        lines = run(args.seed, reader, args.first, args.cases)
        for number, kind, detail, seconds, grown in tqdm(lines, reader, args.cases):
            kinds[kind] += 1
            slowest, peak = max(slowest, seconds), max(peak, grown)
            if kind == 'refused':
                reasons[reason(detail)] += 1
            elif kind != 'read':
                failures.append({'case': number, 'kind': kind, 'detail': detail[:500]})
        result['readers'][reader] = {
            'cases': kinds.total(),
            'read': kinds['read'],
            'refused': kinds['refused'],
            'failures': failures,
            'slowest_ms': 1000 * slowest,
            'peak_mb': peak / 10**6,
            'reasons': dict(reasons.most_common()),
        }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'fuzz-readers.json'
    write_json(path, result)
    write_text(path.with_suffix('.md'), text(result))
    print(text(result))
    failed = sum(len(x['failures']) for x in result['readers'].values())
    print(f'wrote {path}; {failed} failures')
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
