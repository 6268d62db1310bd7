"""Checkpoints: safetensors with what inference needs, and JSON; nothing pickled."""

import hashlib
import json
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes
from torch import Tensor

from pyg_c2f.files import whole_file
from pyg_c2f.nn.recommender import Recommender
from pyg_c2f.typing import InputError, Stage
from pyg_c2f.vocabulary import NamedModel, Vocabulary

FORMAT = 'pyg_c2f 3'
# The errors that a malformed file can raise on the way to a model.
UNFIT = (KeyError, TypeError, ValueError, RuntimeError, IndexError, RecursionError)
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
    'inference_extra': ('graph.low', 'graph.high', 'graph.width'),
}
# The texts that are stored beside them, and the attributes of a vocabulary.
TEXTS = {
    'ids.users': 'user_ids',
    'ids.items': 'item_ids',
    'ids.titles': 'item_titles',
}


def checksum(tensors: dict[str, Tensor], meta: dict[str, str]) -> str:
    """The SHA-256 of names, types, shapes, bytes, and metadata."""
    digest = hashlib.sha256(json.dumps(sorted(meta.items())).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f'{key} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
    """Writes a safetensors file in one go, with format and checksum."""
    content = file_content(tensors, meta)
    with whole_file(path) as part:
        part.write_bytes(content)


def file_content(tensors: dict[str, Tensor], meta: dict[str, str]) -> bytes:
    """The bytes of the file that :func:`write_tensors` writes."""
    on_cpu = {key: _for_numpy(value.cpu()) for key, value in tensors.items()}
    meta = {'format': FORMAT} | meta
    meta['sha256'] = checksum(on_cpu, meta)
    # Not by the library's own writer, whose files only their owner can read; nor by
    # that for tensors, which keeps a type for each number of bytes forever.
    content = to_bytes({key: x.numpy() for key, x in on_cpu.items()}, meta)
    return _with_sorted_header(content)


def _for_numpy(tensor: Tensor) -> Tensor:
    """The contiguous tensor, in single precision where NumPy lacks its type."""
    tensor = tensor.contiguous()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file, but one run gives the bytes of another.

    The library writes the metadata in random order.
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


def phase_file(out: Path, stage: Stage, phase: int) -> Path:
    """The file with the best model of a phase."""
    return out / f'{stage}-{phase}.safetensors'


def model_file(path: str | Path) -> Path:
    """The file of a model: the path itself, or the one in the directory."""
    path = Path(path)
    return path / 'model.safetensors' if path.is_dir() else path


def model_meta(model: Recommender | NamedModel) -> dict[str, str]:
    """What :func:`restore_model` has to know beside the tensors of a model."""
    content = model.settings() | {'stage': model.stage, 'model': model.kind}
    return {key: json.dumps(value) for key, value in content.items()}


def restore_model(tensors: dict[str, Tensor], meta: dict[str, str]) -> Recommender:
    """The model of its ``to_tensors`` and :func:`model_meta`.

    Raises:
        KeyError or TypeError or ValueError or RuntimeError or IndexError or
            RecursionError: If they do not fit together.
    """
    settings = {
        key: json.loads(value) for key, value in meta.items() if key != 'format'
    }
    stage, kind = settings.pop('stage'), settings.pop('model')
    if stage not in get_args(Stage):
        raise ValueError(f'stage is {stage!r}')
    if kind not in Recommender.kinds:
        raise ValueError(f'no model {kind!r} is known; import the module that has it')
    return Recommender.kinds[kind].from_tensors(tensors, settings, stage)


def model_bytes(model: Recommender | NamedModel) -> dict[str, int]:
    """The bytes of SPEC section 6, of the tensors as they are stored.

    Returns:
        Dict: ``codebooks`` (the fine one sparse), ``codebooks_dense`` (both fp32),
        ``assignments``, ``scalars``, ``inference_extra`` (the train graph, where
        propagation needs it), ``histories`` (the train graph where it only says what
        each known user has, which comes with the request on a device),
        ``propagated_table`` (fp32; it would replace graph, codebooks and assignments)
        and ``full_table`` (an uncompressed table of the same width, fp32).
    """
    tensors = model.to_tensors()
    sizes = {
        kind: sum(tensors[k].nbytes for k in keys if k in tensors)
        for kind, keys in KINDS.items()
    }
    sizes['histories'] = 0
    if not model.needs_graph():
        sizes['histories'], sizes['inference_extra'] = sizes['inference_extra'], 0
    num_anchors = model.num_coarse + (model.num_fine if model.stage == 'fine' else 0)
    num_entities = model.num_users + model.num_items
    table = 4 * num_entities * model.embedding_dim
    return {
        'codebooks': sizes.pop('codebooks'),
        'codebooks_dense': 4 * num_anchors * model.embedding_dim,
        **sizes,
        'propagated_table': table,
        'full_table': table,
    }


def text_tensors(vocabulary: Vocabulary) -> dict[str, Tensor]:
    """The original ids and titles, as bytes of UTF-8 with NUL between them.

    Sizes of models do not count them.
    """
    tensors = {}
    for key, name in TEXTS.items():
        texts = getattr(vocabulary, name)
        if texts is not None:
            content = np.frombuffer('\0'.join(texts).encode(), dtype=np.uint8)
            tensors[key] = torch.from_numpy(content.copy())
    return tensors


def restore_texts(
    tensors: dict[str, Tensor], num_users: int, num_items: int
) -> Vocabulary:
    """The vocabulary of :func:`text_tensors`, with what is there of it.

    Raises:
        ValueError: If it is not UTF-8, or does not fit the numbers.
    """
    texts = {
        name: tensors[key].numpy().tobytes().decode().split('\0')
        for key, name in TEXTS.items()
        if key in tensors
    }
    return Vocabulary(num_users, num_items, **texts)


def save(model: Recommender | NamedModel, path: str | Path) -> None:
    """Saves a model for inference (and for the next stage) to a safetensors file.

    Original ids and titles go with it.

    Args:
        model (NamedModel or Recommender): The model.
        path (str or Path): The file, or a directory that gets a ``model.safetensors``.
    """
    tensors, vocabulary = model.to_tensors(), getattr(model, 'vocabulary', None)
    if vocabulary is not None:
        tensors |= text_tensors(vocabulary)
    write_tensors(model_file(path), tensors, model_meta(model))


def load(path: str | Path) -> NamedModel:
    """Loads a model that training or :func:`save` has written.

    Args:
        path (str or Path): The file, or the directory with a ``model.safetensors``.

    Raises:
        InputError: If there is no such file, or it is damaged or not of a model.
    """
    path = model_file(path)
    tensors, meta = read_tensors(path)
    try:
        model = restore_model(tensors, meta)
        vocabulary = restore_texts(tensors, model.num_users, model.num_items)
    except UNFIT as error:
        raise InputError(
            f'{path}: the checkpoint does not fit together ({error}); train again'
        ) from None
    return NamedModel(model, vocabulary).eval()
