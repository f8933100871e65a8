"""TFRecord files of images, as Meta-Dataset has them, read without TensorFlow.

A record is its length, 8 bytes, a checksum of these, the content, and a checksum of it; the content is a message
`tf.train.Example`. That one message is parsed here: the package protobuf would need classes that TensorFlow generates.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from kshot.bounded import open_file
from kshot.data.cache import cached
from kshot.data.images.decode import BadImage
from kshot.data.images.index import ImageFile, Place, shown

_HEAD = struct.Struct("<QI")  # length of the content, and the checksum of its 8 bytes
_TAIL = struct.Struct("<I")  # checksum of the content
_MASK_DELTA = 0xA282EAD8
_VERSION = 1  # of the index, part of the cache key


class Damaged(BadImage):
    """A file that is no TFRecord file, or has a damaged record; the message names it."""


def records_of(root: str, files: Sequence[tuple[str, int]]) -> list[list[ImageFile]]:
    """The records of each file, as image files whose names have the number of the record; the index is cached.

    Args:
        root: the folder.
        files: of each, its path relative to the root, and the label of its images.

    Raises:
        Damaged: a file that is cut off, or no TFRecord file.
        ValueError: a file that cannot be read.
    """
    found = [_status(os.path.join(root, name)) for name, _ in files]
    key = hashlib.sha256(repr((_VERSION, root, found, [name for name, _ in files])).encode())

    def index() -> dict[str, np.ndarray]:
        starts = [np.array(_starts(os.path.join(root, name)), np.int64) for name, _ in files]
        return {"starts": np.concatenate(starts), "counts": np.array([len(each) for each in starts], np.int64)}

    arrays = cached(f"tfrecord-{key.hexdigest()[:24]}", index)
    parts = np.split(arrays["starts"], np.cumsum(arrays["counts"])[:-1])
    return [
        [
            ImageFile(f"{name}#{number}", size, mtime, Place(name, start, number, label))
            for number, start in enumerate(starts.tolist())
        ]
        for (name, label), (size, mtime), starts in zip(files, found, parts)
    ]


def _status(path: str) -> tuple[int, int]:
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _starts(path: str) -> list[int]:
    """Where each record of a file begins."""
    starts: list[int] = []
    at = 0
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            file.seek(at)
            end = at + _HEAD.size + _length(file.read(_HEAD.size), path, len(starts)) + _TAIL.size
            if end > size:
                raise _cut_off(path, len(starts))
            starts.append(at)
            at = end
    return starts


def masked_crc32c(content: bytes) -> int:
    """The CRC-32C of bytes as TFRecord files have it: rotated, and moved by a constant.

    Raises:
        ValueError: the package google-crc32c is not installed.
    """
    try:
        from google_crc32c import value
    except ImportError:
        raise ValueError(
            "TFRecord files are checked by the package google-crc32c, which is missing: pip install 'kshot[files]'"
        ) from None
    crc = value(content)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _length(head: bytes, path: str, number: int) -> int:
    """The length of a record by its head."""
    if len(head) < _HEAD.size:
        raise _cut_off(path, number)
    length, checksum = _HEAD.unpack(head)
    if masked_crc32c(head[:8]) != checksum:
        what = "is no TFRecord file" if number == 0 else f"is damaged from record {number} on"
        raise Damaged(f"{shown(path)} {what}: the checksum of a length does not match; write or download it again")
    return int(length)


def _cut_off(path: str, number: int) -> Damaged:
    return Damaged(f"{shown(path)} is cut off within record {number}; write or download it again")


def image_of(file: IO[bytes], place: Place, path: str) -> bytes:
    """The image file in a record of an open file.

    Raises:
        Damaged: the record is damaged, is no example with an image, or has another label than the file's.
    """
    file.seek(place.start)
    length = _length(file.read(_HEAD.size), path, place.number)
    content = file.read(length)
    tail = file.read(_TAIL.size)
    where = f"{shown(path)}, record {place.number}"
    if len(content) < length or len(tail) < _TAIL.size:
        raise _cut_off(path, place.number)
    if masked_crc32c(content) != _TAIL.unpack(tail)[0]:
        raise Damaged(f"{where} is damaged: its checksum does not match; write or download the file again")
    try:
        features = example(content)
    except ValueError as error:
        raise Damaged(f"{where} is no tf.train.Example: {error}") from error
    images, labels = features.get("image", []), features.get("label", [place.label])
    if len(images) != 1 or not isinstance(images[0], bytes):
        raise Damaged(f"{where} has no feature image with the bytes of one image; it has {', '.join(features)}")
    if labels != [place.label]:
        raise Damaged(f"{where} has the label {labels}, and the file is of class {place.label} by its name")
    return images[0]


def example(content: bytes) -> dict[str, list[bytes] | list[int]]:
    """The features of a serialized `tf.train.Example`: lists of bytes or of integers; floats are left out.

    Raises:
        ValueError: it is no such message.

    Example:
        >>> example(bytes.fromhex("0a 10 0a 0e 0a 05 6c 61 62 65 6c 12 05 1a 03 0a 01 00"))
        {'label': [0]}
    """
    features: dict[str, list[bytes] | list[int]] = {}
    for message in _messages(content, 1):
        for entry in _messages(message, 1):
            name = b"".join(_messages(entry, 1)[-1:]).decode()
            for feature in _messages(entry, 2)[-1:]:
                for each in _messages(feature, 1):
                    features[name] = _messages(each, 1)
                for each in _messages(feature, 3):
                    features[name] = _integers(each)
    return features


def _messages(content: bytes, wanted: int) -> list[bytes]:
    """The values of a field that are bytes or messages."""
    return [value for number, value in _fields(content) if number == wanted and isinstance(value, bytes)]


def _integers(content: bytes) -> list[int]:
    """The values of an Int64List, packed or not."""
    values: list[int] = []
    for number, value in _fields(content):
        if number != 1:
            continue
        if isinstance(value, int):
            values.append(value)
        else:
            at = 0
            while at < len(value):
                each, at = _varint(value, at)
                values.append(each)
    return [value - (1 << 64) if value >> 63 else value for value in values]


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message of protocol buffers: the number of each, and its integer or bytes."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        value: int | bytes
        if key & 7 == 0:
            value, at = _varint(content, at)
        else:
            if key & 7 == 2:
                size, at = _varint(content, at)
            elif key & 7 in (1, 5):
                size = 8 if key & 7 == 1 else 4
            else:
                raise ValueError(f"a field has the wire type {key & 7}")
            if size > len(content) - at:
                raise ValueError("a field is longer than its message")
            value, at = content[at : at + size], at + size
        yield key >> 3, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """An integer of variable length, and where the next byte is."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it ends within a number")
        value |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return value & (1 << 64) - 1, at
    raise ValueError("a number is longer than ten bytes")
