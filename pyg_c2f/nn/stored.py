r"""What models share in files: tensors of graphs and codebooks, and limits."""

import math
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_c2f.packing import pack_sorted, small_int_below, unpack_sorted
from pyg_c2f.sparse import pair_keys, rowptr_of, split_keys

# The most entries of a table, absolute and relative to those of the whole file: a small
# file must not take all memory.
MAX_ENTRIES, MAX_TIMES = 1 << 28, 64
# The parts of a train graph in a file.
GRAPH = ('low', 'high', 'width')


def graph_tensors(edge_index: Tensor, num_items: int) -> dict[str, Tensor]:
    """The train pairs, unique, as :func:`~pyg_c2f.packing.pack_sorted` packs them."""
    keys = pair_keys(edge_index.cpu(), num_items).sort().values
    parts = zip(GRAPH, pack_sorted(keys), strict=True)
    return {f'graph.{name}': part for name, part in parts}


def stored_edges(tensors: dict[str, Tensor], num_items: int) -> Tensor:
    """The edges of :func:`graph_tensors`, by user, then item, or a ValueError."""
    if tensors['graph.width'].dtype != torch.uint8 or int(tensors['graph.width']) > 31:
        raise ValueError('the low parts of the train pairs have no width')
    keys = unpack_sorted(*(tensors[f'graph.{name}'] for name in GRAPH))
    return torch.stack(split_keys(keys, num_items))


def sparse_codebook(codebook: Tensor, threshold: float) -> dict[str, Tensor]:
    """The entries of a fine codebook that a soft threshold lets through, as CSR."""
    codebook = codebook.detach().cpu()
    row, col = F.softshrink(codebook, threshold).nonzero(as_tuple=True)
    return {
        'fine.rowptr': rowptr_of(row, len(codebook)).int(),
        'fine.col': small_int_below(col, codebook.size(1)),
        'fine.value': codebook[row, col],
    }


def fill_codebook(codebook: Tensor, tensors: dict[str, Tensor]) -> None:
    """Takes :func:`sparse_codebook`'s entries, or an IndexError or ValueError."""
    col = tensors['fine.col'].long()
    if (col < 0).any():  # It would count from the end.
        raise ValueError('a column of the fine codebook is below zero')
    row = _row(tensors['fine.rowptr'], col)
    codebook.zero_()[row, col] = tensors['fine.value'].to(codebook)


def _row(rowptr: Tensor, col: Tensor) -> Tensor:
    """The row of each entry of a CSR matrix."""
    count = rowptr.long().diff()
    if rowptr[0] != 0 or rowptr[-1] != len(col) or (count < 0).any():
        raise ValueError('the rows of a sparse matrix are not in order')
    return torch.repeat_interleave(count)


def check_settings(settings: dict[str, Any], kinds: dict[str, Any]) -> dict[str, Any]:
    """The settings of these names and types, or a KeyError or ValueError."""
    out = {name: settings[name] for name in kinds}
    for name, value in out.items():
        if kinds[name] is float:
            fits = type(value) in (int, float) and math.isfinite(value)
        elif kinds[name] is int:
            fits = type(value) is int and 0 <= value < 2**31
        else:
            fits = value in get_args(kinds[name])
        if not fits:
            raise ValueError(f'{name} is {value!r}')
    return out


def check_sizes(
    tensors: dict[str, Tensor],
    sizes: dict[str, Any],
    num_entities: tuple[int, int],
    num_links: int,
) -> None:
    """Checks the sizes of a model against its tensors, before tables are made.

    ``num_entities`` is how many have a scalar each, as it should be and in the file;
    ``num_links`` is the number of entries of the larger assignment.
    """
    if len({*num_entities}) > 1:
        raise ValueError('the tensors are of other numbers of users or items')
    limit = max(MAX_ENTRIES, MAX_TIMES * sum(x.numel() for x in tensors.values()))
    num_anchors = max(sizes['num_coarse'], sizes['num_fine'])
    most = max(num_links, num_anchors * sizes['embedding_dim'], sizes['num_users'])
    if most > limit:
        raise ValueError(f'a table has more than {limit:,} entries')
