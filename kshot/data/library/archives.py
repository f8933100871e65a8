"""Archives from elsewhere, unpacked so that nothing lands outside the folder and no small file fills the disk."""

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
"""How the names of archives end."""

MOST_BYTES = 8 << 30
"""Bytes that an archive may unpack to."""
MOST_MEMBERS = 500_000
"""Files and folders that an archive may hold."""
MOST_GROWTH = 200
"""How many times its own size an archive may unpack to; text shrinks to a tenth, a bomb to a thousandth."""
FREE_GROWTH = 16 << 20
"""Bytes that any archive may unpack to, whatever its size."""


class _Refused(ValueError):
    """An archive that could be read, but is not unpacked; the sentence says why."""


class _Member(NamedTuple):
    """What an archive holds: "file", "folder" or something "else"; a file's bytes, and how it is opened."""

    name: str
    kind: Literal["file", "folder", "else"]
    size: int
    opened: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or a tar (plain, gzip, bzip2 or xz) into a folder that does not exist yet.

    Only files and folders are made, with fresh permissions.

    Raises:
        ValueError: no archive, damaged or encrypted, a member that is a link or a device, leads out of the folder or
            stands twice, more than `MOST_BYTES`, `MOST_MEMBERS` or `MOST_GROWTH`, or a disk that is full. The folder
            may then hold a part of it.
    """
    most = min(MOST_BYTES, max(FREE_GROWTH, MOST_GROWTH * archive.stat().st_size))
    folder.mkdir(parents=True)
    total = 0
    with _members(archive) as members:
        for number, member in enumerate(members, 1):
            place = f"{archive}: {member.name!r}"
            if member.kind == "else" or _leads_out(member.name):
                raise _Refused(f"{place} is a link or a device, or leads out of the archive; nothing was unpacked")
            total += member.size
            if number > MOST_MEMBERS or total > most:
                raise _Refused(
                    f"{archive} unpacks to more than {most:,} bytes or {MOST_MEMBERS:,} files, as bombs do that fill a "
                    "disk; if you trust it, unpack it yourself and give the folder"
                )
            _write(member, folder / member.name, place)


def _write(member: _Member, target: Path, place: str) -> None:
    try:
        (target if member.kind == "folder" else target.parent).mkdir(parents=True, exist_ok=True)
        made = target.open("xb") if member.kind == "file" else None
    except (FileExistsError, NotADirectoryError) as error:
        raise _Refused(f"{place} stands twice in the archive, or is both a file and a folder") from error
    except (OSError, ValueError) as error:
        raise _Refused(f"{place} cannot be unpacked to {target.parent}: {error}") from error
    if made is None:
        return
    with made, member.opened() or io.BytesIO() as opened:
        while chunk := opened.read(1 << 20):
            try:
                made.write(chunk)
                made.flush()
            except OSError as error:
                raise _Refused(f"{place} cannot be unpacked to {target}: {error.strerror}") from error


def _leads_out(name: str) -> bool:
    """Whether a member's name is anything but a plain path downwards, on any system."""
    parts = PurePosixPath(name.replace("\\", "/"))
    return parts.is_absolute() or ".." in parts.parts or "\0" in name or (os.name == "nt" and ":" in name)


@contextmanager
def _members(path: Path) -> Iterator[Iterator[_Member]]:
    """What an archive holds, to be opened one after another."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield (_of_zip(archive, info) for info in archive.infolist())
        else:
            with tarfile.open(path, "r|*") as stream:  # what comes later is not read before its turn
                yield (_of_tar(stream, info) for info in stream)
    except _Refused:
        raise
    except Exception as error:  # the readers raise nearly every kind of error on damaged archives
        raise ValueError(f"{path} is damaged, or no zip or tar ({error}); get it again") from error


def _of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return _Member(info.filename, "else", 0, lambda: None)
    if info.is_dir():
        return _Member(info.filename, "folder", 0, lambda: None)
    return _Member(info.filename, "file", info.file_size, lambda: archive.open(info))


def _of_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kind: Literal["file", "folder", "else"] = "file" if info.isfile() else "folder" if info.isdir() else "else"
    return _Member(info.name, kind, info.size, lambda: archive.extractfile(info))


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip for reading; damage met on the way becomes a `ValueError` that names the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged or not a zip ({error}); download it again") from error
