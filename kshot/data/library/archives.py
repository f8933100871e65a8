"""Safe unpacking of archives: nothing is written outside the folder, and no small file fills the disk."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""File name suffixes of archives."""

MAX_BYTES = 8 << 30
"""Largest unpacked size."""
MAX_MEMBERS = 500_000
"""Largest number of files and folders."""
MAX_RATIO = 200
"""Largest ratio of unpacked to packed size; text compresses to a tenth, a bomb to a thousandth."""
ALWAYS_ALLOWED = 16 << 20
"""Unpacked bytes that are allowed at any ratio."""


class _Refused(ValueError):
    """A readable archive that is not unpacked for safety."""


_Kind = Literal["file", "folder", "other"]


class _Member(NamedTuple):
    name: str
    kind: _Kind
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or a tar (plain, gzip, bzip2 or xz) into a folder that does not exist yet.

    Only files and folders are created, with default permissions.

    Raises:
        ValueError: the file is not an archive, damaged or encrypted; a member is a link or a device, leads out of the
            folder or occurs twice; the archive exceeds `MAX_BYTES`, `MAX_MEMBERS` or `MAX_RATIO`; or the disk is full.
            The folder may then hold part of the content.
    """
    limit = min(MAX_BYTES, max(ALWAYS_ALLOWED, MAX_RATIO * archive.stat().st_size))
    folder.mkdir(parents=True)
    total = 0
    with _members(archive) as members:
        for number, member in enumerate(members, 1):
            label = f"{archive}: {member.name!r}"
            if member.kind == "other" or _leads_out(member.name):
                raise _Refused(f"{label} is a link or a device, or leads out of the archive; nothing was unpacked")
            total += member.size
            if number > MAX_MEMBERS or total > limit:
                raise _Refused(
                    f"{archive} unpacks to more than {limit:,} bytes or {MAX_MEMBERS:,} files, as a decompression bomb "
                    "does; if you trust it, unpack it yourself and give the folder"
                )
            _write(member, folder / member.name, label)


def _write(member: _Member, target: Path, label: str) -> None:
    try:
        (target if member.kind == "folder" else target.parent).mkdir(parents=True, exist_ok=True)
        if member.kind == "folder":
            return
        output = target.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise _Refused(f"{label} occurs twice in the archive, or is both a file and a folder") from error
    except (OSError, ValueError) as error:
        raise _Refused(f"{label} cannot be unpacked to {target.parent}: {error}") from error
    with output, member.open() or io.BytesIO() as content:
        while chunk := content.read(1 << 20):
            try:
                output.write(chunk)
                output.flush()
            except OSError as error:
                raise _Refused(f"{label} cannot be unpacked to {target}: {error.strerror}") from error


def _leads_out(name: str) -> bool:
    """Whether a member's name is anything but a relative path without "..", on any system."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "\0" in name or (os.name == "nt" and ":" in name)


@contextmanager
def _members(path: Path) -> Iterator[Iterator[_Member]]:
    """The members of an archive, to be opened one after another."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield (_zip_member(archive, info) for info in archive.infolist())
        else:
            with tarfile.open(path, "r|*") as stream:  # as a stream: no member is read before its turn
                yield (_tar_member(stream, info) for info in stream)
    except _Refused:
        raise
    except Exception as error:  # the readers raise many types of error on damaged archives
        raise ValueError(f"{path} is damaged, or neither zip nor tar ({error}); download it again") from error


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    other = stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
    kind: _Kind = "other" if other else "folder" if info.is_dir() else "file"
    return _Member(info.filename, kind, info.file_size, lambda: archive.open(info))


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kind: _Kind = "file" if info.isfile() else "folder" if info.isdir() else "other"
    return _Member(info.name, kind, info.size, lambda: archive.extractfile(info))


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip for reading; errors of damaged files become a `ValueError` that names the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged or not a zip ({error}); download it again") from error
