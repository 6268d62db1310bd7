"""Numbers packed into few bits."""

import math

import pytest
import torch

from pyg_c2f.packing import (
    num_bits,
    pack_bits,
    pack_sorted,
    round_weights,
    unpack_bits,
    unpack_sorted,
    weights_of,
)


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize('bits', [2, 4, 6, 8])
def test_round_weights(bits):
    x = torch.randn(60, 8, generator=generator()) ** 3
    weight = torch.where(x.abs() > 0.5, x, 0)
    codes, grid = round_weights(weight, bits)
    links = weight[weight != 0]
    assert codes.shape == links.shape and codes.dtype == torch.long
    assert 0 <= int(codes.min()) and int(codes.max()) < 2**bits
    rounded = weights_of(codes, bits, grid)
    assert rounded.dtype == torch.float and rounded.sign().equal(links.sign())
    # Half a step of the grid, and the ends stay.
    step = (grid[1] - grid[0]) / (2 ** (bits - 1) - 1)
    ratio = (rounded / links).double().log().abs()
    assert float(ratio.max()) <= step / 2 + 1e-6
    assert float(rounded.abs().max()) == pytest.approx(float(links.abs().max()))
    assert float(rounded.abs().min()) == pytest.approx(float(links.abs().min()))

    again = torch.zeros_like(weight)
    again[weight != 0] = rounded
    twice, same = round_weights(again, bits)
    assert twice.equal(codes)
    assert same == pytest.approx(grid)
    torch.testing.assert_close(weights_of(twice, bits, same), rounded)


@pytest.mark.parametrize('value', [1.0, -0.25, 1e-20])
def test_round_weights_that_are_all_alike(value):
    weight = torch.full((4, 2), value)
    weight[1, 1] = 0
    codes, grid = round_weights(weight, 6)
    torch.testing.assert_close(weights_of(codes, 6, grid), torch.full((7,), value))


def test_round_weights_of_nothing():
    codes, grid = round_weights(torch.zeros(3, 2), 6)
    assert codes.numel() == 0 and weights_of(codes, 6, grid).numel() == 0


@pytest.mark.parametrize('width', [1, 2, 3, 5, 6, 7, 8, 9, 13, 16, 31])
@pytest.mark.parametrize('num', [0, 1, 2, 7, 8, 9, 100])
def test_pack_bits(width, num):
    values = torch.randint(2**width, (num,), generator=generator())
    values[: num // 3] = 2**width - 1
    packed = pack_bits(values, width)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(num * width / 8)
    assert unpack_bits(packed, width, num).equal(values)
    # Lowest bit first, one number after the other.
    whole = sum(value << (width * at) for at, value in enumerate(values.tolist()))
    assert bytes(packed.tolist()) == whole.to_bytes(packed.numel(), 'little')


def test_num_bits():
    for num in (1, 2, 3, 4, 5, 255, 256, 257, 512, 513):
        assert num_bits(num) == max((num - 1).bit_length(), 1)


def bits_of(packed):
    return unpack_bits(packed, 1, 8 * packed.numel())


VALUES = ([], [0], [7], [2**40 + 5], [0, 1], [2**33, 2**33 + 1], [*range(1000, 1100)])


@pytest.mark.parametrize('values', [*VALUES, [2**x for x in range(45)]])
def test_pack_sorted(values):
    values = torch.tensor(values, dtype=torch.long)
    packed = pack_sorted(values)
    assert all(x.dtype == torch.uint8 for x in packed)
    assert packed[2].shape == (1,)
    got = unpack_sorted(*packed)
    assert got.dtype == torch.long and got.equal(values)


@pytest.mark.parametrize('most', [1, 5, 64, 1000, 10**6, 3 * 10**9])
@pytest.mark.parametrize('share', [1e-9, 0.01, 0.1, 0.4, 0.5, 0.9, 1.0])
def test_pack_sorted_numbers_at_random(most, share):
    num = max(min(round(share * most), 800), 1)
    values = torch.randint(most, (num,), generator=generator()).unique()
    if share == 1 and most <= 1000:
        values = torch.arange(most)
    low, high, width = pack_sorted(values)
    assert unpack_sorted(low, high, width).equal(values)

    # Below the bound of Elias and Fano, and of any plain list of such numbers.
    size, top = len(values), int(values[-1]) + 1
    bits = 8 * (low.numel() + high.numel())
    assert bits <= size * (2 + max(math.log2(top / size), 0)) + 16
    assert low.numel() == math.ceil(size * int(width) / 8)
    assert bits >= math.log2(math.comb(top, size)) - 1


def test_pack_sorted_by_definition():
    assert pack_sorted(torch.tensor([0, 1, 3, 4, 6]))[0].numel() == 0  # no low bits
    values = torch.tensor([3, 4, 7, 13, 14, 15, 21, 43])
    low, high, width = pack_sorted(values)
    assert int(width) == 2  # of 44 numbers 8, so that log2(5.5) goes down to 2
    assert unpack_bits(low, 2, 8).tolist() == [x % 4 for x in values.tolist()]
    ones = bits_of(high).nonzero().flatten()
    assert ones.tolist() == [x // 4 + n for n, x in enumerate(values.tolist())]
