"""Files that are written whole or not at all, and that are known to be undamaged when they are read.

A file is written beside its place, flushed to the disk and renamed into it: a reader, a full disk and a killed process
see the old file or the new one. What figures depend on carries a SHA-256, which is compared when it is read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from kshot import bounded

CHECKSUM = "content_sha256"
"""Key of the checksum in the JSON files of `write_json`."""
LINE_CHECKSUM, AFTER = "check", "after"
"""Keys of the checksum in the lines of `append_line`, and of that of the line before it."""
PART = ".part"
"""Suffix of files that are being written; those of killed processes may be deleted."""
_LINE = "# sha256: "
_LEFT = re.compile(rf"\..+\.[0-9a-f]{{12}}{re.escape(PART)}")


class DamagedFile(ValueError):
    """A file that is missing, cut short or changed since it was written; the message names it."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder to be made; renamed to `path` if the block succeeds.

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
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
        raise
    sync(path.parent)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder to a path that does not exist; the copy is there as a whole or not at all."""
    with whole_file(target) as temporary:
        shutil.copytree(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def check_writable(path: Path) -> None:
    """Raise ValueError if a file cannot be written at `path`, before the work whose result it is to hold.

    Its folder is made if it is not there.

    Example:
        >>> check_writable(Path("/dev/null/state"))
        Traceback (most recent call last):
        ValueError: /dev/null/state cannot be written (/dev/null is no folder): choose another place
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    folder = next(each for each in path.parents if each.exists())
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be written ({folder} is no folder): choose another place")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.{secrets.token_hex(6)}{PART}")
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be written ({reason}): choose another place") from None


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
    if CHECKSUM in values:
        raise ValueError(f"{path} cannot hold the key {CHECKSUM!r}, which is that of its checksum")
    write_text(path, json.dumps({**values, CHECKSUM: digest(values)}, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The values of a file of `write_json`; raises `DamagedFile` unless they are those that were written."""
    values = parse_json(_bytes(path), path)
    if not isinstance(values, dict) or values.pop(CHECKSUM, None) != digest(values):
        raise DamagedFile(f"{path} is damaged: its values do not match their checksum")
    return values


def parse_json(content: bytes, path: Path | str) -> Any:
    """Values of JSON; raises `DamagedFile` with the name of the file if it is none."""
    try:
        return bounded.parse_json(content)
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged or cut short: {error}") from error


def write_signed(path: Path, text: str) -> None:
    """Write a text file whole, with a checksum in a comment as its first line; see `read_signed`."""
    write_text(path, f"{_LINE}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_signed(path: Path) -> tuple[str, bool]:
    """The text of a file of `write_signed`, and whether it has a checksum, without which every text is accepted.

    The checksum comes first, so that a file that was cut short has one too.

    Raises:
        DamagedFile: the text does not match its checksum, or the file is missing or not UTF-8.
    """
    try:
        text = _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is damaged: it is not UTF-8 ({error})") from error
    first, _, body = text.partition("\n")
    if not first.startswith(_LINE):
        return text, False
    if first.removeprefix(_LINE) != hashlib.sha256(body.encode()).hexdigest():
        raise DamagedFile(
            f"{path} does not match the checksum in its first line: it is damaged, or was changed by hand; if you "
            "changed it, delete that line"
        )
    return body, True


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of values that JSON can hold, whatever the order of keys and the spacing of the file.

    Example:
        >>> digest({"a": 1, "b": [2.5]}) == digest({"b": [2.5], "a": 1})
        True
    """
    plain = json.loads(json.dumps(values))  # keys that are no strings become some, and then have another order
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of the content of a file; raises `DamagedFile` if it cannot be read."""
    try:
        with bounded.open_file(path) as file:
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
        return bounded.read_bytes(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DamagedFile:
    missing = isinstance(error, FileNotFoundError)
    return DamagedFile(f"{path} is missing" if missing else f"{path} cannot be read: {error.strerror}")


class Lines(NamedTuple):
    """What a file of `append_line` holds.

    Attributes:
        values, checks: the values of each whole line, and its checksum.
        damaged: the numbers from 1 of lines that were damaged since they were written, or before which lines are lost.
    """

    values: list[dict[str, Any]]
    checks: list[str]
    damaged: list[int]


def append_line(path: Path, values: Mapping[str, Any], after: str = "") -> str:
    """Append values as a line of JSON, on a line of its own even after one that was cut short.

    Args:
        after: checksum of the last whole line, "" for the first; it tells a line that was lost or damaged from one
            that was never written whole.

    Returns:
        The checksum of the line.
    """
    values = {**values, AFTER: after}
    check = digest(values)[:16]
    with path.open("ab+") as file:
        start = b""
        if file.tell():
            file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) == b"\n" else b"\n"
        file.write(start + json.dumps({**values, LINE_CHECKSUM: check}).encode() + b"\n")
    return check


def read_lines(path: Path) -> Lines:
    """The lines of a file of `append_line`; those that a kill cut short are left out.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log"
        >>> first = append_line(path, {"step": 1})
        >>> _ = append_line(path, {"step": 2}, first)
        >>> _ = path.write_text(path.read_text()[:-9])  # as a killed process leaves it
        >>> _ = append_line(path, {"step": 2}, first)
        >>> read_lines(path).values, read_lines(path).damaged
        ([{'step': 1}, {'step': 2}], [])
        >>> _ = path.write_text(path.read_text().replace('"step": 1', '"step": 3'))
        >>> read_lines(path).values, read_lines(path).damaged
        ([{'step': 2}], [1, 2])
    """
    found = Lines([], [], [])
    lines = _bytes(path).split(b"\n") if path.exists() else []
    unknown: list[int] = []  # lines that are none: cut short if the next whole line follows the one before them
    for number, line in enumerate(lines, 1):
        values = _checked_line(line)
        if values is None:
            unknown.append(number)
            continue
        check, last = values.pop(LINE_CHECKSUM), found.checks[-1] if found.checks else ""
        if values.pop(AFTER) != last:
            found.damaged.extend(unknown or [number])
        unknown = []
        found.values.append(values)
        found.checks.append(check)
    found.damaged.extend(number for number in unknown if number < len(lines) and lines[number - 1].endswith(b"}"))
    return found


def _checked_line(line: bytes) -> dict[str, Any] | None:
    """The values of a whole line of `append_line`; None if it is none."""
    try:
        values = bounded.parse_json(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or AFTER not in values:
        return None
    check = values.get(LINE_CHECKSUM)
    rest = {key: value for key, value in values.items() if key != LINE_CHECKSUM}
    return values if check == digest(rest)[:16] else None


LOCK, OWNER = ".lock", ".owner.json"
"""Names of the files in a folder by which a process holds it."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold a folder for writing, made if needed, as the only process; that of a process that died is free.

    Raises:
        ValueError: another process holds it; the message says which.
    """
    from filelock import FileLock, Timeout

    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is being written by {_owner(folder)}: wait for it, or choose another folder"
        ) from None
    try:
        for left in folder.rglob(f".*{PART}"):
            if _LEFT.fullmatch(left.name) and left.is_file():  # of a process that was killed
                left.unlink()
        about = {"process": os.getpid(), "host": platform.node(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_json(folder / OWNER, about)
        yield
    finally:
        with suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()
        if made and is_empty(folder):  # nothing was written, as where the input was refused
            shutil.rmtree(folder, ignore_errors=True)


def is_empty(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but its lock, what file managers put there, and half files."""
    ignored = {LOCK, OWNER, ".DS_Store"}
    if not folder.exists():
        return True
    return folder.is_dir() and all(path.name in ignored or _LEFT.fullmatch(path.name) for path in folder.iterdir())


def owner_of(folder: Path) -> str:
    """The process that holds a folder by `owned`, such as "process 7 on host since …"; "" if none on this host does."""
    import psutil

    try:
        about = read_json(folder / OWNER)
        alive = about["host"] == platform.node() and psutil.pid_exists(about["process"])
    except (DamagedFile, KeyError, TypeError):
        return ""
    return _owner(folder) if alive else ""


def _owner(folder: Path) -> str:
    try:
        return "process {process} on {host} since {started}".format(**read_json(folder / OWNER))
    except (DamagedFile, KeyError):
        return "another process"


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    r"""Rows as CSV in which no cell is a formula to a spreadsheet.

    A text that begins as a formula does has an apostrophe before it, by which spreadsheets know a text.

    Example:
        >>> print(csv_text([["name", "mse"], ["=1+1", -0.5], ["a,b", None]]), end="")
        name,mse
        '=1+1,-0.5
        "a,b",
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def _cell(cell: Any) -> Any:
    formula = isinstance(cell, str) and cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{cell}" if formula else cell
