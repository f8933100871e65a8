"""All rows of a source by their content, as many as a time allows: the common ground of leakage audits."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from kshot.checking.contents import Contents, contents_of, sketcher_of
from kshot.checking.duplicates import content_hashes
from kshot.checking.findings import Part, parts_of
from kshot.tasks.read_log import Watched, unwatched
from kshot.tasks.source import TaskSource
from kshot.types import Split

SECONDS = 20.0
"""Time to read the rows of a source; of larger sources, a random sample is read."""

PROBED = 256  # rows that are read to measure how long reading takes


class Scan(NamedTuple):
    """The contents of the rows of each split, part by part; the number of rows looked at, and that of all rows."""

    contents: dict[Split, list[Contents]]
    looked_at: int
    total: int


_scans: WeakKeyDictionary[TaskSource, dict[tuple[Split, ...], Scan | None]] = WeakKeyDictionary()


def scan(source: TaskSource, splits: Sequence[Split], *, seconds: float = SECONDS) -> Scan | None:
    """Hash and sketch the rows of some splits of a source; None if it does not list them.

    The result is kept as long as the source: its rows are fixed.

    Args:
        source: a source, watched or not; for a mixture, the rows of all its sources.
        seconds: limit of the time, roughly; a smaller split is read completely before a larger one.

    Example:
        >>> from kshot.tasks import ClassTasks
        >>> rows = {"train": {"a": range(10), "b": range(10, 20)}, "test": {"c": range(20, 30), "d": range(30, 40)}}
        >>> images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
        >>> scanned = scan(ClassTasks(images, rows, ways=2, shots=1, queries=2), ["train", "test"])
        >>> scanned.looked_at, scanned.total
        (40, 40)
    """
    watched_source, source = source, unwatched(source)
    key = tuple(splits)
    try:
        kept = _scans.setdefault(source, {})
    except TypeError:  # a source that has no hash
        kept = {}
    if key not in kept:
        try:
            kept[key] = _scan(source, splits, seconds)
        except ValueError:  # such as an image that cannot be decoded; no task may ever draw it
            kept[key] = None
    scanned = kept[key]
    if scanned and isinstance(watched_source, Watched):
        for split in scanned.contents:
            watched_source.log_read(split, 1)
    return scanned


def _scan(source: TaskSource, splits: Sequence[Split], seconds: float) -> Scan | None:
    contents: dict[Split, list[Contents]] = defaultdict(list)
    looked_at = total = 0
    parts = [part for part in parts_of(source) if isinstance(part.source, TaskSource) and part.source.copies_are_errors]
    for part in parts:
        own = tuple(split for split in splits if split in part.splits and part.source.members(split))
        if not own:
            continue
        part = part._replace(splits=own)
        rows, num_chosen, num_rows = choose(part, _affordable(part, seconds / len(parts)), set())
        looked_at, total = looked_at + num_chosen, total + num_rows
        tasks = [part.source.task(own[0], 0)]  # the kind of example
        sketcher = sketcher_of(part, rows, {})
        for split in own:
            contents[split].append(contents_of(part, rows[split], tasks, sketcher))
    return Scan(dict(contents), looked_at, total) if contents else None


def _affordable(part: Part, seconds: float) -> int:
    """The number of rows that can be read and hashed in a time."""
    source: Any = part.source
    rows = np.concatenate([own for split in part.splits for own in source.members(split).values()])
    some = np.random.default_rng(0).permutation(rows)[:PROBED]
    started = time.monotonic()
    content_hashes(source.examples.take(np.sort(some)))
    each = (time.monotonic() - started) / max(len(some), 1)
    return min(len(rows), max(PROBED, int(seconds / (2 * each + 1e-9))))  # hashing, and as long again for sketches


def choose(part: Part, most: int, bad: set[int]) -> tuple[dict[Split, dict[str, np.ndarray]], int, int]:
    """Random rows by split and member, small splits completely; the number of these rows, and that of all rows."""
    members = {split: rows for split in part.splits if (rows := part.source.members(split))}
    sizes = {split: sum(map(len, rows.values())) for split, rows in members.items()}
    left, chosen = most, {}
    for number, split in enumerate(sorted(sizes, key=lambda split: sizes[split])):
        count = min(sizes[split], left // (len(sizes) - number))
        left -= count
        rows = members[split]
        flat = np.concatenate(list(rows.values()))
        owner = np.repeat(np.arange(len(rows)), [len(of_member) for of_member in rows.values()])
        positions = np.sort(np.random.default_rng(0).permutation(len(flat))[:count])
        positions = positions[~np.isin(flat[positions], list(bad))] if bad else positions
        bounds = owner[positions].searchsorted(np.arange(1, len(rows)))
        chosen[split] = dict(zip(rows, np.split(flat[positions], bounds)))
    return chosen, most - left, sum(sizes.values())
