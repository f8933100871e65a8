"""The image files of a table in which each has any number of labels; no image is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kshot.data.images.index import ImageFile, files_of, warn_of_similar_names
from kshot.data.tables.open import open_table


class LabelListing(NamedTuple):
    """The images of a table in which each has any number of labels.

    Attributes:
        root: folder to which the paths of the files are relative.
        files: row i is file i.
        labels: label to the rows that have it.
    """

    root: Path
    files: list[ImageFile]
    labels: dict[str, list[int]]


def list_labels(
    path: Path, labels: str | Sequence[str] = "labels", *, separator: str = ";", follow_links: bool = False
) -> LabelListing:
    """List the images of a table with the column path, and the labels of each.

    Args:
        path: of the table; its paths are relative to its folder.
        labels: the column that holds the labels of an image, "cat;dog", empty for none; or a column for each label,
            which is true or false, yes or no, or 1 or 0; no columns for all but path.
        separator: between the labels in one column.
        follow_links: as in `list_table`.

    Raises:
        ValueError: what `list_table` raises, a column that is missing, a cell that is neither true nor false, or no
            label at all.
    """
    import polars as pl

    table = open_table(path)
    written = labels if isinstance(labels, str) else list(labels) or [c for c in table.frame.columns if c != "path"]
    table.need("path", *([written] if isinstance(written, str) else written))
    paths = table.frame["path"].cast(pl.String).fill_null("")
    table.missing("path", (paths.str.strip_chars() == "").to_numpy(), "each image needs a path")
    rows: dict[str, list[int]] = {}
    if isinstance(written, str):
        for row, cell in enumerate(table.frame[written].cast(pl.String).fill_null("").to_list()):
            for label in dict.fromkeys(filter(None, map(str.strip, cell.split(separator)))):
                rows.setdefault(label, []).append(row)
    else:
        for name in written:
            values = table.booleans(name)
            table.missing(name, np.isnan(values), "each image needs true or false")
            rows[name] = np.flatnonzero(values == 1).tolist()
    table.settle()
    if not any(rows.values()):
        raise ValueError(f"{path} holds no labels; write those of an image as cat{separator}dog in a column labels")
    warn_of_similar_names(rows)
    return LabelListing(path.parent, files_of(table, paths.to_list(), follow_links), rows)
