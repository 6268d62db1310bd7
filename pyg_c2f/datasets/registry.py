r"""Data sets by name."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch_geometric.data import HeteroData

from pyg_c2f.datasets.cache import build_cache, find_cache, is_built, read_meta
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
from pyg_c2f.datasets.spec import DataSpec, plain_name
from pyg_c2f.datasets.synthetic import SyntheticHierarchy
from pyg_c2f.typing import ITEM, RATES, USER, InputError

SYNTHETIC = 'synthetic'
PUBLISHED: dict[str, type[PublishedDataset]] = {
    cls.folder: cls for cls in (Gowalla, Yelp2018, Yelp2020, AmazonBook)
}


def get_dataset(spec: DataSpec | str, *args: Any, **kwargs: Any) -> HeteroData:
    r"""Returns the graph of a data set.

    Args:
        spec (DataSpec or str): The data set and its split, or a name: ``'synthetic'``
            (generated), ``'gowalla'``, ``'yelp2018'``, ``'yelp2020'`` or
            ``'amazon-book'`` (missing files are downloaded), or the name of any folder
            that :class:`InteractionDataset` reads.
        *args: After a name, the other arguments of :class:`DataSpec`, or
        **kwargs: the same by name.

    Raises:
        InputError: If there is no such data set, or a file is wrong.
    """
    spec = _to_spec(spec, args, kwargs)
    split: dict[str, Any] = dict(protocol=spec.protocol, split_seed=spec.split_seed)
    if spec.name == SYNTHETIC:
        return SyntheticHierarchy(**split)[0]
    if published := _published(spec):
        return published(spec.folder.parent, **split)[0]
    return InteractionDataset(**asdict(spec))[0]


def build_dataset(
    spec: DataSpec | str, *args: Any, progress: bool = False, **kwargs: Any
) -> Path:
    r"""Prepares a data set for being mapped into memory.

    From then on :func:`get_dataset` and :class:`InteractionDataset` use the result, the
    folder ``root/name/built-PROTOCOL-SEED``, for this protocol and this seed; the graph
    is the same. A Parquet table may be far larger than the memory, of which the ids
    need a few times their size; other files are read as a whole. Missing files of a
    published data set are downloaded. A result that fits the files as they are is left
    alone. An interrupted call leaves nothing that would be taken for one.

    Args:
        spec (DataSpec or str): As for :func:`get_dataset`.
        *args: After a name, the other arguments of :class:`DataSpec`, or
        **kwargs: the same by name.
        progress (bool, optional): Whether to show progress bars.
            (default: :obj:`False`)

    Returns:
        Path: The folder of the result.

    Raises:
        InputError: If there is no such data set, a file is wrong, or it is the
            synthetic one.
        OSError: If the folder cannot be written; the disk is full, say.
    """
    spec = _to_spec(spec, args, kwargs)
    if spec.name == SYNTHETIC:
        raise InputError(
            f'the data set {spec.name} is generated, not read: there is nothing to '
            'build; name a folder of files, or a data set that is downloaded'
        )
    published = _published(spec)
    if published and not is_built(spec):  # a built form may do without its files
        published.download_missing(spec.folder)
    return build_cache(spec, progress)


def describe(spec: DataSpec | str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    r"""Describes a data set without downloading anything.

    Args:
        spec (DataSpec or str): As for :func:`get_dataset`.
        *args: After a name, the other arguments of :class:`DataSpec`, or
        **kwargs: the same by name.

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
    spec = _to_spec(spec, args, kwargs)
    out: dict[str, Any] = {'dataset': spec.name, 'folder': None, 'files': []}
    if spec.name == SYNTHETIC:
        out |= {'source': 'generated', 'license': 'that of this package'}
    else:
        published = _published(spec)
        out['folder'] = str(spec.folder)
        out['source'] = published.base_url if published else 'local'
        out['license'] = published.license_note if published else 'unknown'
        references = published.references() if published else {}
        for path in spec.files:
            parts = part_files(path) if path.is_dir() else [path]
            size = sum(part.stat().st_size for part in parts)
            state = file_state(path, references.pop(plain_name(path), {}))
            out['files'].append({'file': path.name, 'bytes': size, 'state': state})
        out['files'] += [
            {'file': file_name, 'bytes': None, 'state': 'missing'}
            for file_name in sorted(references)
        ]
    out |= {'protocol': spec.protocol, 'split_seed': spec.split_seed}
    is_missing = any(file['state'] == 'missing' for file in out['files'])
    if is_missing and not is_built(spec):
        return out | dict.fromkeys(_COUNTS)
    data = get_dataset(spec)
    edges = data[RATES]
    held_out = edges.val_edge_label_index, edges.test_edge_label_index
    num_edges = [index.size(1) for index in (edges.edge_index, *held_out)]
    sizes = [data[USER].num_nodes, data[ITEM].num_nodes, *num_edges]
    density = sum(num_edges) / (sizes[0] * sizes[1])
    return out | dict(zip(_COUNTS, (*sizes, sum(num_edges), density), strict=True))


_COUNTS = (
    'num_users',
    'num_items',
    'num_train',
    'num_val',
    'num_test',
    'num_interactions',
    'density',
)


def built_digest(spec: DataSpec) -> str | None:
    r"""Returns the checksum of the pairs of a built form; None if there is none."""
    built = None if spec.name == SYNTHETIC else find_cache(spec)
    return read_meta(built).data_sha256 if built else None


def _to_spec(
    spec: DataSpec | str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DataSpec:
    return spec if isinstance(spec, DataSpec) else DataSpec(spec, *args, **kwargs)


def _published(spec: DataSpec) -> type[PublishedDataset] | None:
    r"""The class of a published data set; None for files of the user's own."""
    if spec.name in PUBLISHED and not spec.is_table:
        return PUBLISHED[spec.name]
    if not spec.folder.is_dir():
        raise InputError(
            f'unknown data set {spec.name!r}: it is not one of '
            f'{", ".join((SYNTHETIC, *PUBLISHED))}, and {spec.folder} is not a folder '
            'with train.txt and test.txt, or NAME.inter, NAME.csv or NAME.parquet'
        )
    return None
