"""Reading of files that others wrote: regular files only, and within the limits of `kshot.limits`.

A FIFO, a device or a socket would wait for ever or never end; it is refused without being opened. What is compressed is
unpacked piece by piece, so that it costs no more than the limit at which it is refused.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from kshot.free_memory import free_memory
from kshot.limits import limits, over, shown_bytes

CHUNK = 1 << 20
"""Bytes that are unpacked at once."""
_KINDS = {stat.S_IFIFO: "a FIFO (named pipe)", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
          stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}  # fmt: skip
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def home_expanded(path: Path | str) -> Path:
    """The path with the home folder for `~`; `~name` stays as it is if there is no user of the name.

    Example:
        >>> home_expanded("~no such user/x.csv").name
        'x.csv'
    """
    return Path(os.path.expanduser(path))


def open_file(path: Path | str) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading its bytes; never waits.

    Raises:
        OSError: no such file, it cannot be read, or it is something else, which `strerror` says.

    Example:
        >>> open_file("/dev/zero")
        Traceback (most recent call last):
        OSError: [Errno 22] it is a device, not a file: '/dev/zero'
    """
    _check_kind(os.stat(path).st_mode, path)
    # O_NONBLOCK: a FIFO that took the file's place since does not wait either
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_kind(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_kind(mode: int, path: Path | str) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def read_bytes(path: Path | str, most: int | None = None) -> bytes:
    """The content of a regular file of at most `most` bytes, by default `file_bytes` of the limits.

    Raises:
        OSError: as `open_file`.
        OverLimit: it is larger, or than the memory that is free.
    """
    most = limits().file_bytes if most is None else most
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise over(f"{path} has {shown_bytes(size)}, and at most {shown_bytes(most)} of it are read")
        if size > CHUNK and size > (free := free_memory()):
            raise MemoryError(f"{path} has {shown_bytes(size)}, and {shown_bytes(free)} of memory are free")
        content = file.read(size + 1)  # read(n) allocates n bytes
        while len(content) > size and (more := file.read(CHUNK)):  # it grew, or has no size, as files of /proc
            content += more
            if len(content) > most:
                raise over(f"{path} has more than the {shown_bytes(most)} that are read of it")
    return content


def unpacked(content: bytes, kind: str, name: str, most: int | None = None) -> bytes:
    """The bytes that a gzip, bz2, xz or zstd text unpacks to, piece by piece.

    Args:
        content, name: the packed bytes, and the name of the file for errors.
        kind: "gz", "bz2", "xz" or "zst".
        most: the largest size; by default `file_bytes` of the limits.

    Raises:
        OverLimit: they are more than the limits allow for what is packed.
        Exception: the packages raise many types of error on damaged content; a missing one, ModuleNotFoundError.

    Example:
        >>> unpacked(gzip.compress(b"text"), "gz", "a.gz")
        b'text'
    """
    most = limits().unpacked(len(content), most)
    pieces, total = [], 0
    with unpacking(io.BytesIO(content), kind) as stream:
        while piece := stream.read(CHUNK):
            total += len(piece)
            check_unpacked(total, most, name)
            pieces.append(piece)
    return b"".join(pieces)


def unpacking(file: IO[bytes], kind: str) -> Any:
    """A file, to be closed, from which the bytes that a packed one unpacks to are read; kinds as in `unpacked`."""
    return _UNPACKERS[kind](file)


def check_unpacked(total: int, most: int, name: object) -> None:
    """Raise `OverLimit` if a file has been unpacked to more than the limit."""
    if total > most:
        raise over(f"{name} unpacks to more than {most:,} bytes, as a decompression bomb does")


def _zstd(file: IO[bytes]) -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)


_UNPACKERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gz": lambda file: gzip.GzipFile(fileobj=file), "bz2": bz2.BZ2File, "xz": lzma.LZMAFile, "zst": _zstd,
}  # fmt: skip


def parse_json(content: bytes | str, **options: Any) -> Any:
    """The values of JSON; options are those of `json.loads`.

    Raises:
        OverLimit: it is larger, or deeper, than the limits.
        ValueError: it is not JSON.

    Example:
        >>> parse_json('{"a": [1, 2]}')
        {'a': [1, 2]}
    """
    raw = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    bounds = limits()
    if len(raw) > bounds.json_bytes:
        raise over(f"its JSON has {shown_bytes(len(raw))}, and at most {shown_bytes(bounds.json_bytes)} are read")
    if raw.count(b"[") + raw.count(b"{") > bounds.depth and _depth(raw) > bounds.depth:
        raise over(f"its JSON has lists or objects more than {bounds.depth} deep within one another")
    try:
        return json.loads(content, **options)
    except RecursionError as error:
        raise ValueError(f"its lists and objects are too deep within one another: {error}") from None


def _depth(raw: bytes) -> int:
    """How deep lists and objects are within one another."""
    marks = np.frombuffer(_STRING.sub(b"", raw), np.uint8)
    steps = np.isin(marks, list(b"[{")).astype(np.int32) - np.isin(marks, list(b"]}"))
    return int(steps.cumsum().max(initial=0))
