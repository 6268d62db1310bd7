r"""Data sets by name."""

from pathlib import Path
from typing import Any

from torch_geometric.data import HeteroData

from pyg_c2f.datasets.built import (
    Meta,
    build_dataset,
    find_built,
    is_built,
    read_meta,
)
from pyg_c2f.datasets.files import (
    TEXT_FILES,
    data_folder,
    find_files,
    plain_name,
)
from pyg_c2f.datasets.interactions import InteractionDataset
from pyg_c2f.datasets.parquet import part_files
from pyg_c2f.datasets.published import (
    AmazonBook,
    Gowalla,
    PublishedDataset,
    Yelp2018,
    Yelp2020,
    file_state,
)
from pyg_c2f.datasets.splits import make_generator
from pyg_c2f.datasets.synthetic import SyntheticHierarchy
from pyg_c2f.typing import ITEM, RATES, USER, InputError, Protocol

DEFAULT_ROOT = 'datasets'
SYNTHETIC = 'synthetic'
PUBLISHED: dict[str, type[PublishedDataset]] = {
    cls.folder: cls for cls in (Gowalla, Yelp2018, Yelp2020, AmazonBook)
}


def get_dataset(
    name: str,
    root: str | Path | None = None,
    protocol: Protocol = 'standard',
    split_seed: int = 2024,
    user_column: str = 'user_id',
    item_column: str = 'item_id',
) -> HeteroData:
    r"""Returns the graph of a data set.

    Args:
        name (str): ``'synthetic'`` (made, not read), ``'gowalla'``, ``'yelp2018'``,
            ``'yelp2020'`` or ``'amazon-book'`` (downloaded where they are missing), or
            the name of any folder that :class:`InteractionDataset` reads.
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
        InputError: If there is no such data set, or a file is wrong.
    """
    if name == SYNTHETIC:
        return SyntheticHierarchy(protocol=protocol, split_seed=split_seed)[0]
    root = _resolve(root)
    folder = data_folder(root, name)
    if name in PUBLISHED and not _is_table(find_files(folder, name)):
        return PUBLISHED[name](root, protocol=protocol, split_seed=split_seed)[0]
    if not folder.is_dir():
        raise InputError(_unknown(name, folder))
    return InteractionDataset(
        root,
        name,
        protocol=protocol,
        split_seed=split_seed,
        user_column=user_column,
        item_column=item_column,
    )[0]


def build(
    name: str,
    root: str | Path | None = None,
    protocol: Protocol = 'standard',
    split_seed: int = 2024,
    user_column: str = 'user_id',
    item_column: str = 'item_id',
    progress: bool = False,
) -> Path:
    r"""Builds the data set that :func:`get_dataset` returns for the same arguments.

    Files of a published data set are downloaded where they are missing; otherwise as
    :func:`build_dataset`.

    Raises:
        InputError: If there is no such data set, a file is wrong, or it is the
            synthetic one.
        OSError: If the folder cannot be written.
    """
    if name == SYNTHETIC:
        raise InputError(
            f'the data set {name} is made, not read: there is nothing to build; name a '
            'folder of files, or one that is downloaded'
        )
    root = _resolve(root)
    folder = data_folder(root, name)
    make_generator(protocol, split_seed)  # a wrong call downloads nothing
    if name in PUBLISHED and not _is_table(find_files(folder, name)):
        # What is built may do without its files.
        if not is_built(folder, protocol, split_seed):
            PUBLISHED[name].download_missing(folder)
    elif not folder.is_dir():
        raise InputError(_unknown(name, folder))
    return build_dataset(
        root, name, protocol, split_seed, user_column, item_column, progress
    )


def describe(
    name: str,
    root: str | Path | None = None,
    protocol: Protocol = 'standard',
    split_seed: int = 2024,
    user_column: str = 'user_id',
    item_column: str = 'item_id',
) -> dict[str, Any]:
    r"""Says what there is of a data set, without downloading anything.

    Args:
        name (str): The name of the data set, as for :func:`get_dataset`.
        root (str or Path, optional): As for :func:`get_dataset`.
        protocol (str, optional): The protocol to count by. (default:
            :obj:`'standard'`)
        split_seed (int, optional): The seed of the split. (default: :obj:`2024`)
        user_column (str, optional): The column of user ids in a table.
        item_column (str, optional): The column of item ids in a table.

    Returns:
        dict: ``dataset``, ``folder``, ``source`` (an address, ``'local'`` or
        ``'generated'``), ``license``, ``files`` (a list of ``file``, ``bytes`` and
        ``state``: ``'ok'``, ``'differs'``, ``'no reference'`` or ``'missing'``),
        ``protocol``, ``split_seed``, and as numbers, or None while files are missing,
        ``num_users``, ``num_items``, ``num_train``, ``num_val``, ``num_test``,
        ``num_interactions`` and ``density``.

    Raises:
        InputError: If there is no such data set, or a file is wrong.
    """
    out: dict[str, Any] = {'dataset': name, 'folder': None, 'files': []}
    built = None
    if name == SYNTHETIC:
        out |= {'source': 'generated', 'license': 'that of this package'}
    else:
        root = _resolve(root)
        folder = data_folder(root, name)
        found = find_files(folder, name)
        if name not in PUBLISHED and not folder.is_dir():
            raise InputError(_unknown(name, folder))
        published = None if _is_table(found) else PUBLISHED.get(name)
        out['folder'] = str(folder)
        out['source'] = published.base_url if published else 'local'
        out['license'] = published.license_note if published else 'unknown'
        out['files'] = _describe_files(found, published)
        columns = user_column, item_column
        built = find_built(folder, name, protocol, split_seed, *columns)
    out |= {'protocol': protocol, 'split_seed': split_seed}
    if built:
        return out | _count_built(read_meta(built))
    if any(file['state'] == 'missing' for file in out['files']):
        return out | dict.fromkeys(_COUNTS)
    return out | _count(
        get_dataset(name, root, protocol, split_seed, user_column, item_column)
    )


def built_digest(
    name: str,
    root: str | Path | None,
    protocol: Protocol,
    split_seed: int,
    user_column: str,
    item_column: str,
) -> str | None:
    r"""Returns the checksum of the pairs of a built form; None, if there is none."""
    if name == SYNTHETIC:
        return None
    folder = data_folder(_resolve(root), name)
    columns = user_column, item_column
    built = find_built(folder, name, protocol, split_seed, *columns)
    return read_meta(built).data_sha256 if built else None


_COUNTS = (
    'num_users',
    'num_items',
    'num_train',
    'num_val',
    'num_test',
    'num_interactions',
    'density',
)


def _count(data: HeteroData) -> dict[str, float]:
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    store = data[RATES]
    held_out = store.val_edge_label_index, store.test_edge_label_index
    num_edges = [index.size(1) for index in (store.edge_index, *held_out)]
    return _counts(num_users, num_items, num_edges)


def _count_built(meta: Meta) -> dict[str, float]:
    num_edges = [meta.num_train, meta.num_val, meta.num_test]
    return _counts(meta.num_users, meta.num_items, num_edges)


def _counts(num_users: int, num_items: int, num_edges: list[int]) -> dict[str, float]:
    density = sum(num_edges) / (num_users * num_items)
    values = (num_users, num_items, *num_edges, sum(num_edges), density)
    return dict(zip(_COUNTS, values, strict=True))


def _describe_files(
    found: list[Path], published: type[PublishedDataset] | None
) -> list[dict[str, Any]]:
    references = published.references() if published else {}
    files: list[dict[str, Any]] = [
        {
            'file': path.name,
            'bytes': _size(path),
            'state': file_state(path, references.get(plain_name(path), {})),
        }
        for path in found
    ]
    missing = references.keys() - {plain_name(path) for path in found}
    return files + [
        {'file': file_name, 'bytes': None, 'state': 'missing'}
        for file_name in sorted(missing)
    ]


def _size(path: Path) -> int:
    parts = part_files(path) if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts)


def _resolve(root: str | Path | None) -> Path:
    return Path(DEFAULT_ROOT if root is None else root).expanduser()


def _is_table(found: list[Path]) -> bool:
    return bool(found) and plain_name(found[0]) not in TEXT_FILES


def _unknown(name: str, folder: Path) -> str:
    known = ', '.join((SYNTHETIC, *PUBLISHED))
    return (
        f'unknown data set {name!r}: it is none of {known}, and {folder} is no folder '
        'with train.txt and test.txt, or NAME.inter, NAME.csv or NAME.parquet'
    )
