r"""The interactions of a data set, from files of any format."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyg_c2f.datasets.parquet import ParquetTable, part_files
from pyg_c2f.datasets.spec import DataSpec, locate, plain_name
from pyg_c2f.datasets.tables import Ids, read_delimited, read_titles
from pyg_c2f.datasets.text import parse_text, read_bytes, unique_keys
from pyg_c2f.sparse import pair_keys
from pyg_c2f.typing import InputError


class Source(NamedTuple):
    r"""The interactions of a data set as its files hold them.

    A set of interactions is a sorted array of unique keys
    ``user * num_items + item``.
    """

    parts: dict[str, np.ndarray]  # file name -> keys, [n] int64
    num_users: int
    num_items: int
    texts: dict[str, list[str]] = {}  # of tables: ids of users and items, titles


def read_source(spec: DataSpec) -> Source:
    r"""Reads the files of a data set."""
    folder, paths = spec.folder, spec.files
    shape = (
        'the folder must hold train.txt and test.txt [and valid.txt] with lines `user '
        'item item ...`, or NAME.inter, NAME.csv or NAME.parquet, each also as .gz'
    )
    if not folder.is_dir():
        raise InputError(
            f'no data set {spec.name!r}: {folder} is not a folder; {shape}'
        )
    names = sorted(path.name for path in folder.iterdir())
    shape += f' (found: {", ".join(names[:8]) or "nothing"}'
    shape += ', ...)' if len(names) > 8 else ')'
    if not paths:
        raise InputError(f'{folder} is not a data set; {shape}')
    if spec.is_table:
        return _read_table(paths[0], spec)
    for file_name in ('train.txt', 'test.txt'):
        if not locate(folder, file_name):
            raise InputError(f'{folder / file_name} is missing; {shape}')
    pairs = {path: parse_text(read_bytes(path), path) for path in paths}
    num_users = 1 + max(int(users.max()) for users, _, _ in pairs.values())
    num_items = 1 + max(int(item.max()) for _, _, item in pairs.values())
    parts = {
        plain_name(path): unique_keys(pair_keys((user, item), num_items), path)
        for path, (_, user, item) in pairs.items()
    }
    return Source(parts, num_users, num_items)


def _read_table(path: Path, spec: DataSpec) -> Source:
    if plain_name(path).endswith('.parquet'):
        table = ParquetTable(path, spec.columns)
        if not table.num_rows:
            raise no_rows(path)
        ids = table.number_ids()
        keys = np.concatenate(list(table.keys(*ids)))
        users, items = (x.labels.cast('large_string').to_pylist() for x in ids)
    else:
        columns = read_delimited(read_bytes(path), path, spec.columns)
        if not columns[0].rows.size:
            raise no_rows(path)
        (user, users), (item, items) = map(_sorted, columns)
        keys = user * len(items) + item
    texts = {'users': users, 'items': items}
    titles = read_titles(spec.folder, spec.name, spec.item_column, items)
    if titles is not None:
        texts['titles'] = titles
    parts = {plain_name(path): unique_keys(keys, path)}
    return Source(parts, len(users), len(items), texts)


def no_rows(path: Path) -> InputError:
    r"""The error for a table without rows."""
    return InputError(f'{path} has no rows; one row per interaction is needed')


def _sorted(ids: Ids) -> Ids:
    r"""Sorts the labels, as numbers if all of them consist of digits, else as text."""
    labels = ids.labels
    order = sorted(range(len(labels)), key=labels.__getitem__)
    if all(label.isascii() and label.isdigit() for label in labels):
        # Of digits in the order of text, the shorter are the smaller number.
        order.sort(key=[len(label) for label in labels].__getitem__)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels))
    return Ids(rank[ids.rows], [labels[i] for i in order])


def fingerprint(spec: DataSpec) -> list[list[Any]]:
    r"""Returns name, size and time of the files that a data set is read from."""
    folder = spec.folder
    paths = [y for x in spec.files for y in (part_files(x) if x.is_dir() else [x])]
    titles = locate(folder, f'{spec.name}.item')
    if titles and spec.is_table:
        paths.append(titles)
    states = ((path, path.stat()) for path in paths)
    return [
        [path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns]
        for path, state in states
    ]
