"""Files that are written whole or not at all, and that are known to be undamaged when they are read.

A file is written beside its place, flushed to the disk and renamed into it: a reader, a full disk and a killed process
see the old file or the new one. What figures depend on carries a SHA-256, which is compared when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHECKSUM = "sha256"
"""Key of the checksum in the JSON files of `write_json`."""
PART = ".part"
"""Suffix of files that are being written; those of killed processes may be deleted."""
_LINE = f"# {CHECKSUM}: "


class DamagedFile(ValueError):
    """A file that is missing, cut short or changed since it was written; the message names it."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for functions that write to a path; renamed to `path` if the block succeeds.

    Raises:
        OSError: the file cannot be written; what was at `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{PART}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole, with a checksum of its values, which `read_json` compares.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "about.json"
        >>> write_json(path, {"rows": 3})
        >>> read_json(path)
        {'rows': 3}
        >>> _ = path.write_text(path.read_text().replace("3", "4", 1))
        >>> read_json(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        kshot.files.DamagedFile: ... is damaged: ...
    """
    write_text(path, json.dumps({**values, CHECKSUM: digest(values)}, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """The values of a file of `write_json`; raises `DamagedFile` unless they are those that were written."""
    values = parse_json(_bytes(path), path)
    if not isinstance(values, dict) or values.pop(CHECKSUM, None) != digest(values):
        raise DamagedFile(f"{path} is damaged: its values do not match their checksum")
    return values


def parse_json(content: bytes, path: Path | str) -> Any:
    """Values of JSON; raises `DamagedFile` with the name of the file if it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged or cut short: {error}") from error


def write_signed(path: Path, text: str) -> None:
    """Write a text file whole, with a checksum in a comment as its last line; see `read_signed`."""
    write_text(path, f"{text}{_LINE}{hashlib.sha256(text.encode()).hexdigest()}\n")


def read_signed(path: Path) -> str:
    """The text of a file of `write_signed`, or of one without a checksum; `DamagedFile` if they do not match."""
    try:
        text = _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is damaged: it is not UTF-8 ({error})") from error
    body, mark, checksum = text.rpartition(_LINE)
    if not mark:
        return text
    if checksum.strip() != hashlib.sha256(body.encode()).hexdigest():
        raise DamagedFile(
            f"{path} does not match the checksum in its last line: it is damaged, or was changed by hand; if you "
            "changed it, delete that line"
        )
    return body


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of values that JSON can hold, whatever the order of keys and the spacing of the file.

    Example:
        >>> digest({"a": 1, "b": [2.5]}) == digest({"b": [2.5], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of the content of a file; raises `DamagedFile` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush folders
            raise
    finally:
        os.close(handle)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DamagedFile:
    missing = isinstance(error, FileNotFoundError)
    return DamagedFile(f"{path} is missing" if missing else f"{path} cannot be read: {error.strerror}")
