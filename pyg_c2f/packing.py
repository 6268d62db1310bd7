"""Whole numbers in few bits, and weights on a grid: what model files share."""

from math import ceil, log2

import torch
from torch import Tensor

WEIGHT_BITS = 6
# Numbers packed at a time: each takes eight bytes a bit on the way. A multiple of 8, so
# that a block ends with a byte.
BLOCK = 1 << 18


def round_weights(weight: Tensor, num_bits: int) -> tuple[Tensor, tuple[float, float]]:
    r"""Codes of weights on a logarithmic grid: a sign, and the other bits for the size.

    The grid runs from the least to the largest size of a link; the relative error is
    that of half a step, whatever the size.

    Returns:
        Tuple: The codes of the links ``[num_links]`` in row order, int64, and the ends
        of the grid. :func:`weights_of` turns them into weights again.
    """
    links = weight[weight != 0]
    if links.numel() == 0:
        return links.long(), (1.0, 1.0)
    size = links.abs().double().log()
    low, high = float(size.min()), float(size.max())
    steps = 2 ** (num_bits - 1) - 1
    code = ((size - low) / max(high - low, 1e-12) * steps).round().long()
    return code * 2 + (links < 0), (low, high)


def weights_of(codes: Tensor, num_bits: int, grid: tuple[float, float]) -> Tensor:
    """The weights that codes of :func:`round_weights` stand for, float32."""
    low, high = grid
    steps = 2 ** (num_bits - 1) - 1
    size = (low + codes.div(2, rounding_mode='floor') / steps * (high - low)).exp()
    return torch.where(codes % 2 == 1, -size, size).float()


def num_bits(num_values: int) -> int:
    """The bits needed for so many values, at least one."""
    return max(ceil(log2(max(num_values, 2))), 1)


def pack_bits(values: Tensor, width: int) -> Tensor:
    """Whole numbers below ``2**width`` one after the other, lowest bit first."""
    place = 1 << torch.arange(8, device=values.device)
    parts = []
    for part in values.split(BLOCK):
        bits = (part.unsqueeze(1) >> torch.arange(width, device=part.device)) & 1
        flat = torch.nn.functional.pad(bits.flatten(), (0, -bits.numel() % 8))
        parts.append((flat.view(-1, 8) * place).sum(dim=1).to(torch.uint8))
    return torch.cat(parts)


def unpack_bits(packed: Tensor, width: int, num_values: int) -> Tensor:
    """The numbers that :func:`pack_bits` packed, int64."""
    place = torch.arange(8, device=packed.device)
    parts = []
    for first in range(0, num_values, BLOCK):
        size = min(BLOCK, num_values - first)
        some = packed[first * width // 8 : ceil((first + size) * width / 8)]
        flat = ((some.long().unsqueeze(1) >> place) & 1).flatten()
        bits = flat[: size * width].view(size, width)
        shift = torch.arange(width, device=packed.device)
        parts.append((bits << shift).sum(dim=1))
    return torch.cat(parts) if parts else packed[:0].long()


def pack_sorted(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Rising whole numbers in little more room than their entropy (Elias-Fano).

    The low bits of each number are packed as they are, the high ones written in unary:
    number :math:`n` with high part :math:`h` sets bit :math:`h + n`. With :math:`N`
    numbers below :math:`M` that takes about :math:`2 + \log_2 (M / N)` bits a number;
    for pairs of users and items as ``user * num_items + item`` no row pointers are
    needed. `"Efficient storage and retrieval by content and address of static files"
    <https://doi.org/10.1145/321812.321820>`_.

    Args:
        values (Tensor): Distinct numbers from 0 up, rising, int64, ``[N]``, on the CPU.

    Returns:
        Tuple: The low bits and the high bits, uint8, and how many bits of a number are
        low, uint8, ``[1]``.
    """
    most = int(values[-1]) + 1 if values.numel() else 1
    width = min(max((most // max(values.numel(), 1)).bit_length() - 1, 0), 31)
    place = torch.arange(values.numel(), device=values.device)
    high = torch.zeros((most >> width) + values.numel() + 1, dtype=torch.long)
    high[(values >> width) + place] = 1
    low = pack_bits(values & ((1 << width) - 1), width) if width else values[:0].byte()
    return low, pack_bits(high, 1), torch.tensor([width], dtype=torch.uint8)


def unpack_sorted(low: Tensor, high: Tensor, width: Tensor) -> Tensor:
    """The numbers that :func:`pack_sorted` packed, int64."""
    bits = unpack_bits(high, 1, 8 * high.numel())
    values = bits.nonzero().flatten()
    values = (values - torch.arange(values.numel())) << int(width)
    return values | unpack_bits(low, int(width), values.numel()) if width else values


def small_int_below(index: Tensor, num: int) -> Tensor:
    """Whole numbers from 0 up, all below ``num``, in the smallest type for these."""
    fits = (t for t in (torch.uint8, torch.int16) if num - 1 <= torch.iinfo(t).max)
    return index.to(next(fits, torch.int32))
