r"""Interactions that do not fit in memory: prepared once, then mapped from the disk.

A table is never in memory as a whole. Held at a time are a batch of its rows, a range
of users with about ``BUCKET`` interactions, and the ids themselves: the rows are
numbered, and their keys sorted in a mapped file, of which the system holds what there
is room for. Held-out interactions are drawn with the same numbers as in memory, from
the same generator.

The result is a folder ``built-PROTOCOL-SEED`` beside the files:

* ``edges.i64``: users, items and users again of the train interactions, three rows of
  int64, so that both directions are views of one mapping;
* ``val.i64``, ``test.i64``: users and items, two rows of int64;
* ``users.bin``, ``items.bin``, ``titles.bin``: texts in UTF-8, one after the other, and
  their offsets in ``users.offsets.i64`` and so on, where the files have them;
* ``meta.json``, written last: sizes, sources, and a checksum.
"""

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyg_c2f.datasets.parquet import NumberedIds, ParquetTable, buffers
from pyg_c2f.datasets.sources import fingerprint, no_rows, read_source
from pyg_c2f.datasets.spec import DataSpec, locate, plain_name
from pyg_c2f.datasets.splits import (
    check_counts,
    count_splits,
    draw_validation,
    hold_out,
    split,
)
from pyg_c2f.datasets.tables import read_titles
from pyg_c2f.typing import InputError, Protocol

logger = logging.getLogger(__name__)

FORMAT = 'pyg_c2f built 1'
META = 'meta.json'
SIDES = {'edges': (0, 1, 0), 'val': (0, 1), 'test': (0, 1)}  # 0 for users, 1 for items
TEXTS = ('users', 'items', 'titles')
BUCKET = 2**21  # interactions sorted at a time
_META_BYTES = 2**24  # a line for each of a hundred thousand part files
_MOST = 2**59  # of anything: the bytes can still be counted
_LABELS = 2**18  # texts encoded at a time
_REMEDY = 'build it again (run.py data --build), or delete that folder'


class Meta(NamedTuple):
    r"""The checked content of ``meta.json``."""

    protocol: str
    split_seed: int
    columns: list[str] | None  # None: the source has no columns
    num_users: int
    num_items: int
    num_train: int
    num_val: int
    num_test: int
    text_bytes: dict[str, int]  # of those of TEXTS that exist
    sources: list[list[Any]]  # file name, bytes and mtime_ns of each
    data_sha256: str


def cache_folder(spec: DataSpec) -> Path:
    r"""Returns the folder of a data set's built form, which may not exist."""
    return spec.folder / f'built-{spec.protocol}-{spec.split_seed}'


def is_built(spec: DataSpec) -> bool:
    r"""Whether a data set has a built form, valid or not."""
    return (cache_folder(spec) / META).exists()


# Reading ------------------------------------------------------------------------------


def find_cache(spec: DataSpec) -> Path | None:
    r"""Returns the folder of the built form of a data set, if there is one.

    It must fit the columns asked for and the files; deleted files are not missed.
    """
    if not is_built(spec):
        return None
    folder = cache_folder(spec)
    meta = read_meta(folder)
    if (meta.protocol, meta.split_seed) != (spec.protocol, spec.split_seed):
        raise _damaged(folder, f'it is of {meta.protocol}, {meta.split_seed}')
    if meta.columns not in (None, [*spec.columns]):
        raise InputError(
            f'{folder} was made from the columns '
            f'{ascii(",".join(meta.columns or []))}, not {",".join(spec.columns)}; ask '
            f'for these (run.py: --columns), or {_REMEDY}'
        )
    if spec.files and fingerprint(spec) != meta.sources:
        raise InputError(
            f'{folder} was made from other files than those in {spec.folder} (name, '
            f'size or time of one has changed); {_REMEDY}'
        )
    return folder


def read_meta(folder: Path) -> Meta:
    r"""Returns the content of ``meta.json``, which must fit the files beside it."""
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
    return InputError(f'{folder} is damaged ({what}); {_REMEDY}')


def _check_meta(meta: Meta) -> None:
    def is_size(value: Any) -> bool:
        return type(value) is int and 0 <= value < _MOST

    def is_list(value: Any, types: tuple[type, ...]) -> bool:
        return isinstance(value, list) and tuple(map(type, value)) == types

    counts = [value for key, value in meta._asdict().items() if key.startswith('num_')]
    texts, seed = meta.text_bytes, meta.split_seed
    sets_of_texts: list[set[str]] = [set(), {'users', 'items'}, set(TEXTS)]
    is_right = {
        'protocol': meta.protocol in get_args(Protocol),
        'split_seed': type(seed) is int and seed >= 0,
        'columns': meta.columns is None or is_list(meta.columns, (str, str)),
        # All readers hold the numbers of users and items as int32.
        'num_*': all(map(is_size, counts)) and all(0 < x < 2**31 for x in counts[:2]),
        'text_bytes': isinstance(texts, dict)
        and set(texts) in sets_of_texts
        and all(map(is_size, texts.values())),
        'sources': isinstance(meta.sources, list)
        and all(is_list(x, (str, int, int)) for x in meta.sources),
        'data_sha256': isinstance(meta.data_sha256, str),
    }
    for key, is_valid in is_right.items():
        if not is_valid:
            raise ValueError(f'{key} is wrong')


def _shapes(meta: Meta) -> dict[str, tuple[int, int]]:
    r"""The rows of each file of pairs, and the interactions in it."""
    counts = meta.num_train, meta.num_val, meta.num_test
    both = zip(SIDES.items(), counts, strict=True)
    return {key: (len(sides), num) for (key, sides), num in both}


def _sizes(meta: Meta) -> dict[str, int]:
    r"""The bytes of each file."""
    sizes = {f'{key}.i64': 8 * rows * num for key, (rows, num) in _shapes(meta).items()}
    for key, size in meta.text_bytes.items():
        num = meta.num_users if key == 'users' else meta.num_items
        sizes |= {f'{key}.bin': size, f'{key}.offsets.i64': 8 * (num + 1)}
    return sizes


def read_cache(
    folder: Path,
) -> tuple[Meta, list[Tensor], dict[str, tuple[np.ndarray, np.ndarray]]]:
    r"""Maps a built form into memory, after a check of its sizes.

    Returns its interactions in the files of ``SIDES``, and the bytes and offsets of
    texts.
    """
    meta = read_meta(folder)
    try:
        pairs = [
            torch.from_file(
                str(folder / f'{key}.i64'),
                shared=False,
                size=math.prod(shape),
                dtype=torch.int64,
            ).view(shape)
            for key, shape in _shapes(meta).items()
        ]
        texts = {key: _map_texts(folder, key) for key in meta.text_bytes}
    except (OSError, RuntimeError) as error:
        raise _damaged(folder, ascii(str(error)[:200])) from error
    return meta, pairs, texts


def _map_texts(folder: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    path, blob = folder / f'{key}.bin', np.empty(0, np.uint8)
    if path.stat().st_size:
        blob = np.asarray(np.memmap(path, np.uint8, 'r'))
    offsets = np.asarray(np.memmap(folder / f'{key}.offsets.i64', np.int64, 'r'))
    if offsets[0] != 0 or offsets[-1] != len(blob):
        raise _damaged(folder, f'the offsets of {key} do not fit')
    return blob, offsets


# Building -----------------------------------------------------------------------------


def build_cache(spec: DataSpec, progress: bool = False) -> Path:
    r"""Makes the built form of a data set, unless there is a valid one."""
    target = cache_folder(spec)
    with suppress(InputError):  # an invalid one is replaced
        if find_cache(spec):
            logger.info('%s: exists already', target)
            return target
    files = spec.files
    if not files:
        read_source(spec)  # says what is missing
    sources = fingerprint(spec)
    with _whole_folder(target) as part:
        if plain_name(files[0]).endswith('.parquet'):
            built = _TableBuild(part, spec, progress).run()
        else:
            built = _build_in_memory(part, spec)
        if fingerprint(spec) != sources:
            raise InputError(
                f'{spec.folder}: its files are changing; build when they are complete'
            )
        num_nodes, counts, text_bytes = built
        meta = Meta(
            spec.protocol,
            spec.split_seed,
            [*spec.columns] if spec.is_table else None,
            *num_nodes,
            *counts,
            text_bytes,
            sources,
            _digest(part, counts[0]),
        )
        content = {'format': FORMAT} | meta._asdict()
        with _new_file(part / META) as file:
            file.write(json.dumps(content, indent=1).encode() + b'\n')
        read_meta(part)
    return target


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    r"""Yields a folder to write to; it becomes ``target`` in one step or not at all."""
    part = target.with_name(f'{target.name}-part')
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        # Another build, which deletes this folder as a leftover, has another mark.
        mark = part / secrets.token_hex()
        mark.touch()
        try:
            yield part
            if not mark.exists():
                raise OSError('another build of the same data took over')
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
            'correct its permissions, and build again'
        ) from error


@contextmanager
def _new_file(path: Path) -> Iterator[Any]:
    r"""Opens a file to write; its content is on the disk once it is closed."""
    with path.open('wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _digest(part: Path, num_train: int) -> str:
    r"""The SHA-256 of all edges, without the third row of the train ones.

    It is that of the tensors in memory, train, validation and test.
    """
    digest = hashlib.sha256()
    for key in SIDES:
        path = part / f'{key}.i64'
        left = 16 * num_train if key == 'edges' else path.stat().st_size
        with path.open('rb') as file:
            while block := file.read(min(left, 2**22)):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


class _PairFile:
    r"""A file of rows of users or items, to which interactions are appended.

    It is written, not mapped: a full disk is an error then.
    """

    def __init__(self, file: Any, num_pairs: int, sides: tuple[int, ...]) -> None:
        self.file, self.num_pairs, self.sides = file, num_pairs, sides
        self.done = 0

    def append(self, keys: np.ndarray, num_items: int, first_user: int = 0) -> None:
        r"""Appends interactions, given as keys of users counted from a first one."""
        users, items = np.divmod(keys, num_items)
        users += first_user
        for row, side in enumerate(self.sides):
            self.file.seek(8 * (row * self.num_pairs + self.done))
            self.file.write((items if side else users).data)
        self.done += len(keys)


@contextmanager
def _pair_files(part: Path, counts: Iterable[int]) -> Iterator[list[_PairFile]]:
    r"""The files of train, validation and test interactions, of given lengths."""
    with ExitStack() as stack:
        yield [
            _PairFile(stack.enter_context(_new_file(part / f'{key}.i64')), num, sides)
            for (key, sides), num in zip(SIDES.items(), counts, strict=True)
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


# The numbers of users and items, and of train, validation and test interactions, and
# the bytes of the texts.
_Sizes = tuple[tuple[int, int], tuple[int, int, int], dict[str, int]]


def _build_in_memory(part: Path, spec: DataSpec) -> _Sizes:
    r"""Writes the built form of files that fit in memory."""
    source = read_source(spec)
    splits = split(source.parts, source.num_items, spec)
    counts = len(splits.train), len(splits.val), len(splits.test)
    with _pair_files(part, counts) as files:
        for keys, file in zip(splits, files, strict=True):
            for start in range(0, len(keys), BUCKET):
                file.append(keys[start : start + BUCKET], source.num_items)
    text_bytes = {
        key: _write_texts(part, key, _blocks_of(texts))
        for key, texts in source.texts.items()
    }
    return (source.num_users, source.num_items), counts, text_bytes


class _TableBuild:
    r"""Writes the built form of a Parquet table, which may exceed the memory."""

    def __init__(self, part: Path, spec: DataSpec, progress: bool) -> None:
        (self.path,) = spec.files
        self.part, self.spec = part, spec
        self.table = ParquetTable(self.path, spec.columns, progress)
        if not self.table.num_rows:
            raise no_rows(self.path)
        self.bar = partial(tqdm, unit_scale=True, leave=False, disable=not progress)

    def run(self) -> _Sizes:
        part, spec = self.part, self.spec
        users, items = self.table.number_ids()
        num_nodes = len(users.keys), len(items.keys)
        self.write_keys(users, items)
        text_bytes = {
            'users': _write_texts(part, 'users', [buffers(users.labels)]),
            'items': _write_texts(part, 'items', [buffers(items.labels)]),
        }
        if locate(spec.folder, f'{spec.name}.item'):
            labels = items.labels.cast('large_string').to_pylist()
            titles = read_titles(spec.folder, spec.name, spec.item_column, labels)
            if titles is not None:
                text_bytes['titles'] = _write_texts(part, 'titles', _blocks_of(titles))
        del users, items
        per_user = self.sort_keys(*num_nodes)
        if num_merged := self.table.num_rows - int(per_user.sum()):
            logger.warning(
                '%s: %d duplicate interactions merged', self.path, num_merged
            )
        return num_nodes, self.write_splits(per_user, num_nodes[1]), text_bytes

    def write_keys(self, users: NumberedIds, items: NumberedIds) -> None:
        r"""Writes the keys of all rows to the file ``keys``."""
        with (self.part / 'keys').open('wb') as file:
            for keys in self.table.keys(users, items):
                file.write(keys.data)

    def sort_keys(self, num_users: int, num_items: int) -> np.ndarray:
        r"""Sorts the keys and moves the unique ones to the front of their file.

        Returns the number of interactions of each user.
        """
        keys = np.memmap(self.part / 'keys', np.int64, 'r+')
        # In place, by passes from both ends: most of a large file may be on the disk.
        keys.sort()
        per_user, last, size = np.zeros(num_users, np.int64), -1, 0
        with self.bar(desc='sort', total=len(keys)) as bar:
            for start in range(0, len(keys), BUCKET):
                block = np.array(keys[start : start + BUCKET])
                unique = block[np.diff(block, prepend=last) > 0]
                keys[size : size + len(unique)] = unique
                per_user += np.bincount(unique // num_items, minlength=num_users)
                size, last = size + len(unique), block[-1]
                bar.update(len(block))
        return per_user

    def write_splits(
        self, per_user: np.ndarray, num_items: int
    ) -> tuple[int, int, int]:
        r"""Writes train, validation and test interactions; returns their numbers.

        They are those that :func:`split` draws of all interactions together. Both of
        its steps draw a number for every interaction they are given, in their order,
        so that two generators, the second that much further, can go from range to
        range of users.
        """
        protocol, total = self.spec.protocol, np.cumsum(per_user)
        counts = count_splits(per_user, protocol)
        check_counts(*counts[1:], self.spec)
        first_rng, second_rng = self.spec.generator(), self.spec.generator()
        second_rng.bit_generator.advance(int(total[-1]))  # type: ignore[attr-defined]
        with (
            (self.part / 'keys').open('rb') as file,
            _pair_files(self.part, counts) as files,
            self.bar(desc='split', total=int(total[-1])) as bar,
        ):
            first, done = 0, 0
            while first < len(per_user):
                # Users of BUCKET interactions at the most, or a single one.
                end = int(total.searchsorted(done + BUCKET, side='right'))
                end = max(end, first + 1)
                keys = np.fromfile(file, np.int64, int(total[end - 1]) - done)
                keys -= first * num_items
                train, test = hold_out(keys, num_items, first_rng)
                drawn = draw_validation(train, test, num_items, protocol, second_rng)
                for out, part in zip(files, drawn, strict=True):
                    out.append(part, num_items, first)
                first, done = end, int(total[end - 1])
                bar.update(len(keys))
        (self.part / 'keys').unlink()
        return counts
