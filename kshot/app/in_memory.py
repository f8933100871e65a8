"""Sources and tables that are given as objects, and how a run file names them.

A run file is text, and cannot hold what was made in Python. It holds a hash of the first tasks of a source, or of the
content of a table, by which they are found again in the process that gave them; images are written into the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import yaml

from kshot.data.images.in_memory import kept_images, kept_labelled_images, kept_masks
from kshot.data.tables.frames import keep
from kshot.tasks.source import TaskSource, check_source, hash_into
from kshot.types import Split

TABLES = ("path", "users", "items")
"""Keys of a source that may hold a table."""
HASHED: tuple[Split, ...] = ("train", "val")
FIRST = 8
"""The splits, and the number of the first tasks of each, that are hashed."""

_GIVEN: dict[str, TaskSource] = {}


def register(source: TaskSource) -> dict[str, Any]:
    """Keep a source for `given`, and return how a run file names it; ValueError if it has too few tasks.

    Example:
        >>> register(kshot.sources.sinusoids())["kind"]
        'kshot.app.in_memory:given'
    """
    check_source(source)
    name = hash_of(source)
    _GIVEN[name] = source
    return {"kind": f"{given.__module__}:{given.__name__}", "tasks": name}


def as_text(values: Mapping[str, Any]) -> str:
    """The values of a run file as YAML. Its source may be an object, and its tables may be in memory (`TableLike`).

    Raises:
        ValueError: an object that is neither; the source has too few tasks.

    Example:
        >>> print(as_text({"name": "ours", "source": {"kind": "table", "path": {"x": [1, 2], "y": [3, 4]}}}))
        name: ours
        source:
          kind: table
          path: memory:...
    """
    source = values.get("source")
    named = register(source) if isinstance(source, TaskSource) else _named(source)
    plain = _plain({**values, "source": named} if "source" in values else values)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _named(section: Any) -> Any:
    """A section of a source in which data in memory are replaced by their names, also in the sources within it."""
    if isinstance(section, Mapping):
        return {
            key: _kept(value, section) if key in TABLES and not _is_written(value) else _named(value)
            for key, value in section.items()
        }
    return section


def _is_written(value: Any) -> bool:
    """Whether it is what a run file holds: nothing, a path, the URL of a database, or several of them."""
    several = isinstance(value, list | tuple) and all(isinstance(each, str | PathLike) for each in value)
    return value is None or isinstance(value, str | PathLike) or several


def _kept(data: Any, section: Mapping[str, Any]) -> str:
    """What names data in memory: a table's hash, or the path to which images are written."""
    if section.get("kind") == "multilabel_images":
        return str(kept_labelled_images(data, section.get("separator", ";")))
    images = {"images": kept_images, "masks": kept_masks}
    return str(images.get(str(section.get("kind")), keep)(data))


def _plain(value: Any) -> Any:
    """What YAML can write; ValueError for anything else."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    if isinstance(value, PathLike):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy or torch
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(
        f"a run file holds numbers, words, lists and mappings, and this one has a {type(value).__name__}; only the "
        f"source may be an object, and its {', '.join(TABLES)} a table in memory"
    )


def hash_of(source: TaskSource) -> str:
    """16 hexadecimal digits that say whether two sources have the same tasks."""
    digest = hashlib.sha256()
    for split in HASHED:
        count = source.num_tasks(split)
        for index in range(FIRST if count is None else min(FIRST, count)):
            hash_into(digest, source.task(split, index))
    return digest.hexdigest()[:16]


def given(tasks: str) -> TaskSource:
    """The source that this process was given, by the hash of its first tasks.

    Raises:
        ValueError: this process was given none with these tasks.
    """
    if tasks not in _GIVEN:
        raise ValueError(
            f"the tasks {tasks} of this run were given as an object in Python, which no file holds: give the same "
            "source first by kshot.app.in_memory.register(source)"
        )
    return _GIVEN[tasks]
