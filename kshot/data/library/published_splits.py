"""The class splits that papers compare on, read from local files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kshot.data.text_files import read_json, read_text
from kshot.types import SPLITS, Split


class Published(NamedTuple):
    """A published split: its folder in `fewshot_image_splits`, what its files list, and the paper that introduced it.

    They list classes, or the domains (superclasses) of classes.
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
    """Read the names in the files train, val and test of a folder, each with its location.

    Files are `.txt` with one name a line; `.csv` or `.csv.gz` with a column label; or `.json` with a list of names, of
    paths such as ["flowers", "rose"], or names nested in objects as in {"images_background": {"Greek": ["alpha"]}}.
    Keys of nested objects but the outermost are joined to the names by "/".

    Raises:
        ValueError: a missing or unreadable file, or a name in two splits.
    """
    lists: dict[Split, dict[str, str]] = {}
    split_of: dict[str, Split] = {}
    for split in SPLITS:
        paths = [path for suffix in _SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
        if not paths:
            raise ValueError(f"{folder} holds no {split} list: expected {split} with one of {', '.join(_SUFFIXES)}")
        lists[split] = {}
        for name, location in _names(paths[0]):
            if split_of.setdefault(name, split) != split:
                raise ValueError(f"{location}: {name!r} is in {split_of[name]} too; keep it in one of them")
            lists[split].setdefault(name, location)
    return lists


def _names(path: Path) -> Iterator[tuple[str, str]]:
    """Names and their locations."""
    if path.suffix == ".json":
        content = read_json(path)
        nested = content.values() if isinstance(content, dict) else [content]
        yield from ((name, str(path)) for value in nested for name in _joined("", value, path))
        return
    lines = read_text(path).splitlines()
    if path.suffix == ".txt":
        yield from ((line.strip(), f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip())
        return
    rows = csv.DictReader(lines)
    if "label" not in (rows.fieldnames or ()):
        columns = ", ".join(rows.fieldnames or ()) or "nothing"
        raise ValueError(f"{path}, line 1: expected a column label, got {columns}")
    yield from ((row["label"], f"{path}, line {rows.line_num}") for row in rows if row["label"])


def _joined(prefix: str, value: Any, path: Path) -> list[str]:
    if isinstance(value, dict):
        return [name for key, inner in value.items() for name in _joined(f"{prefix}{key}/", inner, path)]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return [prefix + name for name in value]
    if isinstance(value, list) and all(isinstance(parts, list) and parts for parts in value):
        return [prefix + "/".join(map(str, parts)) for parts in value]
    raise ValueError(f"{path}: expected lists of names, got {str(value)[:40]!r}")
