r"""Checkpoints: safetensors with what inference needs, and JSON; nothing pickled."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch_geometric.utils import cumsum

from pyg_c2f.nn import C2F
from pyg_c2f.typing import Assignment, InputError

FORMAT = 'pyg_c2f 1'
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
# What of the stored tensors belongs to which entry of SPEC section 6.
KINDS = {
    'codebooks': ('coarse.codebook', 'fine.rowptr', 'fine.col', 'fine.value'),
    'assignments': ('coarse.index', 'coarse.weight', 'fine.index', 'fine.weight'),
    'scalars': ('bias', 'global_bias'),
    'inference_extra': ('graph.rowptr', 'graph.col'),
}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to that becomes ``path`` in one step, or nothing.

    An older file stays until the new one is whole; a failure leaves no trace.
    """
    part = path.with_name(path.name + '.part')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one go."""
    with whole_file(path) as part:
        part.write_text(text, encoding='utf-8')


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one go."""
    write_text(path, json.dumps(content, indent=2) + '\n')


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
    """Writes a safetensors file in one go."""
    with whole_file(path) as part:
        # Not by the library's own writer, whose files only their owner can read.
        on_cpu = {key: value.cpu().contiguous() for key, value in tensors.items()}
        part.write_bytes(to_bytes(on_cpu, meta))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file of ours.

    Raises:
        InputError: If the file is missing, cut short, or not ours.
    """
    if not path.is_file():
        raise InputError(
            f'{path}: no such checkpoint; name a directory that training wrote to'
        )
    try:
        with safe_open(path, 'pt') as file:
            meta = file.metadata() or {}
            if meta.get('format') != FORMAT:
                raise InputError(
                    f'{path}: not a checkpoint of pyg_c2f (format '
                    f'{meta.get("format")!r}, expected {FORMAT!r}); name another '
                    f'directory'
                )
            return {key: file.get_tensor(key) for key in file.keys()}, meta
    except (SafetensorError, OSError) as error:
        raise InputError(
            f'{path}: damaged or no safetensors file ({error}); train again, or name '
            f'another directory'
        ) from None


def _small_int(index: Tensor, num: int) -> Tensor:
    fits = (t for t in (torch.uint8, torch.int16) if num - 1 <= torch.iinfo(t).max)
    return index.to(next(fits, torch.int32))


def model_tensors(model: C2F) -> dict[str, Tensor]:
    """The tensors that stand for a model: what is stored, and what its bytes are.

    Assignments have the smallest integers that number the anchors; the fine codebook
    keeps only the entries that the soft threshold lets through (as CSR); the train
    graph is one CSR of users with 32-bit items. A coarse model has no fine parts.
    """
    edges = model.edge_index.cpu()
    edges = edges[:, (edges[0] * model.num_items + edges[1]).argsort()]
    degree = torch.bincount(edges[0], minlength=model.num_users)
    tensors = {
        'coarse.codebook': model.coarse.codebook.detach(),
        'coarse.index': _small_int(model.coarse.index, model.num_coarse),
        'coarse.weight': model.coarse.assignment_weight,
        'bias': model.bias.detach(),
        'global_bias': model.global_bias.detach(),
        'graph.rowptr': cumsum(degree).int(),
        'graph.col': edges[1].int(),
    }
    if model.stage == 'fine':
        codebook = model.fine.codebook.detach().cpu()
        alive = model.soft_threshold(codebook) != 0
        row, col = alive.nonzero(as_tuple=True)
        count = torch.bincount(row, minlength=model.num_fine)
        tensors |= {
            'fine.rowptr': cumsum(count).int(),
            'fine.col': _small_int(col, model.embedding_dim),
            'fine.value': codebook[row, col],
            'fine.index': _small_int(model.fine.index, model.num_fine),
            'fine.weight': model.fine.assignment_weight,
        }
    return tensors


def model_bytes(model: C2F) -> dict[str, int]:
    """The bytes of SPEC section 6, of the tensors as they are stored.

    Returns:
        Dict: ``codebooks`` (the fine one sparse), ``codebooks_dense`` (both fp32),
        ``assignments``, ``scalars``, ``inference_extra`` (the train graph),
        ``propagated_table`` (fp32; it would replace graph, codebooks and assignments)
        and ``full_table`` (an uncompressed table of the same width, fp32).
    """
    tensors = model_tensors(model)
    sizes = {
        kind: sum(tensors[k].nbytes for k in keys if k in tensors)
        for kind, keys in KINDS.items()
    }
    num_anchors = model.num_coarse + (model.num_fine if model.stage == 'fine' else 0)
    num_entities = model.num_users + model.num_items
    table = 4 * num_entities * model.embedding_dim
    return {
        'codebooks': sizes['codebooks'],
        'codebooks_dense': 4 * num_anchors * model.embedding_dim,
        'assignments': sizes['assignments'],
        'scalars': sizes['scalars'],
        'inference_extra': sizes['inference_extra'],
        'propagated_table': table,
        'full_table': table,
    }


def save(model: C2F, path: str | Path) -> None:
    """Saves a model for inference (and for the next stage) to a safetensors file.

    Args:
        model (C2F): The model.
        path (str or Path): The file, or a directory that gets a ``model.safetensors``.
    """
    path = Path(path)
    path = path / 'model.safetensors' if path.is_dir() else path
    meta = {key: json.dumps(getattr(model, key)) for key in SIZES}
    meta |= {'format': FORMAT, 'stage': model.stage}
    write_tensors(path, model_tensors(model), meta)


def load(path: str | Path) -> C2F:
    """Loads a model that training or :func:`save` has written.

    Args:
        path (str or Path): The file, or the directory with a ``model.safetensors``.

    Raises:
        InputError: If there is no such file, or it is damaged or not ours.
    """
    path = Path(path)
    path = path / 'model.safetensors' if path.is_dir() else path
    tensors, meta = read_tensors(path)
    try:
        sizes = {key: json.loads(meta[key]) for key in SIZES}
        count = tensors['graph.rowptr'].diff().long()
        users = torch.repeat_interleave(count)
        edge_index = torch.stack([users, tensors['graph.col'].long()])
        model = C2F(edge_index, **sizes)
        model.set_stage('fine' if meta['stage'] == 'fine' else 'coarse')
        with torch.no_grad():
            model.coarse.codebook.copy_(tensors['coarse.codebook'])
            model.bias.copy_(tensors['bias'])
            model.global_bias.copy_(tensors['global_bias'])
        model.set_assignment(
            Assignment(tensors['coarse.index'].long(), tensors['coarse.weight'])
        )
        if model.stage == 'fine':
            fine = torch.zeros(model.num_fine, model.embedding_dim)
            row = torch.repeat_interleave(tensors['fine.rowptr'].diff().long())
            fine[row, tensors['fine.col'].long()] = tensors['fine.value']
            with torch.no_grad():
                model.fine.codebook.copy_(fine)
            model.set_assignment(
                fine=Assignment(tensors['fine.index'].long(), tensors['fine.weight'])
            )
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(
            f'{path}: the checkpoint does not fit together ({error}); train again'
        ) from None
    return model.eval()
