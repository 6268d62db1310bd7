"""Bundles from the page of the format alone, good and broken, and what they hold."""

import re
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from bundle_damage import sealed

HEADER = '<4s7If'
PAGE = Path(__file__).parents[1] / 'docs/bundle.md'
OPTIONAL = ('COAR', 'BIAS', 'NAME', 'TITL')

# A writer, which can do what models do not have.


def packed(numbers, bits):
    numbers = np.asarray(numbers, np.int64).reshape(-1, 1)
    return np.packbits(numbers >> np.arange(bits) & 1, bitorder='little').tobytes()


def num_bits(size):
    return max((size - 1).bit_length(), 1)


def table(codes, *columns):
    values = np.asarray(columns, '<f4')
    size = values.shape[1]
    return struct.pack('<I', size) + values.tobytes() + packed(codes, num_bits(size))


def matrix(places, codes, values, low_bits):
    places = np.asarray(places, np.int64)
    high = (places >> low_bits) + np.arange(len(places))
    bits = np.zeros(high.max(initial=-1) + 1, np.uint8)
    bits[high] = 1
    high = np.packbits(bits, bitorder='little').tobytes()
    low = packed(places & ((1 << low_bits) - 1), low_bits)
    head = struct.pack('<2I', len(places), low_bits) + low
    return head + struct.pack('<I', len(high)) + high + table(codes, values)


def bundle_bytes(sizes, sections, user_norm=0.5):
    data = struct.pack(HEADER, b'C2FB', 1, 0, *sizes, user_norm)
    for tag, content in sections.items():
        data += tag.encode() + struct.pack('<I', len(content)) + content
        data += bytes(-len(content) % 4)
    return sealed(data + bytes(4))


def random_sections(rng, sizes, extra, links=3):
    num_items, width, coarse, fine, levels = sizes

    def entries(rows, columns, share, num_values):
        size = rows * columns
        places = np.unique(rng.integers(size, size=round(share * size)))
        codes = rng.integers(num_values, size=len(places))
        # About as many as take the least room.
        low_bits = max(int(1 / share).bit_length() - rng.integers(3), 0)
        return matrix(places, codes, rng.normal(size=num_values), low_bits)

    codes = rng.integers(5, size=num_items)
    sections = {
        'ITEM': table(codes, rng.random(5), rng.random(5)),
        'LINK': entries(num_items, coarse, links / coarse, 7),
    }
    if coarse != width or 'COAR' in extra:
        sections['COAR'] = entries(coarse, width, 0.5, 33)
    if fine:
        local = rng.integers(fine // levels, size=num_items * levels)
        sections['FINE'] = entries(fine, width, 0.5, 2)
        sections['CODE'] = packed(local, num_bits(fine // levels))
    if 'BIAS' in extra:
        sections['BIAS'] = table(codes % 3, rng.normal(size=3))
    if 'NAME' in extra:
        names = [f'i{x}é' for x in rng.permutation(num_items)]
        sections['NAME'] = '\0'.join(names).encode()
    if 'TITL' in extra:
        titles = [f'Film {x} (19{x % 100:02})' for x in range(num_items)]
        sections['TITL'] = '\0'.join(titles).encode()
    return sections


def random_bundle(
    seed, extra, num_items=60, coarse=8, width=8, fine=0, levels=0, **header
):
    rng = np.random.default_rng(seed)
    sizes = (num_items, width, coarse, fine, levels)
    return bundle_bytes(sizes, random_sections(rng, sizes, extra), **header)


KINDS = {
    'plain': dict(seed=1, extra=()),
    'norm': dict(seed=3, extra=('COAR',), user_norm=0.3),
    'fine': dict(seed=0, extra=('BIAS',), coarse=6, fine=12, levels=3, user_norm=0.7),
    'negative': dict(seed=2, extra=('BIAS',), width=9, user_norm=-0.4),
    'wide': dict(seed=7, extra=(), coarse=400, width=300, fine=5, levels=5),
    'all': dict(seed=4, extra=OPTIONAL, fine=10, levels=2, user_norm=2.1),
    'large': dict(seed=6, extra=('TITL',), num_items=3000, coarse=6, fine=64, levels=1),
    'one': dict(seed=5, extra=('NAME',), num_items=1),
}


# What a bundle holds, read without a check, as dense arrays.


def sections_of(data):
    """The contents by tag."""
    found, at = {}, struct.calcsize(HEADER)
    while at < len(data) - 4:
        tag, length = struct.unpack_from('<4sI', data, at)
        found[tag.decode()] = data[at + 8 : at + 8 + length]
        at += 8 + length + -length % 4
    return found


def unpacked(data, num, bits):
    """Packed numbers, and the rest."""
    end = (num * bits + 7) // 8
    digits = np.unpackbits(np.frombuffer(data[:end], 'u1'), bitorder='little')
    digits = digits[: num * bits].reshape(num, bits).astype(np.int64)
    return digits @ (1 << np.arange(bits)), data[end:]


def table_values(data, num_columns, num):
    """The columns, looked up by the codes."""
    (size,) = struct.unpack_from('<I', data)
    end = 4 + 4 * num_columns * size
    columns = np.frombuffer(data[4:end], '<f4').reshape(num_columns, size)
    return columns[:, unpacked(data[end:], num, num_bits(size))[0]].astype(float)


def matrix_values(data, shape):
    num, low_bits = struct.unpack_from('<2I', data)
    low, data = unpacked(data[8:], num, low_bits)
    (length,) = struct.unpack_from('<I', data)
    high, _ = unpacked(data[4:], 8 * length, 1)
    out = np.zeros(shape)
    places = ((high.nonzero()[0] - np.arange(num)) << low_bits) + low
    out.flat[places] = table_values(data[4 + length :], 1, num)[0]
    return out


def contents(data):
    """All arrays and numbers, by their names on the page."""
    sections = sections_of(data)
    *_, N, D, C, F, L, a = struct.unpack_from(HEADER, data)
    w, g = table_values(sections['ITEM'], 2, N)
    b = table_values(sections['BIAS'], 1, N)[0] if 'BIAS' in sections else np.zeros(N)
    S = matrix_values(sections['LINK'], (N, C))
    A = matrix_values(sections['COAR'], (C, D)) if 'COAR' in sections else np.eye(C, D)
    B, code = np.zeros((F, D)), np.zeros((N, 0), int)
    if F:
        B = matrix_values(sections['FINE'], (F, D))
        code = unpacked(sections['CODE'], N * L, num_bits(F // L))[0].reshape(N, L)
        code += F // L * np.arange(L)
    return SimpleNamespace(N=N, a=a, w=w, g=g, b=b, S=S, A=A, B=B, code=code)


# Bundles that break one rule each, under a right checksum.

GOOD = {
    'ITEM': table([0, 1, 2, 0], [1, 2, 3], [1, 1, 1]),
    'LINK': matrix([0, 3, 5, 7], [0, 1, 1, 0], [0.5, 1.5], 1),
    'COAR': matrix([0, 3], [0, 0], [1], 0),
    'FINE': matrix([1, 2, 6], [2, 1, 0], [1, 2, 3], 2),
    'CODE': packed([0, 1, 2, 0, 1, 2, 0, 1], 2),
    'BIAS': table([0, 0, 1, 1], [0.5, 0.25]),
    'NAME': b'a\0b\0c\0d',
    'TITL': b'A\0\0\xc3\xa9\0A',
}
SIZES = (4, 2, 2, 6, 2)


def with_section(**changes):
    kept = {tag: changes.get(tag, x) for tag, x in GOOD.items()}
    return bundle_bytes(SIZES, {tag: x for tag, x in kept.items() if x is not None})


def with_sizes(**changes):
    sizes = dict(zip('NDCFL', SIZES, strict=True)) | changes
    return bundle_bytes(tuple(sizes.values()), GOOD)


def with_bytes(at, content):
    data = bytearray(bundle_bytes(SIZES, GOOD))
    at %= len(data)
    data[at : at + len(content)] = content
    return sealed(bytes(data))


def reordered(*tags):
    return bundle_bytes(SIZES, {tag: GOOD.get(tag, b'abcd') for tag in tags})


def link(num, low_bits, low, high, rest=None):
    rest = table([0] * num, [1]) if rest is None else rest
    head = struct.pack('<2I', num, low_bits) + low
    return with_section(LINK=head + struct.pack('<I', len(high)) + high + rest)


INF, NAN = float('inf'), float('nan')
NEEDED = ('ITEM', 'LINK', 'FINE', 'CODE')
BROKEN = {
    'magic': with_bytes(0, b'C2FX'),
    'version': with_bytes(4, b'\2'),
    'length': bundle_bytes(SIZES, GOOD) + bytes(4),
    'checksum': bundle_bytes(SIZES, GOOD)[:-1] + b'\0',
    'no items': with_sizes(N=0),
    'more items': with_sizes(N=5),
    'many items': with_sizes(N=1 << 26),
    'too many items': with_sizes(N=(1 << 26) + 1),
    'no width': with_sizes(D=0),
    'width': with_sizes(D=4097),
    'no coarse': with_sizes(C=0),
    'coarse': with_sizes(C=65537),
    'fine': with_sizes(F=4098),
    'features': with_sizes(C=65536, D=257),
    'no fine': with_sizes(F=0),
    'no fine, no levels': with_sizes(F=0, L=0),
    'no levels': with_sizes(L=0),
    'levels': with_sizes(L=4),
    'exponent': bundle_bytes(SIZES, GOOD, user_norm=NAN),
    'infinite exponent': bundle_bytes(SIZES, GOOD, user_norm=INF),
    **{f'without {tag}': with_section(**{tag: None}) for tag in NEEDED},
    'without COAR': bundle_bytes((4, 3, 2, 0, 0), dict(list(GOOD.items())[:2])),
    'order': reordered('LINK', 'ITEM', *list(GOOD)[2:]),
    'order at the end': reordered(*list(GOOD)[:-2], 'TITL', 'NAME'),
    'unknown': reordered(*GOOD, 'MORE'),
    'unknown before': reordered('MORE', *GOOD),
    'zeros at the end': sealed(bundle_bytes(SIZES, GOOD) + bytes(4)),
    'section beyond the end': with_bytes(40, b'\xff\xff\xff\xff'),
    'padding': with_bytes(-5, b'\1'),
    **{f'{x} long': with_section(**{x: GOOD[x] + bytes(4)}) for x in GOOD},
    **{f'{x} short': with_section(**{x: GOOD[x][:-1]}) for x in list(GOOD)[:6]},
    **{f'{x} empty': with_section(**{x: b''}) for x in GOOD},
    'no table': with_section(BIAS=struct.pack('<I', 0) + b'\0'),
    'large table': with_section(BIAS=table([0] * 4, [1] * 65537)),
    'code': with_section(ITEM=table([0, 1, 2, 3], [1, 2, 3], [1, 1, 1])),
    'bits after codes': with_section(BIAS=table([0, 0, 1, 1, 1], [1, 2])),
    'infinite': with_section(BIAS=table([0, 0, 1, 1], [1, -INF])),
    'no number': with_section(ITEM=table([0] * 4, [NAN], [1])),
    'fine code': with_section(CODE=packed([0, 1, 2, 0, 1, 2, 0, 3], 2)),
    'low bits': link(1, 32, bytes(4), b'\1'),
    'a lie': link(2**32 - 1, 0, b'', b'\1', table([0], [1])),
    'a lie with bits': link(2**32 - 1, 31, bytes(4), b'\1', table([0], [1])),
    'few places': link(3, 0, b'', b'\3'),
    'many places': link(1, 0, b'', b'\3'),
    'no places': link(1, 0, b'', b''),
    'falling': link(2, 2, b'\1', b'\3'),
    'twice, far apart in the file': bundle_bytes(
        (256, 256, 256, 0, 0),
        {
            'ITEM': table([0] * 256, [1], [1]),
            'LINK': matrix([*range(65536), 65535], [0] * 65537, [1], 17),
        },
    ),
    'twice': link(2, 2, b'\5', b'\3'),
    'outside': link(1, 0, b'', b'\0\1'),
    'far outside': link(1, 31, b'\xff\xff\xff\x7f', bytes(9999) + b'\x80'),
    'bits after places': link(1, 2, b'\5', b'\1'),
    'not UTF-8': with_section(TITL=b'A\0\0\xc3\0A'),
    'surrogate': with_section(TITL=b'A\0\0\xed\xa0\x80\0A'),
    'long form': with_section(TITL=b'A\0\0\xc0\x80\0A'),
    'few titles': with_section(TITL=b'A\0B\0C'),
    'many titles': with_section(TITL=b'A\0B\0C\0D\0'),
    'same ids': with_section(NAME=b'a\0b\0c\0a'),
}


def example():
    """The file in docs/bundle.md, and its scores by history."""
    page = PAGE.read_text().split('## An example')[1]
    data = bytes.fromhex(''.join(re.findall(r'^ {4}([0-9a-f]+)$', page, re.M)))
    rows = re.findall(r'^\| ([\d, ]+) \| (.*) \|$', page, re.M)
    split = [(x.split(', '), y.split(' | ')) for x, y in rows]
    return data, [([*map(int, x)], [*map(float, y)]) for x, y in split]
