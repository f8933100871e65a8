"""The one way in which files of text are opened: encodings, byte order marks, line ends, and errors with a line.

Tables, running text, lists and JSON all come through here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kshot.bounded import parse_json, read_bytes, unpacked
from kshot.limits import OverLimit

_BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32",
         b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # fmt: skip
_NOT_TEXT = {b"PK\x03\x04": "a zip or an Excel workbook: name it .xlsx, or save the sheet as CSV",
             b"\x1f\x8b": "compressed by gzip: name it as in .csv.gz, or unpack it",
             b"\x28\xb5\x2f\xfd": "compressed by zstd: name it as in .csv.zst, or unpack it",
             b"PAR1": "a Parquet file: name it .parquet",
             b"SQLite format 3": "an SQLite database: export the table as CSV", b"%PDF": "a PDF"}  # fmt: skip


def read_text(path: Path, encoding: str | None = None, most: int | None = None) -> str:
    r"""Read a file as text, without byte order mark, line ends as `\n`.

    By default its encoding is what its byte order mark or the zeros of UTF-16 tell, else UTF-8. No other encoding is
    guessed, as a wrong guess would corrupt words silently.

    Raises:
        OverLimit: it has more than `most` bytes, by default those of `kshot.limits`, also after unpacking.
        ValueError: the file cannot be read, is not text or has another encoding.
    """
    return read_utf8(path, encoding, most).decode().replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, encoding: str | None = None) -> Any:
    """Read a JSON file; ValueError as `read_text`, or if the content is not JSON."""
    text = read_text(path, encoding)
    try:
        return parse_json(text)
    except OverLimit as error:
        raise OverLimit(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def read_utf8(path: Path, encoding: str | None = None, most: int | None = None) -> bytes:
    r"""Read a file as `read_text` does, but as UTF-8, with line ends `\n` or `\r\n`."""
    try:
        content = read_bytes(path, most)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return to_utf8(_unpacked(content, path), encoding, str(path))


def _unpacked(content: bytes, path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz or .zst."""
    kind = path.suffix.lower().removeprefix(".")
    try:
        return unpacked(content, kind, str(path)) if kind in ("gz", "zst") else content
    except (OverLimit, MemoryError):
        raise
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: zstd needs the package zstandard: pip install 'kshot[files]', or unpack the file"
        ) from None
    except Exception as error:  # each of these packages raises errors of its own
        raise ValueError(f"{path} cannot be unpacked: {error}; get it again, or unpack it") from None


def to_utf8(content: bytes, encoding: str | None, name: str) -> bytes:
    """The content of a file of text as UTF-8; as `read_utf8`, with a name for errors."""
    for signature, kind in _NOT_TEXT.items():
        if content.startswith(signature):
            raise ValueError(f"{name} is {kind}")
    bom = next((bom for bom in _BOMS if content.startswith(bom)), b"")
    encoding = encoding or _BOMS.get(bom) or _utf16_without_bom(content)
    if encoding and encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
        try:
            content = content.decode(encoding).removeprefix("\ufeff").encode()
        except LookupError:
            raise ValueError(
                f"{name}: there is no encoding {encoding!r}; common ones are utf-8, latin-1, cp1252 and utf-16"
            ) from None
        except (UnicodeError, ValueError) as error:
            raise ValueError(f"{name} is not {encoding}: {error}; set its encoding by reading.encoding") from None
    else:
        content = content[len(bom) :]
        try:
            content.decode()
        except UnicodeDecodeError as error:
            byte = content[error.start]
            raise ValueError(
                f"{name}, line {_line(content, error.start)}: byte {byte:#04x} is not UTF-8 (in latin-1 it is "
                f"{chr(byte)!r}); save the file as UTF-8, or set its encoding by reading.encoding, such as latin-1 or "
                "cp1252"
            ) from None
    if b"\0" in content:
        raise ValueError(f"{name}, line {_line(content, content.index(0))}: contains a zero byte, so it is not text")
    return content.replace(b"\r", b"\n") if b"\r" in content and b"\n" not in content else content


def _line(content: bytes, offset: int) -> int:
    return content.count(b"\n", 0, offset) + 1


def _utf16_without_bom(content: bytes) -> str | None:
    """UTF-16 if every second byte of most characters is zero, as in Latin text."""
    head = np.frombuffer(content[: 1 << 12], np.uint8)
    head = head[: len(head) // 2 * 2].reshape(-1, 2)
    if not len(head):
        return None
    big, little = (head == 0).mean(0)
    if max(big, little) < 0.8 or min(big, little) > 0.1:
        return None
    return "utf-16-le" if little > big else "utf-16-be"
