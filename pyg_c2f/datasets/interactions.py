r"""Interactions on disk as a PyG data set."""

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData, InMemoryDataset

from pyg_c2f.datasets.built import Built, encode_texts, find_built, read_built
from pyg_c2f.datasets.files import Source, data_folder, read_source
from pyg_c2f.datasets.splits import Splits, hold_out, make_generator, split
from pyg_c2f.sparse import unique_pairs
from pyg_c2f.typing import ITEM, RATED_BY, RATES, USER, Protocol

_HELD_OUT = ('val_edge_label_index', 'test_edge_label_index')
_LABELS = 2**12  # decoded at a time


class Labels:
    r"""An immutable list of strings, one per node.

    PyG takes a plain list that is as long as the number of nodes for features, and
    its loaders and :meth:`~torch_geometric.data.HeteroData.subgraph` then fail on the
    strings. Mini-batches keep these labels whole: look them up by global id
    (``n_id``).
    """

    def __init__(self, values: Iterable[str]) -> None:
        # No Python objects: millions of labels take only the room of their letters.
        self._bytes, self._offsets = encode_texts(list(values))

    @classmethod
    def from_buffers(cls, content: np.ndarray, offsets: np.ndarray) -> 'Labels':
        r"""Returns labels without a copy, perhaps of a file that is mapped.

        Args:
            content (np.ndarray): Their bytes in UTF-8, one after the other, uint8.
            offsets (np.ndarray): Where each starts, and where the last ends, int64,
                ``[num_labels + 1]``.
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
        # The first ones are enough to tell most apart.
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
    r"""A graph of users and items whose held-out edges follow into other forms.

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


def build_data(
    splits: Splits, num_users: int, num_items: int, **attributes: Any
) -> HeteroData:
    r"""Returns the graph of a split.

    Args:
        splits (Splits): The keys of the train, validation and test interactions.
        num_users (int): The number of users.
        num_items (int): The number of items, the base of the keys.
        **attributes: Attributes of the graph as a whole.
    """
    edge_index, val, test = (_to_edge_index(keys, num_items) for keys in splits)
    edges = edge_index, val, test, edge_index.flip(0)
    return _make_data(*edges, num_users, num_items, attributes)


def _make_data(
    edge_index: Tensor,
    val: Tensor,
    test: Tensor,
    reverse: Tensor,
    num_users: int,
    num_items: int,
    attributes: dict[str, Any],
) -> HeteroData:
    data = InteractionData()
    data[USER].num_nodes = num_users
    data[ITEM].num_nodes = num_items
    data[RATES].edge_index = edge_index
    data[RATES].val_edge_label_index = val
    data[RATES].test_edge_label_index = test
    data[RATED_BY].edge_index = reverse
    for key, value in attributes.items():
        data[key] = value
    return data


def _built_data(built: Built, **attributes: Any) -> HeteroData:
    r"""Returns the graph of a built form: views of what is mapped."""
    edges = built.edges[:2], built.val, built.test, built.edges[1:]
    data = _make_data(*edges, built.meta.num_users, built.meta.num_items, attributes)
    labels = {key: Labels.from_buffers(*texts) for key, texts in built.texts.items()}
    for key, store, attribute in (
        ('users', data[USER], 'raw_id'),
        ('items', data[ITEM], 'raw_id'),
        ('titles', data[ITEM], 'title'),
    ):
        if key in labels:
            store[attribute] = labels[key]
    return data


def _to_edge_index(keys: np.ndarray, num_items: int) -> Tensor:
    return torch.from_numpy(np.stack(np.divmod(keys, num_items)))


def split_source(
    source: Source, protocol: Protocol, rng: np.random.Generator, name: str
) -> Splits:
    r"""Applies a protocol to what was read; a single file is divided first."""
    parts = source.parts
    if 'train.txt' in parts:
        train, test = parts['train.txt'], parts['test.txt']
    else:
        (keys,) = parts.values()
        train, test = hold_out(keys, source.num_items, rng)
    return split(
        train, parts.get('valid.txt'), test, source.num_items, protocol, rng, name
    )


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

    All files may be gzipped (``train.txt.gz``). The first kind found counts. Every
    row of a table is one interaction, whatever its other columns say. Ids of tables
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

    Numbers of the two protocols must not be compared.

    Nothing is cached on disk: ``root`` may be read-only, and another seed never meets
    an old split. Data that do not fit in memory are prepared by
    :func:`~pyg_c2f.datasets.build_dataset`, once for a protocol and a seed; what it
    leaves is taken, mapped into memory, and must be of the files as they are.

    Tolerated, and logged with their number: duplicate interactions, users on several
    lines, users without items, held-out interactions that are also in train (they
    are dropped). Byte order marks, blank lines and the line ends of any system are
    skipped.

    Refused, with file, line and reason:

    * in text, what is no natural number, and ids above :math:`10^6` plus ten times the
      number of interactions, or :math:`2^{31} - 1`: they are to be contiguous;
    * in tables, rows with fewer cells than the header, or more that are not empty, rows
      without user or item, ids with a NUL character, two columns of the same name,
      quotes in csv that are left open, cells of more than 131,072 characters, what is
      not UTF-8. White space around ids is no part of them, but in Parquet, where ids
      are text or whole numbers exactly as they are;
    * archives, and Parquet tables, that unpack to more than 32 MiB and more than twenty
      times their size, and Parquet tables of more than a million rows that have ten
      for each byte.

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
        rng = make_generator(protocol, split_seed)
        super().__init__(str(root), transform)
        self.name = name
        attributes = {
            'dataset': name,
            'protocol': protocol,
            'split_seed': int(split_seed),
        }
        columns = user_column, item_column
        folder = data_folder(Path(self.root), name)
        if built := find_built(folder, name, protocol, int(split_seed), *columns):
            self._data = _built_data(read_built(built), **attributes)
            return
        source = read_source(Path(self.root), name, *columns)
        data = build_data(
            split_source(source, protocol, rng, name),
            source.num_users,
            source.num_items,
            **attributes,
        )
        if source.user_labels is not None and source.item_labels is not None:
            data[USER].raw_id = Labels(source.user_labels)
            data[ITEM].raw_id = Labels(source.item_labels)
        if source.titles is not None:
            data[ITEM].title = Labels(source.titles)
        self._data = data

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.name!r})'


def with_validation_in_train(data: HeteroData) -> HeteroData:
    r"""Returns the graph with the validation edges moved to the train edges.

    For training once more on everything but the test edges, for as long as the
    validation edges have said. The given graph is not changed.
    """
    store = data[RATES]
    edges = torch.cat([store.edge_index, store.val_edge_label_index], dim=1)
    out = copy.copy(data)
    out[RATES].edge_index = unique_pairs(edges, data[ITEM].num_nodes)
    out[RATES].val_edge_label_index = store.val_edge_label_index[:, :0]
    out[RATED_BY].edge_index = out[RATES].edge_index.flip(0)
    return out
