"""The checksum CRC-32C, of the polynomial of Castagnoli, which is in no package that kshot needs otherwise.

A table takes one step for each byte. Here the bytes lie in lanes that take their steps together, by NumPy: the CRC of
two parts follows from that of each, as a CRC is linear in the bytes.
"""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78
"""Of Castagnoli, with its bits reversed."""

_MASK_DELTA = 0xA282EAD8  # of the masked checksums of TFRecord


def crc32c(content: bytes) -> int:
    """The CRC-32C of bytes.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'

    References:
        RFC 3720, appendix B.4, has further values.
    """
    head = bytes(byte ^ 0xFF for byte in content[:4].ljust(4, b"\0"))  # a CRC begins with all bits on
    if len(content) < 4:
        crc = int.from_bytes(head, "little")
        for _ in content:
            crc = int(_table()[crc & 0xFF]) ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    num_lanes = 2 * int(len(content) ** 0.5)  # a step costs more than a lane
    steps = -(-len(content) // num_lanes)
    padded = np.frombuffer((head + content[4:]).rjust(num_lanes * steps, b"\0"), np.uint8)  # zeros in front change none
    table = _table()
    lanes = np.zeros(num_lanes, np.uint32)
    for column in padded.reshape(num_lanes, steps).T:
        lanes = table[(lanes ^ column) & 0xFF] ^ (lanes >> 8)
    shift = _after_zeros(steps)
    crc = 0
    for lane in lanes.tolist():
        crc = _mapped(shift, crc) ^ lane
    return crc ^ 0xFFFFFFFF


def masked_crc32c(content: bytes) -> int:
    """The CRC-32C as TFRecord files have it: rotated, and moved by a constant."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


@functools.cache
def _table() -> np.ndarray:
    """The CRC, without its first and last inversion, of each byte."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(POLYNOMIAL), values >> 1)
    return values


@functools.lru_cache(maxsize=4096)
def _after_zeros(count: int) -> tuple[int, ...]:
    """What `count` zero bytes make of each bit of a CRC: the columns of a matrix over two elements."""
    if count == 0:
        return tuple(1 << bit for bit in range(32))
    if count == 1:
        table = _table()
        return tuple(int(table[1 << bit & 0xFF]) ^ (1 << bit >> 8) for bit in range(32))
    half = _after_zeros(count // 2)
    twice = tuple(_mapped(half, column) for column in half)
    return tuple(_mapped(_after_zeros(1), column) for column in twice) if count % 2 else twice


def _mapped(matrix: tuple[int, ...], crc: int) -> int:
    """A matrix times the bits of a CRC."""
    result = 0
    for bit in range(crc.bit_length()):
        if crc >> bit & 1:
            result ^= matrix[bit]
    return result
