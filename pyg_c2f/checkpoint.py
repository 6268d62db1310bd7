r"""Checkpoints: safetensors with what inference needs, and JSON; nothing pickled."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes
from torch import Tensor

from pyg_c2f.nn import C2F, LinearC2F
from pyg_c2f.packing import (
    WEIGHT_BITS,
    num_bits,
    pack_bits,
    round_weights,
    unpack_bits,
    weights_of,
)
from pyg_c2f.sparse import degree, pair_keys, rowptr_of
from pyg_c2f.typing import Assignment, InputError, Stage, Stored

Model = C2F | LinearC2F

FORMAT = 'pyg_c2f 2'
# What a damaged or hostile file raises on the way to a model.
UNFIT = (KeyError, TypeError, ValueError, RuntimeError, IndexError, RecursionError)
# So many entries has a table at the most, or so many times those of the whole file: no
# small file takes all memory.
MAX_ENTRIES, MAX_TIMES = 1 << 28, 64
MAX_LAYERS = 1000
SIZES = (
    'num_users',
    'num_items',
    'num_coarse',
    'num_fine',
    'embedding_dim',
    'num_layers',
    'anchors_per_entity',
    'fine_per_coarse',
    'gate',
    'threshold',
)
LINEAR_SIZES = (
    'num_users',
    'num_items',
    'num_coarse',
    'num_fine',
    'embedding_dim',
    'coarse_links',
    'fine_links',
    'threshold',
    'item_power',
    'diffusion',
    'user_norm',
    'item_norm',
    'dtype',
)
# Which of these are texts, and which real numbers; the others are whole ones.
NAMES = {'dtype': get_args(Stored)}
REAL = ('gate', 'threshold', 'item_power', 'diffusion', 'user_norm', 'item_norm')
# What of the stored tensors belongs to which entry of SPEC section 6.
KINDS = {
    'codebooks': ('coarse.codebook', 'fine.rowptr', 'fine.col', 'fine.value'),
    'assignments': (
        'coarse.count',
        'coarse.index',
        'coarse.weight',
        'fine.index',
        'fine.weight',
    ),
    'scalars': ('bias', 'global_bias', 'degree'),
    'inference_extra': ('graph.rowptr', 'graph.col'),
}
# The texts that lie beside them, and the attributes of a model that hold them.
TEXTS = {
    'ids.users': 'user_ids',
    'ids.items': 'item_ids',
    'ids.titles': 'item_titles',
}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to that becomes ``path`` in one step, or nothing.

    What is written is on the disk before it takes the name, and an older file stays
    until then; a failure leaves no trace.

    Raises:
        OSError: If there is no such folder, a folder of that name, or it cannot be
            written: the disk is full, say, or the folder has vanished.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f'{path}: there is no folder {path.parent}; make it')
    if path.is_dir():
        raise IsADirectoryError(f'{path}: is a folder; name a file in it')
    part = path.with_name(path.name + '.part')
    try:
        yield part
        _sync(part, os.O_RDWR)
        os.replace(part, path)
        with suppress(OSError):  # Not every system lets folders be opened and synced.
            _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        raise OSError(
            f'{path}: cannot be written ({error.strerror or error}); what was there '
            'before is untouched: make room, or name another place'
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one go."""
    with whole_file(path) as part:
        part.write_text(text, encoding='utf-8')


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one go."""
    write_text(path, json.dumps(content, indent=2) + '\n')


def checksum(tensors: dict[str, Tensor], meta: dict[str, str]) -> str:
    """The SHA-256 of names, types, shapes, bytes, and what stands beside them."""
    digest = hashlib.sha256(json.dumps(sorted(meta.items())).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f'{key} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
    """Writes a safetensors file in one go, with format and checksum."""
    on_cpu = {key: _for_numpy(value.cpu()) for key, value in tensors.items()}
    meta = {'format': FORMAT} | meta
    meta['sha256'] = checksum(on_cpu, meta)
    with whole_file(path) as part:
        # Not by the library's own writer, whose files only their owner can read; nor by
        # that for tensors, which keeps a type for each number of bytes forever.
        content = to_bytes({key: x.numpy() for key, x in on_cpu.items()}, meta)
        part.write_bytes(_with_sorted_header(content))


def _for_numpy(tensor: Tensor) -> Tensor:
    """The tensor in one piece, and in single precision where NumPy has no such type."""
    tensor = tensor.contiguous()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file, but one run gives the bytes of another.

    The library writes what stands beside the tensors in random order.
    """
    start = 8 + int.from_bytes(content[:8], 'little')
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    header += b' ' * (-len(header) % 8)  # Tensors stay aligned.
    return len(header).to_bytes(8, 'little') + header + content[start:]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file of ours.

    Raises:
        InputError: If the file is missing, cut short, changed, or not ours.
    """
    if not path.is_file():
        raise InputError(
            f'{path}: no such checkpoint; name a directory that training wrote to'
        )
    try:
        with safe_open(path, 'pt') as file:
            meta = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f'{path}: damaged or no safetensors file ({error}); train again, or name '
            f'another directory'
        ) from None
    if meta.get('format') != FORMAT:
        raise InputError(
            f'{path}: not a checkpoint of this version of pyg_c2f (format '
            f'{meta.get("format")!r}, expected {FORMAT!r}); train again, or name '
            'another directory'
        )
    if meta.pop('sha256', '') != checksum(tensors, meta):
        raise InputError(
            f'{path}: damaged (its content has another checksum); train again, or '
            'name another directory'
        )
    return tensors, meta


def small_int_below(index: Tensor, num: int) -> Tensor:
    """Whole numbers from 0 up, all below ``num``, in the smallest type for these."""
    fits = (t for t in (torch.uint8, torch.int16) if num - 1 <= torch.iinfo(t).max)
    return index.to(next(fits, torch.int32))


def phase_file(out: Path, stage: Stage, phase: int) -> Path:
    """The file with the best model of a phase."""
    return out / f'{stage}-{phase}.safetensors'


def model_file(path: str | Path) -> Path:
    """The file of a model: the path itself, or the one in the directory."""
    path = Path(path)
    return path / 'model.safetensors' if path.is_dir() else path


def model_tensors(model: Model) -> dict[str, Tensor]:
    """The tensors that stand for a model: what is stored, and what its bytes are.

    Assignments have the smallest integers that number the anchors; the fine codebook
    keeps only the entries that the soft threshold lets through (as CSR); the train
    graph is one CSR of users with 32-bit items. A coarse model has no fine parts.
    Of a linear model see :func:`_linear_tensors`.
    """
    if isinstance(model, LinearC2F):
        return _linear_tensors(model)
    return _c2f_tensors(model)


def _graph_tensors(model: Model) -> dict[str, Tensor]:
    edges = model.edge_index.cpu()
    edges = edges[:, pair_keys(edges, model.num_items).argsort()]
    rowptr = rowptr_of(edges[0], model.num_users)
    return {'graph.rowptr': rowptr.int(), 'graph.col': edges[1].int()}


def _fine_tensors(model: Model) -> dict[str, Tensor]:
    """The fine codebook's entries that the soft threshold lets through, as CSR."""
    codebook = model.fine.codebook.detach().cpu()
    alive = model.soft_threshold(codebook) != 0
    row, col = alive.nonzero(as_tuple=True)
    return {
        'fine.rowptr': rowptr_of(row, model.num_fine).int(),
        'fine.col': small_int_below(col, model.embedding_dim),
        'fine.value': codebook[row, col],
    }


def is_axes(codebook: Tensor) -> bool:
    """Whether anchors are the columns themselves, so that no codebook is needed."""
    size = codebook.size(0)
    return codebook.shape == (size, size) and bool(
        (codebook == torch.eye(size, device=codebook.device)).all()
    )


def are_codes(assignment: Assignment, num_anchors: int) -> bool:
    """Whether every row has one anchor of each level, in order, with weight one."""
    index, weight = assignment
    num_levels = index.size(1)
    level = index.div(num_anchors // num_levels, rounding_mode='floor')
    in_order = level == torch.arange(num_levels, device=index.device)
    return bool((weight == 1).all() and in_order.all())


def _pack(model: LinearC2F, index: Tensor, num: int) -> Tensor:
    if model.dtype == 'packed':
        return pack_bits(index, num_bits(num))
    return small_int_below(index, num)


def _unpack(model: LinearC2F, index: Tensor, num: int, num_values: int) -> Tensor:
    if model.dtype == 'packed':
        return unpack_bits(index, num_bits(num), num_values)
    return index.long()


def _levels(model: LinearC2F, local: Tensor, num: int, num_links: int) -> Assignment:
    """The assignment of codes, one anchor of each level with weight one."""
    per_level = num // num_links
    rows = len(model.coarse.index)
    index = _unpack(model, local, per_level, rows * num_links).view(rows, num_links)
    index = index + per_level * torch.arange(num_links)
    return Assignment(index, torch.ones(index.shape))


def _linear_tensors(model: LinearC2F) -> dict[str, Tensor]:
    """The tensors of a linear model, in the stored form that its ``dtype`` names.

    Links of weight zero are left out, and the number of links of a row kept instead.
    ``'packed'`` keeps indices in as few bits as number the anchors, and the weights of
    coarse links as 6-bit codes (:func:`~pyg_c2f.packing.round_weights`). Fine anchors,
    one of each level with weight one, are stored by their number in the level. Axes as
    coarse anchors are no codebook. The scale of an item's scores comes from its degree.
    """
    model.check_pairs()
    wide = torch.float32 if model.dtype == 'float32' else torch.float16
    links = model.coarse.assignment_weight.cpu()
    alive = links != 0
    index, weight = model.coarse.index.cpu()[alive], links[alive]
    tensors = _graph_tensors(model)
    tensors['coarse.index'] = _pack(model, index, model.num_coarse)
    tensors['coarse.count'] = small_int_below(alive.sum(dim=1), model.coarse_links + 1)
    if model.dtype == 'packed':
        codes, _ = round_weights(links, WEIGHT_BITS)
        tensors['coarse.weight'] = pack_bits(codes, WEIGHT_BITS)
    else:
        tensors['coarse.weight'] = weight
    deg = degree(model.edge_index[1].cpu(), model.num_items)
    tensors['degree'] = small_int_below(deg, int(deg.max()) + 1)
    if not is_axes(model.coarse.codebook.detach()):
        tensors['coarse.codebook'] = model.coarse.codebook.detach().to(wide)
    if model.bias.any():
        tensors['bias'] = model.bias.detach().to(wide)
    if model.stage == 'fine':
        if not are_codes(model.fine.assignment, model.num_fine):
            raise InputError(
                'a checkpoint of LinearC2F has one fine anchor of each level for each '
                'item, with weight one; this model has others: set the codes of '
                'pyg_c2f.codes.residual_codes'
            )
        per_level = model.num_fine // model.fine_links
        local = model.fine.index.cpu() % per_level
        fine = _fine_tensors(model)
        fine['fine.value'] = fine['fine.value'].to(wide)
        index = _pack(model, local.flatten(), per_level)
        tensors |= fine | {'fine.index': index}
    return tensors


def _c2f_tensors(model: C2F) -> dict[str, Tensor]:
    tensors = {
        'coarse.codebook': model.coarse.codebook.detach(),
        'coarse.index': small_int_below(model.coarse.index, model.num_coarse),
        'coarse.weight': model.coarse.assignment_weight,
        'bias': model.bias.detach(),
        'global_bias': model.global_bias.detach(),
    } | _graph_tensors(model)
    if model.stage == 'fine':
        tensors |= _fine_tensors(model) | {
            'fine.index': small_int_below(model.fine.index, model.num_fine),
            'fine.weight': model.fine.assignment_weight,
        }
    return tensors


def model_meta(model: Model) -> dict[str, str]:
    """What :func:`restore_model` has to know beside the tensors of a model."""
    names = LINEAR_SIZES if isinstance(model, LinearC2F) else SIZES
    meta = {key: json.dumps(getattr(model, key)) for key in names}
    meta['stage'] = model.stage
    if isinstance(model, LinearC2F):
        _, grid = round_weights(model.coarse.assignment_weight, WEIGHT_BITS)
        meta |= {'model': 'linear', 'weight_grid': json.dumps(grid)}
    return meta


def restore_model(tensors: dict[str, Tensor], meta: dict[str, str]) -> Model:
    """The model of :func:`model_tensors` and :func:`model_meta`.

    Raises:
        KeyError or TypeError or ValueError or RuntimeError or IndexError or
            RecursionError: If they do not fit together.
    """
    if meta.get('model') == 'linear':
        return _load_linear(tensors, meta)
    return _load_c2f(tensors, meta)


def model_bytes(model: Model) -> dict[str, int]:
    """The bytes of SPEC section 6, of the tensors as they are stored.

    Returns:
        Dict: ``codebooks`` (the fine one sparse), ``codebooks_dense`` (both fp32),
        ``assignments``, ``scalars``, ``inference_extra`` (the train graph, where
        propagation needs it), ``histories`` (the train graph where it only says what
        each known user has, which comes with the request on a device),
        ``propagated_table`` (fp32; it would replace graph, codebooks and assignments)
        and ``full_table`` (an uncompressed table of the same width, fp32).
    """
    tensors = model_tensors(model)
    sizes = {
        kind: sum(tensors[k].nbytes for k in keys if k in tensors)
        for kind, keys in KINDS.items()
    }
    histories = 0
    if isinstance(model, LinearC2F) and not model.needs_graph():
        histories, sizes['inference_extra'] = sizes['inference_extra'], 0
    num_anchors = model.num_coarse + (model.num_fine if model.stage == 'fine' else 0)
    num_entities = model.num_users + model.num_items
    table = 4 * num_entities * model.embedding_dim
    return {
        'codebooks': sizes['codebooks'],
        'codebooks_dense': 4 * num_anchors * model.embedding_dim,
        'assignments': sizes['assignments'],
        'scalars': sizes['scalars'],
        'inference_extra': sizes['inference_extra'],
        'histories': histories,
        'propagated_table': table,
        'full_table': table,
    }


def text_tensors(model: Model) -> dict[str, Tensor]:
    """The original ids and titles of a model, as bytes of UTF-8 with NUL between them.

    They are no part of what a model is: sizes do not count them.
    """
    tensors = {}
    for key, name in TEXTS.items():
        texts = getattr(model, name)
        if texts is not None:
            content = np.frombuffer('\0'.join(texts).encode(), dtype=np.uint8)
            tensors[key] = torch.from_numpy(content.copy())
    return tensors


def restore_texts(model: Model, tensors: dict[str, Tensor]) -> None:
    """Gives a model the texts of :func:`text_tensors`, those that are there.

    Raises:
        ValueError: If they are no UTF-8, or do not fit the model.
    """
    texts = {
        key: tensors[key].numpy().tobytes().decode().split('\0')
        for key in TEXTS
        if key in tensors
    }
    model.set_ids(*(texts.get(key) for key in TEXTS))


def save(model: Model, path: str | Path) -> None:
    """Saves a model for inference (and for the next stage) to a safetensors file.

    Original ids and titles go with it.

    Args:
        model (C2F or LinearC2F): The model.
        path (str or Path): The file, or a directory that gets a ``model.safetensors``.
    """
    tensors = model_tensors(model) | text_tensors(model)
    write_tensors(model_file(path), tensors, model_meta(model))


def load(path: str | Path) -> Model:
    """Loads a model that training or :func:`save` has written.

    Args:
        path (str or Path): The file, or the directory with a ``model.safetensors``.

    Raises:
        InputError: If there is no such file, or it is damaged or not ours.
    """
    path = model_file(path)
    tensors, meta = read_tensors(path)
    try:
        model = restore_model(tensors, meta)
        restore_texts(model, tensors)
    except UNFIT as error:
        raise InputError(
            f'{path}: the checkpoint does not fit together ({error}); train again'
        ) from None
    return model.eval()


def _sizes(
    tensors: dict[str, Tensor], meta: dict[str, str], names: tuple[str, ...]
) -> dict[str, Any]:
    """The settings of a model, checked before anything of these sizes is made."""
    sizes = {key: json.loads(meta[key]) for key in names}
    for key, value in sizes.items():
        if key in NAMES:
            fits = value in NAMES[key]
        elif key in REAL:
            fits = type(value) in (int, float) and math.isfinite(value)
        else:
            fits = type(value) is int and 0 <= value < 2**31
        if not fits:
            raise ValueError(f'{key} is {value!r}')
    num_users, num_items = sizes['num_users'], sizes['num_items']
    is_linear = 'coarse_links' in sizes
    ids = len(tensors['degree']) + num_users if is_linear else len(tensors['bias'])
    if (num_users + 1, num_users + num_items) != (len(tensors['graph.rowptr']), ids):
        raise ValueError(f'the tensors are not of {num_users} users, {num_items} items')
    if is_linear:
        links = num_items * max(sizes['coarse_links'], sizes['fine_links'])
    else:
        links = max(
            (num_users + num_items) * sizes['anchors_per_entity'],
            sizes['num_coarse'] * sizes['fine_per_coarse'],
        )
    anchors = max(sizes['num_coarse'], sizes['num_fine'])
    limit = max(MAX_ENTRIES, MAX_TIMES * sum(x.numel() for x in tensors.values()))
    if max(links, anchors * sizes['embedding_dim']) > limit:
        raise ValueError(f'a table has more than {limit:,} entries')
    if meta['stage'] not in get_args(Stage):
        raise ValueError(f'stage is {meta["stage"]!r}')
    if sizes.get('num_layers', 0) > MAX_LAYERS:
        raise ValueError(f'there are more than {MAX_LAYERS} layers')
    return sizes


def _row(rowptr: Tensor, col: Tensor) -> Tensor:
    """The row of each entry of a CSR matrix."""
    count = rowptr.long().diff()
    if rowptr[0] != 0 or rowptr[-1] != len(col) or (count < 0).any():
        raise ValueError('the rows of a sparse matrix are not in order')
    return torch.repeat_interleave(count)


def _edges(tensors: dict[str, Tensor]) -> Tensor:
    rowptr, col = tensors['graph.rowptr'], tensors['graph.col']
    return torch.stack([_row(rowptr, col), col.long()])


def _fine_codebook(tensors: dict[str, Tensor], model: Model) -> Tensor:
    fine = torch.zeros(model.num_fine, model.embedding_dim)
    col = tensors['fine.col'].long()
    if (col < 0).any():  # It would count from the end.
        raise ValueError('a column of the fine codebook is below zero')
    fine[_row(tensors['fine.rowptr'], col), col] = tensors['fine.value'].float()
    return fine


def _load_linear(tensors: dict[str, Tensor], meta: dict[str, str]) -> LinearC2F:
    model = LinearC2F.blank(_edges(tensors), **_sizes(tensors, meta, LINEAR_SIZES))
    model.set_stage(cast(Stage, meta['stage']))
    index = tensors['coarse.index']
    count, weight = tensors['coarse.count'].long(), tensors['coarse.weight']
    num_links = int(count.sum())
    if model.dtype == 'packed':
        low, high = json.loads(meta['weight_grid'])
        codes = unpack_bits(weight, WEIGHT_BITS, num_links)
        weight = weights_of(codes, WEIGHT_BITS, (low, high))
    place = torch.arange(model.coarse_links) < count.unsqueeze(1)
    links = Assignment(
        torch.zeros(place.shape, dtype=torch.long), torch.zeros(place.shape)
    )
    links.index[place] = _unpack(model, index, model.num_coarse, num_links)
    links.weight[place] = weight.float()
    model.set_assignment(links)
    with torch.no_grad():
        axes = torch.eye(model.num_coarse, model.embedding_dim)
        model.coarse.codebook.copy_(tensors.get('coarse.codebook', axes))
        if 'bias' in tensors:
            model.bias.copy_(tensors['bias'])
        if model.stage == 'fine':
            model.fine.codebook.copy_(_fine_codebook(tensors, model))
    if model.stage == 'fine':
        model.set_assignment(
            fine=_levels(model, tensors['fine.index'], model.num_fine, model.fine_links)
        )
    return model


def _load_c2f(tensors: dict[str, Tensor], meta: dict[str, str]) -> C2F:
    model = C2F(_edges(tensors), **_sizes(tensors, meta, SIZES))
    model.set_stage(cast(Stage, meta['stage']))
    with torch.no_grad():
        model.coarse.codebook.copy_(tensors['coarse.codebook'])
        model.bias.copy_(tensors['bias'])
        model.global_bias.copy_(tensors['global_bias'])
    model.set_assignment(
        Assignment(tensors['coarse.index'].long(), tensors['coarse.weight'])
    )
    if model.stage == 'fine':
        with torch.no_grad():
            model.fine.codebook.copy_(_fine_codebook(tensors, model))
        model.set_assignment(
            fine=Assignment(tensors['fine.index'].long(), tensors['fine.weight'])
        )
    return model
