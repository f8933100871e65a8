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
from typing import IO, BinaryIO, Literal, NamedTuple

from kshot.bounded import check_unpacked, open_file, unpacking
from kshot.limits import OverLimit, limits, over

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""File name suffixes of archives."""

_HEADER_BYTES = 1 << 20  # of a header that tar adds to a member, such as one with a long name
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others are unpacked by zipfile in one go, whatever the size


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
            folder or occurs twice; the archive exceeds the limits of `kshot.limits`; or the disk is full. The folder
            may then hold part of the content.
    """
    bounds = limits()
    limit = bounds.unpacked(archive.stat().st_size, bounds.disk_bytes)
    folder.mkdir(parents=True)
    total = 0
    with _members(archive) as members:
        for number, member in enumerate(members, 1):
            label = f"{archive}: {member.name!r}"
            if member.kind == "other" or _leads_out(member.name):
                raise _Refused(f"{label} is a link or a device, or leads out of the archive; nothing was unpacked")
            total += member.size
            if number > bounds.members or total > limit:
                raise over(
                    f"{archive} unpacks to more than {limit:,} bytes or {bounds.members:,} files, as a decompression "
                    "bomb does"
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
        with open_file(path) as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    yield (_zip_member(archive, info) for info in archive.infolist())
            else:
                # as a stream: no member is read before its turn
                with _unpacked(file) as content, tarfile.open(fileobj=content, mode="r|", tarinfo=_Info) as stream:
                    yield (_tar_member(stream, info) for info in stream)
    except (_Refused, OverLimit, MemoryError):
        raise
    except Exception as error:  # the readers raise many types of error on damaged archives
        raise ValueError(f"{path} is damaged, or neither zip nor tar ({error}); download it again") from error


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[IO[bytes]]:
    """The bytes that a gzip, bzip2 or xz file unpacks to, read piece by piece; those of another file."""
    file.seek(0)
    head = file.read(6)
    file.seek(0)
    kinds = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
    kind = next((kind for signature, kind in kinds.items() if head.startswith(signature)), None)
    if kind is None:
        yield file
        return
    with unpacking(file, kind) as content:
        yield content


class _Info(tarfile.TarInfo):
    """A member of a tar whose additional headers, which are read into memory, are small.

    tarfile has no public place between the size of a header and its reading; a test notices if this one goes.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and not self.isdir() and self.size > _HEADER_BYTES:
            raise ValueError(f"a member has a header of {self.size:,} bytes, of at most {_HEADER_BYTES:,}")
        return super()._proc_member(archive)  # type: ignore[misc]


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    _check_method(info)
    other = stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
    kind: _Kind = "other" if other else "folder" if info.is_dir() else "file"
    return _Member(info.filename, kind, info.file_size, lambda: archive.open(info))


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kind: _Kind = "file" if info.isfile() else "folder" if info.isdir() else "other"
    return _Member(info.name, kind, info.size, lambda: archive.extractfile(info))


def _check_method(info: zipfile.ZipInfo) -> None:
    if info.compress_type not in _ZIP_METHODS:
        raise _Refused(f"{info.filename!r} is compressed by another method than deflate; zip the files again")


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip for reading its members into memory.

    Raises:
        OverLimit: its members have more bytes, or are more, than the limits of `kshot.limits`.
        ValueError: it is damaged; also errors while reading a member become one that names the file.
    """
    bounds = limits()
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > bounds.members:
                raise over(f"{path} has {len(members):,} files, and at most {bounds.members:,} are read")
            for member in members:
                _check_method(member)
            check_unpacked(sum(m.file_size for m in members), bounds.unpacked(path.stat().st_size), path)
            yield archive
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged or not a zip ({error}); download it again") from error
