"""Opening of the known data sets that have a factory, for `kshot data add` and `kshot data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kshot import sources
from kshot.data.library import Counts


def open_known(name: str, folder: Path | None = None, **options: Any) -> Counts:
    """Open a data set by its factory in `kshot.sources`, draw one task, and count classes and drawings of each split.

    Without `folder` its files are where the library finds them. The counts are empty if the tasks have no classes.

    Raises:
        ValueError: the set was not found or is damaged.
    """
    source = getattr(sources, name)(**({} if folder is None else {"path": folder}), **options)
    source.task("test", 0)
    counts = {}
    for split in getattr(source, "class_names", ()):
        classes = source.classes(split)
        counts[split] = {"classes": len(classes), "drawings": sum(map(len, classes.values()))}
    return counts
