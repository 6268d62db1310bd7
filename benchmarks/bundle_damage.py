"""Damage to bundles that a checksum does not tell."""

import struct
import zlib

import numpy as np


def sealed(data: bytes) -> bytes:
    """The bytes with the length and the checksum that they should have."""
    data = data[:8] + struct.pack('<I', len(data)) + data[12:-4]
    return data + struct.pack('<I', zlib.crc32(data))


def damaged(rng: np.random.Generator, good: bytes) -> bytes:
    """The bundle with some damage, mostly under a right length and checksum."""
    data, at = bytearray(good), int(rng.integers(36, len(good) - 4))
    match rng.integers(7):
        case 0:
            data[at] ^= 1 << rng.integers(8)
        case 1:
            data[at : at + 4] = rng.bytes(4)
        case 2:
            at -= at % 4
            extreme = [0, 1, 2, 255, 65535, 65536, 1 << 31, (1 << 32) - 1]
            data[at : at + 4] = struct.pack('<I', rng.choice(extreme))
        case 3:
            del data[at:]
        case 4:
            del data[at : at + rng.integers(1, 9)]
        case 5:
            data[at:at] = data[at : at + rng.integers(1, 9)]
        case 6:
            values = [0, 1, 2, 6, 8, 9, 60, 65537, 1 << 26, (1 << 32) - 1]
            struct.pack_into('<I', data, 4 * rng.integers(3, 8), rng.choice(values))
    return sealed(bytes(data)) if rng.random() < 0.9 else bytes(data)
