"""Codecs: stored forms of a table."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from methods.base import Tensors, pack_pairs, unpack_pairs
from pyg_c2f.packing import num_bits, pack_bits, unpack_bits
from pyg_c2f.sparse import split_keys
from pyg_c2f.typing import InputError

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
OPQ_ROUNDS = 20
BLOCK = 2**20  # codes packed at a time, in whole bytes; each bit is an int64 then


class Codec(ABC):
    """A stored form of a table ``[num_rows, d]``, fitted after training."""

    @abstractmethod
    def encode(
        self, table: Tensor, generator: torch.Generator | None = None
    ) -> Tensors:
        """The tensors that stand for a table."""

    @abstractmethod
    def decode(self, stored: Tensors) -> Tensor:
        """The table, float32, as far as it was kept."""


@dataclass(frozen=True)
class Plain(Codec):
    """A table as it is, float32."""

    def encode(
        self, table: Tensor, generator: torch.Generator | None = None
    ) -> Tensors:
        return {'table': table.float()}

    def decode(self, stored: Tensors) -> Tensor:
        return stored['table']


@dataclass(frozen=True)
class Half(Codec):
    """A table in float16."""

    def encode(
        self, table: Tensor, generator: torch.Generator | None = None
    ) -> Tensors:
        return {'table': _half(self, _checked(self, table))}

    def decode(self, stored: Tensors) -> Tensor:
        return stored['table'].float()


@dataclass(frozen=True)
class RowWise(Codec):
    r"""A scale and a zero for each row, as PyTorch quantises its embedding bags.

    .. math::
        \hat{x}_{ij} = z_i + s_i \cdot \mathrm{round} \left( \frac{x_{ij} - z_i}{s_i}
        \right), \qquad z_i = \min_j x_{ij}, \quad s_i = \frac{\max_j x_{ij} - z_i}
        {2^b - 1}

    They are stored after the codes of their row: 8 bytes (float32) with 8 bits, 4 bytes
    (float16) with 4 bits.

    Args:
        bits (int, optional): Bits of an entry, 8 or 4. (default: ``8``)

    Raises:
        InputError: If the number of bits is not supported.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        _check_bits(self, self.bits, (8, 4))

    def encode(
        self, table: Tensor, generator: torch.Generator | None = None
    ) -> Tensors:
        table, ops = _checked(self, table), torch.ops.quantized
        if self.bits == 8:
            return {'rows': ops.embedding_bag_byte_prepack(table)}
        # Two codes share a byte; a column said twice leaves the rows' ranges alone.
        pad = table.size(1) % 2
        table = torch.cat([table, table[:, :pad]], dim=1)
        _half(self, table)  # a check: the scale and the zero will be float16
        return {
            'rows': ops.embedding_bag_4bit_prepack(table),
            'pad': torch.tensor([pad], dtype=torch.uint8),
        }

    def decode(self, stored: Tensors) -> Tensor:
        rows, ops = stored['rows'], torch.ops.quantized
        if 'pad' not in stored:
            return ops.embedding_bag_byte_unpack(rows)
        table = ops.embedding_bag_4bit_unpack(rows)
        return table[:, : table.size(1) - int(stored['pad'])].contiguous()


@dataclass(frozen=True)
class ColumnWise(Codec):
    r"""A scale and a zero for each column, float32, whatever the number of rows.

    .. math::
        \hat{x}_{ij} = z_j + s_j \cdot \mathrm{clip} \left( \mathrm{round} \left(
        \frac{x_{ij} - z_j}{s_j} \right), 0, 2^b - 1 \right)

    The codes span a part of the column's range, shrunk towards its mean: of a few
    ratios the one with the least squared error of the column.

    Args:
        bits (int, optional): Bits of an entry, 8, 4 or 2. (default: ``8``)

    Raises:
        InputError: If the number of bits is not supported.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        _check_bits(self, self.bits, (8, 4, 2))

    def encode(
        self, table: Tensor, generator: torch.Generator | None = None
    ) -> Tensors:
        table, steps = _checked(self, table), 2**self.bits - 1
        mean, low = table.mean(dim=0), table.amin(dim=0)
        step = (table.amax(dim=0) - low) / steps
        scale, zero, least = step, low, torch.full_like(low, torch.inf)
        for clip in CLIPS:
            guess = (clip * step).clamp(min=torch.finfo(step.dtype).tiny)
            start = mean + clip * (low - mean)
            decoded = start + guess * _round(table, guess, start, steps)
            error = (decoded - table).square_().sum(dim=0)
            better = error < least
            scale = torch.where(better, guess, scale)
            zero = torch.where(better, start, zero)
            least = torch.where(better, error, least)
        codes = _round(table, scale, zero, steps).flatten()
        return {
            'codes': torch.cat(
                [pack_bits(part.long(), self.bits) for part in codes.split(BLOCK)]
            ),
            'scale': scale,
            'zero': zero,
            'bits': torch.tensor([self.bits], dtype=torch.uint8),
            'num_rows': torch.tensor([len(table)], dtype=torch.int32),
        }

    def decode(self, stored: Tensors) -> Tensor:
        scale, num_rows = stored['scale'], int(stored['num_rows'])
        width = int(stored['bits'])
        parts = [
            unpack_bits(part, width, part.numel() * 8 // width).float()
            for part in stored['codes'].split(BLOCK)
        ]
        codes = torch.cat(parts)[: num_rows * scale.numel()]
        return stored['zero'] + scale * codes.view(num_rows, -1)


@dataclass(frozen=True)
class ProductCodes(Codec):
    r"""The nearest centroid of each block of columns, by faiss.

    .. math::
        \hat{\mathbf{x}}_i = \mathbf{R}^{\top} \left[ \mathbf{c}^{(1)}_{k_{i1}}, \ldots,
        \mathbf{c}^{(M)}_{k_{iM}} \right]

    From `"Product Quantization for Nearest Neighbor Search"
    <https://doi.org/10.1109/TPAMI.2010.57>`_; the rotation :math:`\mathbf{R}` is the
    identity, or learned as in `"Optimized Product Quantization"
    <https://doi.org/10.1109/TPAMI.2013.240>`_. Centroids and rotation are stored as
    float16, and the codes chosen for them as they are stored. Only :meth:`encode`
    needs faiss.

    Args:
        num_blocks (int, optional): The number of blocks :math:`M`; it must divide the
            columns. (default: ``8``)
        bits (int, optional): Bits of a code, 1 to 8. (default: ``8``)
        optimised (bool, optional): Whether to learn a rotation. (default: ``False``)

    Raises:
        InputError: If a setting is out of range.
    """

    num_blocks: int = 8
    bits: int = 8
    optimised: bool = False

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise InputError(
                f'ProductCodes: num_blocks={self.num_blocks}; set at least 1'
            )
        _check_bits(self, self.bits, range(1, 9))

    def encode(
        self, table: Tensor, generator: torch.Generator | None = None
    ) -> Tensors:
        """The tensors that stand for a table.

        Raises:
            ImportError: If faiss is not installed.
            InputError: If the blocks do not divide the columns, or there are fewer
                rows than centroids.
        """
        table = _checked(self, table)
        num_rows, dim = table.shape
        if dim % self.num_blocks:
            raise InputError(
                f'ProductCodes: num_blocks={self.num_blocks} does not divide the '
                f'{dim} columns; set a divisor'
            )
        if num_rows < 2**self.bits:
            raise InputError(
                f'ProductCodes: bits={self.bits} needs {2**self.bits} rows, one a '
                f'centroid, and the table has {num_rows}; set fewer bits'
            )
        faiss = _faiss()
        stored: Tensors = {}
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        if self.optimised:
            opq = faiss.OPQMatrix(dim, self.num_blocks)
            opq.niter, opq.max_train_points = OPQ_ROUNDS, num_rows
            # Held here because faiss keeps a pointer to it only.
            inner = self._quantiser(dim, num_rows, seed)
            opq.pq = inner
            opq.train(table.numpy())
            rotation = torch.from_numpy(faiss.vector_to_array(opq.A)).view(dim, dim)
            stored['rotation'] = rotation.half()
            table = table @ stored['rotation'].float().T
        pq = self._quantiser(dim, num_rows, seed)
        pq.train(table.numpy())
        centroids = torch.from_numpy(faiss.vector_to_array(pq.centroids))
        centroids = _half(self, centroids.view(self.num_blocks, 2**self.bits, -1))
        faiss.copy_array_to_vector(centroids.float().flatten().numpy(), pq.centroids)
        stored['centroids'] = centroids
        stored['codes'] = torch.from_numpy(pq.compute_codes(table.numpy()))
        return stored

    def _quantiser(self, dim: int, num_rows: int, seed: int) -> Any:
        pq = _faiss().ProductQuantizer(dim, self.num_blocks, self.bits)
        pq.cp.seed = seed
        # All rows are trained on, and faiss has no warning about their number.
        pq.cp.min_points_per_centroid, pq.cp.max_points_per_centroid = 1, num_rows
        return pq

    def decode(self, stored: Tensors) -> Tensor:
        codes, centroids = stored['codes'], stored['centroids'].float()
        num_blocks, num_centroids, _ = centroids.shape
        width = num_bits(num_centroids)
        # Each row of codes ends with a whole byte.
        flat = unpack_bits(codes.flatten(), 1, 8 * codes.numel())
        flat = flat.view(len(codes), -1)[:, : num_blocks * width]
        flat = flat.reshape(len(codes), num_blocks, width)
        label = (flat << torch.arange(width)).sum(dim=2)
        table = centroids[torch.arange(num_blocks), label].flatten(start_dim=1)
        return table @ stored['rotation'].float() if 'rotation' in stored else table


@dataclass(frozen=True)
class Pruned(Codec):
    r"""The largest entries of a table, and zeros elsewhere.

    .. math::
        \hat{x}_{ij} = x_{ij} \; [\, |x_{ij}| \geq \tau \,]

    One threshold for the whole table; the places of what is kept are stored too.

    Args:
        keep (float, optional): The kept share of the entries. (default: ``0.2``)

    Raises:
        InputError: If the share is not above 0 and at most 1.
    """

    keep: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(
                f'Pruned: keep={self.keep} is not a share of entries; set it above 0 '
                'and at most 1'
            )

    def encode(
        self, table: Tensor, generator: torch.Generator | None = None
    ) -> Tensors:
        table = _checked(self, table)
        num_kept = max(round(self.keep * table.numel()), 1)
        place = table.flatten().abs().topk(num_kept).indices.sort().values
        num_cols = table.size(1)
        row, col = split_keys(place, num_cols)
        return pack_pairs(row, col, num_cols) | {
            'value': _half(self, table[row, col]),
            'shape': torch.tensor(table.shape, dtype=torch.int32),
        }

    def decode(self, stored: Tensors) -> Tensor:
        num_rows, num_cols = stored['shape'].tolist()
        table = torch.zeros(num_rows, num_cols)
        table[unpack_pairs(stored, num_cols)] = stored['value'].float()
        return table


def _checked(codec: Codec, table: Tensor) -> Tensor:
    name = type(codec).__name__
    if table.dim() != 2 or not table.numel():
        raise InputError(
            f'{name}: a table of shape {list(table.shape)}; give rows and columns, at '
            'least one of each'
        )
    if not table.isfinite().all():
        raise InputError(
            f'{name}: the table has entries that are not finite; train it with a '
            'smaller learning rate'
        )
    return table.detach().float().contiguous()


def _half(codec: Codec, x: Tensor) -> Tensor:
    half = x.half()
    if half.isinf().any():
        raise InputError(
            f'{type(codec).__name__}: entries up to {float(x.abs().max()):.3g} do not '
            f'fit float16; scale the table below {torch.finfo(half.dtype).max:.0f}'
        )
    return half


def _check_bits(codec: Codec, bits: int, choices: tuple[int, ...] | range) -> None:
    if bits not in choices:
        names = ', '.join(map(str, choices))
        raise InputError(f'{type(codec).__name__}: bits={bits}; choose from {names}')


def _round(table: Tensor, scale: Tensor, zero: Tensor, steps: int) -> Tensor:
    return ((table - zero) / scale).round_().clamp_(0, steps)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'ProductCodes needs faiss to encode; pip install pyg-c2f[bench]'
        ) from error
    return faiss
