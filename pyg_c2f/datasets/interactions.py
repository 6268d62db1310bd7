r"""Interactions on disk as a PyG data set."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData, InMemoryDataset

from pyg_c2f.datasets.cache import encode_texts, find_cache, read_cache
from pyg_c2f.datasets.sources import read_source
from pyg_c2f.datasets.spec import DataSpec
from pyg_c2f.datasets.splits import Splits, split
from pyg_c2f.sparse import unique_pairs
from pyg_c2f.typing import ITEM, RATED_BY, RATES, USER, Protocol

_HELD_OUT = ('val_edge_label_index', 'test_edge_label_index')
_LABELS = 2**12  # decoded at a time
_TEXTS = {
    'users': (USER, 'raw_id'),
    'items': (ITEM, 'raw_id'),
    'titles': (ITEM, 'title'),
}


class Labels:
    r"""An immutable list of strings, one per node.

    PyG takes a plain list that is as long as the number of nodes for features, and
    its loaders and :meth:`~torch_geometric.data.HeteroData.subgraph` then fail on the
    strings. Mini-batches keep all labels: look them up by global id (``n_id``).
    """

    def __init__(self, values: Iterable[str]) -> None:
        # Not Python objects: millions of labels take only the bytes of their letters.
        self._bytes, self._offsets = encode_texts(list(values))

    @classmethod
    def from_buffers(cls, content: np.ndarray, offsets: np.ndarray) -> 'Labels':
        r"""Returns labels without a copy, perhaps of a file that is mapped.

        Args:
            content (np.ndarray): Their bytes in UTF-8, uint8.
            offsets (np.ndarray): Their starts and the last end, int64, ``[n + 1]``.
        """
        labels = cls.__new__(cls)
        labels._bytes, labels._offsets = content, offsets
        return labels

    def __getitem__(self, index: int) -> str:
        at = range(len(self))[index]
        start, end = self._offsets[at : at + 2]
        return _decode(self._bytes[start:end].tobytes())

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _LABELS):
            offsets = self._offsets[first : first + _LABELS + 1]
            content = self._bytes[offsets[0] : offsets[-1]].tobytes()
            bounds = (offsets - offsets[0]).tolist()
            for start, end in zip(bounds, bounds[1:], strict=False):
                yield _decode(content[start:end])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Labels)
            and np.array_equal(self._offsets, other._offsets)
            and np.array_equal(self._bytes, other._bytes)
        )

    def __hash__(self) -> int:
        # The first bytes tell most lists apart.
        return hash((len(self), self._bytes[:_LABELS].tobytes()))

    def __copy__(self) -> 'Labels':
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> 'Labels':
        return self  # nothing changes them

    def __repr__(self) -> str:
        return f'Labels({len(self)})'


def _decode(content: bytes) -> str:
    return content.decode(errors='surrogatepass')


class InteractionData(HeteroData):
    r"""A graph of users and items whose conversions keep the held-out edges.

    Only :meth:`to_homogeneous` differs from the base class, which moves the ids of an
    ``edge_label_index`` along with the nodes but takes other label indices for edge
    features, and pads those with a block of memory of their squared length.
    """

    def to_homogeneous(self, *args: Any, **kwargs: Any) -> Data:
        r"""Returns the homogeneous graph, held-out edges included."""
        data = copy.copy(self)
        held_out = {
            key: data[RATES].pop(key) for key in _HELD_OUT if key in data[RATES]
        }
        out = HeteroData.to_homogeneous(data, *args, **kwargs)
        num_nodes = [data[node_type].num_nodes for node_type in data.node_types]
        first = dict(zip(data.node_types, np.cumsum([0, *num_nodes]), strict=False))
        offset = torch.tensor([[first[USER]], [first[ITEM]]])
        for key, index in held_out.items():
            out[key] = index + offset.to(index.device)
        return out


def make_graph(
    edges: Sequence[Tensor],
    num_nodes: tuple[int, int],
    spec: DataSpec,
    texts: Mapping[str, Labels] | None = None,
) -> HeteroData:
    r"""Returns the graph of a split.

    The edges are the train, validation and test interactions, and the train ones from
    item to user, ``[2, n]`` each; the texts are of ``users``, ``items`` and ``titles``.
    """
    data = InteractionData()
    data[USER].num_nodes, data[ITEM].num_nodes = num_nodes
    data[RATES].edge_index = edges[0]
    data[RATES].val_edge_label_index = edges[1]
    data[RATES].test_edge_label_index = edges[2]
    data[RATED_BY].edge_index = edges[3]
    data.dataset = spec.name
    data.protocol = spec.protocol
    data.split_seed = spec.split_seed
    for key, labels in (texts or {}).items():
        node_type, attribute = _TEXTS[key]
        data[node_type][attribute] = labels
    return data


def to_edges(splits: Splits, num_items: int) -> list[Tensor]:
    r"""Returns the edges that :func:`make_graph` takes, from keys."""
    pairs = (np.stack(np.divmod(keys, num_items)) for keys in splits)
    edges = [torch.from_numpy(x) for x in pairs]
    return [*edges, edges[0].flip(0)]


def _load(spec: DataSpec) -> HeteroData:
    r"""Returns the graph of a data set, mapped if it has a built form."""
    if folder := find_cache(spec):
        meta, (rows, val, test), buffers = read_cache(folder)
        texts = {key: Labels.from_buffers(*x) for key, x in buffers.items()}
        edges = [rows[:2], val, test, rows[1:]]
        return make_graph(edges, (meta.num_users, meta.num_items), spec, texts)
    source = read_source(spec)
    edges = to_edges(split(source.parts, source.num_items, spec), source.num_items)
    texts = {key: Labels(values) for key, values in source.texts.items()}
    return make_graph(edges, (source.num_users, source.num_items), spec, texts)


class InteractionDataset(InMemoryDataset):
    r"""User-item interactions from the folder ``root/name``.

    The folder holds one of

    * ``train.txt``, ``test.txt`` and optionally ``valid.txt`` in the LightGCN format:
      lines ``user item item ...``, ids counted from 0;
    * ``NAME.inter``, the RecBole format: separated by tabs, with a header
      ``user_id:token  item_id:token  ...``;
    * ``NAME.csv`` or ``NAME.parquet`` with named columns (the latter needs pyarrow:
      ``pip install pyg-c2f[tables]``); ``NAME.parquet`` may be a folder of part files
      ``*.parquet``.

    All files may be gzipped (``train.txt.gz``). The first format found is used. Every
    row of a table is one interaction, whatever its other columns hold. Ids of tables
    are numbered in sorted order and kept as ``raw_id`` of users and items; a RecBole
    file ``NAME.item`` with a title column beside the table gives the items a
    ``title``.

    The only element is a :class:`~torch_geometric.data.HeteroData` with node types
    ``user`` and ``item`` and the attributes ``dataset``, ``protocol`` and
    ``split_seed``. The relation ``('user', 'rates', 'item')`` holds the train edges
    as ``edge_index`` (unique, sorted by user, then item) and the held-out ones as
    ``val_edge_label_index`` and ``test_edge_label_index``;
    ``('item', 'rated_by', 'user')`` is its reverse.

    Held-out interactions are drawn per user, with a generator of their own:

    * single files are divided first: of a user's :math:`n` interactions
      :math:`\lfloor n / 5 + 1/2 \rfloor` are test, the others train;
    * ``protocol='c2f'``: of a user's :math:`n` test items :math:`\lceil n / 3 \rceil`
      are validation, the rest test; ``valid.txt`` is not used;
    * ``protocol='standard'``: the test items stay; validation is ``valid.txt``, or
      without it :math:`\lfloor n / 10 + 1/2 \rfloor` of a user's :math:`n` train
      items, which leave train.

    Figures of the two protocols must not be compared.

    Nothing is cached on disk. Data that do not fit in memory are prepared by
    :func:`~pyg_c2f.datasets.build_dataset`, whose result is mapped into memory. What is
    tolerated in files, and what is refused, is in ``docs/loaders.md``.

    Args:
        root (str or Path): The folder that holds one folder per data set.
        name (str): The name of the data set: its folder, and the table in it.
        protocol (str, optional): ``'c2f'`` or ``'standard'``.
            (default: :obj:`'standard'`)
        split_seed (int, optional): The seed of the split. (default: :obj:`2024`)
        user_column (str, optional): The column of user ids in a table.
            (default: :obj:`'user_id'`)
        item_column (str, optional): The column of item ids in a table.
            (default: :obj:`'item_id'`)
        transform (Callable, optional): Applied to the graph at every access.

    Shapes:
        - **edge_index:** :math:`(2, |\mathcal{E}|)`, int64
        - **val_edge_label_index, test_edge_label_index:** :math:`(2, L)`, int64

    Raises:
        InputError: If the data set is missing or a file is wrong, with file, line and
            what to do.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     (Path(root) / 'toy').mkdir()
        ...     _ = (Path(root) / 'toy/train.txt').write_text('0 0 1\n1 1 2\n')
        ...     _ = (Path(root) / 'toy/test.txt').write_text('0 2\n1 0\n')
        ...     data = InteractionDataset(root, 'toy')[0]
        >>> data['user', 'rates', 'item'].edge_index.tolist()
        [[0, 0, 1, 1], [0, 1, 1, 2]]
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        *,
        protocol: Protocol = 'standard',
        split_seed: int = 2024,
        user_column: str = 'user_id',
        item_column: str = 'item_id',
        transform: Callable[[HeteroData], HeteroData] | None = None,
    ) -> None:
        spec = DataSpec(name, root, protocol, split_seed, user_column, item_column)
        super().__init__(str(root), transform)
        self.name = name
        self._data = _load(spec)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.name!r})'


def with_validation_in_train(data: HeteroData) -> HeteroData:
    r"""Returns the graph with the validation edges moved to the train edges.

    For a last training on everything but the test edges, once the validation edges have
    told its length. The given graph is not changed.
    """
    store = data[RATES]
    edges = torch.cat([store.edge_index, store.val_edge_label_index], dim=1)
    out = copy.copy(data)
    out[RATES].edge_index = unique_pairs(edges, data[ITEM].num_nodes)
    out[RATES].val_edge_label_index = store.val_edge_label_index[:, :0]
    out[RATED_BY].edge_index = out[RATES].edge_index.flip(0)
    return out
