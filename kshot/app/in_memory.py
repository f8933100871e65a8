"""Sources that are given as objects, and how a run file names them.

A run file is text, and cannot hold a source that was made in Python. It holds the hash of its first tasks, by which the
source is found again in the process that gave it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from kshot.tasks.source import TaskSource, check_source, hash_into
from kshot.types import Split

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
