"""Text files: read as UTF-8, with the place of what is wrong, and found in a folder."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(path: Path) -> str:
    r"""The text of a UTF-8 file: without a byte order mark, its line ends as `\n`.

    Raises:
        ValueError: it is not UTF-8, naming the byte and the line.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)  # counted after the mark
        line = content.count(b"\n", 0, at) + 1
        what = _MARKS.get(content[:2])
        hint = f"it looks like {what}" if what else "it may be of another encoding, such as Latin-1 or Windows-1252"
        raise ValueError(
            f"{path}, line {line}: byte {at} (0x{content[at]:02x}) is not UTF-8; {hint}: save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def files_of(folder: Path, pattern: str) -> list[Path]:
    """The files anywhere under a folder whose names match a pattern such as `*.txt`, in the order of their paths.

    Raises:
        ValueError: the folder is none, or holds no such file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    found = sorted(path for path in folder.rglob("*") if fnmatch(path.name, pattern) and path.is_file())
    if not found:
        raise ValueError(f"{folder} and the folders in it hold no file that matches {pattern!r}")
    return found
