r"""Published data sets: downloaded from their source and verified."""

import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch_geometric.data import HeteroData

from pyg_c2f.datasets.cache import is_built
from pyg_c2f.datasets.download import download, matches
from pyg_c2f.datasets.interactions import InteractionDataset
from pyg_c2f.datasets.spec import DataSpec, locate
from pyg_c2f.datasets.text import parse_text, read_bytes, sorted_unique
from pyg_c2f.sparse import pair_keys
from pyg_c2f.typing import InputError, Protocol

_LIGHTGCN = (
    'https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/'
    '947ca2b3b1d2d3545b114145710cb06c4e57b3d2/data'
)
_LEGCF = (
    'https://raw.githubusercontent.com/xurong-liang/LEGCF/'
    '68d63cba3f1e38a9441fc1cbcfd5da4210dab840/data'
)


def read_checksums() -> dict[str, Any]:
    r"""Returns the reference checksums: data set -> file -> kind -> digest."""
    path = resources.files('pyg_c2f.datasets') / 'checksums.json'
    return json.loads(path.read_text(encoding='utf-8'))


def pairs_digest(users: np.ndarray, items: np.ndarray) -> str:
    r"""The SHA-256 of a set of interactions, whatever their order in a file.

    The unique pairs, sorted by user, then item, are hashed as little-endian int64
    ``user, item, user, item, ...``.
    """
    num_items = items.max() + 1
    pairs = np.stack(
        np.divmod(sorted_unique(pair_keys((users, items), num_items)), num_items),
        axis=1,
    )
    return hashlib.sha256(pairs.astype('<i8').tobytes()).hexdigest()


def file_state(path: Path, reference: dict[str, str]) -> str:
    r"""Compares the bytes of a file, or else its interactions, with a reference."""
    if not reference:
        return 'no reference'
    content = read_bytes(path)
    if matches(content, reference):
        return 'ok'
    if 'pairs_sha256' in reference:
        _, user, item = parse_text(content, path)
        if pairs_digest(user, item) == reference['pairs_sha256']:
            return 'ok'
    return 'differs'


class PublishedDataset(InteractionDataset):
    r"""Base of the data sets with a known address and known checksums.

    ``train.txt`` and ``test.txt`` (or ``.gz``) that lie in ``root/name`` are used as
    they are. Missing files are downloaded and must have the reference checksum, unless
    :func:`~pyg_c2f.datasets.build_dataset` has left a result that needs no files.

    Args:
        root (str or Path): The folder that holds one folder per data set.
        protocol (str, optional): ``'c2f'`` or ``'standard'``.
            (default: :obj:`'standard'`)
        split_seed (int, optional): The seed of the split. (default: :obj:`2024`)
        transform (Callable, optional): Applied to the graph at every access.

    Raises:
        InputError: If a file is missing and cannot be downloaded, with the address
            and the folder to put it in; otherwise as :class:`InteractionDataset`.
    """

    folder: ClassVar[str]
    base_url: ClassVar[str]
    license_note: ClassVar[str] = (
        'no licence file at the source; downloaded at run time, not redistributed'
    )

    def __init__(
        self,
        root: str | Path,
        *,
        protocol: Protocol = 'standard',
        split_seed: int = 2024,
        transform: Callable[[HeteroData], HeteroData] | None = None,
    ) -> None:
        spec = DataSpec(self.folder, root, protocol, split_seed)
        if not is_built(spec):
            self.download_missing(spec.folder)
        super().__init__(
            root,
            self.folder,
            protocol=protocol,
            split_seed=split_seed,
            transform=transform,
        )

    @classmethod
    def references(cls) -> dict[str, dict[str, str]]:
        r"""Returns the checksums: file -> kind -> digest."""
        return read_checksums()[cls.folder]

    @classmethod
    def download_missing(cls, folder: Path) -> None:
        r"""Downloads the files that are not in the folder, and verifies them."""
        references = cls.references()
        for file_name, reference in references.items():
            if not locate(folder, file_name):
                url = f'{cls.base_url}/{file_name}'
                try:
                    download(url, folder / file_name, reference)
                except InputError as error:
                    needed = ' and '.join(references)
                    raise InputError(f'{error} (needed there: {needed})') from error


class Gowalla(PublishedDataset):
    r"""Check-ins of users at places, of the Gowalla network.

    The split of the LightGCN and NGCF papers; also that of the LEGCF and
    coarse-to-fine meta-embedding papers, which draw validation items from its test
    file (``protocol='c2f'``).

    Users: 29,858. Items: 40,981. Train: 810,128. Test: 217,242. Density: 0.084 %.

    Source: `LightGCN-PyTorch <https://github.com/gusye1234/LightGCN-PyTorch>`_,
    commit 947ca2b, ``data/gowalla``. Licence: none given there.

    Citation: Cho, Myers, Leskovec, *Friendship and Mobility: User Movement in
    Location-Based Social Networks*, KDD 2011; split by Wang et al., *Neural Graph
    Collaborative Filtering*, SIGIR 2019.

    Arguments and errors: see :class:`PublishedDataset`.
    """

    folder = 'gowalla'
    base_url = f'{_LIGHTGCN}/gowalla'


class Yelp2018(PublishedDataset):
    r"""Users and local businesses of the Yelp challenge of 2018.

    Users: 31,668. Items: 38,048. Train: 1,237,259. Test: 324,147. Density: 0.130 %.

    Source: `LightGCN-PyTorch <https://github.com/gusye1234/LightGCN-PyTorch>`_,
    commit 947ca2b, ``data/yelp2018``. Licence: none given there.

    Citation: Yelp Open Dataset, 2018; split by Wang et al., *Neural Graph
    Collaborative Filtering*, SIGIR 2019.

    Arguments and errors: see :class:`PublishedDataset`.
    """

    folder = 'yelp2018'
    base_url = f'{_LIGHTGCN}/yelp2018'


class Yelp2020(PublishedDataset):
    r"""Users and local businesses of the Yelp open data set of 2020.

    The split of the LEGCF and coarse-to-fine meta-embedding papers.

    Users: 71,135. Items: 45,063. Train: 1,398,438. Test: 384,561. Density: 0.056 %.

    Source: `LEGCF <https://github.com/xurong-liang/LEGCF>`_, commit 68d63cb,
    ``data/yelp2020``. Licence: none given there.

    Citation: Yelp Open Dataset, 2020; interactions selected by Sun et al., *HGCF:
    Hyperbolic Graph Convolution Networks for Collaborative Filtering*, WWW 2021;
    split by Liang et al., *Lightweight Embeddings for Graph Collaborative Filtering*,
    SIGIR 2024.

    Arguments and errors: see :class:`PublishedDataset`.
    """

    folder = 'yelp2020'
    base_url = f'{_LEGCF}/yelp2020'


class AmazonBook(PublishedDataset):
    r"""Users and books of the Amazon review data.

    Users: 52,643. Items: 91,599. Train: 2,380,730. Test: 603,378. Density: 0.062 %.

    Source: `LightGCN-PyTorch <https://github.com/gusye1234/LightGCN-PyTorch>`_,
    commit 947ca2b, ``data/amazon-book``. Licence: none given there.

    Citation: He, McAuley, *Ups and Downs: Modeling the Visual Evolution of Fashion
    Trends with One-Class Collaborative Filtering*, WWW 2016; split by Wang et al.,
    *Neural Graph Collaborative Filtering*, SIGIR 2019.

    Arguments and errors: see :class:`PublishedDataset`.
    """

    folder = 'amazon-book'
    base_url = f'{_LIGHTGCN}/amazon-book'
