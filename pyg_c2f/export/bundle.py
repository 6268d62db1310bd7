r"""Writes bundles; ``docs/bundle.md`` describes the layout."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import coalesce

from pyg_c2f.bundle import HEADER, MAGIC, VERSION, Bundle, BundleError
from pyg_c2f.files import whole_file
from pyg_c2f.graph import assignment_to_edges
from pyg_c2f.nn import LinearC2F
from pyg_c2f.nn.linear import are_codes, is_axes
from pyg_c2f.packing import num_bits, pack_bits, pack_sorted
from pyg_c2f.typing import InputError
from pyg_c2f.vocabulary import NamedModel

# With these 99.7 % of the items of Gowalla's lists stay (benchmarks/bundle.py, bits).
CODEBOOK_BITS = 6
DEGREE_BITS = 8
# For what few models have: a trained coarse codebook and biases.
OTHER_BITS = 8
# The finest grid of a table that is tried, in octaves.
LEAST_STEP = 2**-8


def write_bundle(
    model: LinearC2F | NamedModel,
    path: str | Path,
    weight_bits: int = 8,
    names: bool = True,
) -> dict[str, int]:
    r"""Writes one file with everything that a device needs to recommend.

    Weights of links, values of codebooks and degrees become codes of small tables
    (:func:`fit_table`); the places of links are in Elias-Fano form. Users and the
    train graph are left out.

    Args:
        model (LinearC2F): The model, without a diffusion channel.
        path (str or Path): The file; it appears when it is complete.
        weight_bits (int, optional): The largest number of bits of a weight, 2 to 8. A
            model with ``dtype='packed'`` loses nothing from six up. (default: ``8``)
        names (bool, optional): Whether to add the original ids and titles, if the
            model has them. (default: :obj:`True`)

    Returns:
        Dict: The bytes of each section, ``'header'`` and ``'all'``.

    Raises:
        InputError: If the model needs its graph, the bits are out of range, or the
            reader refuses the result: the model is too large for the format, or has
            numbers that are not finite.
    """
    model = check_needs_no_graph(model, 'a bundle')
    if weight_bits not in range(2, 9):
        raise InputError(f'weight_bits={weight_bits}: choose 2 to 8')
    with torch.no_grad():
        sections = dict(_sections(model, weight_bits))
    vocabulary = getattr(model, 'vocabulary', None)
    if names and vocabulary is not None:
        texts = ('NAME', vocabulary.item_ids), ('TITL', vocabulary.item_titles)
        sections |= {
            tag: '\0'.join(lines).encode() for tag, lines in texts if lines is not None
        }
    sizes = (model.num_items, model.embedding_dim, model.num_coarse)
    fine = (model.num_fine, model.fine_per_item) if model.stage == 'fine' else (0, 0)
    # A norm too large for single precision becomes infinity, which the reader refuses.
    norm = torch.tensor(model.user_norm).item()
    body = {
        tag: tag.encode() + struct.pack('<I', len(x)) + x + bytes(-len(x) % 4)
        for tag, x in sections.items()
    }
    counted = {'header': HEADER.size + 4} | {tag: len(x) for tag, x in body.items()}
    length = sum(counted.values())
    data = HEADER.pack(MAGIC, VERSION, length, *sizes, *fine, norm)
    data += b''.join(body.values())
    data += struct.pack('<I', zlib.crc32(data))
    try:
        Bundle(data)
    except BundleError as error:
        why = str(error).partition(';')[0]
        raise InputError(
            f'this model fits in no {why}; train it with other settings'
        ) from None
    with whole_file(Path(path)) as part:
        part.write_bytes(data)
    return counted | {'all': length}


def check_needs_no_graph(model: Any, form: str) -> LinearC2F:
    """Refuses a model that cannot be a ``form``, which has items and a history only."""
    if not hasattr(model, 'needs_graph'):
        raise InputError(
            f'expected a model (got {type(model).__name__}); pyg_c2f.load reads one'
        )
    if model.needs_graph():
        raise InputError(
            f'this model needs the train graph to recommend, which {form} does not '
            'hold; train with recipe=fast and diffusion=0'
        )
    if model.stage == 'fine' and not are_codes(model.fine.assignment, model.num_fine):
        raise InputError(
            f'{form} has one fine anchor of each level for each item, with weight one; '
            'this model has others: train with recipe=fast'
        )
    return model


def _sections(model: LinearC2F, weight_bits: int) -> Iterator[tuple[str, bytes]]:
    """The tags and contents of the sections of numbers."""
    code, deg = fit_table(model.item_degree().cpu(), DEGREE_BITS)
    yield 'ITEM', _table(code, deg**-model.item_norm, deg**model.score_power)
    pairs, weight = item_links(model)
    yield 'LINK', _entries(pairs[0] * model.num_coarse + pairs[1], weight, weight_bits)
    codebook = model.coarse.codebook.detach().cpu()
    if not is_axes(codebook):
        yield 'COAR', _matrix(codebook, OTHER_BITS)
    if model.stage == 'fine':
        fine = model.soft_threshold(model.fine.codebook.detach().cpu())
        yield 'FINE', _matrix(fine, CODEBOOK_BITS)
        per_level = model.num_fine // model.fine_per_item
        local = model.fine.index.cpu() % per_level
        yield 'CODE', _bytes(pack_bits(local.flatten(), num_bits(per_level)))
    if model.bias.any():
        yield 'BIAS', _table(*fit_table(model.bias.detach().cpu(), OTHER_BITS))


def item_links(model: LinearC2F) -> tuple[Tensor, Tensor]:
    """The links of items to coarse anchors ``[2, num_links]``, sorted, and weights."""
    pairs, weight = assignment_to_edges(model.coarse.assignment)
    return coalesce(pairs.cpu(), weight.cpu())


def fit_table(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    r"""Codes of numbers, and the table that decodes them.

    If there are at most ``2**bits`` distinct numbers, the table holds them. Otherwise
    numbers in the same cell of a logarithmic grid share their mean; the grid is the
    finest whose occupied cells fit in the table. Its even *relative* errors give better
    lists than the least squared error of a k-means: small weights are those of rare
    items. The numbers of the table are ascending.
    """
    known, code, count = values.float().unique(return_inverse=True, return_counts=True)
    if not known.isfinite().all():
        raise InputError('the model has numbers that are not finite; train it again')
    if len(known) <= 2**bits:
        return code, known
    table, step, size = known, LEAST_STEP, known.abs().double().log2()
    while len(table) > 2**bits:
        step *= 1.1
        # The logarithm of zero is minus infinity, which becomes zero again.
        grid = known.sign() * (size / step).round().mul(step).exp2()
        table, cell = grid.unique(return_inverse=True)
    total, mass = torch.zeros(2, len(table), dtype=torch.double)
    total.index_add_(0, cell, known.double() * count)
    mass.index_add_(0, cell, count.double())
    return cell[code], (total / mass).float()


def _matrix(dense: Tensor, bits: int) -> bytes:
    place = dense.flatten().nonzero().flatten()
    return _entries(place, dense.flatten()[place], bits)


def _entries(place: Tensor, value: Tensor, bits: int) -> bytes:
    low, high, width = pack_sorted(place)
    head = struct.pack('<II', len(place), int(width)) + _bytes(low)
    places = head + struct.pack('<I', len(high)) + _bytes(high)
    if not len(value):  # A table has at least one value.
        return places + _table(value.long(), torch.zeros(1))
    return places + _table(*fit_table(value, bits))


def _table(code: Tensor, *columns: Tensor) -> bytes:
    size = len(columns[0])
    values = b''.join(_bytes(x.float()) for x in columns)
    return struct.pack('<I', size) + values + _bytes(pack_bits(code, num_bits(size)))


def _bytes(x: Tensor) -> bytes:
    array = x.cpu().numpy()
    return array.astype(array.dtype.newbyteorder('<')).tobytes()
