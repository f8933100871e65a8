"""The class splits that the literature compares on, read from files that a user has."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kshot.types import SPLITS, Split


class Published(NamedTuple):
    """A split that papers use.

    Attributes:
        folder: where its files lie in the data set `fewshot_image_splits`.
        of: what its files list: classes, or the domains (superclasses) that whole classes go by.
        paper: where it was made.
    """

    folder: str
    of: Literal["class", "domain"]
    paper: str


PUBLISHED = {
    "miniimagenet": Published("miniimagenet_ravi", "class", "Ravi, Larochelle, ICLR 2017"),
    "cifar-fs": Published("torchmeta/cifar100/cifar-fs", "class", "Bertinetto et al., arXiv:1805.08136"),
    "fc100": Published("torchmeta/cifar100/fc100", "domain", "Oreshkin et al., arXiv:1805.10123"),
    "cub": Published("torchmeta/cub", "class", "Hilliard et al., arXiv:1802.04376"),
    "omniglot": Published("torchmeta/omniglot", "class", "Vinyals et al., arXiv:1606.04080"),
}

_SUFFIXES = (".csv", ".csv.gz", ".json", ".txt")


def read_lists(folder: Path) -> dict[Split, dict[str, str]]:
    """The names that the files train, val and test of a folder list, and the place of each in them.

    Files are `.txt` with one name a line; `.csv` or `.csv.gz` with a column label; or `.json` with a list of names, of
    paths such as ["flowers", "rose"], or names nested in objects as in {"images_background": {"Greek": ["alpha"]}},
    which are joined by "/" but for the outermost.

    Raises:
        ValueError: no such folder or file, a file that cannot be read, a name in two splits.
    """
    found: dict[Split, dict[str, str]] = {}
    home: dict[str, Split] = {}
    for split in SPLITS:
        paths = [path for suffix in _SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
        if not paths:
            raise ValueError(f"{folder} holds no {split} list: expected {split} with one of {', '.join(_SUFFIXES)}")
        found[split] = {}
        for name, place in _names(paths[0]):
            if home.setdefault(name, split) != split:
                raise ValueError(f"{place}: {name!r} stands in {home[name]} too; keep it in one of them")
            found[split].setdefault(name, place)
    return found


def _names(path: Path) -> Iterable[tuple[str, str]]:
    """Names and their places."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if path.suffix == ".json":
        try:
            return [(name, str(path)) for name in _nested(json.loads(text), path)]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: this is not JSON: {error.msg}") from None
    lines = text.splitlines()
    if path.suffix == ".txt":
        return [(line.strip(), f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    rows = csv.DictReader(io.StringIO(text))
    if "label" not in (rows.fieldnames or ()):
        raise ValueError(
            f"{path}, line 1: expected a column label, got {', '.join(rows.fieldnames or ()) or 'nothing'}"
        )
    return [(row["label"], f"{path}, line {rows.line_num}") for row in rows if row["label"]]


def _nested(value: Any, path: Path) -> list[str]:
    """The names in a JSON value."""
    if isinstance(value, dict):
        return [name for inner in value.values() for name in _under("", inner, path)]
    return _under("", value, path)


def _under(prefix: str, value: Any, path: Path) -> list[str]:
    if isinstance(value, dict):
        return [name for key, inner in value.items() for name in _under(f"{prefix}{key}/", inner, path)]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return [prefix + name for name in value]
    if isinstance(value, list) and all(isinstance(pair, list) and pair for pair in value):
        return [prefix + "/".join(map(str, pair)) for pair in value]
    raise ValueError(f"{path}: expected lists of names, got {str(value)[:40]!r}")
