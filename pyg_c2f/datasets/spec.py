r"""Which data set, where it lies and how it is split."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from pyg_c2f.typing import InputError, Protocol

DEFAULT_ROOT = 'datasets'
TEXT_FILES = ('train.txt', 'valid.txt', 'test.txt')
TABLE_SUFFIXES = ('.inter', '.csv', '.parquet')


def locate(folder: Path, file_name: str) -> Path | None:
    r"""Returns the path of a file, plain before gzipped, or None.

    A Parquet table may be a folder of part files.
    """
    for path in (folder / file_name, folder / f'{file_name}.gz'):
        if path.is_file() or (path.suffix == '.parquet' and path.is_dir()):
            return path
    return None


def plain_name(path: Path) -> str:
    r"""The file name without ``.gz``."""
    return path.name.removesuffix('.gz')


@dataclass(frozen=True)
class DataSpec:
    r"""Names a data set and a split of it.

    Args:
        name (str): The name of the data set: its folder, and the table in it.
        root (str or Path, optional): The folder that holds one folder per data set.
            (default: :obj:`'datasets'` in the working directory)
        protocol (str, optional): ``'c2f'`` or ``'standard'``.
            (default: :obj:`'standard'`)
        split_seed (int, optional): The seed of the split. (default: :obj:`2024`)
        user_column (str, optional): The column of user ids in a table.
            (default: :obj:`'user_id'`)
        item_column (str, optional): The column of item ids in a table.
            (default: :obj:`'item_id'`)

    Raises:
        InputError: If the protocol is unknown, the seed is not a natural number, or
            the two columns are the same.
    """

    name: str
    root: str | Path | None = None
    protocol: Protocol = 'standard'
    split_seed: int = 2024
    user_column: str = 'user_id'
    item_column: str = 'item_id'

    def __post_init__(self) -> None:
        protocols, seed = get_args(Protocol), self.split_seed
        if self.protocol not in protocols:
            raise InputError(
                f'unknown protocol {self.protocol!r}; choose one of '
                f'{", ".join(protocols)}'
            )
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise InputError(f'split_seed must be an integer (got {seed!r})')
        if seed < 0:
            raise InputError(f'split_seed must not be negative (got {seed})')
        if self.user_column == self.item_column:
            raise InputError(
                f'users and items cannot both be in the column {self.user_column!r}; '
                'name two columns'
            )
        root = Path(DEFAULT_ROOT if self.root is None else self.root).expanduser()
        object.__setattr__(self, 'root', root)
        object.__setattr__(self, 'split_seed', int(seed))

    @property
    def columns(self) -> tuple[str, str]:
        r"""The columns of user and item ids."""
        return self.user_column, self.item_column

    @property
    def folder(self) -> Path:
        r"""The folder ``root/name``, which may not exist.

        Raises:
            InputError: If the name is not a plain folder name, the root is a file, or
                one of the two folders cannot be read.
        """
        root = Path(self.root or DEFAULT_ROOT)
        if self.name in ('', '.', '..') or '/' in self.name or '\\' in self.name:
            raise InputError(
                f'{self.name!r} is not a data set name; give the folder name, and its '
                'parent as the data root'
            )
        if root.exists() and not root.is_dir():
            raise InputError(
                f'the data root {root} is a file; give the folder that holds the '
                f'folder {self.name!r}'
            )
        folder = root / self.name
        for path in (root, folder):
            if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
                raise InputError(f'{path} cannot be read; check its permissions')
        return folder

    @property
    def files(self) -> list[Path]:
        r"""The files of the interactions; empty if there are none.

        Text files come before tables, and ``.inter`` before ``.csv`` before
        ``.parquet``.
        """
        folder = self.folder
        texts = [path for file in TEXT_FILES if (path := locate(folder, file))]
        names = [f'{self.name}{suffix}' for suffix in TABLE_SUFFIXES]
        tables = [path for file in names if (path := locate(folder, file))]
        return texts or tables[:1]

    @property
    def is_table(self) -> bool:
        r"""Whether the interactions are in a table."""
        files = self.files
        return bool(files) and plain_name(files[0]) not in TEXT_FILES

    def generator(self) -> np.random.Generator:
        r"""Returns the generator of the split."""
        return np.random.default_rng(self.split_seed)
